"""Item-item nearest neighbours, incremental and bounded: the classic of "bought together".

Sarwar et al., WWW 2001 (cosine of co-purchase); bounded per item in the manner of Misra & Gries 1982.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mainstem.evaluate.baselines import FilledUp, UserItems

__all__ = ["ItemNeighbours"]

Ints = NDArray[np.int64]


@njit(cache=True, nogil=True)
def _pair(item: int, other: int, ids: NDArray[np.int32], counts: NDArray[np.float32]) -> None:
    """One more co-purchase of `other` in the row of `item`. A full row loses one count from its weakest
    entry instead, which gives its place up at zero: rare neighbours never inherit a count they did not earn."""
    weakest = 0
    for slot in range(ids.shape[1]):
        if ids[item, slot] == other:
            counts[item, slot] += 1.0
            return
        if ids[item, slot] < 0:
            ids[item, slot] = other
            counts[item, slot] = 1.0
            return
        if counts[item, slot] < counts[item, weakest]:
            weakest = slot
    counts[item, weakest] -= 1.0
    if counts[item, weakest] <= 0.0:
        ids[item, weakest] = other
        counts[item, weakest] = 1.0


@njit(cache=True, nogil=True)
def _study_basket(basket: Ints, earlier: Ints, span: int, ids: NDArray[np.int32], counts: NDArray[np.float32]) -> None:
    """Pair each item with up to `span` items before it in the basket, then with what the user took earlier."""
    for i in range(len(basket)):
        left = span
        for j in range(i - 1, max(-1, i - 1 - span), -1):
            _pair(basket[i], basket[j], ids, counts)
            _pair(basket[j], basket[i], ids, counts)
            left -= 1
        for j in range(min(left, len(earlier))):
            if earlier[j] != basket[i]:
                _pair(basket[i], earlier[j], ids, counts)
                _pair(earlier[j], basket[i], ids, counts)


@njit(cache=True, nogil=True)
def _sum_cosines(
    recent: Ints, ids: NDArray[np.int32], counts: NDArray[np.float32], taken: NDArray[np.float32],
    shrink: float, sums: NDArray[np.float32], touched: Ints,
) -> int:  # fmt: skip
    """Adds cosine(item, neighbour) into `sums` and lists the neighbours in `touched`; how many there are."""
    n = 0
    for item in recent:
        for slot in range(ids.shape[1]):
            other = ids[item, slot]
            if other < 0:
                break
            if sums[other] == 0.0:
                touched[n] = other
                n += 1
            sums[other] += counts[item, slot] / (np.sqrt(taken[item] * taken[other]) + shrink)
    return n


class ItemNeighbours(FilledUp):
    """Sum of cosines between the user's `recent` last items and their kept `neighbours`; filled up with popular lately.

    cosine(i, j) = together(i, j) / (sqrt(taken(i) taken(j)) + shrink), together counted within `span` items of
    a basket and the user's basket before. Memory: 8 bytes x `neighbours` per item.
    """

    def __init__(
        self, recent: int = 128, neighbours: int = 64, span: int = 16, shrink: float = 20.0, days: float = 7,
        name: str = "item neighbours",
    ) -> None:  # fmt: skip
        super().__init__(name, days)
        self._recent, self._span, self._shrink = recent, span, shrink
        self._ids = np.full((1024, neighbours), -1, np.int32)
        self._counts = np.zeros((1024, neighbours), np.float32)
        self._taken = np.zeros(1024, np.float32)
        self._sums = np.zeros(1024, np.float32)
        self._touched = np.zeros(recent * neighbours, np.int64)

    def _grow(self) -> None:
        while len(self._vocabulary) > len(self._ids):
            self._ids = np.concatenate((self._ids, np.full_like(self._ids, -1)))
            self._counts = np.concatenate((self._counts, np.zeros_like(self._counts)))
            self._taken = np.concatenate((self._taken, np.zeros_like(self._taken)))
            self._sums = np.concatenate((self._sums, np.zeros_like(self._sums)))

    def _study(self, rows: list[int], had: UserItems) -> None:
        self._grow()
        basket = np.array(rows, np.int64)
        self._taken[basket] += 1.0
        _study_basket(basket, had.earlier, self._span, self._ids, self._counts)
        had.earlier = basket[::-1][: self._span].copy()

    def _personal(self, had: UserItems, time: int, k: int, new_only: bool) -> list[int]:
        recent = had.recent(self._recent)
        n = _sum_cosines(recent, self._ids, self._counts, self._taken, self._shrink, self._sums, self._touched)
        found = self._touched[:n]
        if new_only:
            self._sums[had.items] = 0.0
        scores = self._sums[found]
        self._sums[found] = 0.0
        found, scores = found[scores > 0], scores[scores > 0]
        if len(found) > 4 * k:
            keep = scores >= np.partition(scores, len(scores) - k)[len(scores) - k]
            found, scores = found[keep], scores[keep]
        best: list[int] = found[np.lexsort((found, -scores))[:k]].tolist()
        return best
