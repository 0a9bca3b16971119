"""The order in which events are folded, and those that are held back (law 4).

A feature at t sees events strictly before t, and a request may carry the very time of the newest events.
So the events at the newest time seen, T*, are *pending*: kept apart from the base state until a later one
arrives. A view at t <= T* reads the base, a view at t > T* reads the base with the pending folded over it.

    time of arrival   5  7  7  6  9          folded:  5 | 7 7 late 6 goes at once | ...
    pending after     5  7  77 77 9          base:    -   5   5        5 6           5 6 7 7

An event before T* arrives late and is folded at once. The order of folding is therefore a function of the log
alone, however it is cut into batches.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mainstem.features.state import Records
from mainstem.schema.batch import EventBatch
from mainstem.schema.canvases import CanvasPlaces
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.schema.time import DAY

__all__ = ["ALIAS", "EVENT", "HIDE", "Fold", "Kinds", "columns", "sequence", "session_of"]

HIDE, ALIAS = -1, -2

EVENT = np.dtype(
    [
        ("time", "i8"), ("user", "u8"), ("entity", "u8"), ("place", "u8"), ("session", "u4"),
        ("value", "f4"), ("weight", "f4"), ("kind", "i2"), ("canvas", "u2"), ("owned", "u1"),
    ],
    align=True,
)  # fmt: skip
"""One event as the features see it: kind is an index into `Kinds.names`, or HIDE or ALIAS; canvas
as `CanvasPlaces.short` gives it; session: 32 bits of its key, 0 for none. Two sessions of a user that meet there, one
pair in 4 billion, are taken for one."""


class Kinds:
    """The kinds that count, in the order of the configuration."""

    def __init__(self, config: Config) -> None:
        interest, owned = config.interest(), config.owned_kinds()
        self.names: tuple[str, ...] = tuple(config.events)
        self.weight = np.array([interest.get(name, 0.0) for name in self.names] or [0.0], np.float32)
        self.owned = np.array([name in owned for name in self.names] or [False], np.uint8)
        self.definition = ",".join(
            f"{name}:{weight:g}:{own}"
            for name, weight, own in zip(self.names, self.weight.tolist(), self.owned.tolist(), strict=False)
        )


def columns(events: EventBatch, kinds: Kinds, after: int) -> Records:
    """The events that count, as EVENT records in log order; those at an offset before `after` were seen."""
    codes = {name: code for code, name in enumerate(kinds.names)} | {"hide": HIDE, "alias": ALIAS}
    code = np.array([codes.get(name, -3) for name in events.kinds] or [-3], np.int16)[events.kind]
    weight = np.where(code >= 0, kinds.weight[np.maximum(code, 0)], 0.0)
    counts = ((weight > 0) | (code == HIDE) | (code == ALIAS)) & (events.entity != 0)
    counts &= (events.offset < 0) | (events.offset >= after)
    rows = np.zeros(int(counts.sum()), EVENT)
    rows["time"], rows["user"], rows["entity"] = events.time[counts], events.user[counts], events.entity[counts]
    session = events.session[counts]
    rows["session"] = np.maximum((session ^ (session >> np.uint64(32))).astype(np.uint32), session != 0)
    rows["place"], rows["value"] = events.place[counts], events.value[counts]
    rows["kind"], rows["weight"] = code[counts], weight[counts]
    rows["canvas"] = CanvasPlaces.short(events.canvas[counts])
    rows["owned"] = np.where(code >= 0, kinds.owned[np.maximum(code, 0)], 0)[counts]
    return rows


def sequence(pending: Records, newest: int | None, rows: Records) -> tuple[Records, Records, int | None]:
    """(events to fold now, in order; events pending from now on; the newest time)."""
    rows = np.concatenate([pending, rows])
    if not len(rows):
        return rows, rows, newest
    top = np.maximum.accumulate(rows["time"])
    if newest is not None:
        top = np.maximum(top, newest)
    here = np.arange(len(rows))
    rises = np.flatnonzero(top[1:] > top[:-1]) + 1
    # An event at the top waits for the next rise; a late one goes where it stands.
    place = np.append(rises, len(rows))[np.searchsorted(rises, here, side="right")]
    place = np.where(rows["time"] < top, here, place)
    waits = place == len(rows)
    order = np.argsort(place, kind="stable")
    return rows[order[~waits[order]]], rows[waits], int(top[-1])


@dataclass(slots=True)
class Fold:
    """Events to fold, in order, with what the features find out for each other on the way.

    rows    EVENT [n]
    fresh   bool [n]      the user had no event with the entity before (`UserItem` fills it)
    pairs   [p] each      place of the event, and the other entity it co-occurs with (`UserHistory` fills it)
    """

    rows: Records
    users: Keys = field(init=False)
    user: NDArray[np.int64] = field(init=False)
    room: NDArray[np.int64] = field(init=False)
    entities: Keys = field(init=False)
    entity: NDArray[np.int64] = field(init=False)
    fresh: NDArray[np.bool_] = field(init=False)
    pair_event: NDArray[np.int64] = field(init=False)
    pair_other: Keys = field(init=False)
    pair_weight: NDArray[np.float32] = field(init=False)

    def __post_init__(self) -> None:
        self.users, self.user, self.room = np.unique(self.rows["user"], return_inverse=True, return_counts=True)
        self.entities, self.entity = np.unique(self.rows["entity"], return_inverse=True)
        self.fresh = np.zeros(len(self.rows), np.bool_)
        self.pair_event = np.zeros(0, np.int64)
        self.pair_other = np.zeros(0, np.uint64)
        self.pair_weight = np.zeros(0, np.float32)

    def __len__(self) -> int:
        return len(self.rows)

    def sessions(self) -> NDArray[np.uint32]:
        """`session_of` each event."""
        found: NDArray[np.uint32] = _sessions(self.rows["session"], self.rows["time"])
        return found


@compiled
def session_of(session: np.uint32, time: int) -> np.uint32:
    """The session of an event, as EVENT has it; events without one share one per day (UTC)."""
    return session if session != np.uint32(0) else np.uint32(time // DAY)


@compiled
def _sessions(session: NDArray[np.uint32], time: NDArray[np.int64]) -> NDArray[np.uint32]:
    found = np.empty(len(session), np.uint32)
    for e in range(len(session)):
        found[e] = session_of(session[e], time[e])
    return found
