"""Recorded pools and what their users took: against a plain recount, in any order, over kills, within bounds."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join import PoolJoin
from mainstem.join import pools as pools_module
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.errors import InvalidRecord, StoreError
from mainstem.schema.examples import Examples, Labelling, Revision
from mainstem.schema.ids import key64, keys64
from mainstem.schema.pasts import Pasts, pack_past
from mainstem.schema.pools import pack_pool, unpack_pool
from mainstem.schema.records import Context, Erase, Event, Past, Pool, Served, Slate, SlateRequest
from mainstem.schema.time import HOUR

BUY, SECONDS = HeadConfig(event="purchase", window="2h"), HeadConfig(event="watch", type="value", window="1h")
HEADS = {"buy": BUY, "seconds": SECONDS}
INPUTS = ("had", "x")
T0 = 1_700_000_000_000
ITEMS = [str(i) for i in range(6)]


def served(number: int, user: str | None, time: int, items: list[str], **fields: Any) -> Served:
    keys = keys64("item", items)
    inputs = np.array([[float(int(item) % 2), float(item)] for item in items], np.float32)
    given: dict[str, Any] = {
        "record_id": f"r{number}", "time": time, "user": user, "request": SlateRequest(context=Context(user=user)),
        "slate": Slate(request_id=f"r{number}", canvas="home", time=time, items=[]), "shown": False,
        "feature_names": list(INPUTS), "pool": pack_pool(keys, inputs),
    }  # fmt: skip
    return Served(**given | fields)


def event(number: int, user: str, time: int, item: str | None, kind: str = "purchase", value: float = 1.0) -> Event:
    return Event(event_id=f"e{number}", user=user, time=time, kind=kind, entity=item, value=value)


def join(**options: Any) -> PoolJoin:
    return PoolJoin(HEADS, INPUTS, had="had", **options)


def batch(*events: Event) -> EventBatch:
    return EventBatch.of(list(events))


def test_it_is_what_training_takes() -> None:
    held: Labelling = join()
    assert held.take([], batch()) == ([], [])


def test_an_answer_is_told_at_once_and_what_was_known_before_with_it() -> None:
    held = join()
    assert held.take([served(1, "u", T0, ITEMS)], batch()) == ([], [])
    [first], closed = held.take([], batch(event(1, "u", T0, "3"), event(2, "v", T0, "1"), event(3, "u", T0, "9")))
    assert not closed
    assert first.examples.labels[:, 0].tolist() == [0, 0, 0, 1, 0, 0]
    assert first.before[:, 0].tolist() == [0] * 6
    assert np.isnan(first.examples.labels[:, 1]).all()
    assert first.examples.fresh.tolist() == [True, False] * 3
    np.testing.assert_array_equal(first.examples.inputs[:, 1], np.arange(6))
    [second], _ = held.take([], batch(event(4, "u", T0 + 1, "0", "watch", 20.0)))
    np.testing.assert_array_equal(second.before[:, 0], first.examples.labels[:, 0])
    assert second.examples.labels[0, 1] == 20.0
    [third], _ = held.take([], batch(event(5, "u", T0 + 2, "0", "watch", 5.0)))
    assert (third.before[0, 1], third.examples.labels[0, 1]) == (20.0, 25.0)
    # the same purchase again changes nothing
    assert held.take([], batch(event(6, "u", T0 + 3, "3"))) == ([], [])


def test_windows_begin_with_the_request_and_end_each_head_by_itself() -> None:
    held = join()
    held.take([served(1, "u", T0, ITEMS)], batch())
    assert held.take([], batch(event(1, "u", T0 - 1, "0")))[0] == []
    assert held.take([], batch(event(2, "u", T0 + HOUR, "0", "watch")))[0] == []
    assert len(held.take([], batch(event(3, "u", T0 + 2 * HOUR - 1, "0")))[0]) == 1
    assert held.take([], batch(event(4, "u", T0 + 2 * HOUR, "1")))[0] == []


def test_a_pool_that_comes_behind_its_answers_still_gets_them() -> None:
    held = join()
    held.take([], batch(event(1, "u", T0, "2"), event(2, "w", T0, "2")))
    [revision], _ = held.take([served(1, "u", T0, ITEMS)], batch())
    assert revision.examples.labels[:, 0].tolist() == [0, 0, 1, 0, 0, 0]


def test_a_pool_closes_when_windows_and_lateness_have_passed() -> None:
    held = join(lateness=HOUR)
    held.take([served(1, "u", T0, ITEMS)], batch(event(1, "u", T0, "2")))
    assert held.take([], batch(event(2, "z", T0 + 3 * HOUR - 1, None)))[1] == []
    _, [closed] = held.take([], batch(event(3, "z", T0 + 3 * HOUR, None)))
    assert closed.labels[:, 0].tolist() == [0, 0, 1, 0, 0, 0]
    assert len(held) == 0
    assert (held.counts.pools, held.counts.closed) == (1, 1)


def test_what_is_held_is_bounded_and_what_does_not_fit_is_counted() -> None:
    held = join(most=2)
    held.take([served(n, "u", T0 + n, ITEMS) for n in range(5)], batch())
    assert (len(held), held.counts.let_go) == (2, 3)
    assert len(held.take([], batch(event(1, "u", T0 + 10, "1")))[0]) == 2
    other = [
        served(9, "u", T0, ITEMS, feature_names=["x", "had"]),
        served(10, "u", T0, ITEMS, pool=Pool(keys=b"123", inputs=b"")),
        served(11, "u", T0, ITEMS, pool=None),
        served(12, None, T0, ITEMS),
    ]
    held.take(other, batch())
    assert (len(held), held.counts.other_inputs) == (2, 2)
    assert len(join(most=0).take([served(1, "u", T0, ITEMS)], batch(event(1, "u", T0, "1")))[0]) == 0


def test_the_answers_that_wait_are_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pools_module, "LATEST", 2)
    held = join()
    held.take([], batch(event(1, "u", T0, "0"), event(2, "v", T0, "1"), event(3, "v", T0, "2")))
    assert held.take([served(1, "u", T0, ITEMS)], batch())[0] == []
    assert len(held.take([served(2, "v", T0, ITEMS)], batch())[0]) == 1


def test_erased_users_and_entities_are_forgotten() -> None:
    held = join()
    held.take([served(1, "u", T0, ITEMS), served(2, "v", T0, ITEMS)], batch(event(1, "v", T0, "2")))
    held.erase(Erase(record_id="x", time=T0, user="u"))
    assert len(held) == 1
    assert held.take([], batch(event(2, "u", T0, "1")))[0] == []
    held.erase(Erase(record_id="y", time=T0, entity="1"))
    [revision], _ = held.take([], batch(event(3, "v", T0, "1"), event(4, "v", T0, "5")))
    assert key64("item", "1") not in revision.examples.keys.tolist()
    assert revision.before[:, 0].tolist() == [0, 1, 0, 0, 0]
    assert revision.examples.labels[:, 0].tolist() == [0, 1, 0, 0, 1]
    np.testing.assert_array_equal(revision.examples.inputs[:, 1], [0, 2, 3, 4, 5])
    held.erase(Erase(record_id="z", time=T0, user="v"))
    assert held.take([served(3, "v", T0, ITEMS)], batch())[0] == []  # its answers are gone too


KINDS = ("click", "purchase")


def past_of(*items: str, actions: tuple[int, ...] = (), kinds: tuple[str, ...] = KINDS) -> Past:
    n = len(items)
    numbers = np.array(actions or (0,) * n, np.uint8)
    return pack_past(Pasts(keys64("item", list(items)), numbers, T0 - np.arange(n, 0, -1), np.array([0, n])), kinds)


def test_a_network_that_reads_the_history_gets_it_with_its_pool() -> None:
    held = join(reads=KINDS)
    slates = [
        served(1, "u", T0, ITEMS, past=past_of("7", "2", "7", actions=(0, 1, 1))),
        served(2, "u", T0 + 1, ITEMS, past=past_of()),  # nothing was done yet, which is known
        served(3, "u", T0, ITEMS),  # of a time when it was not put on record
        served(4, "u", T0, ITEMS, past=past_of("7", kinds=("purchase", "click"))),
        served(5, "u", T0, ITEMS, past=past_of("7", actions=(2,))),
    ]
    first, second = held.take(slates, batch(event(1, "u", T0 + 1, "3")))[0]
    assert held.counts.other_inputs == 3
    assert first.examples.pasts is not None
    assert first.examples.pasts.entity.tolist() == keys64("item", ["7", "2", "7"]).tolist()
    assert first.examples.pasts.action.tolist() == [0, 1, 1]
    assert first.examples.pasts.gaps(first.examples.time).tolist() == pytest.approx([0.003, 0.002, 0.001])
    assert second.examples.pasts is not None
    assert second.examples.pasts.offsets.tolist() == [0, 0]
    whole = Revision.concat([first, second]).examples
    assert whole.pasts is not None
    assert whole.pasts.offsets.tolist() == [0, 3, 3]
    swapped = whole.groups(np.array([1, 0])).pasts
    assert swapped is not None
    assert swapped.offsets.tolist() == [0, 0, 3]
    again = join(reads=KINDS)
    again.load(held.state())
    assert [pool.pasts and pool.pasts.entity.tolist() for pool in again.pools(9)] == [
        pool.pasts and pool.pasts.entity.tolist() for pool in held.pools(9)
    ]
    without = join()  # a network that reads none takes all of them, and holds no history
    assert len(without.take(slates, batch(event(1, "u", T0 + 1, "3")))[0]) == 5
    assert all(pool.pasts is None for pool in without.pools(9))
    with pytest.raises(ValueError, match="histories"):
        Examples.concat([*held.pools(1), *without.pools(1)])


def test_an_erased_entity_leaves_the_histories_that_are_held() -> None:
    held = join(reads=KINDS)
    past = past_of("7", "2", "7", "3")
    held.take([served(1, "u", T0, ITEMS, past=past), served(2, "v", T0, ITEMS, past=past)], batch())
    held.erase(Erase(record_id="x", time=T0, entity="7"))
    held.erase(Erase(record_id="y", time=T0, user="v"))
    (left,) = held.pools(9)
    assert left.pasts is not None
    assert left.pasts.entity.tolist() == keys64("item", ["2", "3"]).tolist()
    assert left.pasts.time.tolist() == [T0 - 3, T0 - 1]
    assert keys64("item", ["7"]).tobytes() not in held.state()
    assert keys64("item", ["2"]).tobytes() in held.state()  # canary: the search finds what is there


USERS = ["a", "b", "c"]
times = st.integers(0, 4).map(lambda hours: T0 + hours * HOUR // 2)
a_pool = st.builds(
    lambda user, time, items: ("pool", user, time, sorted(items)),
    st.sampled_from(USERS), times, st.sets(st.sampled_from(ITEMS), min_size=1),
)  # fmt: skip
an_event = st.builds(
    lambda user, time, item, kind, value: ("event", user, time, item, kind, float(value)),
    st.sampled_from(USERS), times, st.sampled_from(ITEMS), st.sampled_from(["purchase", "watch", "view"]),
    st.integers(1, 9),
)  # fmt: skip
Story = list[tuple[Any, ...]]


def recount(story: Story) -> dict[int, np.ndarray]:
    """Labels of each pool, from the whole story at once."""
    out = {}
    for number, (what, user, time, items, *_) in enumerate(story):
        if what != "pool":
            continue
        labels = np.tile(np.array([0.0, np.nan], np.float32), (len(items), 1))
        for kind_of, who, when, item, kind, value in (s for s in story if s[0] == "event"):
            if who != user or item not in items or not kind_of:
                continue
            row, elapsed = items.index(item), when - time
            if kind == "purchase" and 0 <= elapsed < 2 * HOUR:
                labels[row, 0] = 1
            if kind == "watch" and 0 <= elapsed < HOUR:
                labels[row, 1] = np.nan_to_num(labels[row, 1]) + value
        out[number] = labels
    return out


def tell(held: PoolJoin, story: Story, cuts: list[int]) -> list[Revision]:
    found = []
    for start, stop in zip([0, *cuts], [*cuts, len(story)], strict=True):
        part = list(enumerate(story))[start:stop]
        slates = [served(n, s[1], s[2], s[3]) for n, s in part if s[0] == "pool"]
        events = [event(n, s[1], s[2], s[3], s[4], s[5]) for n, s in part if s[0] == "event"]
        revisions, closed = held.take(slates, batch(*events))
        assert not closed
        found += revisions
    return found


@given(story=st.lists(st.one_of(a_pool, an_event), max_size=25), data=st.data())
@settings(deadline=None)
def test_revisions_lead_from_nothing_to_the_recount(story: Story, data: st.DataObject) -> None:
    cuts = sorted(data.draw(st.lists(st.integers(0, len(story)), max_size=5)))
    held = join(lateness=9 * HOUR)
    known: dict[tuple[int, int, bytes], np.ndarray] = {}
    if data.draw(st.booleans()) and cuts:  # a kill on the way changes nothing
        revisions = tell(held, story[: cuts[0]], [])
        again = join(lateness=9 * HOUR)
        again.load(held.state())
        held = again
        rest = [("event", "nobody", T0, "0", "view", 1.0)] * cuts[0] + story[cuts[0] :]
        revisions += tell(held, rest, [])
    else:
        revisions = tell(held, story, cuts)
    for revision in revisions:
        name = int(revision.examples.user[0]), int(revision.examples.time[0]), revision.examples.keys.tobytes()
        before = known.get(name)
        if before is not None and sum(1 for s in story if s[0] == "pool") == 1:
            np.testing.assert_array_equal(revision.before, before)
        known[name] = revision.examples.labels
    for number, labels in recount(story).items():
        _, user, time, items = story[number]
        last = known.get((key64("user", user), time, keys64("item", items).tobytes()))
        if last is None:
            assert not np.nan_to_num(labels).any()
        else:
            np.testing.assert_array_equal(last, labels)


def test_the_recount_sees_a_missing_label() -> None:
    story: Story = [("pool", "a", T0, ["1", "2"]), ("event", "a", T0, "2", "purchase", 1.0)]
    assert recount(story)[0][:, 0].tolist() == [0, 1]


def test_a_state_of_something_else_is_refused() -> None:
    with pytest.raises(StoreError, match="pools"):
        join().load(b"nonsense")


@given(n=st.integers(0, 40), width=st.integers(0, 7), seed=st.integers(0, 9))
def test_a_packed_pool_comes_back(n: int, width: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    keys, inputs = rng.integers(0, 2**63, n).astype(np.uint64), rng.normal(size=(n, width)).astype(np.float32)
    got_keys, got = unpack_pool(pack_pool(keys, inputs), width)
    np.testing.assert_array_equal(got_keys, keys)
    np.testing.assert_array_equal(got, inputs)


@pytest.mark.parametrize("spoil", ["width", "keys", "bytes", "cut"])
def test_a_damaged_pool_is_refused(spoil: str) -> None:
    pool = pack_pool(np.arange(3, dtype=np.uint64), np.ones((3, 2), np.float32))
    width = 2
    if spoil == "width":
        width = 3
    elif spoil == "keys":
        pool = Pool(keys=pool.keys[:-8], inputs=pool.inputs)
    elif spoil == "bytes":
        pool = Pool(keys=pool.keys, inputs=b"junk")
    else:
        pool = Pool(keys=pool.keys[:-1], inputs=pool.inputs[:-3])
    with pytest.raises(InvalidRecord, match="pool"):
        unpack_pool(pool, width)
