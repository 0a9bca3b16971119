"""Each source alone: what it brings, in which order, under a filter pushed down; and how they are merged."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import NOW, Shop, config_of, names_of

from mainstem.rank.retrieve import Candidates, fill_up, merge, retrieve
from mainstem.rank.sources import Allowed, Popular, Source
from mainstem.schema.config import CanvasConfig, SourceConfig
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.protocols import Scored


def everything(keys: Keys) -> np.ndarray:
    return np.ones(len(keys), np.bool_)


def but(*names: int) -> Allowed:
    forbidden = keys64("item", map(str, names))
    return lambda keys: ~np.isin(keys, forbidden)


def found(shop: Shop, name: str, limit: int = 10, allowed: Allowed = everything, **fields: object) -> list[str]:
    source = next(source for source in shop.sources() if source.name == name)
    question = shop.question(**fields)
    with shop.view(question) as view:
        result = source.prepare(question, view, limit, allowed)()
    assert (np.diff(result.scores) <= 0).all(), "best first"
    return names_of(result.keys)


@pytest.fixture
def shop() -> Shop:
    shop = Shop()
    shop.items(30)
    for at in range(10):  # item i is bought by 10 - i users, together with item 0 where i > 0
        shop.happen(f"u{at}", *range(10 - at), day=5 + at / 10)
    return shop


def test_popular_brings_what_most_bought(shop: Shop) -> None:
    assert found(shop, "popular", 4) == ["0", "1", "2", "3"]


def test_popular_widens_until_enough_may_be_shown(shop: Shop) -> None:
    assert found(shop, "popular", 2, but(*range(8))) == ["8", "9"]
    assert found(shop, "popular", 2, lambda keys: np.zeros(len(keys), np.bool_)) == []


def test_popular_does_not_ask_for_ever(shop: Shop) -> None:
    asked: list[int] = []

    class Endless:
        def popular(self, limit: int, *rest: object) -> Scored:
            asked.append(limit)
            return Scored(np.arange(1, limit + 1, dtype=np.uint64), np.zeros(limit, np.float32))

    search = Popular("popular", 1).prepare(
        shop.question(), Endless(), 100, lambda keys: np.zeros(len(keys), np.bool_)  # type: ignore[arg-type]
    )  # fmt: skip
    assert len(search()) == 0
    assert asked == [100, 400, 1600, 6400, 25600]


def test_popular_new_counts_a_user_once(shop: Shop) -> None:
    shop.happen("fan", *[20] * 30, day=7)
    shop.happen("other", 21, day=7)
    assert found(shop, "popular", 1) == ["20"]
    assert found(shop, "popular_new", 1) == ["0"]


def test_owned_brings_the_latest_and_most_first_and_nothing_when_only_new_is_wanted(shop: Shop) -> None:
    shop.happen("reader", 5, 6, 6, day=7)
    shop.happen("reader", 7, day=9)
    assert found(shop, "owned", user="reader") == ["6", "7", "5"]
    assert found(shop, "owned", 1, but(6), user="reader") == ["7"]
    assert found(shop, "owned", user="reader", new_only=True) == []
    assert found(shop, "owned", user="stranger") == found(shop, "owned") == []


def test_cooccurrence_starts_from_the_sources_else_from_the_user() -> None:
    shop = Shop()
    shop.items(30)
    for at in range(6):
        shop.happen(f"a{at}", 1, 2, day=1)
        shop.happen(f"b{at}", 3, 4, day=1)
    shop.happen("reader", 1, day=3)
    assert found(shop, "cooccurrence", user="reader") == ["2"]
    assert found(shop, "cooccurrence", user="reader", sources=["3"]) == ["4"]
    assert found(shop, "cooccurrence", user="stranger") == []
    assert found(shop, "cooccurrence", 5, but(2), user="reader") == []


def test_two_tower_searches_near_the_user_and_near_the_sources(shop: Shop) -> None:
    assert found(shop, "two_tower", 3, user="reader") == ["29", "28", "27"]
    assert found(shop, "two_tower", 3, but(29, 27), user="reader") == ["28", "26", "25"]
    assert found(shop, "two_tower", 2, sources=["7"]) == ["29", "28"]
    assert found(shop, "two_tower", 2, sources=["nowhere"]) == []


def test_two_tower_searches_the_version_that_scores(shop: Shop) -> None:
    source = next(source for source in shop.sources() if source.name == "two_tower")
    question = shop.question()
    old, shop.model = shop.model, None  # type: ignore[assignment]  # another version came into use meanwhile
    with shop.view(question) as view:
        assert question.model is old
        assert len(source.prepare(question, view, 3, everything)()) == 3


def test_content_is_near_the_query_then_the_sources_then_the_latest(shop: Shop) -> None:
    assert set(found(shop, "content", 3, query="20", sources=["3"])) == {"19", "20", "21"}
    assert set(found(shop, "content", 3, sources=["10"])) == {"9", "10", "11"}
    shop.happen("reader", 25, day=7)
    assert set(found(shop, "content", 3, user="reader")) == {"24", "25", "26"}
    assert found(shop, "content", 3, user="stranger") == []


# ---- merge -------------------------------------------------------------------------------------------


def plain_merge(found: dict[str, list[int]], most: int) -> list[tuple[int, float]]:
    """What `merge` shall say, in plain words: key and fused score."""
    keys = {key for brought in found.values() for key in brought}
    first = {key: min(b.index(key) for b in found.values() if key in b) for key in keys}
    fused = {
        key: np.float32(sum(1 / (60 + 1 + brought.index(key)) for brought in found.values() if key in brought))
        for key in keys
    }
    ordered = sorted(keys, key=lambda key: (first[key], -fused[key], key))
    return [(key, float(fused[key])) for key in ordered[:most]]


def scored(keys: list[int]) -> Scored:
    return Scored(np.array(keys, np.uint64), np.linspace(1, 0, len(keys), dtype=np.float32))


@settings(max_examples=150, deadline=None)
@given(
    st.dictionaries(st.sampled_from("abcd"), st.lists(st.integers(1, 12), max_size=8), max_size=4), st.integers(0, 12)
)
def test_merge_is_its_plain_definition(found: dict[str, list[int]], most: int) -> None:
    merged = merge({name: scored(keys) for name, keys in found.items()}, most)
    expected = plain_merge(found, most)
    assert merged.keys.tolist() == [key for key, _ in expected]
    np.testing.assert_allclose(merged.fused(), [score for _, score in expected], rtol=1e-6)
    for row, key in enumerate(merged.keys.tolist()):
        assert [n for n, did in zip(merged.names, merged.source[row], strict=True) if did] == [
            name for name, brought in found.items() if key in brought
        ]


def test_the_merge_oracle_rejects_another_order() -> None:
    found = {"a": [1, 2], "b": [3, 2]}
    keys = [key for key, _ in plain_merge(found, 9)]
    assert keys == [1, 3, 2], "by turns, not by fused score, by which 2 would be the first"


def test_one_fused_part_counts_only_the_sources_named() -> None:
    merged = merge({"a": scored([1, 2]), "b": scored([2])}, 9)
    assert merged.keys.tolist() == [2, 1]
    np.testing.assert_allclose(merged.fused(["a"]), [1 / 62, 1 / 61])
    np.testing.assert_allclose(merged.fused([]), [0, 0])


# ---- retrieve ----------------------------------------------------------------------------------------


class Listed:
    """A source that brings given names."""

    def __init__(self, name: str, *names: int, concurrent: bool = False, fails: Exception | None = None) -> None:
        self.name, self.concurrent, self.fails = name, concurrent, fails
        self.keys = keys64("item", map(str, names))

    def prepare(self, question: object, view: object, limit: int, allowed: Allowed) -> Callable[[], Scored]:
        def search() -> Scored:
            if self.fails:
                raise self.fails
            keys = self.keys[allowed(self.keys)][:limit]
            return Scored(keys, np.zeros(len(keys), np.float32))

        return search


def retrieved(shop: Shop, *sources: Source, **fields: object) -> Candidates:
    question = shop.question(**fields)
    with shop.view(question) as view:
        return retrieve(question, view, sources, everything)[0]


def test_only_the_canvas_s_sources_are_asked_for_as_many_as_it_says() -> None:
    canvas = CanvasConfig(sources={"popular": SourceConfig(limit=2), "owned": SourceConfig(limit=0)})
    shop = Shop(config_of({"home": canvas}))
    merged = retrieved(shop, Listed("popular", 1, 2, 3), Listed("owned", 4), Listed("content", 5))
    assert names_of(merged.keys) == ["1", "2"]
    assert merged.counts() == {"popular": 2}


def test_candidates_are_cut_but_never_below_the_limit() -> None:
    shop = Shop(config_of({"home": CanvasConfig(candidates=3)}))
    source = Listed("popular", *range(50))
    assert len(retrieved(shop, source, limit=2)) == 3
    assert len(retrieved(shop, source, limit=9)) == 9


def test_a_curated_list_is_a_source_in_its_own_order() -> None:
    shop = Shop()
    shop.items(9)
    merged = retrieved(shop, Listed("popular", 7), only=["5", "3", "5", "8"])
    assert merged.names == ("only", "popular")
    assert set(names_of(merged.keys)) == {"5", "3", "8", "7"}, "what may be shown is the filter's to say"
    assert merged.counts()["only"] == 3


@pytest.mark.parametrize("error", [RuntimeError("broken"), NotReady("not yet")])
def test_strict_retrieval_raises_what_fails_and_bears_what_is_not_ready(error: Exception) -> None:
    shop = Shop()
    question = shop.question()
    source = Listed("popular", 1, fails=error)
    with shop.view(question) as view:
        if isinstance(error, NotReady):
            _, degraded = retrieve(question, view, [source], everything, strict=True)
            assert [(d.what, d.why) for d in degraded] == [("popular", "not yet")]
        else:
            with pytest.raises(RuntimeError, match="broken"):
                retrieve(question, view, [source], everything, strict=True)


# ---- filling up --------------------------------------------------------------------------------------


def filled(shop: Shop, brought: list[int], allowed: Allowed = everything, limit: int = 5) -> Candidates:
    before = merge({"popular": Scored(keys64("item", map(str, brought)), np.zeros(len(brought), np.float32))}, 999)
    return fill_up(shop.question(limit=limit), shop.catalog, allowed, before)


def test_filling_up_takes_the_latest_that_may_be_shown_and_none_twice() -> None:
    shop = Shop()
    shop.items(8)
    after = filled(shop, [7, 2], but(6))
    assert names_of(after.keys) == ["7", "2", "5", "4", "3"]
    assert after.counts() == {"popular": 2, "catalog": 3}
    assert len(set(after.keys.tolist())) == 5
    assert filled(shop, [0, 1, 2, 3, 4]).counts() == {"popular": 5}, "nothing is missing: the catalogue is not read"


def test_filling_up_reaches_the_oldest_of_a_large_catalogue() -> None:
    shop = Shop()
    shop.items(3000)
    few = keys64("item", ["0", "1", "2999"])
    assert names_of(filled(shop, [], lambda keys: np.isin(keys, few)).keys, 3000) == ["2999", "1", "0"]


def test_variants_of_one_thing_fill_one_place() -> None:
    shop = Shop()
    shop.items(4)
    for name in (10, 11, 12):
        shop.item(name, group="shirt")
    for name in (13, 14):
        shop.item(name, group="hat")
    assert names_of(filled(shop, [10, 11], limit=5).keys) == ["10", "11", "14", "3", "2", "1"]
    assert NOW  # the moment of every question above
