"""What the retrieval step eats: positives with the user's history before each, offline from a whole log.

The same records come online from `histories.py`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["HISTORY", "Interactions", "Positives", "of_interest"]

# Latest events that the user tower reads.
HISTORY = 50


@dataclass(frozen=True, slots=True)
class Interactions:
    """b positives, and the latest events of each one's user before its session, oldest first, jagged.

        user, entity uint64 [b]; interest float32 [b]; time int64 [b], ms
        history uint64 [t]; age int64 [t], ms before the positive; history_interest float32 [t]; offsets int64 [b + 1]

    positive 0: a | x y        history  x y z      offsets 0 2 2 3
    positive 1: b |
    positive 2: c | z
    """

    user: Keys
    entity: Keys
    interest: Floats
    time: NDArray[np.int64]
    history: Keys
    age: NDArray[np.int64]
    history_interest: Floats
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.user)

    def take(self, rows: NDArray[np.int64]) -> Interactions:
        """The positives at these places."""
        sizes = np.diff(self.offsets)[rows]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        past = np.arange(offsets[-1]) + np.repeat(self.offsets[rows] - offsets[:-1], sizes)
        return Interactions(
            self.user[rows], self.entity[rows], self.interest[rows], self.time[rows],
            self.history[past], self.age[past], self.history_interest[past], offsets,
        )  # fmt: skip

    @classmethod
    def none(cls) -> Interactions:
        keys, times, floats = np.zeros(0, np.uint64), np.zeros(0, np.int64), np.zeros(0, np.float32)
        return cls(keys, keys, floats, times, keys, times, floats, np.zeros(1, np.int64))


def of_interest(events: EventBatch, interest: Mapping[str, float]) -> tuple[EventBatch, Floats]:
    """The events that say what their user likes, and how much each does: float32 [n]."""
    weight = np.array([interest.get(kind, 0.0) for kind in events.kinds] or [0.0], np.float32)
    wanted = (weight[events.kind] > 0) & (events.entity != 0)
    return events.take(wanted), weight[events.kind[wanted]]


@dataclass(frozen=True, slots=True)
class Positives:
    """All events of interest, sorted by user and time; an event's history is what lies before its session.

    user uint64 [n], entity uint64 [n], time int64 [n], interest float32 [n]; `begin` int64 [n] the place
    where the user's events begin, `session` int64 [n] the place before which the history of the event ends: all
    that lies there happened strictly before the first event of its session (law 4).
    """

    user: Keys
    entity: Keys
    time: NDArray[np.int64]
    interest: Floats
    begin: NDArray[np.int64]
    session: NDArray[np.int64]

    @classmethod
    def of(
        cls,
        events: EventBatch,
        interest: Mapping[str, float],
        session_starts: Callable[[EventBatch, NDArray[np.int64]], NDArray[np.bool_]],
    ) -> Positives:
        """`session_starts(events, order)` is the join's definition of where sessions begin: a mask along `order`,
        in which a session's events stand together."""
        events, weight = of_interest(events, interest)
        places = np.arange(len(events))
        order = np.lexsort((places, events.time, events.user))
        user, time = events.user[order], events.time[order]
        new_user = _changes(user)
        # Sessions may overlap (two tabs): group them, find each one's first event, and go back to the user's time.
        grouped = np.lexsort((places, events.time, events.session, events.user))
        opening, place_of = np.empty_like(places), np.empty_like(places)
        opening[grouped] = grouped[_latest(session_starts(events, grouped))]
        place_of[order] = places
        return cls(
            user=user,
            entity=events.entity[order],
            time=time,
            interest=weight[order],
            begin=_latest(new_user),
            # What another session did in that very moment is not before it.
            session=_latest(new_user | _changes(time))[place_of[opening[order]]],
        )

    def __len__(self) -> int:
        return len(self.user)

    def batch(self, rows: NDArray[np.int64]) -> Interactions:
        """The positives at these places, with their histories."""
        places, offsets = self.histories(rows)
        age = np.repeat(self.time[rows], np.diff(offsets)) - self.time[places]
        return Interactions(
            self.user[rows], self.entity[rows], self.interest[rows], self.time[rows],
            self.entity[places], age, self.interest[places], offsets,
        )  # fmt: skip

    def histories(self, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Places int64 [t] of the latest HISTORY events before each positive's session; offsets int64 [b + 1]."""
        end = self.session[rows]
        begin = np.maximum(self.begin[rows], end - HISTORY)
        sizes = end - begin
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        return np.arange(offsets[-1]) + np.repeat(begin - offsets[:-1], sizes), offsets


def _changes(values: NDArray[np.int64] | Keys) -> NDArray[np.bool_]:
    """Mask [n]: where a value differs from the one before it; the first does."""
    changed = np.ones(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _latest(starts: NDArray[np.bool_]) -> NDArray[np.int64]:
    """The place of the latest start at or before each place: int64 [n]."""
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
