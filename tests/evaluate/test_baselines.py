"""Baselines against plain re-computation, worlds with a known answer, and the real figures of the demo."""

from __future__ import annotations

import math
import os
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.evaluate import (
    Baseline,
    Basket,
    ItemNeighbours,
    PopularLately,
    RecencyCounts,
    Replay,
    UserCounts,
    default_baselines,
)
from mainstem.evaluate.baselines import UserItems
from mainstem.schema.time import DAY

baskets = st.lists(
    st.tuples(
        st.sampled_from(["ann", "bob", "cat"]),
        st.lists(st.integers(0, 9).map(str), max_size=5, unique=True),
        st.integers(0, 3 * DAY),
    ),
    max_size=40,
)
Past = list[tuple[str, list[str], int]]


def in_order(steps: Past) -> Past:
    time, past = 0, []
    for user, items, gap in steps:
        time += gap
        past.append((user, items, time))
    return past


def first_seen(past: Past) -> dict[str, int]:
    order: dict[str, int] = {}
    for _, items, _ in past:
        for item in items:
            order.setdefault(item, len(order))
    return order


def oracle(
    past: Past, user: str, now: int, k: int, new_only: bool, half_life: float | None, personal: bool
) -> list[str]:
    order = first_seen(past)
    weight: Counter[str] = Counter()
    last: dict[str, int] = {}
    popular: Counter[str] = Counter()
    for who, items, time in past:
        for item in items:
            if time >= now - 7 * DAY:
                popular[item] += 1
            if who == user:
                weight[item] += 1.0 if half_life is None else 0.5 ** ((now - time) / half_life)
                last[item] = time
    chosen: list[str] = []
    if personal and not new_only:
        chosen = sorted(weight, key=lambda i: (-round(weight[i], 12), -last[i], order[i]))[:k]
    rest = sorted(
        (i for i in popular if i not in chosen and not (new_only and i in last)), key=lambda i: (-popular[i], order[i])
    )
    return (chosen + rest)[:k]


@settings(deadline=None)
@given(baskets, st.integers(1, 6), st.booleans(), st.integers(0, 9 * DAY))
def test_counting_baselines_agree_with_recomputation(steps: Past, k: int, new_only: bool, wait: int) -> None:
    past = in_order(steps)
    now = (past[-1][2] if past else 0) + wait
    for baseline, half_life, personal in (
        (PopularLately(), None, False), (UserCounts(), None, True), (RecencyCounts(60), 60 * DAY, True),
    ):  # fmt: skip
        for basket in past:
            baseline.learn(*basket)
        for user in ("ann", "nobody"):
            assert baseline.rank(user, now, k, new_only) == oracle(past, user, now, k, new_only, half_life, personal)


@settings(deadline=None, max_examples=50)
@given(baskets, st.integers(1, 6))
def test_new_only_shows_nothing_the_user_had_and_nothing_twice(steps: Past, k: int) -> None:
    past = in_order(steps)
    now = past[-1][2] if past else 0
    had = {item for user, items, _ in past if user == "ann" for item in items}
    for baseline in default_baselines():
        for basket in past:
            baseline.learn(*basket)
        for new_only in (False, True):
            slate = baseline.rank("ann", now, k, new_only)
            assert len(slate) == len(set(slate)) <= k
            assert not (new_only and had & set(slate))


def test_ranking_changes_nothing() -> None:
    for baseline in default_baselines():
        for n in range(30):
            baseline.learn(f"u{n % 3}", [str(n % 7), str(n % 5 + 10)], n * DAY // 4)
        first = [baseline.rank(f"u{u}", 8 * DAY, 5, new) for u in range(4) for new in (False, True)]
        assert first == [baseline.rank(f"u{u}", 8 * DAY, 5, new) for u in range(4) for new in (False, True)]


def test_recency_prefers_what_is_bought_now_where_counts_prefer_what_was() -> None:
    plain, recent = UserCounts(), RecencyCounts(30)
    for baseline in (plain, recent):
        for day in range(5):
            baseline.learn("ann", ["old"], day * DAY)
        for day in range(200, 203):
            baseline.learn("ann", ["now"], day * DAY)
    assert plain.rank("ann", 203 * DAY, 2) == ["old", "now"]
    assert recent.rank("ann", 203 * DAY, 2) == ["now", "old"]


def two_islands(baseline: Baseline, seed: int = 0) -> float:
    """Shoppers buy within the even or within the odd items only; the share of right-island advice."""
    generator = np.random.default_rng(seed)
    for n in range(600):
        island = n % 2
        chosen = generator.choice(20, size=4, replace=False) * 2 + island
        baseline.learn(f"u{n % 100}", [str(item) for item in chosen], n * DAY // 100)
    right = total = 0
    for u in range(100):
        for item in baseline.rank(f"u{u}", 6 * DAY, 3, new_only=True):
            right += int(item) % 2 == u % 2
            total += 1
    return right / total


def test_neighbours_find_the_island_and_popularity_does_not() -> None:
    assert two_islands(ItemNeighbours()) > 0.95
    assert two_islands(PopularLately()) < 0.8


def test_neighbours_agree_with_plain_cosines_while_nothing_overflows() -> None:
    generator = np.random.default_rng(4)
    baseline = ItemNeighbours(span=100, neighbours=64, shrink=1.0)
    together: Counter[tuple[int, int]] = Counter()
    taken: Counter[int] = Counter()
    for n in range(200):
        items = generator.choice(30, size=4, replace=False).tolist()
        baseline.learn(f"u{n}", [str(i) for i in items], n)
        taken.update(items)
        together.update((i, j) for i in items for j in items if i != j)
    mine = [3, 17, 21]
    baseline.learn("me", [str(i) for i in mine], 500)
    taken.update(mine)
    together.update((i, j) for i in mine for j in mine if i != j)
    score = {j: sum(together[i, j] / (math.sqrt(taken[i] * taken[j]) + 1.0) for i in mine) for j in range(30)}
    expect = sorted((j for j in score if j not in mine), key=lambda j: -score[j])[:5]
    assert baseline.rank("me", 501, 5, new_only=True) == [str(j) for j in expect]


def test_memory_per_item_is_bounded_and_earned_counts_survive_noise() -> None:
    baseline = ItemNeighbours(neighbours=4, span=4)
    for n in range(300):
        baseline.learn(f"u{n}", ["bread", "butter"], n)
        baseline.learn(f"v{n}", ["bread", f"noise{n}"], n)
    assert baseline._ids.shape[1] == 4
    baseline.learn("me", ["bread"], 400)
    assert baseline.rank("me", 401, 1, new_only=True) == ["butter"]


def test_user_items_grow_past_their_first_arrays() -> None:
    mine = UserItems()
    mine.add(list(range(100)), 1, None)
    mine.add([41], 2, None)
    assert len(mine) == 100
    assert mine.best(3, 2, None) == [41, 0]
    assert mine.recent(2).tolist() == [41, 0]


# ---- the real figures --------------------------------------------------------------------------


class Silent:
    """A system that says nothing: only the baselines are of interest here."""

    def slate(self, user: str, time: int, new_only: bool) -> list[str]:
        return []

    def post(self, events: object) -> None: ...

    def lags_ms(self) -> list[float]:
        return []


def complete_journey() -> tuple[list[Basket], int]:
    """All baskets in time order, and the start of the last four weeks (28 days before the last purchase, inclusive)."""
    import pyarrow.parquet as pq

    folder = os.environ.get("MAINSTEM_DATA")
    if not folder:
        pytest.skip("MAINSTEM_DATA names no folder: The Complete Journey is not here")
    path = Path(folder) / "completejourney" / "transactions.parquet"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    columns = pq.read_table(path, columns=["household_id", "basket_id", "product_id", "transaction_timestamp"])
    time = columns["transaction_timestamp"].cast("int64").to_numpy() // 1_000_000
    basket, user, item = (columns[name].to_numpy() for name in ("basket_id", "household_id", "product_id"))
    starts = np.flatnonzero(np.r_[True, basket[1:] != basket[:-1]]).tolist()
    names = {value: str(value) for value in np.unique(item).tolist()}
    found = [
        Basket(str(user[a]), int(time[a]), [names[x] for x in item[a:b].tolist()])
        for a, b in zip(starts, [*starts[1:], len(basket)], strict=True)
    ]
    return found, int(time.max()) - 28 * DAY


@pytest.mark.slow
@pytest.mark.data
def test_the_demo_figures_of_the_baselines() -> None:
    """NDCG@10 on The Complete Journey, last four weeks, each basket scored before it is learned."""
    stream, cut = complete_journey()
    live = [basket for basket in stream if basket.time >= cut]
    assert len(live) == 11_762
    replay = Replay(Silent(), [*default_baselines(), RecencyCounts(60, name="recency 60d")])
    replay.teach(basket for basket in stream if basket.time < cut)
    for _ in replay.run(live):
        pass
    found = {(name, r): replay.results.score(name, r).ndcg for name in replay.results.systems for r in ("all", "new")}
    expect = {
        ("popular lately", "all"): 0.0933,
        ("popular lately", "new"): 0.0141,
        ("user counts", "all"): 0.1993,
        ("recency 60d", "all"): 0.2092,
        ("recency counts", "all"): 0.2097,
    }
    assert {key: found[key] for key in expect} == pytest.approx(expect, abs=0.003)
    assert replay.results.score("user counts", "new").n == 9_231  # baskets that hold something new
