"""How often keys without a row were seen, in bounded memory: what admission asks.

A count-min sketch with conservative update (Cormode & Muthukrishnan 2005, section 3; Estan & Varghese 2002,
section 4.2): each key has one counter in each of four lines, its count is the least of them, and only what is below
the new count is raised. After every `width` sights all counters are halved, so old sights fade and the sum in a line
stays below 2 width. Against exact counts that are halved likewise it never counts too little.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.keyrows import compiled, mix

__all__ = ["DRAWS", "LINES", "SIGHTED", "draw", "new_sights", "sighted"]

LINES = 4
MOST = 255
SIGHTED, DRAWS = 0, 1
"""Places in the running numbers: sights since the last halving, draws ever."""


def new_sights(width: int) -> NDArray[np.uint8]:
    """Counters, uint8 [LINES, width]; width is a power of two."""
    return np.zeros((LINES, width), np.uint8)


@compiled
def sighted(
    counters: NDArray[np.uint8], running: NDArray[np.uint64], key: np.uint64, sights: int
) -> tuple[int, int]:
    """Count `sights` more of a key: (count before, count after), 255 at most."""
    width = np.uint64(counters.shape[1])
    mask = width - np.uint64(1)
    first = mix(key ^ np.uint64(0xA0761D6478BD642F))
    step = mix(first) | np.uint64(1)
    before = np.int64(MOST)
    for line in range(LINES):
        before = min(before, np.int64(counters[line, (first + np.uint64(line) * step) & mask]))
    after = min(np.int64(MOST), before + min(sights, np.int64(MOST)))
    for line in range(LINES):
        at = (first + np.uint64(line) * step) & mask
        if counters[line, at] < after:
            counters[line, at] = np.uint8(after)
    running[SIGHTED] += np.uint64(sights)
    if running[SIGHTED] >= width:
        running[SIGHTED] = np.uint64(0)
        for line in range(LINES):
            for at in range(width):
                counters[line, at] >>= np.uint8(1)
    return before, after


@compiled
def draw(running: NDArray[np.uint64], key: np.uint64, seed: np.uint64) -> float:
    """Uniform in [0, 1), from the key, the seed and how many draws there were: the same run draws the same."""
    running[DRAWS] += np.uint64(1)
    word = mix(mix(key ^ seed) + running[DRAWS] * np.uint64(0x9E3779B97F4A7C15))
    return np.float64(word >> np.uint64(11)) / 9007199254740992.0
