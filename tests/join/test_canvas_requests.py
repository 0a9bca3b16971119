"""A visit as a request on every canvas: what is told is what was so, and the answer is not in the question."""

import numpy as np
import pytest

from mainstem import catalog as catalogs
from mainstem.join import CanvasRequests, StoredRequest, visits
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, EntityTypeConfig
from mainstem.schema.ids import key64
from mainstem.schema.position import START
from mainstem.schema.records import Entity, Event

CANVASES = {
    "home": CanvasConfig(),
    "similar": CanvasConfig(learns_from="previous"),
    "aisle": CanvasConfig(learns_from="category"),
    "search": CanvasConfig(learns_from="query"),
}
TYPES = {"item": EntityTypeConfig(attributes={"category": "category"})}


def asking(*entities: str, query: str | None = None, category: str = "tea") -> tuple[CanvasRequests, EventBatch]:
    catalog = catalogs.open("memory://", entities=TYPES)
    described = [
        Entity(record_id=name, time=0, entity=name, attributes={"category": category} if category else {})
        for name in dict.fromkeys(entities)
        if name != "unknown"
    ]
    catalog.write(list(described), START)
    events = [
        Event(event_id=str(i), time=1_000 + i, user="u", kind="purchase", entity=name, session="s", query=query)
        for i, name in enumerate(entities)
    ]
    batch = EventBatch.of(events)
    return CanvasRequests(CANVASES, batch, {key64("user", "u"): "u"}, catalog), batch


def request(canvas: str, *entities: str, stranger: bool = False, **how: str | None) -> StoredRequest | None:
    made, batch = asking(*entities, **how)  # type: ignore[arg-type]
    (visit,) = visits(batch)
    return made.of(visit, canvas, np.random.default_rng(0), stranger=stranger)


def test_a_feed_is_asked_by_its_user_just_before_the_visit() -> None:
    found = request("home", "a", "b")
    assert found is not None
    context = found.context
    assert (context.canvas, context.user, context.time) == ("home", "u", 1_000)
    assert (context.sources, context.category, context.query) == ([], None, None)
    stranger = request("home", "a", "b", stranger=True)
    assert stranger is not None
    assert stranger.context.user is None


def test_related_items_start_from_the_first_entity_and_need_another() -> None:
    found = request("similar", "a", "b", "a")
    assert found is not None
    assert (found.context.sources, found.context.source_type) == (["a"], "item")
    assert request("similar", "a", "a") is None
    assert request("similar", "unknown", "a") is None


@pytest.mark.parametrize(("canvas", "field", "value"), [("aisle", "category", "tea"), ("search", "query", "green")])
def test_category_and_query_are_those_of_the_visit(canvas: str, field: str, value: str) -> None:
    found = request(canvas, "a", "b", query="green")
    assert found is not None
    assert getattr(found.context, field) == value
    assert request(canvas, "a", "b", query=None, category="") is None
