"""The laws of the feature store as checks: each takes a maker of stores and a log, and raises AssertionError.

Used on the built-in features, and on canaries that break a law on purpose and must be caught.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from mainstem.features import Store
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, EntityTypeConfig, EventConfig, FeatureConfig
from mainstem.schema.ids import key64, keys64
from mainstem.schema.position import Position
from mainstem.schema.records import Context, Event

Maker = Callable[[], Store]
HOUR = 3_600_000
START = 1_483_228_800_000  # 2017-01-01

ITEMS = tuple(f"i{i}" for i in range(8))
USERS = tuple(f"u{i}" for i in range(4))
CANDIDATES = keys64("item", [*ITEMS, "never seen"])

WORLD = Config(
    events={
        "purchase": EventConfig(owned=True),
        "click": EventConfig(interest=0.3),
        "impression": EventConfig(interest=0.0),
    },
    entities={"item": EntityTypeConfig(attributes={"colour": "category", "size": "category"})},
    features=FeatureConfig(by=["colour", "size"], place="store", popularity_windows=["1d", "3d", "7d"]),
)
TIGHT = WORLD.model_copy(
    update={
        "features": WORLD.features.model_copy(
            update={"items_per_user": 3, "history": 4, "neighbours": 2, "cooccurrence_span": 3}
        )
    }
)


class Colours:
    """A catalogue of ITEMS: item n has colour n % 3, and size n % 2 except for the last one, which has none."""

    def __init__(self) -> None:
        self._rows = {key64("item", name): row for row, name in enumerate(ITEMS)}
        self._codes = {
            "colour": keys64("item.colour", [str(row % 3) for row in range(len(ITEMS))]),
            "size": keys64("item.size", [str(row % 2) for row in range(len(ITEMS))]),
        }
        self._codes["size"][-1] = 0

    def rows(self, keys: np.ndarray) -> np.ndarray:
        return np.array([self._rows.get(key, -1) for key in keys.tolist()], np.int32)

    def codes(self, attribute: str, rows: np.ndarray) -> np.ndarray:
        return np.where(rows >= 0, self._codes[attribute][rows], 0).astype(np.uint64)


def event(
    n: int, time: int, user: str, item: str, kind: str = "purchase", session: str | None = None,
    store: str | None = None, value: float = 1.0, entity_type: str = "item",
) -> Event:  # fmt: skip
    extras: dict[str, str | float | bool] = {"store": store} if store else {}
    return Event(
        event_id=f"e{n}", time=time, user=user, entity=item, kind=kind, session=session, extras=extras,
        value=value, entity_type=entity_type,
    )  # fmt: skip


def write(store: Store, events: Sequence[Event], cuts: Sequence[int] = (), first: int = 0) -> None:
    """Write `events`, which stand in the log from offset `first`, in the batches that `cuts` makes."""
    ends = sorted({cut for cut in cuts if 0 < cut < len(events)} | {len(events)})
    start = 0
    for end in ends:
        offsets = range(first + start, first + end)
        batch = EventBatch.of(events[start:end], offsets, place_extra="store")
        store.write(batch, Position.at(first + end))
        start = end


@dataclass
class Answer:
    """All that one view says, by name."""

    parts: dict[str, np.ndarray]

    def same(self, other: Answer, tolerance: float = 1e-5) -> None:
        assert self.parts.keys() == other.parts.keys()
        for name, part in self.parts.items():
            np.testing.assert_allclose(
                part, other.parts[name], rtol=tolerance, atol=tolerance, err_msg=f"{name} differs"
            )


def ask(store: Store, time: int, user: str | None) -> Answer:
    """Everything a view of `user` at `time` can be asked; integers keep their exact value."""
    with store.view(Context(user=user, time=time)) as view:
        values = view.values(CANDIDATES)
        assert np.isfinite(values).all(), "a value is not finite"
        assert values.shape == (len(CANDIDATES), len(store.names))
        parts = {name: values[:, column] for column, name in enumerate(store.names)}
        history, counts = view.history(), view.counts()
        for field in ("entity", "kind", "value", "time"):
            parts[f"history.{field}"] = np.asarray(getattr(history, field)).copy()
        for field in ("keys", "count", "first", "last", "owned"):
            parts[f"counts.{field}"] = np.asarray(getattr(counts, field)).astype(counts.keys.dtype)
        parts["view.hidden"] = view.hidden()
        scored = {
            "neighbours": view.neighbours(history.entity, np.ones(len(history.entity), np.float32), 20),
            "popular": view.popular(20),
            "popular_fresh": view.popular(20, 0, fresh=True),
            "popular_place": view.popular(20, place=True),
        }
        for name, found in scored.items():  # order of nearly equal scores is not a promise
            order = np.argsort(found.keys)
            parts[f"{name}.keys"], parts[f"{name}.scores"] = found.keys[order], found.scores[order]
    return Answer(parts)


def everyone(store: Store, time: int) -> list[Answer]:
    return [ask(store, time, user) for user in (*USERS, None)]


def all_same(left: list[Answer], right: list[Answer]) -> None:
    for one, other in zip(left, right, strict=True):
        one.same(other)


def check_online_is_offline(make: Maker, events: Sequence[Event], cuts: Sequence[int]) -> None:
    """Law 5: after each batch, the values at the newest time and after it equal those of a fresh replay of the
    log up to there. `events` in order of time."""
    online = make()
    ends = sorted({cut for cut in cuts if 0 < cut < len(events)} | {len(events)})
    start = 0
    for end in ends:
        write(online, events[start:end], first=start)
        start = end
        newest = max(e.time for e in events[:end])
        for time in (newest, newest + 1, newest + 30 * HOUR):
            offline = make()
            write(offline, [e for e in events[:end] if e.time < time])
            all_same(everyone(online, time), everyone(offline, time))
            offline.close()
    online.close()


def check_cuts_change_nothing(make: Maker, events: Sequence[Event], cuts: Sequence[int]) -> None:
    """However the log is cut into batches, the values are the same; `events` in any order of time."""
    whole, pieces = make(), make()
    write(whole, events)
    write(pieces, events, cuts)
    newest = max(e.time for e in events)
    for time in (newest, newest + 1):
        all_same(everyone(whole, time), everyone(pieces, time))
    whole.close()
    pieces.close()


def check_nothing_leaks(make: Maker, before: Sequence[Event], at_or_after: Sequence[Event], time: int) -> None:
    """Law 4: events at or after `time` change nothing of what a view at `time` says. They are given all at
    the same time; a state that has folded events after `time` cannot leave them out, and says `exact` False."""
    assert all(e.time < time for e in before)
    assert all(e.time >= time for e in at_or_after)
    without, with_them = make(), make()
    write(without, before)
    write(with_them, before)
    write(with_them, at_or_after, first=len(before))
    all_same(everyone(without, time), everyone(with_them, time))
    with with_them.view(Context(user=None, time=time)) as view:
        assert view.exact
    without.close()
    with_them.close()
