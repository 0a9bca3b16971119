"""Stage 4 against its plain definition: weights, variants, caps, ties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import Shop, names_of

from mainstem.rank.order import arrange, combine
from mainstem.schema.ids import keys64

GROUPS = [None, None, "shirt", "hat", None, "shirt", None, None, "hat", None]
CATEGORIES = ["a", "a", "a", "b", "b", None, "a", "c", "a", "a"]


@pytest.fixture(scope="module")
def shop() -> Shop:
    shop = Shop()
    for name, (group, category) in enumerate(zip(GROUPS, CATEGORIES, strict=True)):
        shop.item(name, group=group, attributes={"category": category} if category else {})
    return shop


def plain(names: list[int], score: dict[int, float], limit: int, cap: int | None) -> list[int]:
    """One after the other, in plain words."""
    key = {name: int(keys64("item", [str(name)])[0]) for name in names}
    ordered = sorted(names, key=lambda name: (-score[name], key[name]))
    singles = [n for i, n in enumerate(ordered) if not GROUPS[n] or GROUPS[n] not in [GROUPS[m] for m in ordered[:i]]]
    chosen: list[int] = []
    for name in singles:
        same = [other for other in chosen if CATEGORIES[other] == CATEGORIES[name]]
        if cap is None or CATEGORIES[name] is None or len(same) < cap:
            chosen.append(name)
    chosen = chosen[:limit]
    return (chosen + [name for name in singles if name not in chosen])[:limit]


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 9), st.integers(0, 3)), unique_by=lambda pair: pair[0]),
    st.integers(1, 12),
    st.one_of(st.none(), st.integers(0, 3)),
)
def test_arranging_is_its_plain_definition(
    shop: Shop, scored: list[tuple[int, int]], limit: int, cap: int | None
) -> None:
    names = [name for name, _ in scored]
    keys, score = keys64("item", map(str, names)), np.array([s for _, s in scored], np.float32)
    places = arrange(keys, score, limit, shop.catalog, {} if cap is None else {"category": cap})
    chosen = [int(name) for name in names_of(keys[places])]
    assert chosen == plain(names, {name: float(s) for name, s in scored}, limit, cap)
    groups = [GROUPS[name] for name in chosen if GROUPS[name]]
    assert len(groups) == len(set(groups)), "one per variant group"
    things = {GROUPS[name] or name for name in names}
    assert len(chosen) == min(limit, len(things)), "no slate is shorter for diversity's sake"


def test_the_order_oracle_rejects_a_slate_without_caps_or_groups() -> None:
    score = {name: 10.0 - name for name in range(10)}
    assert plain(list(range(10)), score, 4, None) == [0, 1, 2, 3]
    assert plain(list(range(10)), score, 4, 1) == [0, 3, 7, 1], "5 is a second shirt; 7 is the only c"
    assert plain([2, 5, 8], score, 9, None) == [2, 8]


def test_weights_say_which_heads_count() -> None:
    scores = np.array([[1, 10], [2, 20]], np.float32)
    assert combine(scores, ("click", "buy"), {}).tolist() == [11, 22]
    assert combine(scores, ("click", "buy"), {"buy": 0.5}).tolist() == [5, 10]
    assert combine(scores, ("click", "buy"), {"click": -1, "buy": 0}).tolist() == [-1, -2]
    assert combine(np.zeros((0, 2), np.float32), ("click", "buy"), {}).shape == (0,)
