"""Label preparation: every positive answers what its canvas asks, and nothing else is told."""

import dataclasses

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join.sessions import session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.canvases import UNKNOWN, CanvasPlaces
from mainstem.schema.config import CanvasConfig
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.records import Event
from mainstem.train.canvases import Canvases, Requests
from mainstem.train.interactions import Interactions, Positives

CONFIGURED = {
    "home": CanvasConfig(),
    "mail": CanvasConfig(),
    "similar": CanvasConfig(learns_from="previous", share=0.5),
    "aisle": CanvasConfig(learns_from="category", share=1.0),
    "search": CanvasConfig(learns_from="query", share=1.0),
}
HOME, MAIL, SIMILAR, AISLE, SEARCH = range(1, 6)


def positives(count: int, canvas: str | None = None, query: str | None = None) -> Interactions:
    """One user's, each of another entity, a day apart."""
    events = [
        Event(
            event_id=str(i), time=86_400_000 * i, user="u", kind="purchase", entity=f"i{i}", canvas=canvas, query=query
        )
        for i in range(count)
    ]  # fmt: skip
    return Positives.of(EventBatch.of(events), {"purchase": 1.0}, session_starts).batch(np.arange(count))


def prepared(batch: Interactions, category: Keys | None = None, seed: int = 0) -> Requests:
    none = np.zeros(len(batch), np.uint64)
    return Canvases(CONFIGURED).prepare(batch, none if category is None else category, np.random.default_rng(seed))


def of(requests: Requests, canvas: int) -> Requests:
    rows = requests.canvas == canvas
    return Requests(*(getattr(requests, field.name)[rows] for field in dataclasses.fields(Requests)))


def test_every_positive_answers_the_first_feed_and_a_share_of_them_another() -> None:
    found = prepared(positives(2_000))
    assert of(found, HOME).positive.tolist() == list(range(2_000))
    assert 0.2 < len(of(found, MAIL)) / 2_000 < 0.3
    for feed in (of(found, HOME), of(found, MAIL)):
        assert feed.personal.all()
        for part in (feed.source, feed.category, feed.query):
            assert not part.any()


def test_related_requests_have_the_previous_entity_and_half_of_them_no_user() -> None:
    batch = positives(2_000)
    found = of(prepared(batch), SIMILAR)
    assert 0.45 < len(found) / 2_000 < 0.55  # its share
    assert 0 not in found.positive  # nothing was before the first
    np.testing.assert_array_equal(found.source, batch.entity[found.positive - 1])
    assert 0.45 < found.personal.mean() < 0.55


def test_category_and_query_requests_are_made_where_there_is_one() -> None:
    batch = positives(40, query="red shoes")
    category = np.where(np.arange(40) % 2, 7, 0).astype(np.uint64)
    found = prepared(batch, category)
    assert of(found, AISLE).positive.tolist() == list(range(1, 40, 2))
    assert set(of(found, AISLE).category.tolist()) == {7}
    assert of(found, SEARCH).positive.tolist() == list(range(40))
    assert set(of(found, SEARCH).query.tolist()) == set(keys64("query", ["red shoes"]).tolist())
    assert not len(of(prepared(positives(40), category), SEARCH))  # canary: without a query


def test_an_event_that_names_its_canvas_is_the_answer_to_a_request_of_that_one() -> None:
    assert not len(of(prepared(positives(50, "mail")), HOME))
    assert of(prepared(positives(50, "mail")), MAIL).positive.tolist() == list(range(50))
    assert of(prepared(positives(50, "similar")), SIMILAR).positive.tolist() == list(range(1, 50))
    assert len(of(prepared(positives(50, "nowhere")), HOME)) > 0


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 30), st.integers(0, 5))
def test_the_same_draws_make_the_same_requests(count: int, seed: int) -> None:
    batch = positives(count, query="q")
    one, other = prepared(batch, seed=seed), prepared(batch, seed=seed)
    for field in dataclasses.fields(Requests):
        np.testing.assert_array_equal(getattr(one, field.name), getattr(other, field.name))


def test_without_a_feed_only_the_others_are_asked() -> None:
    canvases = Canvases({"similar": CanvasConfig(learns_from="previous", share=1.0)})
    found = canvases.prepare(positives(10), np.zeros(10, np.uint64), np.random.default_rng(0))
    assert found.canvas.tolist() == [1] * 9
    assert canvases.plain(positives(3)).canvas.tolist() == [UNKNOWN] * 3


def test_places_by_name_and_by_key() -> None:
    places = CanvasPlaces(("home", "similar"), "shop")
    assert (places.of("similar"), places.of("nowhere"), len(places)) == (2, UNKNOWN, 3)
    keys = np.concatenate([keys64("canvas", ["similar", "home", "nowhere"], "shop"), np.zeros(1, np.uint64)])
    assert places.of_keys(keys).tolist() == [2, 1, UNKNOWN, UNKNOWN]
    assert places.of_keys(keys64("canvas", ["home"], "main")).tolist() == [UNKNOWN]  # of another tenant


def test_what_is_stored_of_a_canvas_does_not_depend_on_the_others() -> None:
    keys = np.concatenate([keys64("canvas", ["similar", "home", "nowhere"]), np.zeros(1, np.uint64)])
    short = CanvasPlaces.short(keys)
    assert CanvasPlaces(("home", "similar")).of_short(short).tolist() == [2, 1, UNKNOWN, UNKNOWN]
    assert CanvasPlaces(("new", "similar", "home")).of_short(short).tolist() == [2, 3, UNKNOWN, UNKNOWN]
    assert CanvasPlaces(()).of_short(short).tolist() == [UNKNOWN] * 4
