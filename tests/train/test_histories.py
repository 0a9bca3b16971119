"""Online histories agree with those of the whole log; checkpoints change nothing; a forgotten user is gone."""

import dataclasses

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join.sessions import GAP, session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import key64
from mainstem.schema.records import Event
from mainstem.schema.time import DAY
from mainstem.train import histories
from mainstem.train.histories import Histories
from mainstem.train.interactions import HISTORY, Interactions, Positives, of_interest

T0 = 1_500_000_000_000
INTEREST = {"purchase": 1.0, "view": 0.1}
FIELDS = [field.name for field in dataclasses.fields(Interactions)]

# (user, ms since the last event, a new session begins, kind)
streams = st.lists(
    st.tuples(
        st.sampled_from("uvw"),
        st.sampled_from([0, 1, 1000, GAP, GAP + 1, DAY]),
        st.booleans(),
        st.sampled_from(["purchase", "view", "impression"]),
    ),
    max_size=40,
)


def stream_of(rows: list[tuple[str, int, bool, str]], named: bool) -> EventBatch:
    """In order of time, no user's sessions overlapping; without names, sessions are told by gaps."""
    time, session, events = T0, dict.fromkeys("uvwx", 0), []
    for i, (user, passed, new, kind) in enumerate(rows):
        time += passed
        session[user] += new
        name = f"{user}{session[user]}" if named else None
        events.append(Event(event_id=str(i), time=time, user=user, kind=kind, entity=f"i{i}", session=name))
    return EventBatch.of(events)


def by_user(found: Interactions) -> Interactions:
    """The order of `Positives`: by user, then as they came."""
    return found.take(np.lexsort((np.arange(len(found)), found.user)))


def online(events: EventBatch, size: int, keeper: Histories | None = None) -> Interactions:
    keeper = Histories() if keeper is None else keeper
    found, weight = of_interest(events, INTEREST)
    parts = [
        keeper.before(found.take(slice(at, at + size)), weight[at : at + size]) for at in range(0, len(found), size)
    ]
    return joined(parts)


def joined(parts: list[Interactions]) -> Interactions:
    sizes = np.concatenate([np.diff(part.offsets) for part in parts] or [np.zeros(0, np.int64)])
    columns = {
        name: np.concatenate([getattr(part, name) for part in parts] or [getattr(Interactions.none(), name)])
        for name in FIELDS
        if name != "offsets"
    }
    return Interactions(**columns, offsets=np.concatenate([[0], np.cumsum(sizes)]))


def assert_same(a: Interactions, b: Interactions) -> None:
    for name in FIELDS:
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name), err_msg=name)


@settings(max_examples=150, deadline=None)
@given(streams, st.booleans(), st.sampled_from([1, 3, 100]))
def test_online_and_offline_agree(rows: list[tuple[str, int, bool, str]], named: bool, size: int) -> None:
    events = stream_of(rows, named)
    whole = Positives.of(events, INTEREST, session_starts)
    assert_same(by_user(online(events, size)), whole.batch(np.arange(len(whole))))


def test_long_histories_agree_too() -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("uvw"[rng.integers(3)], int(rng.integers(0, 4)) * 400_000, rng.random() < 0.3, "purchase") for _ in range(900)
    ]
    events = stream_of(rows, named=True)
    whole = Positives.of(events, INTEREST, session_starts)
    found = by_user(online(events, 64))
    assert np.diff(found.offsets).max() == HISTORY
    assert_same(found, whole.batch(np.arange(len(whole))))


def test_canary_a_history_with_its_own_session_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    events = stream_of([("u", 1000, i % 3 == 0, "purchase") for i in range(12)], named=True)
    whole = Positives.of(events, INTEREST, session_starts)
    each_its_own = dataclasses.replace(events, session=np.arange(1, 13).astype(np.uint64))
    with pytest.raises(AssertionError):
        assert_same(by_user(online(each_its_own, 5)), whole.batch(np.arange(len(whole))))


@settings(max_examples=60, deadline=None)
@given(streams, st.integers(0, 40))
def test_a_checkpoint_in_between_changes_nothing(rows: list[tuple[str, int, bool, str]], cut: int) -> None:
    events = stream_of(rows, named=True)
    first, second = events.take(slice(0, cut)), events.take(slice(cut, None))
    keeper, copy = Histories(), Histories()
    online(first, 7, keeper)
    copy.load(keeper.state())
    assert len(copy) == len(keeper)
    assert_same(online(second, 7, copy), online(second, 7, keeper))
    for name, array in keeper.state().items():
        np.testing.assert_array_equal(array, copy.state()[name], err_msg=name)


def test_who_is_forgotten_has_no_past_and_nothing_of_it_is_kept() -> None:
    keeper = Histories()
    events = stream_of([("uvw"[i % 3], 1000, i % 5 == 0, "purchase") for i in range(60)], named=True)
    online(events, 16, keeper)
    user = np.array([key64("user", "u")], np.uint64)
    gone = set(events.entity[events.user == user[0]].tolist())
    keeper.forget(user)
    state = keeper.state()
    assert len(keeper) == 2
    assert not gone & set(state["ring_entity"].ravel().tolist()) | gone & set(state["w_entity"].tolist())
    assert not gone & {*keeper._ring_entity.ravel().tolist(), *keeper._w_entity.tolist()}
    # whoever gets the row now has nothing of who had it
    online(stream_of([("x", DAY * 29, True, "purchase")], named=True), 1, keeper)
    row = keeper.state()["user"].tolist().index(key64("user", "x"))
    for name in ("ring_entity", "ring_time", "ring_interest"):
        assert not keeper.state()[name][row].any(), name
    again = stream_of([("u", DAY * 30, True, "purchase")], named=True)
    assert np.diff(online(again, 1, keeper).offsets).tolist() == [0]


def test_users_not_seen_for_long_expire() -> None:
    keeper = Histories()
    online(stream_of([("u", 0, True, "purchase"), ("v", 10 * DAY, True, "purchase")], named=True), 1, keeper)
    assert keeper.expire(T0 + 5 * DAY) == 1
    assert len(keeper) == 1
    assert keeper.expire(T0 + 5 * DAY) == 0


def test_room_is_used_again() -> None:
    keeper = Histories()
    rows = [("u", GAP + 1, True, "purchase")] * 5000
    online(stream_of(rows, named=True), 100, keeper)
    assert len(keeper._w_entity) <= 2 * histories._FIRST_WAITING
