"""Stage 4: one score per candidate from the heads' weights, then who stands where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats

__all__ = ["arrange", "combine"]


def combine(scores: Floats, heads: Sequence[str], weights: Mapping[str, float]) -> Floats:
    """Weighted sum over heads: scores [n, h] -> [n]. No weights configured: every head counts 1."""
    w = np.array([weights.get(head, 0.0) if weights else 1.0 for head in heads], np.float32)
    return scores @ w


def arrange(keys: Keys, score: Floats, limit: int, catalog: Catalog, caps: Mapping[str, int]) -> NDArray[np.int64]:
    """Places of the at most `limit` candidates to show: keys [n] distinct, score [n] finite -> int64 [m].

    The best of each variant group stands for it. Of those the best first, but at most `caps[attribute]` with the
    same value of the attribute; where that leaves places empty, the best of what it passed over follow (a slate
    is never shorter for diversity's sake). Ties go to the smaller key; no value (code 0) is never capped.
    """
    best = np.lexsort((keys, -score))
    rows = catalog.rows(keys[best])
    group = catalog.codes("group", rows)
    if group.any():
        single = group == 0
        single[np.unique(group, return_index=True)[1]] = True
        best, rows = best[single], rows[single]
    if not caps:
        return best[:limit]
    rules = [(catalog.codes(attribute, rows).tolist(), cap) for attribute, cap in caps.items()]
    return best[_capped(len(best), rules, limit)]


def _capped(n: int, rules: Sequence[tuple[Sequence[int], int]], limit: int) -> list[int]:
    """Greedy pass over places 0 .. n: those that fit all caps, then those passed over, `limit` in all."""
    taken: list[dict[int, int]] = [{} for _ in rules]
    chosen: list[int] = []
    passed: list[int] = []
    for at in range(n):
        if len(chosen) == limit:
            break
        values = [codes[at] for codes, _ in rules]
        if any(value and taken[i].get(value, 0) >= rules[i][1] for i, value in enumerate(values)):
            passed.append(at)
            continue
        for i, value in enumerate(values):
            taken[i][value] = taken[i].get(value, 0) + 1
        chosen.append(at)
    return (chosen + passed)[:limit]
