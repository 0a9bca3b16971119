"""Attribution: who answers what, what was seen, windows; within the lateness no order of arrival matters."""

import pickle
from collections.abc import Iterable, Sequence

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import eventlog
from mainstem.join import Attribution, Examples, JoinCounts, joined_examples
from mainstem.schema.config import HeadConfig
from mainstem.schema.ids import key64, keys64
from mainstem.schema.pasts import Pasts, pack_past
from mainstem.schema.position import Position
from mainstem.schema.records import (
    Context,
    Entity,
    Erase,
    Event,
    LogRecord,
    Past,
    Served,
    Slate,
    SlateItem,
    SlateRequest,
)

HEADS = {
    "click": HeadConfig(event="click", window="10s"),
    "buy": HeadConfig(event="purchase", window="60s"),
    "amount": HeadConfig(event="purchase", type="value", window="60s"),
}
LATE = 5_000
END = 60_000 + LATE
INPUTS = ["count", "score"]


def served(
    request_id: str, time: int, items: Sequence[str] = ("a", "b", "c"), user: str | None = "u", **changes: object
) -> Served:
    values = np.array([[i, time] for i in range(len(items))], np.float32)
    slate = Slate(request_id=request_id, canvas="home", time=time, items=[SlateItem(entity=e, score=0) for e in items])
    request = SlateRequest(context=Context(user=user, time=time))
    base = Served(
        record_id=request_id, time=time, user=user, request=request, slate=slate, shown=True, feature_names=INPUTS,
        features=values.tobytes(),
    )  # fmt: skip
    return msgspec.structs.replace(base, **changes)


_made = iter(range(10**9))


def event(kind: str, entity: str | None, time: int, request_id: str | None = None, **changes: object) -> Event:
    base = Event(event_id=f"e{next(_made)}", time=time, user="u", kind=kind, entity=entity, request_id=request_id)
    return msgspec.structs.replace(base, **changes)


def tick(time: int) -> Event:
    """Anything that moves the clock."""
    return event("view", "elsewhere", time, user="someone")


def join(records: Iterable[LogRecord], at: int = 10 * END, **options: object) -> list[Examples]:
    attribution = Attribution(HEADS, lateness=LATE, **options)  # type: ignore[arg-type]
    attribution.add([*records, tick(at)])
    return attribution.ready()


def table(made: Examples) -> dict[str, list[float]]:
    """entity -> labels, NaN as -1."""
    names = {key64("item", e): e for e in "abcdefghij"}
    return {names[int(k)]: np.nan_to_num(row, nan=-1).tolist() for k, row in zip(made.keys, made.labels, strict=True)}


def test_labels_windows_and_inputs() -> None:
    records = [
        served("s", 1_000),
        event("click", "a", 10_999),
        event("click", "b", 11_000),  # the window is over
        event("purchase", "b", 60_999, value=2.5),
        event("purchase", "b", 2_000, value=4.0),
        event("purchase", "c", 61_000),
        event("purchase", "c", 999),  # before the slate
    ]
    (made,) = join(records)
    assert table(made) == {"a": [1, 0, -1], "b": [0, 1, 6.5], "c": [0, 0, -1]}
    assert made.inputs.tolist() == [[0, 1_000], [1, 1_000], [2, 1_000]]
    assert (made.time.tolist(), made.user.tolist(), made.offsets.tolist()) == ([1_000], [key64("user", "u")], [0, 3])
    assert (made.negative_rate == 1).all()
    assert not made.fresh.any()
    assert join(records, had="count")[0].fresh.tolist() == [True, False, False]


def test_what_counts_as_seen() -> None:
    def answers(shown: bool | None, **options: object) -> list[dict[str, list[float]]]:
        records = [
            served("s", 0, shown=shown),
            event("impression", "a", 10, "s"),
            event("impression", "b", 60_000, "s"),  # too long after
            event("click", "c", 20, "s"),
        ]
        return [table(made) for made in join(records, **options)]

    nothing = [0, 0, -1]
    assert answers(None) == [{"a": nothing, "c": [1, 0, -1]}]  # the click proves that c was seen
    everything = [{"a": nothing, "b": nothing, "c": [1, 0, -1]}]
    assert answers(True) == everything
    assert answers(None, served_is_seen=True) == everything
    assert answers(False) == []
    assert answers(False, served_is_seen=True) == []  # a shadow slate is never a negative


def test_a_slate_of_which_nothing_was_seen_teaches_nothing() -> None:
    attribution = Attribution(HEADS, lateness=LATE)
    attribution.add([served("s", 0, shown=None), served("t", 0, shown=False), tick(END)])
    assert attribution.ready() == []
    assert attribution.counts == JoinCounts(slates=1, unseen=1, not_shown=1)


def test_request_id_comes_before_last_touch() -> None:
    slates = [served("s1", 0), served("s2", 1_000)]
    named, last, tied = (
        [*slates, event("click", "a", 2_000, "s1")],
        [*slates, event("click", "a", 2_000)],
        [served("s1", 0), served("s2", 0), event("click", "a", 0)],
    )
    clicks = [[made.labels[0, 0] for made in join(records)] for records in (named, last, tied)]
    assert clicks == [[1, 0], [0, 1], [0, 1]]
    between = [*slates, event("click", "a", 500)]
    assert [made.labels[0, 0] for made in join(between)] == [1, 0]
    unknown = [*slates, event("click", "a", 2_000, "another request, not on record")]
    assert [made.labels[0, 0] for made in join(unknown)] == [0, 0]


def test_shadow_slates_take_no_answers_and_slates_without_inputs_do() -> None:
    older, click = served("s1", 0), event("click", "a", 2_000)
    assert join([older, served("s2", 1_000, shown=False), click])[0].labels[0, 0] == 1
    (made,) = join([older, served("s2", 1_000, features=b"", feature_names=[]), click])
    assert made.labels[0, 0] == 0
    (made,) = join([older, served("s2", 1_000, features=b"damaged"), click])
    assert made.labels[0, 0] == 0


def test_other_users_tenants_types_and_visitors() -> None:
    for changes in ({"user": "v"}, {"tenant": "other"}, {"entity_type": "genre"}):
        (made,) = join([served("s", 0), event("click", "a", 10, **changes)])
        assert not made.labels[:, 0].any()
    (made,) = join([served("s", 0, user=None), event("click", "a", 10, user="")])
    assert not made.labels[:, 0].any()
    (made,) = join([served("s", 0, user=None), event("click", "a", 10, "s", user="guest-7")])
    assert made.labels[0, 0] == 1
    assert made.user.tolist() == [0]


def test_a_network_that_reads_the_history_gets_what_was_read_then() -> None:
    kinds = ("click", "purchase")

    def past(kinds: tuple[str, ...] = kinds) -> Past:
        entities = keys64("item", ["x", "a", "y"])
        return pack_past(Pasts(entities, np.array([0, 1, 1], np.uint8), np.arange(3), np.array([0, 3])), kinds)

    slates = [
        served("s", 0, past=past()),
        served("t", 1),  # of a time when it was not put on record
        served("u", 2, past=past(("purchase", "click"))),
    ]
    attribution = Attribution(HEADS, lateness=LATE, reads=kinds)
    attribution.add([*slates, Erase(record_id="x", time=20, entity="a")])
    again = Attribution(HEADS, lateness=LATE, reads=kinds)
    again.load(attribution.state())
    again.add([tick(10 * END)])
    (made,) = again.ready()
    assert again.counts.other_inputs == 2
    assert made.pasts is not None
    assert made.pasts.entity.tolist() == keys64("item", ["x", "y"]).tolist()
    assert made.pasts.action.tolist() == [0, 1]
    assert [each.pasts for each in join(slates)] == [None] * 3


def test_places_of_an_entity_that_is_there_twice() -> None:
    twice = served("s", 0, items=("a", "b", "a"))
    assert join([twice, event("click", "a", 1, "s")])[0].labels[:, 0].tolist() == [1, 0, 1]
    assert join([twice, event("click", "a", 1, "s", place=2)])[0].labels[:, 0].tolist() == [0, 0, 1]
    assert join([twice, event("click", "a", 1, "s", place=1)])[0].labels[:, 0].tolist() == [1, 0, 1]
    assert join([twice, event("click", None, 1, "s", place=1)])[0].labels[:, 0].tolist() == [0, 1, 0]
    assert join([twice, event("click", None, 1, "s", place=9)])[0].labels[:, 0].tolist() == [0, 0, 0]


def test_duplicates_count_once() -> None:
    slate, bought = served("s", 0), event("purchase", "a", 10, "s", value=2)
    (made,) = join([slate, bought, slate, bought])
    assert made.labels[0].tolist() == [0, 1, 2]
    attribution = Attribution(HEADS, lateness=LATE)
    attribution.add([slate, tick(END), slate, tick(END + 1)])
    assert len(attribution.ready()) == 1
    assert attribution.counts.slates == 1


def test_held_back_until_the_longest_window_and_the_lateness_have_passed() -> None:
    attribution = Attribution(HEADS, lateness=LATE)
    attribution.add([served("s", 0), event("click", "a", 1, "s"), tick(END - 1)])
    assert attribution.ready() == []
    attribution.add([event("purchase", "b", 59_999, "s")])  # late, but not too late
    attribution.add([tick(END)])
    (made,) = attribution.ready()
    assert table(made) == {"a": [1, 0, -1], "b": [0, 1, 1], "c": [0, 0, -1]}
    attribution.add([event("purchase", "c", 59_999, "s"), event("purchase", "c", 59_999), served("old", 0)])
    assert attribution.counts.too_late == 2
    attribution.add([tick(9 * END), event("purchase", "c", 59_999, "s")])
    assert attribution.counts.too_late == 3
    assert attribution.ready() == []


def test_an_event_from_the_future_does_not_close_windows_before_it_arrived() -> None:
    attribution = Attribution(HEADS, lateness=LATE)
    attribution.add([served("s", 0), tick(10), event("click", "a", 10 * END, received_at=20)])
    assert attribution.ready() == []
    attribution.add([event("click", "b", 30, "s"), tick(END)])
    assert table(attribution.ready()[0])["b"][0] == 1


def test_answers_that_arrive_before_their_slate() -> None:
    (made,) = join([event("click", "b", 20, "s"), event("click", "c", 30), served("s", 10)])
    assert made.labels[:, 0].tolist() == [0, 1, 1]


def test_memory_is_bounded_by_the_windows() -> None:
    attribution = Attribution(HEADS, lateness=LATE)
    sizes = []
    for i in range(400):
        t = i * 1_000
        attribution.add([served(f"s{i:04}", t), event("click", "a", t, f"s{i:04}"), event("click", "b", t)])
        attribution.add([event("click", "z", t), event("impression", "a", t, "not on record")])
        attribution.ready()
        sizes.append(attribution.waiting())
    assert max(sizes[100:]) == sizes[100] <= 5 * (END // 1_000 + 1)
    held = pickle.dumps(attribution)
    attribution.add([tick(400_000 + 3 * END)])
    attribution.ready()
    for part in ("_slates", "_due", "_touched", "_events", "_stale", "_named", "_unnamed", "_closed"):
        assert not getattr(attribution, part), part
    assert len(held) < 400_000


def test_erasure_reaches_what_waits() -> None:
    records = [served("s", 0), served("other", 0, user="v"), event("click", "a", 10), event("click", "b", 11)]
    made = join([*records, Erase(record_id="x", time=20, user="u")])
    assert [int(m.user[0]) for m in made] == [key64("user", "v")]
    made = join([*records, Erase(record_id="x", time=20, entity="a")])
    assert [table(m) for m in made] == [
        {"b": [0, 0, -1], "c": [0, 0, -1]},
        {"b": [1, 0, -1], "c": [0, 0, -1]},
    ]
    assert made[1].inputs[:, 0].tolist() == [1, 2]
    assert join([served("s", 0, items=("a",)), Erase(record_id="x", time=20, entity="a")]) == []


# ---- order and cutting do not matter ---------------------------------------------------------------

moments = st.integers(0, 150).map(lambda n: n * 1_000)
slate_rows = st.tuples(
    moments, st.lists(st.sampled_from("abcd"), min_size=1, max_size=4), st.sampled_from([True, None, False])
)
event_rows = st.tuples(
    moments,
    st.sampled_from(["click", "purchase", "impression"]),
    st.sampled_from("abcd"),
    st.sampled_from([None, "s0", "s1", "s2", "gone"]),
    st.sampled_from([0.1, 0.2, 0.7]),
)


def world(slates: list[tuple[int, list[str], bool | None]], events: list[tuple]) -> list[LogRecord]:  # type: ignore[type-arg]
    records: list[LogRecord] = [served(f"s{i}", t, items, shown=shown) for i, (t, items, shown) in enumerate(slates)]
    records += [event(kind, e, t, r, value=value, event_id=f"x{i}") for i, (t, kind, e, r, value) in enumerate(events)]
    return sorted(records, key=lambda record: record.time)


def flat(made: list[Examples]) -> list[tuple[bytes, ...]]:
    names = [name for name in Examples.__slots__ if name != "pasts"]
    return [tuple(getattr(one, name).tobytes() for name in names) for one in made]


def oracle(records: list[LogRecord]) -> list[dict[str, object]]:
    """Every slate against every event: no clock, no memory, no lateness."""
    slates = [r for r in records if isinstance(r, Served) and r.shown is not False]
    slates.sort(key=lambda r: (r.slate.time, r.slate.request_id))
    found = []
    for slate in slates:
        seen = set(range(len(slate.slate.items))) if slate.shown else set()
        labels = {}
        for place, item in enumerate(slate.slate.items):
            mine = []
            for e in records:
                if not isinstance(e, Event) or e.entity != item.entity:
                    continue
                holding = [s for s in slates if s.time <= e.time and e.entity in [i.entity for i in s.slate.items]]
                names = e.request_id or (holding[-1].slate.request_id if holding else None)
                if names == slate.slate.request_id and 0 <= e.time - slate.time < 60_000:
                    mine.append(e)
            clicked = any(e.kind == "click" and e.time - slate.time < 10_000 for e in mine)
            amounts = [e.value for e in mine if e.kind == "purchase"]
            if clicked or amounts or any(e.kind == "impression" for e in mine):
                seen.add(place)
            labels[place] = [float(clicked), float(bool(amounts)), pytest.approx(sum(amounts)) if amounts else -1]
        if seen:
            found.append({"time": slate.time, "labels": [labels[place] for place in sorted(seen)]})
    return found


@settings(max_examples=150, deadline=None)
@given(st.lists(slate_rows, max_size=3), st.lists(event_rows, max_size=8))
def test_attribution_is_the_oracles(slates: list, events: list) -> None:  # type: ignore[type-arg]
    records = world(slates, events)
    made = [{"time": m.time[0], "labels": np.nan_to_num(m.labels, nan=-1).tolist()} for m in join(records)]
    assert made == oracle(records)


@settings(max_examples=150, deadline=None)
@given(st.lists(slate_rows, max_size=3), st.lists(event_rows, max_size=8), st.data())
def test_neither_arrival_within_lateness_nor_batches_matter(slates: list, events: list, data: st.DataObject) -> None:  # type: ignore[type-arg]
    records = world(slates, events)
    want = flat(join(records))
    delays = data.draw(st.lists(st.integers(0, LATE), min_size=len(records), max_size=len(records)))
    arriving = sorted(range(len(records)), key=lambda i: (records[i].time + delays[i], -i))
    again = [records[i] for i in arriving for _ in range(data.draw(st.integers(1, 2)))]
    attribution, made = Attribution(HEADS, lateness=LATE), []
    for record in [*again, tick(10 * END)]:
        attribution.add([record])
        if data.draw(st.booleans()):
            made += attribution.ready()
        if data.draw(st.booleans()):
            made += attribution.ready()
            resumed = Attribution(HEADS, lateness=LATE)
            resumed.load(attribution.state())
            attribution = resumed if data.draw(st.booleans()) else pickle.loads(pickle.dumps(attribution))
    assert flat(made + attribution.ready()) == want


def test_sums_do_not_depend_on_the_order_of_arrival() -> None:
    bought = [event("purchase", "a", 10 + i, value=value) for i, value in enumerate([1e20, 1.0, -1e20])]
    ways = [[served("s", 0), *order] for order in (bought, bought[::-1], [bought[0], bought[2], bought[1]])]
    assert len({sum(e.value for e in way[1:]) for way in ways}) > 1  # canary: as they come, it would
    assert len({join(way)[0].labels[0, 2] for way in ways}) == 1


def test_canary_arrival_beyond_lateness_does_matter() -> None:
    slate, click = served("s", 0), event("click", "a", 9_000, "s")
    assert flat(join([slate, click])) != flat(join([slate, tick(END), click]))


def test_state_wants_ready_taken_first() -> None:
    attribution = Attribution(HEADS, lateness=LATE)
    attribution.add([served("s", 0), tick(END)])
    with pytest.raises(ValueError, match="take what is ready"):
        attribution.state()


# ---- over a log ------------------------------------------------------------------------------------


def test_joined_examples_of_a_log() -> None:
    log = eventlog.open("memory://", history="file:///nowhere")
    log.append(
        [
            Entity(record_id="a", time=0, entity="a"),
            served("s1", 0),
            served("s2", 1_000, feature_names=["count", "an older score"]),
            event("click", "a", 500, "s1"),
            event("impression", "b", 2_000, "s3"),
            served("s3", 1_500, shown=None),
            tick(END + 1_600),
            served("s4", END),
            tick(2 * END - 1),
        ]
    )
    counts = JoinCounts()
    made = list(joined_examples(log, HEADS, INPUTS, lateness=LATE, counts=counts))
    assert [int(m.time[0]) for m in made] == [0, 1_500]
    assert [table(m) for m in made] == [
        {"a": [1, 0, -1], "b": [0, 0, -1], "c": [0, 0, -1]},
        {"b": [0, 0, -1]},
    ]
    assert counts == JoinCounts(slates=4, joined=2, other_inputs=1)
    assert len(list(joined_examples(log, HEADS, INPUTS, lateness=LATE, end=Position.at(6)))) == 0
    assert len(Examples.concat(made)) == 2
    log.close()
