"""How much a positive counts by its place in its visit: the same by columns, on the stream in any order, and of slates
on record."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join import Attribution, PoolJoin
from mainstem.join.labels import labels_of, shares
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.ids import keys64
from mainstem.schema.pools import pack_pool
from mainstem.schema.records import Context, Event, Served, Slate, SlateItem, SlateRequest
from mainstem.schema.time import HOUR

T0 = 1_700_000_000_000
ITEMS = ["a", "b", "c", "d", "e"]
KEYS = keys64("item", ITEMS)


def heads_of(each_next: float) -> dict[str, HeadConfig]:
    """The second head counts all alike."""
    return {
        "buy": HeadConfig(event="purchase", window="2h", each_next=each_next),
        "seen": HeadConfig(event="view", window="2h"),
    }


def event(number: int, time: int, item: str | None, kind: str = "purchase") -> Event:
    return Event(event_id=f"e{number}", user="u", time=time, kind=kind, entity=item)


def served(*, shown: bool) -> Served:
    items = [SlateItem(entity=item, score=0.0) for item in ITEMS]
    return Served(
        record_id="r", time=T0, user="u", request=SlateRequest(context=Context(user="u")), shown=shown,
        slate=Slate(request_id="r", canvas="home", time=T0, items=items), feature_names=["x"],
        features=np.zeros(len(ITEMS), np.float32).tobytes(),
        pool=pack_pool(KEYS, np.zeros((len(ITEMS), 1), np.float32)),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("each_next", "want"), [(0.5, [1.0, 0.5, 0.5, 0.25]), (2.0, [1.0, 2.0, 2.0, 4.0]), (1.0, [1.0, 1.0, 1.0, 1.0])]
)
def test_each_next_place_counts_so_many_times_the_one_before_it(each_next: float, want: list[float]) -> None:
    got = shares(heads_of(each_next)["buy"], np.array([10, 20, 20, 31]))
    np.testing.assert_allclose(got, np.array(want) / np.mean(want), rtol=1e-6)
    assert got.dtype == np.float32
    assert len(shares(heads_of(each_next)["buy"], np.zeros(0, np.int64))) == 0


@pytest.mark.parametrize("each_next", [0.5, 2.0])
def test_in_the_longest_visit_every_positive_still_counts(each_next: float) -> None:
    got = shares(heads_of(each_next)["buy"], np.arange(1_000))
    assert got.min() > 0
    assert got.mean() == pytest.approx(1.0, rel=1e-4)


an_event = st.tuples(
    st.integers(-1, 9).map(lambda quarters: T0 + quarters * HOUR // 4), st.sampled_from([*ITEMS, "z"]),
    st.sampled_from(["purchase", "view"]),
)  # fmt: skip


@given(story=st.lists(an_event, max_size=12), each_next=st.sampled_from([0.5, 0.9, 1.0, 1.7]), data=st.data())
@settings(deadline=None, max_examples=80)
def test_offline_online_and_on_record_a_positive_counts_the_same(
    story: list[tuple[int, str, str]], each_next: float, data: st.DataObject
) -> None:
    heads = heads_of(each_next)
    events = [event(n, *each) for n, each in enumerate(story)]
    batch = EventBatch.of(sorted(events, key=lambda e: e.time))
    window = batch.take((batch.time >= T0) & (batch.time < T0 + 2 * HOUR))
    want = np.column_stack([labels_of(head, window, KEYS) for head in heads.values()])
    taken = want[:, 0] > 0
    assert taken.tolist() == [
        any(e.kind == "purchase" and e.entity == item and T0 <= e.time < T0 + 2 * HOUR for e in events)
        for item in ITEMS
    ]
    if taken.any():
        assert want[taken, 0].mean() == pytest.approx(1.0)

    held = PoolJoin(heads, ["x"], lateness=9 * HOUR)
    revisions = held.take([served(shown=False)], EventBatch.of([]))[0]
    for one in data.draw(st.permutations(events)):
        if data.draw(st.booleans()):  # a restart on the way
            again = PoolJoin(heads, ["x"], lateness=9 * HOUR)
            again.load(held.state())
            held = again
        revisions += held.take([], EventBatch.of([one]))[0]
    _, [closed] = held.take([], EventBatch.of([event(98, T0 + 20 * HOUR, None)]))
    np.testing.assert_array_equal(closed.labels, want)
    before = np.zeros_like(want)
    for revision in revisions:
        np.testing.assert_array_equal(revision.before, before)
        before = revision.examples.labels
    np.testing.assert_array_equal(before, want)

    join = Attribution(heads, ["x"], lateness=HOUR)
    join.add([served(shown=True), *events, event(99, T0 + 9 * HOUR, None)])
    [examples] = join.ready()
    np.testing.assert_array_equal(examples.labels, want)


def test_an_earlier_answer_that_comes_late_takes_its_place() -> None:
    """Canary: a place is decided by moments, not by arrival."""
    held = PoolJoin(heads_of(0.5), ["x"])
    [first], _ = held.take([served(shown=False)], EventBatch.of([event(1, T0 + 60_000, "a")]))
    assert first.examples.labels[:, 0].tolist() == [1, 0, 0, 0, 0]
    [second], _ = held.take([], EventBatch.of([event(2, T0 + 1_000, "c")]))
    np.testing.assert_allclose(second.examples.labels[:, 0], np.array([2, 0, 4, 0, 0]) / 3, rtol=1e-6)
    np.testing.assert_array_equal(second.before, first.examples.labels)
    [third], _ = held.take([], EventBatch.of([event(3, T0, "a")]))  # `a` was taken before, it turns out
    np.testing.assert_allclose(third.examples.labels[:, 0], np.array([4, 0, 2, 0, 0]) / 3, rtol=1e-6)
    assert held.take([], EventBatch.of([event(4, T0 + 90_000, "a")]))[0] == []  # again: nothing new
