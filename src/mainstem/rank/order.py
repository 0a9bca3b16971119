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


def arrange(
    keys: Keys, score: Floats, limit: int, catalog: Catalog, entity_type: str, caps: Mapping[str, int]
) -> NDArray[np.int64]:
    """Places of the `limit` candidates to show, best first.

    One entity per variant group; at most `caps[attribute]` entities per value of an attribute, as long as
    others are left (a slate is never shorter for diversity's sake). Ties go to the smaller key.
    """
    best = np.lexsort((keys, -score))
    rows = catalog.rows(keys)
    group = catalog.codes("group", rows)
    rules = [(group, 1)] if group.any() else []
    rules += [(catalog.codes(attribute, rows), cap) for attribute, cap in caps.items()]
    if not rules:
        return best[:limit]
    chosen, passed = _capped(best, rules, limit)
    if len(chosen) < limit and caps:  # fill up with what diversity passed over, but never with a second variant
        spare = [at for at in passed if not group[at] or group[at] not in group[chosen]]
        chosen += _capped(np.array(spare, np.int64), rules[:1] if group.any() else [], limit - len(chosen))[0]
    return np.array(chosen, np.int64)


def _capped(best: NDArray[np.int64], rules: Sequence[tuple[Keys, int]], limit: int) -> tuple[list[int], list[int]]:
    """Greedy pass: the places that fit all caps, and those passed over. Code 0 (no value) is never capped."""
    taken: list[dict[int, int]] = [{} for _ in rules]
    chosen: list[int] = []
    passed: list[int] = []
    for at in best.tolist():
        if len(chosen) == limit:
            break
        values = [int(codes[at]) for codes, _ in rules]
        if any(value and taken[i].get(value, 0) >= rules[i][1] for i, value in enumerate(values)):
            passed.append(at)
            continue
        for i, value in enumerate(values):
            taken[i][value] = taken[i].get(value, 0) + 1
        chosen.append(at)
    return chosen, passed
