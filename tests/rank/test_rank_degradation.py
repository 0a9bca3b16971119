"""When something is missing, late, broken or old: what answers instead, and what the slate says of it."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
from small_shop import GONE, NOW, T0, Made, Shop, config_of, ids, request, why

from mainstem.rank import sources
from mainstem.schema.config import CanvasConfig
from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.protocols import Scored
from mainstem.schema.records import Slate, SlateItem
from mainstem.schema.time import DAY


def raising(error: Exception) -> Callable[[], Scored]:
    def search() -> Scored:
        raise error

    return search


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


@pytest.mark.parametrize("error", [RuntimeError("no memory"), StoreError("damaged"), TimeoutError("slow disk")])
@pytest.mark.parametrize("beside", [True, False])
def test_a_source_that_fails_is_left_out_said_and_logged(
    shop: Shop, pool: ThreadPoolExecutor, error: Exception, beside: bool, caplog: pytest.LogCaptureFixture
) -> None:
    broken = Made("content", raising(error), concurrent=beside)
    with caplog.at_level(logging.ERROR, "mainstem.rank"):
        slate = shop.ask(shop.pipeline(broken, pool=pool), user="u1", limit=3)
    assert ids(slate) == ["39", "38", "37"]
    assert why(slate) == {("retrieve", "content"): f"failed: {type(error).__name__}: {error}"}
    assert "content" in caplog.text


def test_a_source_that_fails_when_asked_is_left_out_too(shop: Shop) -> None:
    broken = Made("popular", Scored.none, concurrent=False)
    broken.prepare = lambda *_: raising(RuntimeError("early"))()  # type: ignore[method-assign, assignment, return-value]
    assert "early" in why(shop.ask(shop.pipeline(broken)))["retrieve", "popular"]


@pytest.mark.parametrize(("brief", "beside"), [(39, ["content", "two_tower"]), (40, [])])
def test_only_searches_of_many_vectors_get_a_thread_of_their_own(
    shop: Shop, monkeypatch: pytest.MonkeyPatch, brief: int, beside: list[str]
) -> None:
    monkeypatch.setattr(sources, "BRIEF", brief)
    assert sorted(source.name for source in shop.sources() if source.concurrent) == beside


def test_a_pool_that_closes_leaves_its_searches_out(shop: Shop, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sources, "BRIEF", 0)
    pool = ThreadPoolExecutor(1)
    pool.shutdown()
    slate = shop.ask(shop.pipeline(pool=pool), user="u1", limit=3)
    assert {what for stage, what in why(slate) if stage == "retrieve"} == {"two_tower", "content"}
    assert len(slate.items) == 3


def test_a_late_source_is_left_out_and_the_others_answer(shop: Shop, pool: ThreadPoolExecutor) -> None:
    release = threading.Event()

    def search() -> Scored:
        release.wait(30)
        return Scored.none()

    late = Made("content", search)
    slate = shop.ask(shop.pipeline(late, pool=pool), user="u1", limit=3, deadline_ms=1500)
    release.set()
    assert ids(slate) == ["39", "38", "37"]
    assert why(slate) == {("retrieve", "content"): "too late for its share of the deadline"}


def test_examples_are_made_of_all_that_is_found_however_late(shop: Shop, pool: ThreadPoolExecutor) -> None:
    in_time, late = request(user="u1"), request(user="u1", deadline_ms=GONE)
    with shop.features.view(in_time.context) as view:
        found, others = (shop.pipeline(pool=pool).candidates(asked, view) for asked in (in_time, late))
    assert others.counts() == found.counts()
    assert np.array_equal(others.keys, found.keys)


def test_training_sees_the_candidates_of_serving(shop: Shop) -> None:
    asked = request(user="u1", new_only=True, exclude=["39"])
    with shop.features.view(asked.context) as view:
        found = shop.pipeline().candidates(asked, view)
    assert len(found) == 40 - 5 - 1
    assert found.counts()["two_tower"] == 34


@pytest.mark.parametrize(
    "scores", [lambda x: x[:, :1] / 0 * 0, lambda x: 1 / 0, lambda x: (_ for _ in ()).throw(NotReady("half"))]
)
def test_a_model_that_fails_leaves_the_fused_order(shop: Shop, scores: Callable[..., object]) -> None:
    shop.model = replace(shop.model, scores=scores)  # type: ignore[arg-type]
    with np.errstate(all="ignore"):
        slate = shop.ask(user="u1", limit=3)
    assert len(slate.items) == 3
    assert ("score", "model") in why(slate)
    assert list(slate.items[0].scores) == ["fused"]
    assert slate.dense_version is None


def kept_slate(*names: int) -> Slate:
    items = [SlateItem(entity=str(name), score=1.0) for name in names]
    return Slate(request_id="old", canvas="home", time=NOW, items=items)


def test_past_the_deadline_the_kept_slate_answers_filtered(shop: Shop) -> None:
    pipeline = shop.pipeline(kept=lambda question: kept_slate(30, 31, 32, 33))
    slate = shop.ask(pipeline, user="u1", deadline_ms=GONE, limit=3, exclude=["31"])
    assert ids(slate) == ["30", "32", "33"]
    said = why(slate)
    assert said["score", "model"] == "the deadline passed before scoring"
    assert "3 entities" in said["order", "fallback kept"]
    assert ("order", "fallback popular") not in said
    assert {what for stage, what in said if stage == "retrieve"} >= {"popular", "owned", "two_tower"}
    assert slate.request_id != "old"


def test_what_the_kept_slate_lacks_is_filled_with_what_is_popular_then_with_anything(shop: Shop) -> None:
    pipeline = shop.pipeline(kept=lambda question: kept_slate(30, 4))
    slate = shop.ask(pipeline, user="u1", deadline_ms=GONE, limit=20)
    assert ids(slate)[:2] == ["30", "4"]
    assert set(ids(slate)[2:10]) == {"0", "1", "2", "3", "5", "6", "7", "8"}
    assert ids(slate)[10:] == [str(name) for name in (39, 38, 37, 36, 35, 34, 33, 32, 31, 29)]
    assert len(set(ids(slate))) == 20
    assert "8 entities" in why(slate)["order", "fallback popular"]
    assert {("order", f"fallback {way}") for way in ("kept", "popular", "found")} <= set(why(slate))


def test_the_fallbacks_are_those_of_the_canvas() -> None:
    shop = Shop(config_of({"home": CanvasConfig(fallback=["popular"]), "bare": CanvasConfig(fallback=[])}))
    shop.items(3)
    shop.happen("u", 1, day=7)
    pipeline = shop.pipeline(kept=lambda question: kept_slate(2))
    assert ids(shop.ask(pipeline, deadline_ms=GONE, limit=1)) == ["1"]
    assert ids(shop.ask(pipeline, canvas="bare", deadline_ms=GONE, limit=1)) == ["2"], "the latest arrival"


def test_a_kept_slate_does_not_answer_for_other_sources_or_a_query(shop: Shop) -> None:
    pipeline = shop.pipeline(kept=lambda question: kept_slate(30))
    for more in ({"sources": ["3"]}, {"query": "20"}):
        slate = shop.ask(pipeline, deadline_ms=GONE, limit=3, **more)
        assert "30" not in ids(slate)
        assert len(slate.items) == 3


def test_kept_slates_that_cannot_be_read_are_said_and_passed_over(shop: Shop) -> None:
    def broken(question: object) -> Slate | None:
        raise StoreError("damaged")

    slate = shop.ask(shop.pipeline(kept=broken), deadline_ms=GONE, limit=3)
    assert "damaged" in why(slate)["order", "fallback kept"]
    assert len(slate.items) == 3


def test_a_fallback_shows_one_variant_of_a_thing() -> None:
    shop = Shop()
    for name in range(4):
        shop.item(name, group="shirt" if name < 2 else None)
    shop.happen("u", 1, day=7)
    slate = shop.ask(shop.pipeline(kept=lambda question: kept_slate(0)), deadline_ms=GONE)
    assert ids(slate) == ["0", "3", "2"]


def test_a_request_from_the_past_is_said_to_know_too_much(shop: Shop) -> None:
    slate = shop.ask(user="u1", time=T0 + 6 * DAY, limit=3)
    assert ("freshness", "state") in why(slate)
    assert len(slate.items) == 3
    assert why(shop.ask(user="u1")) == {}


# ---- nobody does anything ------------------------------------------------------------------------------


def test_where_the_window_is_empty_the_longest_one_speaks(shop: Shop) -> None:
    """The windows are 1, 7 and 28 days; the shop's events lie between days 6 and 6.4."""
    for day, brought in ((10, 9), (25, 9), (34, 9)):
        slate = shop.ask(shop.pipeline(trained=False), time=T0 + day * DAY, limit=9)
        assert slate.candidates["popular"] == slate.candidates["popular_new"] == brought
        assert ids(slate)[0] == "4", "bought by all five"
        assert not {("retrieve", "popular"), ("retrieve", "popular_new")} & set(why(slate))


def test_where_that_is_empty_too_the_slate_says_so_and_is_full_all_the_same(shop: Shop) -> None:
    slate = shop.ask(shop.pipeline(trained=False), time=T0 + 90 * DAY, limit=9)
    assert len(slate.items) == 9
    assert {source for item in slate.items for source in item.sources} == {"catalog"}
    said = why(slate)
    assert said["retrieve", "popular"] == "nobody did anything in the last 28d"
    assert said["retrieve", "popular_new"] == "nobody did anything new in the last 28d"
    assert ("retrieve", "popular_here") not in said, "nobody knows where the stranger is"
    late = shop.ask(shop.pipeline(trained=False), time=T0 + 90 * DAY, limit=9, deadline_ms=GONE)
    assert why(late)["order", "fallback popular"] == "nobody did anything in the last 28d"
    assert len(late.items) == 9


def test_a_filter_that_leaves_nothing_is_not_a_quiet_shop(shop: Shop) -> None:
    slate = shop.ask(time=T0 + 10 * DAY, only=["30"])
    assert ids(slate) == ["30"]
    assert why(slate) == {}
