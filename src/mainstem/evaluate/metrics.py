"""Ranking metrics over the full catalogue, error metrics of predictions, intervals and latency.

Conventions, for everything here:

- `ranked` is int64 [n, m]: item ids best first, -1 where a list is shorter. An id that is repeated
  counts once, at its first place. m may exceed k (it is cut) or fall short of it.
- `relevant` is a sequence of n integer arrays: the ids that were right. A row with none has no value:
  its metric is NaN and it stays out of means (`np.nanmean`).
- Ties: equal scores are ordered by id, the lower first (what a stable descending sort gives). `top_k`
  and `rank_of` both follow it, so neither can be flattered by the order in which candidates arrive.
- Discount of place r (0-based) is 1 / log2(r + 2); the ideal list holds the min(k, relevant) best items
  (Järvelin & Kekäläinen, TOIS 2002, with exponential gains as in Burges et al., ICML 2005, when graded).
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "Interval",
    "auc",
    "coverage",
    "discounts",
    "hit_rate_at_k",
    "logloss",
    "mrr_at_k",
    "ndcg_at_k",
    "novelty",
    "paired_interval",
    "rank_of",
    "recall_at_k",
    "score_slate",
    "top_k",
]

Ints = NDArray[np.int64]
Doubles = NDArray[np.float64]
Relevant = Sequence[NDArray[Any]]


# ---- order -------------------------------------------------------------------------------------


def top_k(scores: NDArray[Any], k: int) -> Ints:
    """Columns of the k best scores of each row: [n, items] -> int64 [n, min(k, items)], ties by lower column.

    -inf marks what may not be shown: such columns come back as -1. Raises ValueError on NaN, which no
    order can place.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: they cannot be ordered")
    n, items = scores.shape
    k = min(k, items)
    if not n or not k:
        return np.zeros((n, k), np.int64)
    # only what reaches the k-th best is sorted
    least = np.partition(scores, items - k, axis=1)[:, items - k]
    row, column = np.nonzero(scores >= least[:, None])
    order = np.lexsort((column, -scores[row, column], row))
    row, column = row[order], column[order]
    place = np.arange(len(row)) - np.searchsorted(row, np.arange(n))[row]
    best: Ints = column[place < k].reshape(n, k)
    best[np.isneginf(np.take_along_axis(scores, best, axis=1))] = -1
    return best


def rank_of(scores: NDArray[Any], target: NDArray[Any]) -> Ints:
    """0-based rank of column `target[i]` among row i of scores [n, items], ties by lower column: int64 [n].

    The cheap form for protocols with one right answer: hit@k is `rank < k`, NDCG@k `1 / log2(rank + 2)`.
    """
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: they cannot be ordered")
    own = np.take_along_axis(scores, target[:, None], axis=1)
    before = np.arange(scores.shape[1])[None, :] < target[:, None]
    return np.asarray(((scores > own) | ((scores == own) & before)).sum(axis=1), np.int64)


# ---- ranked lists ------------------------------------------------------------------------------


def discounts(k: int) -> Doubles:
    """1 / log2(place + 2) of the places 0 .. k - 1."""
    return np.asarray(1.0 / np.log2(np.arange(k) + 2.0), np.float64)


def _gains(ranked: NDArray[Any], values: Sequence[Mapping[int, float]], k: int) -> Doubles:
    """Gain at each of the first k places [n, k]; a repeated id gains only at its first place."""
    gains = np.zeros((len(ranked), k))
    for row, (ids, value) in enumerate(zip(ranked[:, :k].tolist(), values, strict=True)):
        taken = set()
        for place, item in enumerate(ids):
            if item in value and item not in taken:
                gains[row, place] = value[item]
                taken.add(item)
    return gains


def _hits(ranked: NDArray[Any], relevant: Relevant, k: int) -> tuple[Doubles, Ints]:
    """(1.0 where the place holds a relevant id not yet seen [n, k], number of distinct relevant ids [n])."""
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    values = [dict.fromkeys(row.tolist(), 1.0) for row in relevant]
    for value in values:
        value.pop(-1, None)
    return _gains(ranked, values, k), np.fromiter((len(value) for value in values), np.int64, len(values))


def _where_any(values: NDArray[Any], relevant: Ints) -> Doubles:
    return np.where(relevant > 0, values, np.nan)


def recall_at_k(ranked: NDArray[Any], relevant: Relevant, k: int) -> Doubles:
    """Share of the relevant items found among the first k, of all of them (not of min(k, them)): [n]."""
    hits, size = _hits(ranked, relevant, k)
    return _where_any(hits.sum(axis=1) / np.maximum(size, 1), size)


def hit_rate_at_k(ranked: NDArray[Any], relevant: Relevant, k: int) -> Doubles:
    """1 where at least one of the first k is relevant, else 0: [n]."""
    hits, size = _hits(ranked, relevant, k)
    return _where_any(np.where(hits.any(axis=1), 1.0, 0.0), size)


def mrr_at_k(ranked: NDArray[Any], relevant: Relevant, k: int) -> Doubles:
    """1 / (1-based place of the first relevant item), 0 where none is among the first k: [n]."""
    hits, size = _hits(ranked, relevant, k)
    first = np.argmax(hits > 0, axis=1)
    return _where_any(np.where(hits.any(axis=1), 1.0 / (first + 1.0), 0.0), size)


def ndcg_at_k(
    ranked: NDArray[Any], relevant: Relevant, k: int, grades: Sequence[NDArray[Any]] | None = None
) -> Doubles:
    """Normalised discounted cumulative gain [n]. Binary, or graded with gain 2^grade - 1.

    `grades[i][j]` >= 0 is the grade of `relevant[i][j]`; what is not judged gains 0. A row whose ideal
    gain is 0 (nothing relevant, or all grades 0) is NaN.
    """
    if k < 1:
        raise ValueError(f"k must be at least 1, not {k}")
    if grades is None:
        grades = [np.ones(len(row)) for row in relevant]
    values = [
        {item: 2.0**grade - 1.0 for item, grade in zip(ids.tolist(), grade_row.tolist(), strict=True) if item != -1}
        for ids, grade_row in zip(relevant, grades, strict=True)
    ]
    discount = discounts(k)
    found = _gains(ranked, values, k) @ discount
    ideal = np.zeros(len(values))
    for row, value in enumerate(values):
        best = sorted(value.values(), reverse=True)[:k]
        ideal[row] = np.dot(best, discount[: len(best)])
    return np.where(ideal > 0, found / np.where(ideal > 0, ideal, 1.0), np.nan)


def score_slate(ranked: Sequence[Hashable], relevant: Sequence[Hashable], k: int) -> tuple[float, float]:
    """(NDCG@k, recall@k) of one slate with ids of any kind; `relevant` must not be empty.

    The form the replay uses, a slate at a time; agrees with the batched forms (tests/evaluate).
    """
    wanted = set(relevant)
    if not wanted:
        raise ValueError("nothing is relevant: the slate has no score")
    gain, found = 0.0, 0
    weights = discounts(k).tolist()
    for place, item in enumerate(ranked[:k]):
        if item in wanted:
            wanted.discard(item)
            gain += weights[place]
            found += 1
    total = found + len(wanted)
    return gain / sum(weights[: min(k, total)]), found / total


def coverage(ranked: NDArray[Any], k: int, n_items: int) -> float:
    """Share of a catalogue of `n_items` that appears among the first k of any list."""
    shown = np.unique(ranked[:, :k])
    return float((shown >= 0).sum() / n_items)


def novelty(ranked: NDArray[Any], k: int, counts: NDArray[Any]) -> Doubles:
    """Mean self-information of the first k, in bits: -log2(share of all interactions that are with the item): [n].

    `counts` [items] are interactions per item; one is added to each, so that an item nobody touched
    has a finite value (Zhou et al., PNAS 2010). NaN for an empty list.
    """
    bits = -np.log2((counts + 1.0) / (counts.sum() + len(counts)))
    shown = ranked[:, :k]
    held = shown >= 0
    total = np.where(held, bits[np.where(held, shown, 0)], 0.0).sum(axis=1)
    size = held.sum(axis=1)
    return np.where(size > 0, total / np.maximum(size, 1), np.nan)


# ---- predictions -------------------------------------------------------------------------------


def auc(labels: NDArray[Any], scores: NDArray[Any]) -> float:
    """Area under the ROC curve: P(score of a positive > of a negative), ties counting half. NaN with one class only."""
    if np.isnan(scores).any():
        raise ValueError("scores hold NaN: they cannot be ordered")
    positive = np.asarray(labels) > 0
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    _, place, size = np.unique(scores, return_inverse=True, return_counts=True)
    mid_rank = np.cumsum(size) - (size - 1) / 2.0
    return float((mid_rank[place][positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def logloss(labels: NDArray[Any], probabilities: NDArray[Any], eps: float = 1e-7) -> float:
    """Mean negative log-likelihood in nats; probabilities are clipped to [eps, 1 - eps]. Raises ValueError on NaN."""
    if np.isnan(probabilities).any():
        raise ValueError("probabilities hold NaN")
    p = np.clip(np.asarray(probabilities, np.float64), eps, 1.0 - eps)
    y = np.asarray(labels, np.float64)
    return float(-(y * np.log(p) + (1.0 - y) * np.log1p(-p)).mean())


# ---- intervals ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """Mean difference a - b with its bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int

    @property
    def above_zero(self) -> bool:
        return self.low > 0


def paired_interval(
    a: NDArray[Any],
    b: NDArray[Any],
    *,
    clusters: NDArray[Any] | None = None,
    weights: NDArray[Any] | None = None,
    level: float = 0.95,
    rounds: int = 2000,
    seed: int = 0,
) -> Interval:
    """Percentile bootstrap of mean(a - b) over pairs scored on the same requests.

    Pairs where either is NaN are left out. `clusters` [n] (users, days) are resampled whole where their
    members are not independent; `weights` [n] make each pair count so much (a day's number of slates).
    Efron & Tibshirani 1993, chapter 13. Raises ValueError when the lengths differ or nothing is left.
    """
    if len(a) != len(b):
        raise ValueError(f"pairs need equal lengths, not {len(a)} and {len(b)}")
    held = ~(np.isnan(a) | np.isnan(b))
    if not held.any():
        raise ValueError("no pair has both values")
    weight = np.ones(int(held.sum())) if weights is None else np.asarray(weights, np.float64)[held]
    sums = (np.asarray(a, np.float64) - np.asarray(b, np.float64))[held] * weight
    if clusters is not None:
        _, place = np.unique(np.asarray(clusters)[held], return_inverse=True)
        sums, weight = np.bincount(place, sums), np.bincount(place, weight)
    n = len(sums)
    generator = np.random.default_rng(seed)
    means = np.empty(rounds)
    for r in range(rounds):
        drawn = generator.integers(0, n, n)
        means[r] = sums[drawn].sum() / weight[drawn].sum()
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(sums.sum() / weight.sum()), float(low), float(high), int(held.sum()))
