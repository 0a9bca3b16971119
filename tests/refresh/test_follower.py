"""The follower: every record once and in order into each store, sinks and forgetters told, failures seen."""

from __future__ import annotations

import contextlib
import itertools
import logging
import re
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import catalog as catalogs
from mainstem import eventlog, features
from mainstem.catalog import EventEntities
from mainstem.refresh import Follower, follower
from mainstem.schema import expiry
from mainstem.schema.config import Config, EntityTypeConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.expiry import ENOUGH
from mainstem.schema.ids import key64
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Catalog, FeatureStore, Log
from mainstem.schema.records import (
    Context,
    Entity,
    EntityDelete,
    EntityPatch,
    Erase,
    Erased,
    Event,
    LogRecord,
    Served,
    Slate,
    SlateRequest,
)
from mainstem.schema.time import DAY, now_ms

CONFIG = Config()
T0 = now_ms() - 30 * DAY


class Killed(BaseException):
    """The process ends here."""


def holders() -> tuple[Log, Catalog, FeatureStore]:
    log = eventlog.open("memory://", history="")
    catalog = catalogs.open("memory://", entities=CONFIG.entities)
    return log, catalog, features.open("memory://", CONFIG, catalog)


def event(number: int, user: str = "u", entity: str = "1", kind: str = "purchase") -> Event:
    return Event(event_id=f"x{number}", time=T0 + number * 1000, user=user, kind=kind, entity=entity)


def item(number: int, name: str = "1", **fields: object) -> Entity:
    return Entity(record_id=f"e{number}", time=T0 + number * 1000, entity=name, **fields)  # type: ignore[arg-type]


def gone(number: int, name: str = "1") -> EntityDelete:
    return EntityDelete(record_id=f"d{number}", time=T0 + number * 1000, entity=name)


def erase(number: int, user: str = "u") -> Erase:
    return Erase(record_id=f"f{number}", time=T0 + number * 1000, user=user)


def served(number: int) -> Served:
    slate = Slate(request_id=f"s{number}", canvas="home", time=T0, items=[])
    return Served(record_id=f"s{number}", time=T0, user="u", request=SlateRequest(), slate=slate)


def bought(store: FeatureStore, user: str = "u") -> dict[int, float]:
    with store.view(Context(user=user, time=now_ms() + DAY)) as view:
        counts = view.counts()
        return dict(zip(counts.keys.tolist(), counts.count.tolist(), strict=True))


def item_key(name: str) -> int:
    return key64("item", name)


def until(true: Callable[[], bool], seconds: float = 20) -> bool:
    end = time.monotonic() + seconds
    while not true() and time.monotonic() < end:
        time.sleep(0.01)
    return true()


def test_every_store_reflects_the_log_in_order() -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store, batch=3)
    log.append([item(1), event(2), EntityPatch(record_id="p", time=T0 + 3000, entity="1", stock=0.0), event(4)])
    log.append([gone(5), item(6, "2"), event(7, entity="2"), served(8)])
    seen: list[tuple[int, int]] = []
    assert follow.lag() == 8
    follow.catch_up(lambda done, total: seen.append((done, total)))
    assert seen == [(3, 8), (6, 8), (8, 8)]
    assert follow.lag() == 0
    assert bought(store) == {item_key("1"): 2.0, item_key("2"): 1.0}
    assert catalog.entity(item_key("1")) is None
    assert len(catalog) == 1
    assert catalog.position() == store.position() == follow.position == log.end()


def test_the_log_hears_only_of_what_is_stored() -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store, name="other")
    follow.catch_up()
    log.append([event(1), event(2)])
    follow.step()
    noted = log.follow("other")
    assert noted <= catalog.position(), "events do not concern the catalogue, so its position may wait"
    assert noted <= store.position()
    follow.note()
    assert log.follow("other") == catalog.position() == store.position() == log.end()
    assert log.follow("state") == START


def test_our_own_slates_are_passed_over_without_a_write() -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store)
    log.append([event(1)])
    follow.catch_up()
    log.append([served(2), served(3)])
    follow.step()
    assert store.position() == Position.at(1)
    assert follow.position == log.end()
    assert follow.wait_for(log.end(), 0)
    follow.note()
    assert store.position() == log.end()


class Dying:
    """A store whose n-th write (or erasure) is the last thing that the process does, before or after it."""

    def __init__(self, store: object, verb: str, count: int, after: bool) -> None:
        self._store, self._verb, self._left, self._after = store, verb, count, after

    def __getattr__(self, name: str) -> object:
        made = getattr(self._store, name)
        if name != self._verb:
            return made

        def call(*args: object) -> object:
            self._left -= 1
            if self._left < 0 and not self._after:
                raise Killed
            result = made(*args)
            if self._left < 0:
                raise Killed
            return result

        return call


STORY: list[LogRecord] = [
    item(1), event(2), event(3, "v"), item(4, "2"), event(5, entity="2"), erase(6), event(7, entity="2"), gone(8),
    event(9, "v", "2"), erase(10, "v"), item(11, "3"), event(12, "v", "3"), served(13), event(14, entity="3"),
]  # fmt: skip


def told_of() -> tuple[set[int], Callable[[Sequence[Entity], Sequence[int]], None]]:
    """An index that a sink keeps: the keys in it."""
    keys: set[int] = set()

    def sink(changed: Sequence[Entity], left: Sequence[int]) -> None:
        keys.difference_update(left)
        keys.update(key64(entity.entity_type, entity.entity) for entity in changed)

    return keys, sink


@settings(max_examples=60, deadline=None)
@given(
    st.sampled_from(["catalog.write", "features.write", "features.erase"]),
    st.integers(0, 8),
    st.booleans(),
    st.integers(1, 14),
    st.integers(1, 14),
)
def test_a_crash_between_two_writes_loses_and_repeats_nothing(
    where: str, count: int, after: bool, batch: int, other: int
) -> None:
    log, catalog, store = holders()
    log.append(STORY)
    place, verb = where.split(".")
    dying = {"catalog": catalog, "features": store}
    dying[place] = Dying(dying[place], verb, count, after)  # type: ignore[assignment]
    with contextlib.suppress(Killed):
        Follower(log, dying["catalog"], dying["features"], batch=batch).catch_up()  # type: ignore[arg-type]
    stand = catalog.position(), store.position()
    follow = Follower(log, catalog, store, batch=other)
    assert follow.position == min(stand, key=lambda p: p.offset())
    follow.catch_up()
    assert bought(store) == {item_key("2"): 1.0, item_key("3"): 1.0}
    assert bought(store, "v") == {item_key("3"): 1.0}
    assert sorted(catalog.keys()[catalog.keys() != 0].tolist()) == sorted([item_key("2"), item_key("3")])
    with store.view(Context(time=now_ms() + DAY)) as view:
        popular = view.popular(9, window=9)
        # Sums over all users name nobody, so they keep what was erased: each event once.
        assert dict(zip(popular.keys.tolist(), popular.scores.round().tolist(), strict=True)) == expected_popular()
    assert follow.position == catalog.position() == store.position() == log.end()


def expected_popular() -> dict[int, float]:
    log, catalog, store = holders()
    log.append(STORY)
    Follower(log, catalog, store).catch_up()
    with store.view(Context(time=now_ms() + DAY)) as view:
        popular = view.popular(9, window=9)
        return dict(zip(popular.keys.tolist(), popular.scores.round().tolist(), strict=True))


def test_the_crash_test_would_see_an_event_folded_twice() -> None:
    log, catalog, store = holders()
    log.append([*STORY, event(15, entity="3")])
    Follower(log, catalog, store).catch_up()
    assert bought(store) != {item_key("2"): 1.0, item_key("3"): 1.0}


@pytest.mark.parametrize("batch", [1, 2, 50])
def test_an_erasure_takes_what_came_before_and_not_what_comes_after(batch: int) -> None:
    log, catalog, store = holders()
    forgotten: list[tuple[str, str]] = []
    follow = Follower(log, catalog, store, batch=batch, forget=[lambda *who: forgotten.append(who)])
    log.append([event(1), event(2, "v"), erase(3), event(4, entity="2")])
    follow.catch_up()
    assert bought(store) == {item_key("2"): 1.0}
    assert bought(store, "v") == {item_key("1"): 1.0}
    assert forgotten == [("u", "main")]


def test_a_state_made_from_a_rewritten_log_knows_nothing_of_the_erased(tmp_path: Path) -> None:
    config = CONFIG.log.model_copy(update={"keep_erasures": "0s"})
    with closing(eventlog.open(f"sqlite://{tmp_path}/log", history=f"file://{tmp_path}/history", config=config)) as log:
        log.append([event(1), event(2, "v"), erase(3), event(4, entity="2"), event(2, "u", "3"), erase(5, "v")])
        while log.erasures().pending or not isinstance(log.read(Position.at(2)).records[0], Erased):
            time.sleep(0.01)  # until the erasures themselves have lost their names
        _, catalog, store = holders()
        Follower(log, catalog, store, batch=2).catch_up()
        assert bought(store) == {item_key("2"): 1.0}
        assert bought(store, "v") == {}


def test_sinks_hear_what_the_catalogue_then_says() -> None:
    log, catalog, store = holders()
    keys, sink = told_of()
    calls: list[tuple[list[str], list[int]]] = []
    sinks = [sink, lambda changed, left: calls.append(([e.entity for e in changed], list(left)))]
    follow = Follower(log, catalog, store, sinks)
    log.append([item(1), item(2, "2"), event(3)])
    follow.catch_up()
    assert calls == [(["1", "2"], [])]
    log.append([event(4)])
    follow.catch_up()
    assert len(calls) == 1, "events are no business of theirs"
    log.append([gone(5), item(6, "3")])
    follow.catch_up()
    assert calls[-1] == (["3"], [item_key("1")])
    assert keys == {item_key("2"), item_key("3")}


def test_what_left_and_came_back_in_one_batch_has_not_left() -> None:
    log, catalog, store = holders()
    keys, sink = told_of()
    follow = Follower(log, catalog, store, [lambda changed, left: (sink(changed, []), sink([], left))[0]])
    log.append([item(1)])
    follow.catch_up()
    log.append([gone(2), item(3, text="new")])
    follow.catch_up()
    assert keys == {item_key("1")}
    log.append([EntityDelete(record_id="late", time=T0, entity="1")])  # older than what it would delete
    follow.catch_up()
    assert catalog.entity(item_key("1")) is not None
    assert keys == {item_key("1")}


def test_a_sink_that_failed_is_told_again() -> None:
    log, catalog, store = holders()
    keys, sink = told_of()
    broken = [True]

    def failing(changed: Sequence[Entity], left: Sequence[int]) -> None:
        if broken[0]:
            raise RuntimeError("index")
        sink(changed, left)

    follow = Follower(log, catalog, store, [failing])
    log.append([item(1), event(2)])
    for _ in range(2):
        with pytest.raises(RuntimeError, match="index"):
            follow.catch_up()
        assert follow.position == START
    broken[0] = False
    follow.catch_up()
    assert keys == {item_key("1")}
    assert bought(store) == {item_key("1"): 1.0}


def test_followed_in_a_thread_one_reads_one_s_writes() -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store)
    follow.start()
    try:
        for number in range(1, 30):
            after = log.append([event(number, entity=str(number))]).position
            assert follow.wait_for(after, 20)
            assert item_key(str(number)) in bought(store)
        assert not follow.wait_for(Position.at(999), 0.01)
    finally:
        follow.stop()
    assert follow.failure is None
    assert log.follow("state") == log.end(), "noted at the end"
    follow.start()  # and on again
    assert follow.wait_for(log.append([event(99)]).position, 20)
    follow.stop()


def test_records_that_nobody_waits_for_are_gathered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "GATHER", 3600.0)
    log, catalog, store = holders()
    sizes: list[int] = []

    class Counting(Follower):
        def step(self) -> int:
            sizes.append(super().step())
            return sizes[-1]

    follow = Counting(log, catalog, store)
    follow.start()
    try:
        first = log.append([event(1)]).position
        assert until(lambda: follow.position == first), "a log that was still is followed at once"
        for number in range(2, 6):
            after = log.append([event(number, entity=str(number))]).position
        assert follow.wait_for(after, 20), "who waits ends the gathering"
        assert [size for size in sizes if size] == [1, 4]
        assert item_key("5") in bought(store)
    finally:
        follow.stop()
    assert follow.failure is None


def test_a_full_batch_is_followed_by_the_next_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(follower, "GATHER", 3600.0)
    log, catalog, store = holders()
    after = log.append([event(number) for number in range(1, 10)]).position
    follow = Follower(log, catalog, store, batch=2)
    follow.start()
    try:
        assert until(lambda: follow.position == after)
    finally:
        follow.stop()


def test_a_slow_step_of_a_few_records_is_told_by_its_parts(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store, [lambda changed, left: time.sleep(0.05)])
    numbers = itertools.count()

    def told(records: int) -> list[str]:
        caplog.clear()
        log.append([item(number, str(number)) for number in itertools.islice(numbers, records)])
        follow.catch_up()
        return [record.message for record in caplog.records if record.levelno == logging.WARNING]

    assert not told(1), "fast enough"
    monkeypatch.setattr(follower, "SLOW", 0.04)
    monkeypatch.setattr(follower, "FEW", 2)
    assert not told(3), "many records take their time"
    (line,) = told(2)
    assert line.startswith("a step of 2 records took ")
    took = {part: float(ms) for part, ms in re.findall(r"(\w+) (\d+) ms", line.partition("(")[2])}
    assert max(took, key=lambda part: took[part]) == "indexes"
    assert took["indexes"] >= 50
    assert not told(2), "one line, not one for each step"


def test_a_failure_is_seen_and_passes(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(follower, "RETRY_FIRST", 0.01)
    log, catalog, store = holders()
    full = [True]

    class Full:
        def __getattr__(self, name: str) -> object:
            return getattr(store, name)

        def write(self, *args: object) -> None:
            if full[0]:
                raise OSError("no space left on device")
            store.write(*args)  # type: ignore[arg-type]

    follow = Follower(log, catalog, Full())  # type: ignore[arg-type]
    follow.start()
    try:
        after = log.append([item(1), event(2)]).position
        assert until(lambda: follow.failure is not None)
        assert "no space" in str(follow.failure)
        assert not follow.wait_for(after, 0.05)
        assert follow.lag() == 2
        full[0] = False
        assert follow.wait_for(after, 20)
        assert until(lambda: follow.failure is None)
    finally:
        follow.stop()
    assert bought(store) == {item_key("1"): 1.0}
    assert "slates reflect no new events" in caplog.text


def test_stores_ahead_of_the_log_are_refused() -> None:
    log, catalog, store = holders()
    log.append([item(1), event(2)])
    Follower(log, catalog, store).catch_up()
    other = eventlog.open("memory://", history="")
    other.append([event(1)])
    with pytest.raises(StoreError, match="another log"):
        Follower(other, catalog, store)


class Short:
    """A log that tells of more than can be read from it."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def end(self) -> Position:
        return Position.at(self._log.end().offset() + 1)


def test_a_log_that_cannot_be_read_to_its_end_is_told_of() -> None:
    log, catalog, store = holders()
    log.append([item(1), event(2)])
    follow = Follower(Short(log), catalog, store)  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="a part of it is lost"):
        follow.catch_up()
    assert follow.position == Position.at(2)


def test_what_only_events_know_of_comes_into_the_catalogue() -> None:
    log, catalog, store = holders()
    keys, sink = told_of()
    follow = Follower(log, catalog, store, [sink], entities=EventEntities.of(CONFIG))
    log.append([event(1), event(2, entity="2"), event(3, entity="seen", kind="impression"), event(4, entity="1")])
    follow.catch_up()
    assert keys == {item_key("1"), item_key("2")}, "an impression says of no interest"
    assert catalog.available(catalog.rows(np.array(sorted(keys), np.uint64)), T0).all()
    log.append([gone(5), event(6)])
    follow.catch_up()
    log.append([event(7), event(8, entity="2")])
    follow.catch_up()
    assert keys == {item_key("2")}, "what was deleted stays so, whatever happens to it later"
    log.append([Entity(record_id="old", time=1, entity="2", text="older than its events")])
    follow.catch_up()
    assert catalog.text(item_key("2")) == "older than its events"


def test_nothing_is_made_where_it_is_not_wanted() -> None:
    config = Config(entities={"item": EntityTypeConfig(from_events=False)})
    for entities in (None, EventEntities.of(config)):
        log, catalog, store = holders()
        log.append([event(1)])
        Follower(log, catalog, store, entities=entities).catch_up()
        assert len(catalog) == 0


def sweeping(count: int) -> tuple[Follower, Log, FeatureStore, list[int]]:
    """A follower over `count` old events, and the times of its sweeps."""
    log, catalog, store = holders()
    swept: list[int] = []
    follow = Follower(log, catalog, store, sweeps=[lambda time: swept.append(time) or 7], batch=500)
    log.append([old(number) for number in range(count)])
    follow.catch_up()
    return follow, log, store, swept


def old(number: int) -> Event:
    """A thousand a day, from 1500 days ago."""
    return Event(
        event_id=f"old{number}", time=T0 - 1500 * DAY + number * DAY // 1000, user=f"u{number % 10}", kind="purchase",
        entity="1",
    )  # fmt: skip


def test_a_few_events_of_today_on_a_log_of_old_data_expire_nothing() -> None:
    follow, log, store, swept = sweeping(3000)
    before = follow.expired
    log.append([event(number, user="today") for number in range(ENOUGH - 1)])
    follow.catch_up()
    assert max(swept) < T0 - 1490 * DAY
    assert bought(store, "u1")
    assert follow.expired == before + 7, "the last old day is reached, where nothing has expired"
    log.append([event(ENOUGH, user="today")])  # and when it is not a few any more, time has come this far
    follow.catch_up()
    assert max(swept) > T0 - 2 * DAY
    assert not bought(store, "u1")
    assert bought(store, "today")
    assert follow.expired > before + 14, "keys of the state, and what the other sweep says"


def test_in_normal_operation_every_day_is_swept_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.INFO, logger=follower.__name__):
        swept = sweeping(9000)[3]
    assert len(swept) == len(set(swept)) >= 7
    assert [b - a for a, b in pairwise(swept)] == [DAY] * (len(swept) - 1)
    assert all(time % DAY == 0 for time in swept)
    assert "0 keys of the feature state dropped, 7 of the rest" in caplog.text


@given(st.lists(st.lists(st.integers(0, 12), max_size=30), max_size=8))
def test_the_clock_of_expiry_against_all_events_counted(batches: list[list[int]]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(expiry, "ENOUGH", 10)
        clock, seen = expiry.ExpiryClock(), list[int]()
        for days in batches:
            seen += days
            clock.add([day * DAY + 5 for day in days])
            expected = sorted(seen)[-10] * DAY if len(seen) >= 10 else None
            due = clock.due()
            if due is not None:
                assert due == expected
                clock.swept(due)
            assert clock.due() is None


def test_two_callers_at_once_apply_each_record_once() -> None:
    log, catalog, store = holders()
    follow = Follower(log, catalog, store, batch=7)
    log.append([event(number, entity=str(number % 5)) for number in range(200)])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: follow.catch_up(), range(4)))
    assert sum(bought(store).values()) == 200
