"""Requests that nobody recorded: each session of a user stands for one request at its first event.

What the user then took within the heads' windows are its positives. Sessions come from the events'
`session`, also where two of them overlap (two tabs); a user's events without one belong together while no more
than `GAP` passes from one to the next.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.time import MINUTE

__all__ = ["GAP", "Visit", "session_starts", "visits"]

GAP = 30 * MINUTE


@dataclass(frozen=True, slots=True)
class Visit:
    """One request made from a session: `rows` are the places of its events in the batch it came from."""

    time: int
    user: int
    rows: NDArray[np.int64]


def session_starts(events: EventBatch, order: NDArray[np.int64]) -> NDArray[np.bool_]:
    """Mask [n] along `order`: where a session begins. `order` is by user, session, time: sessions stand together."""
    user, session, time = events.user[order], events.session[order], events.time[order]
    begins = np.ones(len(order), np.bool_)
    begins[1:] = (user[1:] != user[:-1]) | (session[1:] != session[:-1]) | ((session[1:] == 0) & (np.diff(time) > GAP))
    return begins


def visits(events: EventBatch) -> list[Visit]:
    """The sessions of `events`, by time of their first event (ties in log order)."""
    if not len(events):
        return []
    order = np.lexsort((np.arange(len(events)), events.time, events.session, events.user))
    edges = np.append(np.flatnonzero(session_starts(events, order)), len(order))
    found = [
        Visit(int(events.time[rows[0]]), int(events.user[rows[0]]), rows)
        for rows in (order[a:b] for a, b in itertools.pairwise(edges))
    ]
    return sorted(found, key=lambda visit: (visit.time, int(visit.rows[0])))
