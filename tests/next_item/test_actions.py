"""Any data become users' actions in order, each of which knows all that its user did before it."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem import eventlog
from mainstem.next_item.actions import Actions, apart, of_log, of_records
from mainstem.schema.config import Config
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import key64
from mainstem.schema.records import Entity, Event

CONFIG = Config.model_validate({"events": {"buy": {}, "see": {"interest": 0}}, "heads": {"buy": {"event": "buy"}}})


def event(user: str, item: str | None, at: int, kind: str = "buy", **more: object) -> Event:
    numbers = next(COUNTER)
    return Event(event_id=f"e{numbers}", time=at, user=user, kind=kind, entity=item, **more)  # type: ignore[arg-type]


COUNTER = itertools.count()


def names_of(actions: Actions, user: str) -> list[int]:
    rows = np.flatnonzero(actions.positives.user == np.uint64(key64("user", user)))
    return actions.positives.entity[rows].tolist()


def test_actions_are_sorted_and_know_their_past() -> None:
    events = [event("a", "x", 1_000), event("b", "y", 1_500), event("a", "y", 2_000), event("a", "z", 3_000)]
    actions = of_records("made up", CONFIG, [], events)
    assert names_of(actions, "a") == [key64("item", name) for name in "xyz"]
    assert actions.data.facts() == {"users": 2, "items": 3, "actions": 4, "asked": 1}
    place = int(actions.data.held("test")[0])
    batch = actions.positives.batch(np.array([place]))
    assert actions.entities[actions.data.item[place]] == batch.entity[0] == key64("item", "z")
    assert batch.sequences.entity.tolist() == [key64("item", name) for name in "xy"]


def test_what_happened_at_one_moment_is_in_the_history_all_the_same() -> None:
    events = [event("a", name, 1_000) for name in "vwxyz"]
    actions = of_records("made up", CONFIG, [], events)
    last = actions.data.held("test")
    assert actions.positives.batch(last).lengths().tolist() == [4]
    assert set(names_of(actions, "a")) == {key64("item", name) for name in "vwxyz"}


def test_the_order_within_a_moment_is_not_that_of_ids() -> None:
    """Else whoever reads the order would learn that ids rise."""
    users, names = [f"u{n}" for n in range(40)], [f"i{n:02}" for n in range(20)]
    events = [event(user, name, 1_000) for user in users for name in names]
    actions = of_records("made up", CONFIG, [], events)
    again = of_records("made up", CONFIG, [], events[::-1])
    keys = {key64("item", name): place for place, name in enumerate(names)}
    rises = []
    for user in users:
        assert names_of(actions, user) == names_of(again, user), "whatever order the loader gives"
        rises += np.sign(np.diff([keys[key] for key in names_of(actions, user)])).tolist()
    assert abs(np.mean(rises)) < 0.15


def test_kinds_without_interest_and_events_without_entity_are_left_out() -> None:
    events = [event("a", "x", 1), event("a", "y", 2, "see"), event("a", None, 3), event("a", "z", 4, "unheard")]
    assert of_records("made up", CONFIG, [], events).data.facts()["actions"] == 1


def test_rare_items_are_left_out_once() -> None:
    events = [event(user, item, at) for user in "abc" for at, item in enumerate(["x", f"rare {user}", "y"])]
    actions = of_records("made up", CONFIG, [], events, min_count=3)
    assert actions.data.facts() == {"users": 3, "items": 2, "actions": 6, "asked": 0}
    with pytest.raises(NotReady, match="no item has 4 actions; there are 9 actions"):
        of_records("made up", CONFIG, [], events, min_count=4)


def test_what_was_searched_for_is_not_told_unless_asked() -> None:
    events = [event("a", "x", at, query="shoes") for at in range(3)]
    assert not of_records("made up", CONFIG, [], events).positives.query.any()
    assert of_records("made up", CONFIG, [], events, context=True).positives.query.all()


def test_a_share_of_the_users() -> None:
    events = [event(f"u{n}", "x", n) for n in range(10)]
    assert of_records("made up", CONFIG, [], events, users=0.3).data.users == 3


def test_the_log() -> None:
    log = eventlog.open("memory://", history="file:///nowhere")
    with pytest.raises(NotReady, match="no events yet"):
        of_log(CONFIG, log, lambda *_: None)
    start = 1_600_000_000_000
    log.append([Entity(record_id="1", time=start, entity="x", text="warm socks")])
    log.append([event("a", name, start + at) for at, name in enumerate("xyz")])
    actions = of_log(CONFIG, log, lambda *_: None)
    assert actions.data.facts()["asked"] == 1
    assert actions.catalog.text(key64("item", "x")) == "warm socks"


@given(st.lists(st.lists(st.integers(-5, 5), min_size=1, max_size=6), max_size=5))
def test_times_come_apart_by_as_little_as_it_takes(users: list[list[int]]) -> None:
    user = np.array([n for n, times in enumerate(users) for _ in times], np.uint64)
    time = np.array([at for times in users for at in sorted(times)], np.int64)
    expected = []
    for times in users:
        last = -(10**9)
        for at in sorted(times):
            last = max(at, last + 1)
            expected.append(last)
    assert apart(user, time).tolist() == expected
