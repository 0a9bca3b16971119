"""One definition of a label: by columns, one by one, online in any order; and when it is known at all."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import catalog as catalogs
from mainstem import features
from mainstem.join import Attribution, Examples, PoolJoin, Replay, StoredRequest, visits
from mainstem.join.labels import grades, label_of, labels_of
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, HeadConfig
from mainstem.schema.examples import Revision, answered
from mainstem.schema.ids import keys64
from mainstem.schema.pools import pack_pool
from mainstem.schema.records import Context, Event, Served, Slate, SlateItem, SlateRequest
from mainstem.schema.time import DAY, HOUR

T0 = 1_700_000_000_000
ITEMS = ["a", "b", "c"]
KEYS = keys64("item", ITEMS)
INPUTS = ("x",)
HEADS = {
    "buy": HeadConfig(event="purchase", window="2h"),
    "size": HeadConfig(event="watch", type="value", window="2h"),
    "stars": HeadConfig(event="watch", type="ordinal", window="2h", levels=[1, 2, 4]),
    "seconds": HeadConfig(event="watch", type="weighted_logistic", window="2h"),
    "worth": HeadConfig(event="watch", type="lifetime_value", window="5d"),
}
SOON = [name for name, head in HEADS.items() if not head.delayed]


def event(number: int, time: int, item: str | None, kind: str = "watch", value: float = 1.0) -> Event:
    return Event(event_id=f"e{number}", user="u", time=time, kind=kind, entity=item, value=value)


def pool() -> Served:
    return Served(
        record_id="r", time=T0, user="u", request=SlateRequest(context=Context(user="u")), shown=False,
        slate=Slate(request_id="r", canvas="home", time=T0, items=[]), feature_names=list(INPUTS),
        pool=pack_pool(KEYS, np.zeros((len(ITEMS), 1), np.float32)),
    )  # fmt: skip


def test_grades_are_the_nearest_level() -> None:
    got = grades(HEADS["stars"], np.array([-9.0, 1.4, 1.5, 1.6, 3.0, 3.1, 99.0]))
    assert got.tolist() == [1, 1, 1, 2, 2, 4, 4]


an_event = st.tuples(
    st.integers(0, 5 * 24).map(lambda hours: T0 + hours * HOUR // 4), st.sampled_from(ITEMS),
    st.sampled_from(["purchase", "watch"]), st.integers(0, 5).map(float),
)  # fmt: skip


def known_labels(story: list[Event]) -> np.ndarray:
    """Every head's labels from all events at once, one by one: [n, h], as known when everything is over."""
    out = np.full((len(ITEMS), len(HEADS)), np.nan, np.float32)
    for column, head in enumerate(HEADS.values()):
        window = {"2h": 2 * HOUR, "5d": 5 * DAY}[head.window]
        for row, item in enumerate(ITEMS):
            found = [
                (e.time, e.value) for e in story
                if e.kind == head.event and e.entity == item and 0 <= e.time - T0 < window
            ]  # fmt: skip
            out[row, column] = label_of(head, found) if found else head.unanswered
    return out


@given(story=st.lists(an_event, max_size=12), data=st.data())
@settings(deadline=None, max_examples=60)
def test_by_columns_and_online_in_any_order_a_label_is_what_it_is_one_by_one(
    story: list[tuple[int, str, str, float]], data: st.DataObject
) -> None:
    events = [event(n, *each) for n, each in enumerate(story)]
    want = known_labels(events)
    batch = EventBatch.of(sorted(events, key=lambda e: e.time))
    for column, head in enumerate(HEADS.values()):
        window = batch.take(batch.time < T0 + {"2h": 2 * HOUR, "5d": 5 * DAY}[head.window])
        np.testing.assert_array_equal(labels_of(head, window, KEYS), want[:, column])
    held = PoolJoin(HEADS, INPUTS, lateness=9 * DAY)
    found: list[Revision] = held.take([pool()], EventBatch.of([]))[0]
    for one in data.draw(st.permutations(events)):
        found += held.take([], EventBatch.of([one]))[0]
    end = event(99, T0 + 14 * DAY, None)
    revisions, closed = held.take([], EventBatch.of([end]))
    assert len(held) == 0
    assert len(closed) == 1
    np.testing.assert_array_equal(closed[0].labels[:, :4], want[:, :4])
    assert np.isnan(closed[0].labels[:, 4]).all()
    found += revisions
    before = np.tile([head.unanswered for head in HEADS.values()], (len(ITEMS), 1)).astype(np.float32)
    before[:, 4] = np.nan
    for revision in found:
        np.testing.assert_array_equal(revision.before, before)
        before = revision.examples.labels
    if answered(want, list(HEADS.values())).any():
        np.testing.assert_array_equal(before, want)
        assert len(revisions) == 1
    else:
        assert not found  # a pool of which nothing was taken teaches nothing


def test_what_is_known_only_later_is_told_once_and_after_a_restart_too() -> None:
    held = PoolJoin(HEADS, INPUTS, lateness=HOUR)
    [first], _ = held.take([pool()], EventBatch.of([event(1, T0, "a", value=3.0)]))
    assert np.isnan(first.examples.labels[:, 4]).all()
    told, [closed] = held.take([], EventBatch.of([event(2, T0 + 3 * HOUR, "b", value=5.0)]))
    assert not told  # the windows of the other heads are over
    assert len(held) == 1
    assert np.isnan(closed.labels[:, 4]).all()
    again = PoolJoin(HEADS, INPUTS, lateness=HOUR)
    again.load(held.state())
    assert again.take([], EventBatch.of([event(3, T0 + 5 * DAY, "a", value=9.0)])) == ([], [])
    [last], closed_again = again.take([], EventBatch.of([event(4, T0 + 5 * DAY + HOUR, None)]))
    assert not closed_again
    assert last.examples.labels[:, 4].tolist() == [3.0, 5.0, 0.0]
    np.testing.assert_array_equal(last.before[:, :4], last.examples.labels[:, :4])
    assert (len(again), again.counts.closed, again.counts.let_go) == (0, 1, 0)


def test_recorded_slates_know_all_but_what_comes_later() -> None:
    slate = Slate(request_id="r", canvas="home", time=T0, items=[SlateItem(entity=i, score=0.0) for i in ITEMS])
    served = Served(
        record_id="r", time=T0, user="u", request=SlateRequest(context=Context(user="u")), shown=True, slate=slate,
        feature_names=list(INPUTS), features=np.zeros(3, np.float32).tobytes(),
    )  # fmt: skip
    story = [event(1, T0 + 9, "b", value=2.0), event(2, T0 + 5, "b", value=4.0), event(3, T0 + 9, "b", value=3.0)]
    join = Attribution(HEADS, INPUTS, lateness=HOUR)
    join.add([served, *story, event(4, T0 + 4 * HOUR, None)])
    [examples] = join.ready()
    want = known_labels(story)
    np.testing.assert_array_equal(examples.labels[:, :4], want[:, :4])
    assert examples.labels[1, 2] == 2.0  # of the two last ones the greater: 3, which lies between 2 and 4
    assert np.isnan(examples.labels[:, 4]).all()


def test_a_delayed_label_is_known_where_the_log_reaches_over_its_window() -> None:
    config = Config()
    story = [event(n, T0 + n * DAY, ITEMS[n % 3], value=float(n)) for n in range(12)]
    events = EventBatch.of(story, range(len(story)))
    store = features.open("memory://", config, catalogs.open("memory://", entities=config.entities))
    replay = Replay(events, store, HEADS, lambda c, v: KEYS, lambda c, v, k: (v.values(k), None), negatives=9)
    requests = [StoredRequest(visit, Context(user="u", time=visit.time)) for visit in visits(events)]
    made: list[Examples] = list(replay.examples(requests))
    assert len(made) == 12
    for n, examples in enumerate(made):
        label = dict(zip(examples.keys.tolist(), examples.labels[:, 4].tolist(), strict=True))
        got = [label[int(key)] for key in KEYS]
        if n + 5 > 11:
            assert np.isnan(got).all()
        else:
            want = [sum(m for m in range(n, n + 5) if m % 3 == item) for item in range(3)]
            assert got == want


def test_a_row_is_answered_where_an_event_is_about_it() -> None:
    heads = [HEADS[name] for name in ("buy", "stars", "seconds", "worth")]
    nan = np.nan
    labels = np.array([[0, nan, 0, nan], [1, nan, 0, nan], [0, 1, 0, nan], [0, nan, 3, 0], [0, nan, 0, 3]], np.float32)
    assert answered(labels, heads).tolist() == [False, True, True, True, True]
