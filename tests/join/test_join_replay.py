"""Replay: inputs as of each request, labels in their windows, strata of negatives and what their rate is good for."""

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from mainstem import catalog as catalogs
from mainstem import features
from mainstem.join import Examples, Replay, StoredRequest, visits
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, HeadConfig
from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.pasts import Pasts
from mainstem.schema.position import Position
from mainstem.schema.protocols import FeatureView, Floats
from mainstem.schema.records import Context, Event
from mainstem.schema.time import DAY, HOUR

T0 = 1_500_000_000_000
ITEMS = [f"i{i}" for i in range(40)]
KEYS = keys64("item", ITEMS)
CONFIG = Config()
HEADS = {
    "buy": HeadConfig(event="purchase", window="1d"),
    "soon": HeadConfig(event="purchase", window="2h"),
    "stars": HeadConfig(event="rating", type="value", window="3d"),
}
Inputs = Callable[[Context, FeatureView, Keys], tuple[Floats, Pasts | None]]


def bought(user: str, item: int, time: int, kind: str = "purchase", value: float = 1.0) -> Event:
    name = f"{user}-{item}-{time}-{kind}"
    return Event(event_id=name, time=time, user=user, kind=kind, entity=f"i{item}", value=value)


def world(users: int = 4, days: int = 12, seed: int = 0) -> list[Event]:
    rng = np.random.default_rng(seed)
    events = [
        bought(f"u{user}", int(item), T0 + day * DAY + int(rng.integers(20)) * HOUR + k * 60_000)
        for day in range(days)
        for user in range(users)
        for k, item in enumerate(rng.choice(len(ITEMS), 3, replace=False))
    ]
    return sorted(events, key=lambda e: e.time)


def requests_of(events: EventBatch, names: Sequence[str], after: int) -> list[StoredRequest]:
    users = {key64("user", name): name for name in names}
    found = [visit for visit in visits(events) if visit.time >= after]
    return [StoredRequest(v, Context(user=users[v.user], time=v.time)) for v in found]


def everything(context: Context, view: FeatureView) -> Keys:
    return KEYS


def feature_values(context: Context, view: FeatureView, keys: Keys) -> tuple[Floats, Pasts]:
    past = view.history()
    offsets = np.array([0, len(past.entity)])
    return view.values(keys), Pasts(past.entity, past.kind.astype(np.uint8), past.time, offsets)


def replayed(
    events: list[Event],
    inputs: Inputs = feature_values,
    after: int = T0 + 4 * DAY,
    keep: Callable[[StoredRequest], bool] = lambda request: True,
    **options: int,
) -> list[Examples]:
    batch = EventBatch.of(events, range(len(events)))
    store = features.open("memory://", CONFIG, catalogs.open("memory://", entities=CONFIG.entities))
    replay = Replay(batch, store, HEADS, everything, inputs, **{"negatives": 10, "seed": 3, "width": 7} | options)
    requests = [r for r in requests_of(batch, [f"u{u}" for u in range(9)], after) if keep(r)]
    return list(replay.examples(requests))


def same(a: Examples, b: Examples) -> bool:
    names = [f for f in Examples.__slots__ if f not in ("keys", "pasts")]
    return same_pasts(a, b) and all(np.array_equal(getattr(a, f), getattr(b, f), equal_nan=True) for f in names)


def same_pasts(a: Examples, b: Examples) -> bool:
    return all(np.array_equal(getattr(a.pasts, f), getattr(b.pasts, f)) for f in Pasts.__slots__)


# ---- no look into the future -----------------------------------------------------------------------


def reads_the_future(inputs: Callable[[list[Event]], Inputs]) -> bool:
    """Change everything at and after one request; its inputs must stay as they were. The check that canaries face."""
    events = world()
    moment = next(v.time for v in visits(EventBatch.of(events)) if v.time > T0 + 9 * DAY)
    changed = [e if e.time < moment else bought(e.user, (int(e.entity[1:]) + 7) % 40, e.time) for e in events]  # type: ignore[index]
    before = [e for e in replayed(events, inputs(events), negatives=80) if e.time[0] <= moment]
    after = [e for e in replayed(changed, inputs(changed), negatives=80) if e.time[0] <= moment]
    assert len(before) == len(after) > 10
    for a, b in zip(before, after, strict=True):
        if not np.array_equal(a.inputs[np.argsort(a.keys)], b.inputs[np.argsort(b.keys)]) or not same_pasts(a, b):
            return True
    return False


def test_inputs_are_as_of_the_request_and_a_leak_is_caught() -> None:
    def seen(events: list[Event], user: str | None, until: int) -> Keys:
        # "at or before" in place of "strictly before": one event too many, which is the answer itself
        return keys64("item", [e.entity or "" for e in events if e.user == user and e.time <= until])

    def leaking_values(events: list[Event]) -> Inputs:
        return lambda context, view, keys: (
            np.isin(keys, seen(events, context.user, view.time)).astype(np.float32)[:, None], Pasts.none(1),
        )  # fmt: skip

    def leaking_past(events: list[Event]) -> Inputs:
        def inputs(context: Context, view: FeatureView, keys: Keys) -> tuple[Floats, Pasts]:
            past = seen(events, context.user, view.time)
            n = len(past)
            return view.values(keys), Pasts(past, np.zeros(n, np.uint8), np.zeros(n, np.int64), np.array([0, n]))

        return inputs

    assert not reads_the_future(lambda events: feature_values)
    assert reads_the_future(leaking_values)
    assert reads_the_future(leaking_past)


def test_the_state_at_a_request_is_that_of_a_store_fed_only_with_what_came_before() -> None:
    events = world()
    for made in replayed(events)[::5]:
        store = features.open("memory://", CONFIG, catalogs.open("memory://", entities=CONFIG.entities))
        past = [e for e in events if e.time < made.time[0]]
        store.write(EventBatch.of(past, range(len(past))), Position.at(len(past)))
        user = next(f"u{u}" for u in range(9) if key64("user", f"u{u}") == made.user[0])
        with store.view(Context(user=user, time=int(made.time[0]))) as view:
            np.testing.assert_array_equal(view.values(made.keys), made.inputs)
            np.testing.assert_array_equal(~np.isin(made.keys, view.counts().keys), made.fresh)


def test_out_of_order_requests_and_events_are_refused() -> None:
    events = EventBatch.of(world(), range(144))
    store = features.open("memory://", CONFIG, catalogs.open("memory://", entities=CONFIG.entities))
    replay = Replay(events, store, HEADS, everything, feature_values)
    wanted = requests_of(events, [f"u{u}" for u in range(4)], T0)
    with pytest.raises(ValueError, match="by time"):
        list(replay.examples(wanted[::-1]))
    later = StoredRequest(wanted[-1].visit, Context(user="u0", time=wanted[-1].visit.time + 1))
    with pytest.raises(ValueError, match="cannot stand for"):
        list(replay.examples([later]))
    with pytest.raises(ValueError, match="sorted by time"):
        Replay(events.take(slice(None, None, -1)), store, HEADS, everything, feature_values)


# ---- labels ----------------------------------------------------------------------------------------


def test_labels_per_head_and_window() -> None:
    t = T0 + 10 * DAY
    events = [
        bought("u0", 1, t - 1),  # another session? the same one: no more than half an hour passes
        bought("u0", 9, t - DAY),
        bought("u0", 2, t),
        bought("u0", 3, t + 2 * HOUR - 2),  # the last moment of `soon`, counted from t - 1
        bought("u0", 4, t + 2 * HOUR - 1),
        bought("u0", 5, t + DAY - 2),
        bought("u0", 6, t + DAY - 1),
        bought("u0", 7, t + HOUR, "rating", 4.0),
        bought("u0", 7, t + 2 * DAY, "rating", 3.0),
        bought("u0", 8, t + HOUR, "rating", 0.0),
        bought("u0", 10, t + 4 * DAY, "rating", 5.0),
        bought("u1", 11, t + 1),
    ]
    events = sorted(events, key=lambda e: e.time)
    (made,) = [
        e
        for e in replayed(events, after=t - 1, negatives=80)
        if e.time[0] == t - 1 and e.user[0] == key64("user", "u0")
    ]
    labels = {int(k): row for k, row in zip(made.keys, made.labels, strict=True)}
    buy, soon, stars = (
        {i for i in range(40) if np.nan_to_num(labels[key64("item", f"i{i}")][h]) != 0} for h in range(3)
    )
    assert buy == {1, 2, 3, 4, 5}
    assert soon == {1, 2, 3}
    assert stars == {7}
    assert labels[key64("item", "i7")][2] == 7.0
    assert labels[key64("item", "i8")][2] == 0.0  # known to be nothing
    assert np.isnan(labels[key64("item", "i10")][2])  # not known
    assert not made.fresh[list(made.keys).index(key64("item", "i9"))]


# ---- negatives -------------------------------------------------------------------------------------


def test_all_positives_and_a_bounded_even_draw_of_each_stratum() -> None:
    everything_kept = replayed(world(), negatives=99)
    for negatives in (1, 10, 39, 80):
        for made, full in zip(replayed(world(), negatives=negatives), everything_kept, strict=True):
            positive = (np.nan_to_num(made.labels) != 0).any(axis=1)
            wanted = (np.nan_to_num(full.labels) != 0).any(axis=1)
            assert set(full.keys[wanted]) == set(made.keys[positive])
            assert (~positive).sum() == min(max(negatives, 2), (~wanted).sum())
            for stratum in (True, False):
                kept = (~positive & (made.fresh == stratum)).sum()
                there = (~wanted & (full.fresh == stratum)).sum()
                assert kept >= min(1, there)
                rates = made.negative_rate[made.fresh == stratum]
                np.testing.assert_allclose(rates, kept / there if there else 1.0, rtol=1e-6)


def test_weighted_negatives_estimate_the_full_softmax_and_the_flipped_sign_does_not() -> None:
    scores = np.random.default_rng(5).normal(size=400)
    positive, fresh = np.zeros(400, bool), np.random.default_rng(6).random(400) < 0.7
    positive[:5] = True
    draw = Replay(EventBatch.of([]), _NoState(), HEADS, everything, feature_values, negatives=50)._draw  # type: ignore[arg-type]
    estimates: dict[int, list[float]] = {1: [], -1: []}
    for seed in range(300):
        places, rate = draw(positive, fresh, np.random.default_rng(seed))
        log_rate = np.where(positive[places], 0.0, np.log(rate))
        for sign, found in estimates.items():
            found.append(float(np.exp(scores[places] - sign * log_rate).sum()))
    full = float(np.exp(scores).sum())
    assert np.mean(estimates[1]) == pytest.approx(full, rel=0.02)
    assert abs(np.mean(estimates[-1]) / full - 1) > 0.5
    # log-odds: the share of positives in the sample, corrected, is that of the population, in each stratum
    for stratum in (True, False):
        places, rate = draw(positive, fresh, np.random.default_rng(0))
        mine = fresh[places] == stratum
        odds = positive[places][mine].sum() / (~positive[places][mine]).sum() * rate[mine][0]
        assert odds == pytest.approx(positive[fresh == stratum].sum() / (~positive[fresh == stratum]).sum(), rel=1e-6)


class _NoState:
    def position(self) -> Position:
        return Position()


def test_only_what_is_strictly_before_a_request_is_folded() -> None:
    """The store has its own guard, so this one is seen only from a store that has none."""
    written: list[int] = []

    class Recording(_NoState):
        def write(self, events: EventBatch, position: Position) -> None:
            written.extend(events.time.tolist())

    events = EventBatch.of([bought("u0", i, T0 + t) for i, t in enumerate([0, 1, 1, 2, 2, 3])])
    replay = Replay(events, Recording(), HEADS, everything, feature_values, width=2)  # type: ignore[arg-type]
    for time, want in ((0, []), (1, [0]), (1, [0]), (2, [0, 1, 1]), (9, [0, 1, 1, 2, 2, 3])):
        replay.fold_until(T0 + time)
        assert written == [T0 + t for t in want]


def test_the_same_seed_draws_the_same_whatever_else_is_asked() -> None:
    events = world()
    whole = replayed(events)
    assert all(same(a, b) for a, b in zip(whole, replayed(events, width=1000), strict=True))
    some = replayed(events, keep=lambda request: request.context.user == "u1")
    mine = [e for e in whole if e.user[0] == key64("user", "u1")]
    assert len(some) == len(mine) > 3
    assert all(same(a, b) for a, b in zip(some, mine, strict=True))
    assert not all(same(a, b) for a, b in zip(whole, replayed(events, seed=4), strict=True))


def test_late_arrival_changes_nothing_once_events_are_sorted_by_time() -> None:
    events = world(users=1)  # no two events of one moment
    assert len({e.time for e in events}) == len(events)
    shuffled = EventBatch.of([events[i] for i in np.random.default_rng(1).permutation(len(events))])
    order = np.argsort(shuffled.time, kind="stable")
    np.testing.assert_array_equal(shuffled.take(order).entity, EventBatch.of(events).entity)


def test_requests_without_a_positive_among_the_candidates_are_left_out() -> None:
    events = world(users=1)
    batch = EventBatch.of(events, range(len(events)))
    store = features.open("memory://", CONFIG, catalogs.open("memory://", entities=CONFIG.entities))
    nothing = Replay(batch, store, HEADS, lambda context, view: keys64("item", ["other"]), feature_values)
    assert list(nothing.examples(requests_of(batch, ["u0"], T0))) == []


def test_a_state_that_holds_a_prefix_is_not_fed_it_twice() -> None:
    events = world(users=2)
    batch = EventBatch.of(events, range(len(events)))
    wanted = requests_of(batch, ["u0", "u1"], T0 + 6 * DAY)
    made = []
    for prefix in (0, 10):
        store = features.open("memory://", CONFIG, catalogs.open("memory://", entities=CONFIG.entities))
        if prefix:
            store.write(batch.take(slice(0, prefix)), Position.at(prefix))
        made.append(list(Replay(batch, store, HEADS, everything, feature_values).examples(wanted)))
    assert len(made[0]) > 5
    assert all(same(a, b) for a, b in zip(*made, strict=True))
