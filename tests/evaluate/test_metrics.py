"""Batched metrics against plain oracles, known answers, and canaries: a broken metric must be caught."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.evaluate import metrics

K = 5


def oracle_ndcg(ranked: list[int], grades: dict[int, float], k: int) -> float:
    seen: set[int] = set()
    total = 0.0
    for place, item in enumerate(ranked[:k]):
        if item in grades and item not in seen:
            seen.add(item)
            total += (2 ** grades[item] - 1) / math.log2(place + 2)
    best = sorted((2**g - 1 for g in grades.values()), reverse=True)[:k]
    ideal = sum(gain / math.log2(place + 2) for place, gain in enumerate(best))
    return total / ideal if ideal else math.nan


def oracle_recall(ranked: list[int], relevant: set[int], k: int) -> float:
    return len(set(ranked[:k]) & relevant) / len(relevant) if relevant else math.nan


def oracle_mrr(ranked: list[int], relevant: set[int], k: int) -> float:
    if not relevant:
        return math.nan
    return next((1 / (i + 1) for i, item in enumerate(ranked[:k]) if item in relevant), 0.0)


def padded(lists: list[list[int]]) -> np.ndarray:
    width = max([len(row) for row in lists] + [1])
    return np.array([row + [-1] * (width - len(row)) for row in lists], np.int64).reshape(len(lists), width)


items = st.integers(0, 12)
cases = st.lists(
    st.tuples(st.lists(items, max_size=9), st.dictionaries(items, st.integers(0, 3), max_size=8)), min_size=1
)


@given(cases, st.integers(1, 8))
def test_batched_forms_agree_with_the_plain_ones(rows: list[tuple[list[int], dict[int, int]]], k: int) -> None:
    ranked = padded([row for row, _ in rows])
    relevant = [np.array(list(grades), np.int64) for _, grades in rows]
    graded = [np.array(list(grades.values()), np.int64) for _, grades in rows]
    sets = [set(grades) for _, grades in rows]
    expect = np.testing.assert_allclose
    expect(
        metrics.ndcg_at_k(ranked, relevant, k, graded),
        [oracle_ndcg(r, {i: float(x) for i, x in g.items()}, k) for r, g in rows],
    )
    binary = [oracle_ndcg(r, dict.fromkeys(g, 1.0), k) for r, g in rows]
    expect(metrics.ndcg_at_k(ranked, relevant, k), binary)
    recall = [oracle_recall(r, s, k) for (r, _), s in zip(rows, sets, strict=True)]
    expect(metrics.recall_at_k(ranked, relevant, k), recall)
    expect(metrics.mrr_at_k(ranked, relevant, k), [oracle_mrr(r, s, k) for (r, _), s in zip(rows, sets, strict=True)])
    hits = metrics.hit_rate_at_k(ranked, relevant, k)
    expect(hits, [math.nan if not s else float(bool(set(r[:k]) & s)) for (r, _), s in zip(rows, sets, strict=True)])
    for (row, grades), n, r in zip(rows, binary, recall, strict=True):
        if grades:
            assert metrics.score_slate(row, list(grades), k) == pytest.approx((n, r))


@given(st.lists(st.lists(st.integers(0, 3), min_size=6, max_size=6), min_size=1, max_size=8), st.integers(1, 8))
def test_ties_go_to_the_lower_column_in_both_forms(rows: list[list[int]], k: int) -> None:
    scores = np.array(rows, np.float32)
    best = metrics.top_k(scores, k)
    for row, found in zip(rows, best.tolist(), strict=True):
        assert found == sorted(range(6), key=lambda i: (-row[i], i))[:k]
    for target in range(6):
        rank = metrics.rank_of(scores, np.full(len(rows), target))
        full = metrics.top_k(scores, 6)
        assert (full[np.arange(len(rows)), rank] == target).all()


def test_what_may_not_be_shown_is_padding_and_nan_is_refused() -> None:
    scores = np.array([[1.0, -np.inf, 2.0]])
    assert metrics.top_k(scores, 3).tolist() == [[2, 0, -1]]
    for call in (lambda s: metrics.top_k(s, 1), lambda s: metrics.rank_of(s, np.array([0]))):
        with pytest.raises(ValueError, match="NaN"):
            call(np.array([[np.nan, 1.0]]))


def test_known_answers() -> None:
    ranked = np.array([[1, 2, 3, 4, 5], [9, 8, 7, 6, 1]])
    relevant = [np.array([1, 3]), np.array([1])]
    ideal = 1 + 1 / math.log2(3)
    assert metrics.ndcg_at_k(ranked, relevant, 5).tolist() == pytest.approx([1.5 / ideal, 1 / math.log2(6)])
    assert metrics.recall_at_k(ranked, relevant, 2).tolist() == [0.5, 0.0]
    assert metrics.mrr_at_k(ranked, relevant, 5).tolist() == [1.0, 0.2]
    # more relevant than k: the ideal list has k places, so a full list of hits is perfect
    assert metrics.ndcg_at_k(ranked[:1], [np.arange(20)], 5).tolist() == [1.0]
    assert metrics.coverage(ranked, 2, 10) == 0.4
    common, rare = metrics.novelty(np.array([[0], [1]]), 1, np.array([6, 0])).tolist()
    assert (common, rare) == pytest.approx((-math.log2(7 / 8), 3.0))


# ---- canaries: each broken metric differs from the right one somewhere in this small world -------


def _no_discount(ranked: np.ndarray, relevant: list[np.ndarray], k: int) -> np.ndarray:
    return np.array(
        [len(set(r[:k]) & set(s.tolist())) / min(k, len(s)) for r, s in zip(ranked.tolist(), relevant, strict=True)]
    )


def _ideal_of_all(ranked: np.ndarray, relevant: list[np.ndarray], k: int) -> np.ndarray:
    ideal = np.array([sum(1 / math.log2(i + 2) for i in range(len(s))) for s in relevant])
    cut = np.array([sum(1 / math.log2(i + 2) for i in range(min(k, len(s)))) for s in relevant])
    return metrics.ndcg_at_k(ranked, relevant, k) * cut / ideal


def _repeats_count(ranked: np.ndarray, relevant: list[np.ndarray], k: int) -> np.ndarray:
    gain = [
        sum(1 / math.log2(i + 2) for i, x in enumerate(r[:k]) if x in s)
        for r, s in zip(ranked.tolist(), relevant, strict=True)
    ]
    return np.array(gain) / np.array([sum(1 / math.log2(i + 2) for i in range(min(k, len(s)))) for s in relevant])


def _off_by_one(ranked: np.ndarray, relevant: list[np.ndarray], k: int) -> np.ndarray:
    return metrics.ndcg_at_k(ranked, relevant, k + 1)


def _agrees(metric: Callable[..., np.ndarray]) -> bool:
    ranked = np.array([[0, 0, 1, 2, 9, 3], [5, 6, 7, 8, 9, 1], [1, 2, 3, 4, 5, 6]])
    relevant = [np.array([0, 1, 2, 3]), np.array([1]), np.arange(1, 9)]
    oracle = [oracle_ndcg(r, dict.fromkeys(s.tolist(), 1.0), K) for r, s in zip(ranked.tolist(), relevant, strict=True)]
    return bool(np.allclose(metric(ranked, relevant, K), oracle))


@pytest.mark.parametrize("broken", [_no_discount, _ideal_of_all, _repeats_count, _off_by_one])
def test_a_broken_ndcg_is_caught(broken: Callable[..., np.ndarray]) -> None:
    assert _agrees(metrics.ndcg_at_k)
    assert not _agrees(broken)


# ---- predictions and intervals -----------------------------------------------------------------


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 4)), min_size=1, max_size=30))
def test_auc_is_the_share_of_ordered_pairs(rows: list[tuple[bool, int]]) -> None:
    labels, scores = np.array([y for y, _ in rows], np.int8), np.array([s for _, s in rows], np.float64)
    pairs = [(a > b) + 0.5 * (a == b) for y, a in rows if y for z, b in rows if not z]
    found = metrics.auc(labels, scores)
    assert found == pytest.approx(sum(pairs) / len(pairs)) if pairs else math.isnan(found)


def test_logloss_and_its_refusals() -> None:
    assert metrics.logloss(np.array([1, 0]), np.array([0.5, 0.5])) == pytest.approx(math.log(2))
    assert metrics.logloss(np.array([1]), np.array([0.0])) == pytest.approx(-math.log(1e-7))
    with pytest.raises(ValueError, match="NaN"):
        metrics.logloss(np.array([1]), np.array([np.nan]))
    with pytest.raises(ValueError, match="NaN"):
        metrics.auc(np.array([1, 0]), np.array([np.nan, 1.0]))


def test_paired_interval_sees_a_difference_and_not_a_chance() -> None:
    generator = np.random.default_rng(1)
    noise = generator.normal(size=800)
    better = metrics.paired_interval(noise + 0.1, noise + generator.normal(scale=0.2, size=800))
    same = metrics.paired_interval(noise, noise + generator.normal(scale=0.2, size=800))
    assert better.above_zero
    assert better.low < 0.1 < better.high
    assert not same.above_zero
    assert same.low < 0 < same.high


def test_paired_interval_covers_at_its_level() -> None:
    generator = np.random.default_rng(2)
    covered = 0
    for seed in range(200):
        differences = generator.normal(loc=0.3, size=60)
        found = metrics.paired_interval(differences, np.zeros(60), rounds=300, seed=seed)
        covered += found.low <= 0.3 <= found.high
    assert 0.88 <= covered / 200 <= 0.99


def test_clusters_widen_the_interval_where_members_agree() -> None:
    generator = np.random.default_rng(3)
    user = np.repeat(np.arange(20), 50)
    a = generator.normal(size=20)[user] + generator.normal(scale=0.1, size=1000)
    plain = metrics.paired_interval(a, np.zeros(1000))
    by_user = metrics.paired_interval(a, np.zeros(1000), clusters=user)
    assert by_user.high - by_user.low > 3 * (plain.high - plain.low)
    assert by_user.mean == pytest.approx(plain.mean)


def test_paired_interval_leaves_out_nan_and_refuses_nonsense() -> None:
    found = metrics.paired_interval(np.array([1.0, np.nan, 3.0]), np.array([0.0, 5.0, 2.0]))
    assert (found.mean, found.n) == (1.0, 2)
    with pytest.raises(ValueError, match="equal lengths"):
        metrics.paired_interval(np.zeros(2), np.zeros(3))
    with pytest.raises(ValueError, match="no pair"):
        metrics.paired_interval(np.array([np.nan]), np.array([1.0]))
