"""Counting how often keys without a row were seen, in bounded memory, to admit them at the n-th sight.

A count-min sketch with conservative update (Cormode & Muthukrishnan 2005; Estan & Varghese 2002, section 3.3.2): a key
has one cell in each of four lines; its count is the least of the four, and only those that equal it go up. So a count
is never too low; it is too high only where all four cells are shared. So that old sights fade and cells do not fill up,
all counts are halved, rounding down, whenever as many sights were counted as half a line has cells.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.weights.family import Family

__all__ = ["Sights", "admitted", "chances"]

_LINES = 4
_MOST = 255

Counts = NDArray[np.uint8]


@compiled
def _count(cells: Counts, keys: Keys, times: NDArray[np.int64], before: NDArray[np.int64], counted: int) -> int:
    """before[i] = how often keys[i] was seen; then count it times[i] more. Sights since counts were last halved."""
    window = cells.shape[1] // 2
    mask = np.uint64(cells.shape[1] - 1)
    for i in range(len(keys)):
        mixed = mix(keys[i])
        # two halves of one mixed key stand for as many independent hashes as are needed (Kirsch & Mitzenmacher 2006)
        step = (mixed >> np.uint64(32)) | np.uint64(1)
        least = np.int64(_MOST)
        for line in range(_LINES):
            least = min(least, np.int64(cells[line, (mixed + np.uint64(line) * step) & mask]))
        before[i] = least
        after = min(least + times[i], _MOST)
        for line in range(_LINES):
            cell = (mixed + np.uint64(line) * step) & mask
            if np.int64(cells[line, cell]) < after:
                cells[line, cell] = np.uint8(after)
        counted += times[i]
        if counted >= window:
            halvings = min(counted // window, 8)
            for line in range(_LINES):
                for column in range(cells.shape[1]):
                    cells[line, column] >>= np.uint8(halvings)
            counted %= window
    return counted


@compiled
def chances(keys: Keys, seed: np.uint64, number: np.uint64) -> NDArray[np.float64]:
    """One number in [0, 1) for each key, made from key, seed and the number of the draw alone."""
    out = np.empty(len(keys), np.float64)
    salt = mix(mix(seed ^ np.uint64(0x5851F42D4C957F2D)) + number)
    for i in range(len(keys)):
        out[i] = np.float64(mix(keys[i] ^ salt) >> np.uint64(11)) / 9007199254740992.0
    return out


class Sights:
    """Counts up to 255 for any number of keys. cells: of each of the four lines, a power of two; a byte each."""

    def __init__(self, cells: int) -> None:
        if cells < 2 or cells & (cells - 1):
            raise ValueError(f"sight_cells {cells} must be a power of two, 2 or more")
        self.cells: Counts = np.zeros((_LINES, cells), np.uint8)
        self.counted = 0
        """Sights since counts were last halved."""

    def count(self, keys: Keys, times: NDArray[np.int64]) -> NDArray[np.int64]:
        """Count keys [n], distinct, as seen times [n] more; int64 [n]: how often they had been seen before."""
        before = np.empty(len(keys), np.int64)
        self.counted = int(_count(self.cells, keys, times, before, self.counted))
        return before


def admitted(
    keys: Keys, times: NDArray[np.int64], rule: Family, sights: Sights | None, seed: int, number: int
) -> NDArray[np.bool_]:
    """Whether each of these distinct keys, seen so many times now, earns a row; counts the sights.

    seed, number: of the table, and of the draw where the rule leaves it to chance.
    """
    earning = times  # sights from admit_after on
    if rule.admit_after > 1:
        assert sights is not None
        before = sights.count(keys, times)
        earning = np.maximum(times - np.maximum(rule.admit_after - 1 - before, 0), 0)
    if rule.admit_probability == 1:
        return np.greater(earning, 0)
    drawn = chances(keys, np.uint64(seed), np.uint64(number))
    return np.less(drawn, 1 - (1 - rule.admit_probability) ** earning.astype(np.float64))
