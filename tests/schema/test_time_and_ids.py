"""Time, durations, keys and event batches."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.schema.batch import EventBatch
from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import NO_KEY, digest128, fresh_id, key64, keys64
from mainstem.schema.records import Event
from mainstem.schema.time import DAY, HOUR, MINUTE, SECOND, iso, now_ms, parse_duration, parse_time

EARLIEST, LATEST = -62_135_596_800_000, 253_402_300_799_999


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1ms", 1),
        ("90s", 90 * SECOND),
        ("10m", 10 * MINUTE),
        ("12h", 12 * HOUR),
        ("1.5d", 36 * HOUR),
        (" 2 w ", 14 * DAY),
        ("0d", 0),
    ],
)
def test_durations(text: str, ms: int) -> None:
    assert parse_duration(text) == ms


@pytest.mark.parametrize("text", ["", "10", "d", "-1d", "1 day", "1d2h", "1e3s", "١d x"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="write a number and one of ms, s, m, h, d, w"):
        parse_duration(text)


@given(st.integers(EARLIEST, LATEST))
def test_time_in_ms_and_in_text_agree(ms: int) -> None:
    assert parse_time(ms) == ms
    assert parse_time(iso(ms)) == ms


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("1970-01-01T00:00:00Z", 0),
        ("1970-01-01", 0),
        ("1970-01-01T00:00:00.250+00:00", 250),
        ("1970-01-01T01:00:00+01:00", 0),
        ("1970-01-01 00:00:01", 1000),
    ],
)
def test_iso_text(text: str, ms: int) -> None:
    assert parse_time(text) == ms


@pytest.mark.parametrize("value", [True, 1.5, None, [], "yesterday", "", "2017-13-01", EARLIEST - 1, LATEST + 1])
def test_other_times_are_refused(value: object) -> None:
    with pytest.raises(InvalidRecord) as caught:
        parse_time(value, "events[3].time")
    assert caught.value.field == "events[3].time"


def test_now_is_ms() -> None:
    assert 1_500_000_000_000 < now_ms() < LATEST


def test_keys_are_stable() -> None:
    """Stored keys outlive the process: the digest may never change."""
    assert key64("item", "1") == 0x28D716F51C054EB6
    assert key64("item", "1") != key64("user", "1") != key64("user", "1", "other")


@given(st.lists(st.text(max_size=5), max_size=20))
def test_keys_of_many_are_the_keys_of_each(values: list[str]) -> None:
    keys = keys64("item", values)
    assert keys.dtype == np.uint64
    assert keys.tolist() == [key64("item", value) for value in values]
    assert NO_KEY not in keys.tolist()


@given(
    st.sets(
        st.tuples(st.sampled_from(["main", "b"]), st.sampled_from(["item", "user"]), st.text(max_size=4)), max_size=50
    )
)
def test_distinct_values_have_distinct_keys(triples: set[tuple[str, str, str]]) -> None:
    assert len({key64(family, value, tenant) for tenant, family, value in triples}) == len(triples)


def test_digests_and_fresh_ids() -> None:
    assert len(digest128("e-1")) == 16
    assert digest128("e-1") != digest128("e-2")
    ids = {fresh_id("e") for _ in range(1000)}
    assert len(ids) == 1000
    assert all(name.startswith("e-") and len(name) == 34 for name in ids)


events = st.lists(
    st.builds(
        Event,
        event_id=st.just("e"),
        time=st.integers(0, 100),
        user=st.sampled_from(["u", "v"]),
        kind=st.sampled_from(["view", "purchase", "like"]),
        entity=st.sampled_from([None, "a", "b"]),
        entity_type=st.sampled_from(["item", "film"]),
        value=st.floats(0, 5),
        session=st.sampled_from([None, "s"]),
        extras=st.sampled_from([{}, {"store": "1"}, {"store": 2.0}]),
    ),
    max_size=20,
)


@given(events)
def test_a_batch_holds_what_the_events_say(found: list[Event]) -> None:
    batch = EventBatch.of(found, place_extra="store")
    assert len(batch) == len(found)
    for i, event in enumerate(found):
        assert batch.time[i] == event.time
        assert batch.user[i] == key64("user", event.user)
        assert batch.entity[i] == (key64(event.entity_type, event.entity) if event.entity else NO_KEY)
        assert batch.kinds[batch.kind[i]] == event.kind
        assert batch.value[i] == event.value
        assert batch.session[i] == (key64("session", event.session) if event.session else NO_KEY)
        assert batch.place[i] == (key64("place", str(event.extras["store"])) if event.extras else NO_KEY)
        assert batch.offset[i] == -1
    assert not EventBatch.of(found).place.any()


@given(events, st.data())
def test_taking_rows_is_taking_events(found: list[Event], data: st.DataObject) -> None:
    batch = EventBatch.of(found, range(len(found)))
    mask = np.array(data.draw(st.lists(st.booleans(), min_size=len(found), max_size=len(found))), np.bool_)
    taken = batch.take(mask)
    assert taken.offset.tolist() == np.flatnonzero(mask).tolist()
    assert taken.kinds == batch.kinds
    wanted = batch.where(["view", "like"])
    assert wanted.tolist() == [event.kind in ("view", "like") for event in found]
