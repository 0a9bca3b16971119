"""The four stages in a row: what is shown, what is refused, and in which order."""

from __future__ import annotations

import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from small_shop import GONE, NOW, T0, Made, Shop, config_of, ids, request, why

from mainstem.rank.question import resolve
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig
from mainstem.schema.errors import InvalidRecord, TooFarAhead
from mainstem.schema.ids import keys64
from mainstem.schema.protocols import Scored
from mainstem.schema.records import Context, EntityDelete, SlateRequest
from mainstem.schema.time import DAY, MINUTE, now_ms


@pytest.fixture
def pool() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(2) as pool:
        yield pool


@pytest.fixture
def shop() -> Shop:
    shop = Shop()
    shop.items(40)
    for at in range(5):
        shop.happen(f"u{at}", *range(at, at + 5), day=6 + at / 10)
    return shop


# ---- what is shown -----------------------------------------------------------------------------------


def test_the_model_orders_and_the_slate_says_all_of_it(shop: Shop) -> None:
    slate = shop.ask(user="u1", limit=5)
    assert ids(slate) == ["39", "38", "37", "36", "35"]
    assert slate.degraded == []
    first = slate.items[0]
    assert (first.score, first.scores, first.features) == (39.0, {"purchase": 39.0, "click": -39.0}, None)
    assert first.sources == ["two_tower", "content"]
    assert (slate.model_line, slate.dense_version, slate.index_version) == ("main", "v-1", "v-1")
    assert slate.sparse_version is None, "there are no sparse deltas yet"
    assert slate.position == str(shop.features.position())
    assert slate.time == NOW
    assert set(slate.timings_ms) == {"state", "retrieve", "filter", "score", "order", "total"}
    assert slate.candidates["owned"] == 5


def test_explain_gives_the_features_of_each_item(shop: Shop) -> None:
    answer = shop.pipeline().answer(request(user="u1", limit=3, explain=True))
    assert answer.inputs == shop.model.inputs
    assert answer.values.shape == (3, len(answer.inputs))
    for item, row in zip(answer.slate.items, answer.values, strict=True):
        assert item.features == dict(zip(answer.inputs, row.tolist(), strict=True))
        assert item.features["two_tower"] == item.score


def test_order_weights_turn_the_slate_round() -> None:
    shop = Shop(config_of({"home": CanvasConfig(order={"click": 2.0})}))
    shop.items(5)
    slate = shop.ask(limit=3)
    assert ids(slate) == ["0", "1", "2"]
    assert [item.score for item in slate.items] == [0, -2, -4]


def test_no_slate_holds_anything_twice_and_each_is_full() -> None:
    shop = Shop(config_of({"home": CanvasConfig(diversity={"category": 2})}))
    for name in range(60):
        shop.item(name, group=f"g{name // 3}" if name < 30 else None, attributes={"category": str(name % 4)})
    for at in range(8):
        shop.happen(f"u{at}", *range(at, 60, 7), day=6)
    for user in ("u0", "u5", "nobody", None):
        for limit in (1, 7, 39):
            slate = shop.ask(user=user, limit=limit)
            assert len(set(ids(slate))) == len(ids(slate)) == limit
            groups = [int(name) // 3 for name in ids(slate) if int(name) < 30]
            assert len(groups) == len(set(groups))


def test_two_pipelines_of_the_same_shop_agree(shop: Shop, pool: ThreadPoolExecutor) -> None:
    alone, beside = shop.pipeline(trained=False), shop.pipeline(trained=False, pool=pool)
    for user in ("u0", "u3", "nobody"):
        assert shop.ask(alone, user=user).items == shop.ask(beside, user=user).items


def test_scores_are_those_of_one_version_though_another_comes_into_use(shop: Shop) -> None:
    near = shop.model.inputs.index("two_tower")
    second = replace(shop.model, version="v-2", scores=lambda x: 1000 + np.column_stack([x.values[:, near]] * 2))
    versions = iter([shop.model, second, second, second])
    pipeline = shop.pipeline()
    pipeline.current = lambda: next(versions)
    slate = shop.ask(pipeline, limit=3)
    assert (slate.dense_version, slate.items[0].score) == ("v-1", 39.0)


def test_an_entity_deleted_while_it_is_ordered_takes_its_values_along(shop: Shop) -> None:
    pipeline = shop.pipeline()
    known = shop.catalog.entity

    class Losing:
        def __getattr__(self, name: str) -> object:
            return getattr(shop.catalog, name)

        def entity(self, key: int) -> object:
            return None if key == keys64("item", ["38"])[0] else known(key)

    pipeline.catalog = Losing()  # type: ignore[assignment]
    answer = pipeline.answer(request(limit=3))
    assert ids(answer.slate) == ["39", "37"]
    assert answer.values[:, answer.inputs.index("two_tower")].tolist() == [39, 37]


# ---- filter ------------------------------------------------------------------------------------------


def test_availability_is_that_of_the_request_s_time() -> None:
    shop = Shop()
    shop.item(1, available_from=T0 + 5 * DAY)
    shop.item(2, available_until=T0 + 5 * DAY)
    shop.item(3, stock=0)
    shop.item(4, stock=2, available_from=T0, available_until=NOW + DAY)
    assert ids(shop.ask(time=T0 + 4 * DAY)) == ["4", "2"]
    assert ids(shop.ask(time=T0 + 5 * DAY)) == ["4", "1"]
    assert ids(shop.ask(time=NOW + DAY)) == ["1"]


def test_what_was_deleted_is_not_shown(shop: Shop) -> None:
    shop.add(EntityDelete(record_id="d", time=NOW, entity="39"))
    assert ids(shop.ask(limit=2)) == ["38", "37"]


def test_excluded_hidden_and_owned_are_left_out(shop: Shop) -> None:
    assert ids(shop.ask(limit=2, exclude=["39", "nowhere"])) == ["38", "37"]
    shop.happen("u9", 38, day=7, kind="hide")
    shop.happen("u9", 37, day=7, kind="view")
    shop.happen("u9", 36, day=7, kind="purchase")
    assert ids(shop.ask(user="u9", limit=3)) == ["39", "37", "36"]
    assert ids(shop.ask(user="u9", limit=3, new_only=True)) == ["39", "37", "35"], "a view is not owning"
    assert ids(shop.ask(user="u8", limit=3, new_only=True)) == ["39", "38", "37"]


def test_a_canvas_may_show_new_things_only() -> None:
    shop = Shop(config_of({"home": CanvasConfig(repeat="new_only", order={"purchase": 1.0})}))
    shop.items(4)
    shop.happen("u", 3, day=7)
    assert ids(shop.ask(user="u")) == ["2", "1", "0"]


def test_only_is_the_whole_list_to_choose_from(shop: Shop) -> None:
    assert ids(shop.ask(only=["3", "8", "nowhere", "5"], exclude=["5"])) == ["8", "3"]
    assert ids(shop.ask(only=[])) == []
    everything = ids(shop.ask(only=[str(name) for name in range(40)], limit=40))
    assert everything == [str(name) for name in reversed(range(40))], "each of them is scored"


def test_attributes_filter() -> None:
    shop = Shop()
    shop.item(1, attributes={"category": "tea", "price": 2.0, "tags": ["hot", "green"]})
    shop.item(2, attributes={"category": "tea", "price": 3.0, "tags": ["hot"]})
    shop.item(3, attributes={"category": "cake", "price": 3.0})
    assert ids(shop.ask(filter={"category": "tea"})) == ["2", "1"]
    assert ids(shop.ask(filter={"category": ["tea", "cake"], "price": 3.0})) == ["3", "2"]
    assert ids(shop.ask(filter={"tags": "green"})) == ["1"]
    assert ids(shop.ask(category="cake")) == ["3"]
    assert ids(shop.ask(category="cake", filter={"category": "tea"})) == ["2", "1"], "the rule goes before the context"


@pytest.mark.parametrize("name", ["colour", "note"])
def test_a_rule_that_cannot_be_followed_is_refused(shop: Shop, name: str) -> None:
    with pytest.raises(InvalidRecord, match="can be filtered by: group, category, price, tags") as refused:
        shop.ask(filter={name: "x"})
    assert refused.value.field == f"show.filter.{name}"


def test_a_category_in_the_context_of_a_shop_without_categories_is_passed_over_and_said() -> None:
    shop = Shop(Config(entities={"item": EntityTypeConfig(attributes={"aisle": "category"})}))
    near = shop.model.inputs.index("two_tower")
    shop.model = replace(shop.model, heads=("purchase",), scores=lambda x: x.values[:, near : near + 1])
    shop.items(3)
    slate = shop.ask(category="tea")
    assert ids(slate) == ["2", "1", "0"]
    assert "not filtered" in why(slate)["filter", "context.category"]


def test_other_entity_types_have_slates_of_their_own() -> None:
    shop = Shop(config_of({"genres": CanvasConfig(entity_type="genre")}))
    shop.items(3)
    shop.item("7", entity_type="genre")
    shop.item("8", entity_type="genre")
    assert ids(shop.ask(limit=9)) == ["2", "1", "0"]
    assert ids(shop.ask(entity_type="genre")) == ["8", "7"]
    assert ids(shop.ask(canvas="genres")) == ["8", "7"], "the canvas's type where the request names none"
    assert {item.entity_type for item in shop.ask(canvas="genres").items} == {"genre"}


# ---- who asks ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("user", [None, "nobody", "u1"])
def test_everybody_gets_a_full_slate(shop: Shop, user: str | None, trained: bool) -> None:
    slate = shop.ask(shop.pipeline(trained=trained), user=user, session="s-1", limit=40)
    assert sorted(ids(slate), key=int) == [str(name) for name in range(40)]
    assert ("score", "model") in why(slate) or trained


@pytest.mark.parametrize("trained", [True, False])
def test_an_empty_catalogue_gives_an_empty_slate(trained: bool) -> None:
    shop = Shop()
    for more in ({}, {"only": ["1"]}, {"new_only": True}, {"deadline_ms": GONE}, {"sources": ["1"]}, {"query": "3"}):
        slate = shop.ask(shop.pipeline(trained=trained), user="u", **more)
        assert slate.items == []
        assert slate.position == "p"


def test_without_a_model_fused_ranks_order_and_the_slate_says_so(shop: Shop) -> None:
    slate = shop.ask(shop.pipeline(trained=False), user="u1", limit=3)
    assert why(slate) == {("retrieve", "two_tower"): "no trained model yet", ("score", "model"): "no trained model yet"}
    assert slate.dense_version is None
    assert slate.items[0].scores == {"fused": slate.items[0].score}
    assert [item.score for item in slate.items] == sorted((item.score for item in slate.items), reverse=True)
    assert set(ids(slate)) <= {str(name) for name in range(9)}


@pytest.mark.parametrize(
    ("field", "fields"),
    [
        ("context.canvas", {"canvas": "attic"}),
        ("limit", {"limit": 0}),
        ("limit", {"limit": 1001}),
        ("deadline_ms", {"deadline_ms": 0}),
        ("deadline_ms", {"deadline_ms": -5}),
        ("deadline_ms", {"deadline_ms": float("nan")}),
        ("deadline_ms", {"deadline_ms": 60_001}),
        ("show.entity_type", {"entity_type": "planet"}),
        ("context.time", {"time": 10**30}),
        ("tenant", {"tenant": "other"}),
    ],
)
def test_nonsense_is_refused_by_name(shop: Shop, field: str, fields: dict[str, object]) -> None:
    with pytest.raises(InvalidRecord) as refused:
        shop.ask(**fields)
    assert refused.value.field == field


def test_a_moment_beyond_the_skew_is_refused_but_not_in_a_replay(shop: Shop) -> None:
    now = now_ms()
    assert resolve(request(time=now + 9 * MINUTE), shop.config).time == now + 9 * MINUTE
    for late in (now + 12 * MINUTE, 4_000_000_000_000):
        with pytest.raises(TooFarAhead) as refused:
            shop.ask(time=late)
        assert refused.value.field == "context.time"
        assert resolve(request(time=late), shop.config, replay=True).time == late


def test_a_request_without_a_time_is_asked_now(shop: Shop) -> None:
    before = time.time_ns() // 1_000_000
    asked = resolve(SlateRequest(context=Context()), shop.config)
    assert before <= asked.time <= time.time_ns() // 1_000_000
    assert asked.deadline_s == 0.2


# ---- similar, search -----------------------------------------------------------------------------------


def test_a_similar_canvas_orders_by_relation_and_leaves_the_source_out(shop: Shop) -> None:
    slate = shop.ask(canvas="similar", user="u1", sources=["2"], limit=40)
    assert "2" not in ids(slate)
    relations = [item.scores["relation"] for item in slate.items]
    assert relations == sorted(relations, reverse=True)
    assert slate.items[0].scores["purchase"] == float(slate.items[0].entity)
    near = {"cooccurrence", "content", "two_tower"}
    tied = [bool(near & set(item.sources)) for item in slate.items]
    assert tied == sorted(tied, reverse=True), "what is only popular or owned never stands before what is similar"


def test_what_is_popular_besides_is_not_more_similar() -> None:
    shop = Shop(config_of({"similar": CanvasConfig()}))
    shop.items(12)
    brought = {
        "cooccurrence": [5, 6],
        "popular": [6, 7],
        "popular_new": [6, 7],
        "owned": [6],
        "content": [],
        "two_tower": [],
    }
    made = [
        Made(n, lambda names=names: Scored(keys64("item", map(str, names)), np.zeros(len(names), np.float32)))
        for n, names in brought.items()
    ]  # type: ignore[misc]
    assert ids(shop.ask(shop.pipeline(*made), canvas="similar", sources=["1"], limit=3)) == ["5", "6", "7"]


@pytest.mark.parametrize("trained", [True, False])
def test_an_unknown_source_is_said_and_the_slate_is_as_without_it(shop: Shop, trained: bool) -> None:
    pipeline = shop.pipeline(trained=trained)
    slate = shop.ask(pipeline, user="nobody", sources=["nowhere"], limit=5)
    assert ("retrieve", "context.sources") in why(slate)
    assert len(slate.items) == 5
    assert "relation" not in slate.items[0].scores


def test_a_query_orders_by_how_close_the_texts_are(shop: Shop) -> None:
    slate = shop.ask(user="u1", query="20", limit=3)
    assert set(ids(slate)) == {"19", "20", "21"}
