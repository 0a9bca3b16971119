"""The sources that read weights between items: from the history of now, or the source entities, by one version."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from small_shop import Shop, config_of, ids, names_of, why

from mainstem.index import Neighbourhood
from mainstem.rank.sources import Neighbours
from mainstem.schema.config import CanvasConfig, SourceConfig
from mainstem.schema.ids import keys64
from mainstem.schema.protocols import Scored

# 1 is near 2 and 3, 4 is near 3 and against 2, 5 is near 1.
NEAR = {1: {2: 0.5, 3: 0.25}, 4: {3: 0.5, 2: -1.0}, 5: {1: 0.75}}


def between(near: dict[int, dict[int, float]], count: int = 30) -> Neighbourhood:
    keys = keys64("item", map(str, range(count)))
    order = np.argsort(keys)
    dense = np.zeros((count, count), np.float32)
    for number, others in near.items():
        dense[number, list(others)] = list(others.values())
    dense = dense[order][:, order]
    rows, places = np.nonzero(dense)
    offsets = np.searchsorted(rows, np.arange(count + 1))
    return Neighbourhood(keys[order], offsets, places.astype(np.uint32), dense[rows, places])


@pytest.fixture
def shop() -> Shop:
    asked = {name: SourceConfig(limit=10) for name in ("item_knn", "popular")}
    shop = Shop(config_of({"home": CanvasConfig(sources=asked), "similar": CanvasConfig(sources=asked)}))
    shop.items(30)
    shop.model = replace(shop.model, neighbourhoods={"item_knn": between(NEAR), "ease": "its file is damaged"})
    return shop


def source_of(shop: Shop, name: str = "item_knn") -> Neighbours:
    interest = np.array([shop.config.interest().get(kind, 0.0) for kind in shop.features.kinds], np.float32)
    return Neighbours(name, lambda: shop.model, interest)


def found(shop: Shop, limit: int = 10, but: tuple[int, ...] = (), **fields: object) -> Scored:
    question, forbidden = shop.question(**fields), keys64("item", map(str, but))
    with shop.view(question) as view:
        return source_of(shop).prepare(question, view, limit, lambda keys: ~np.isin(keys, forbidden))()


def test_the_history_speaks_by_its_strongest_events_whenever_they_were(shop: Shop) -> None:
    shop.happen("reader", 1, kind="view", day=1)
    shop.happen("reader", 1, kind="purchase", day=2)
    shop.happen("reader", 1, kind="view", day=3)
    once = found(shop, user="reader")
    assert names_of(once.keys) == ["2", "3"]
    np.testing.assert_allclose(once.scores, [0.5, 0.25])
    shop.happen("reader", 5, kind="view", day=4)
    more = found(shop, user="reader")
    assert names_of(more.keys) == ["2", "3", "1"]
    np.testing.assert_allclose(more.scores, [0.5, 0.25, 0.75 * shop.config.events["view"].interest])
    assert len(found(shop, user="stranger")) == 0


def test_what_speaks_against_is_counted_and_never_brought(shop: Shop) -> None:
    shop.happen("reader", 1, 4, day=1)
    assert names_of(found(shop, user="reader").keys) == ["3"]
    assert found(shop, user="reader").scores.tolist() == [0.75]


def test_source_entities_speak_instead_of_the_user(shop: Shop) -> None:
    shop.happen("reader", 1, day=1)
    assert names_of(found(shop, user="reader", sources=["5"]).keys) == ["1"]
    assert len(found(shop, user="reader", sources=["nowhere"])) == 0


def test_it_widens_past_what_may_not_be_shown(shop: Shop) -> None:
    shop.model = replace(shop.model, neighbourhoods={"item_knn": between({1: {n: 1 - n / 100 for n in range(2, 30)}})})
    shop.happen("reader", 1, day=1)
    assert names_of(found(shop, 2, tuple(range(2, 20)), user="reader").keys) == ["20", "21"]


def test_a_slate_names_it_and_a_new_event_changes_the_next_one(shop: Shop) -> None:
    pipeline = shop.pipeline(source_of(shop))
    assert all("item_knn" not in item.sources for item in shop.ask(pipeline, user="reader").items)
    shop.happen("reader", 1, day=1)
    brought = {item.entity for item in shop.ask(pipeline, user="reader").items if "item_knn" in item.sources}
    assert brought == {"2", "3"}
    shop.happen("reader", 5, day=2)
    brought = {item.entity for item in shop.ask(pipeline, user="reader").items if "item_knn" in item.sources}
    assert brought == {"1", "2", "3"}


def test_on_a_related_canvas_it_says_how_close_candidates_are(shop: Shop) -> None:
    shop.happen("somebody", 9, day=9)
    slate = shop.ask(shop.pipeline(source_of(shop)), canvas="similar", sources=["1"], limit=3)
    assert ids(slate)[:2] == ["2", "3"]
    assert slate.items[0].scores["relation"] > slate.items[1].scores["relation"] > slate.items[2].scores["relation"]


def test_without_weights_it_is_left_out_and_the_slate_says_why(shop: Shop) -> None:
    shop.happen("reader", 1, day=1)
    assert ("retrieve", "item_knn") not in why(shop.ask(shop.pipeline(source_of(shop)), user="reader"))  # canary
    for neighbourhoods, reason in (({}, "v-1 has no weights for it"), ({"item_knn": "gone"}, "gone")):
        shop.model = replace(shop.model, neighbourhoods=neighbourhoods)
        slate = shop.ask(shop.pipeline(source_of(shop)), user="reader", limit=5)
        assert why(slate)["retrieve", "item_knn"] == reason
        assert len(slate.items) == 5
    slate = shop.ask(shop.pipeline(Neighbours("item_knn", shop.untrained, np.ones(9, np.float32)), trained=False))
    assert why(slate)["retrieve", "item_knn"] == "no trained model yet"


def test_it_reads_the_weights_of_the_version_that_scores(shop: Shop) -> None:
    shop.happen("reader", 1, day=1)
    question = shop.question(user="reader")
    shop.model = replace(shop.model, neighbourhoods={})  # another version came into use meanwhile
    with shop.view(question) as view:
        brought = source_of(shop).prepare(question, view, 5, lambda keys: np.ones(len(keys), np.bool_))()
    assert names_of(brought.keys) == ["2", "3"]
