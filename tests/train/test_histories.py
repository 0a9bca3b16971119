"""Online histories agree with those of the whole log; checkpoints change nothing; a forgotten user is gone."""

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_histories import PlainHistories

from mainstem.join.sessions import GAP, session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.canvases import CanvasPlaces
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import key64
from mainstem.schema.records import Event
from mainstem.schema.time import DAY
from mainstem.train import histories
from mainstem.train.histories import Histories
from mainstem.train.history_bytes import BLOCK, ROOM, USER
from mainstem.train.interactions import Interactions, Positives, of_interest

T0 = 1_500_000_000_000
INTEREST = {"purchase": 1.0, "view": 0.1}
FIELDS = ("user", "entity", "interest", "time", "previous", "canvas", "query")
NOWHERE = CanvasPlaces(())

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


def seen(found: Interactions) -> list[list[tuple[int, int, int]]]:
    """What each positive's user did before its session: (entity, time, note), oldest first."""
    past, out = found.sequences, []
    events = list(zip(past.entity.tolist(), past.time.tolist(), past.note.tolist(), strict=True))
    for end, length in zip((found.state + 1).tolist(), found.lengths().tolist(), strict=True):
        out.append(events[end - length : end])
    return out


def online(events: EventBatch, size: int, keeper: Histories | None = None) -> list[Interactions]:
    keeper = Histories() if keeper is None else keeper
    found, weight, note = of_interest(events, INTEREST, NOWHERE)
    return [
        keeper.before(found.take(slice(at, at + size)), weight[at : at + size], note[at : at + size])
        for at in range(0, len(found), size)
    ]


def by_user(parts: list[Interactions]) -> tuple[dict[str, np.ndarray], list[Any]]:
    """All of it in the order of `Positives`: by user, then as they came."""
    columns = {name: np.concatenate([getattr(part, name) for part in [Interactions.none(), *parts]]) for name in FIELDS}
    order = np.argsort(columns["user"], kind="stable")
    past = [one for part in parts for one in seen(part)]
    return {name: column[order] for name, column in columns.items()}, [past[at] for at in order.tolist()]


def assert_same(a: list[Interactions], b: list[Interactions]) -> None:
    (columns, past), (others, its) = by_user(a), by_user(b)
    for name in FIELDS:
        np.testing.assert_array_equal(columns[name], others[name], err_msg=name)
    assert past == its


@settings(max_examples=150, deadline=None)
@given(streams, st.booleans(), st.sampled_from([1, 3, 100]))
def test_online_and_offline_agree(rows: list[tuple[str, int, bool, str]], named: bool, size: int) -> None:
    events = stream_of(rows, named)
    whole = Positives.of(events, INTEREST, session_starts)
    assert_same(online(events, size), [whole.batch(np.arange(len(whole)))])


@pytest.mark.parametrize("length", [1, 50, 200])
def test_long_histories_agree_too(length: int) -> None:
    rng = np.random.default_rng(0)
    rows = [
        ("uvw"[rng.integers(3)], int(rng.integers(0, 4)) * 400_000, rng.random() < 0.3, "purchase") for _ in range(900)
    ]
    events = stream_of(rows, named=True)
    whole = Positives.of(events, INTEREST, session_starts, length=length)
    found = online(events, 64, Histories(length=length))
    assert max(int(part.lengths().max()) for part in found) == length
    assert_same(found, [whole.batch(np.arange(len(whole)))])


def test_canary_a_history_with_its_own_session_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    events = stream_of([("u", 1000, i % 3 == 0, "purchase") for i in range(12)], named=True)
    whole = Positives.of(events, INTEREST, session_starts)
    each_its_own = dataclasses.replace(events, session=np.arange(1, 13).astype(np.uint64))
    with pytest.raises(AssertionError):
        assert_same(online(each_its_own, 5), [whole.batch(np.arange(len(whole)))])


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
    assert_same_state(keeper.state(), copy.state())


FAR = 1 << 61
wild = st.lists(
    st.tuples(
        st.lists(
            st.tuples(
                st.integers(1, 4), st.integers(0, 3),
                st.sampled_from([0, 1, 1, GAP, GAP + 1, -5, -DAY, DAY, 40 * DAY, FAR, -FAR]),
            ),
            min_size=1, max_size=60,
        ),
        st.sampled_from(["fold", "before", "checkpoint"]),
        st.sets(st.integers(1, 4), max_size=2),
        st.sampled_from([None, DAY, 20 * DAY]),
    ),
    min_size=1, max_size=5,
)  # fmt: skip
"""Batches of (user, session, ms since the last event, or a time that is far away): late events and sessions that
interrupt each other among them; how each is taken, who is forgotten after it, and who expires."""


def wild_batch(rows: list[tuple[int, int, int]], first: int, time: int) -> tuple[EventBatch, np.ndarray]:
    """Events, every third of the entity of the one before; and what is noted of them, often the same."""
    user, session, _ = (np.array(column, np.int64) for column in zip(*rows, strict=True))
    n, times, rng = len(rows), list[int](), np.random.default_rng(first)
    for _, _, passed in rows:
        time = passed if abs(passed) == FAR else time + passed
        times.append(time)
    note = rng.choice(np.array([0, 1, rng.integers(1 << 32), (1 << 32) - 1], np.uint32), n)
    entity = np.arange(first + 1, first + 1 + n) - (np.arange(n) % 3 == 2)
    none = np.zeros(n, np.uint64)
    return EventBatch(
        time=np.array(times), user=user.astype(np.uint64), session=session.astype(np.uint64),
        entity=entity.astype(np.uint64), kind=np.zeros(n, np.int16), value=np.ones(n), place=none,
        offset=np.full(n, -1), canvas=none, query=none, setting=none, kinds=("purchase",),
    ), note  # fmt: skip


@settings(max_examples=200, deadline=None)
@given(wild, st.sampled_from([1, 3, 50]), st.sampled_from([4, 1024]))
def test_whatever_comes_it_is_what_plain_lists_say(turns: list[Any], length: int, few: int) -> None:
    """With `few` small, entities are numbered anew over and over."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(histories, "_FEW", few)
        keeper, plain, first, time = Histories(length=length), PlainHistories(GAP, length), 0, T0
        for rows, how, forgotten, older in turns:
            batch, note = wild_batch(rows, first, time)
            first, time = first + len(batch), int(batch.time[-1])
            expected = plain.before(batch, note)
            if how == "fold":
                keeper.fold(batch, note)
            else:
                found = keeper.before(batch, np.ones(len(batch), np.float32), note)
                assert list(zip(seen(found), found.previous.tolist(), strict=True)) == expected
            if how == "checkpoint":
                copy = Histories(length=length)
                copy.load(keeper.state())
                assert_same_state(copy.state(), keeper.state())
                keeper = copy
            keeper.forget(np.array(sorted(forgotten), np.uint64))
            plain.forget(sorted(forgotten))
            if older is not None:
                assert keeper.expire(time - older) == plain.expire(time - older)
            assert len(keeper) == len(plain.users)
            assert_it_is_what_the_plain_one_holds(keeper, plain)


def assert_it_is_what_the_plain_one_holds(keeper: Histories, plain: PlainHistories) -> None:
    state = keeper.state()
    users = [plain.users[key] for key in sorted(plain.users)]
    held = [event for user in users for event in user.past + user.waiting]
    assert list(zip(*(state[name].tolist() for name in ("entity", "time", "note")), strict=True)) == held
    assert state["user"].tolist() == sorted(plain.users)
    assert state["last"].tolist() == [user.last for user in users]
    assert state["past"].tolist() == [len(user.past) for user in users]


def assert_same_state(a: dict[str, Any], b: dict[str, Any]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)
        assert array.dtype == b[name].dtype, name


def test_events_of_one_session_share_what_was_before_it() -> None:
    rows = [("u", 1, True, "purchase"), ("u", DAY, True, "purchase"), ("v", 1, True, "purchase"),
            ("u", 1, False, "purchase"), ("u", DAY, True, "purchase")]  # fmt: skip
    (found,) = online(stream_of(rows, named=True), 10)
    assert found.state.tolist() == [-1, 0, -1, 0, 3]
    assert found.sequences.offsets.tolist() == [0, 1, 4]
    assert found.sequences.asked.tolist() == found.time[[1, 4]].tolist()


@pytest.mark.parametrize("name", ["past", "waiting", "last", "entity", "time", "note"])
def test_a_checkpoint_that_does_not_fit_is_refused(name: str) -> None:
    keeper = Histories()
    online(stream_of([("u", GAP + 1, True, "purchase")] * 9, named=True), 2, keeper)
    state = keeper.state()
    state[name] = state[name] + 1 if name in ("past", "waiting", "last") else state[name][:-1]
    with pytest.raises(StoreError, match="do not fit"):
        Histories().load(state)


def test_who_is_forgotten_has_no_past_and_nothing_of_it_is_kept() -> None:
    keeper = Histories()
    events = stream_of([("uvw"[i % 3], 1000, i % 5 == 0, "purchase") for i in range(600)], named=True)
    online(events, 16, keeper)
    user = np.array([key64("user", "u")], np.uint64)
    gone = set(events.entity[events.user == user[0]].tolist())
    used = int(keeper._blocks.free[2])
    assert (keeper._blocks.data[:used, 0] != 0).sum() > 0.9 * used
    keeper.forget(user)
    assert len(keeper) == 2
    assert not gone & set(keeper.state()["entity"].tolist())
    # as many blocks are blank as were given back; the row is, too
    _, count, used = keeper._blocks.free.tolist()
    assert (~keeper._blocks.data[:used, :ROOM].any(axis=1)).sum() == count > 0
    assert sum(not row.tobytes().strip(b"\0") for row in keeper._users[:3]) == 1
    # whoever gets the row now has nothing of who had it
    online(stream_of([("x", DAY * 29, True, "purchase")], named=True), 1, keeper)
    state = keeper.state()
    row = state["user"].tolist().index(key64("user", "x"))
    assert (state["past"][row], state["waiting"][row]) == (0, 1)
    again = stream_of([("u", DAY * 30, True, "purchase")], named=True)
    assert online(again, 1, keeper)[0].state.tolist() == [-1]


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
    assert len(keeper._blocks.next) == histories._FIRST_BLOCKS
    longest = 3 + 4  # bytes of an event: number, and half an hour
    assert keeper._blocks.free[2] <= (keeper.length + 1) * longest // ROOM + 3


def test_a_session_of_thousands_leaves_its_latest_and_gives_back_the_rest() -> None:
    keeper = Histories()
    events = stream_of([("u", 1000, False, "purchase")] * 5000 + [("u", DAY, True, "purchase")], named=True)
    online(events.take(slice(0, 5000)), 5000, keeper)
    used = int(keeper._blocks.free[2])
    (found,) = online(events.take(slice(5000, None)), 1, keeper)
    assert found.sequences.entity.tolist() == events.entity[4950:5000].tolist()
    _, free, after = keeper._blocks.free.tolist()
    assert after == used
    assert after - free <= (keeper.length + 1) * 6 // ROOM + 2


def test_forgetting_all_and_beginning_anew_takes_no_more() -> None:
    keeper = Histories()
    events = stream_of([("uvw"[i % 3], 1000 * i, i % 5 == 0, "purchase") for i in range(600)], named=True)
    online(events, 16, keeper)
    once, state = keeper.nbytes(), keeper.state()
    for _ in range(3):
        keeper.forget(events.user)
        assert len(keeper) == 0
        assert keeper._blocks.free[1] == keeper._blocks.free[2]
        online(events, 16, keeper)
        assert keeper.nbytes() == once
        assert_same_state(keeper.state(), state)


def test_entities_that_left_lose_their_numbers() -> None:
    """News: each day 400 new ones, of which all is forgotten after two days."""
    keeper, most = Histories(), 0
    for day in range(40):
        rows = [(1000 * day + i + 1, 0, 1) for i in range(400)]
        batch, note = wild_batch(rows, 400 * day, T0 + day * DAY)
        keeper.fold(batch, note)
        before = keeper.state()
        gone = keeper.expire(T0 + day * DAY - 2 * DAY)
        if not gone:
            assert_same_state(keeper.state(), before)
        most = max(most, len(keeper._entities))
    held = np.unique(keeper.state()["entity"])
    assert keeper._entities.keys()[-1] == batch.entity.max()
    assert len(held) < len(keeper._entities) <= most <= 2 * histories._FEW + 400 < 0.25 * 40 * 400


def test_memory_is_in_proportion_to_what_is_held() -> None:
    """Users with one event take one block each, whatever room a long history would need."""
    keeper, n = Histories(), 3000
    batch, note = wild_batch([(user + 1, 0, 1) for user in range(n)], 0, T0)
    keeper.fold(batch, note)
    slots = keeper.nbytes() - n * (BLOCK + USER.itemsize) - keeper._entities.nbytes()
    assert 32 * n <= slots <= 64 * n
    assert USER.itemsize == 56
    assert 40 * 2000 <= keeper._entities.nbytes() <= 72 * 2001
