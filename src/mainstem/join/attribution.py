"""Slates on record and what followed them -> Examples, with windows, lateness and what was seen.

Which rows of a slate count (`seen`):
    shown is False      none: a replayed or shadow slate is never a negative
    shown is True       all of them
    shown is None       those with an `impression` event that names the request (or the entity within the
                        window), or all, where the configuration takes served as seen

An event answers the slate that its request_id names, else the user's latest slate before it that held
the entity ("last touch"). A head's label is known once its window has passed, in event time plus the
allowed lateness; until then the example is held back. An event that comes even later is counted in
`too_late` and not learned from.
"""

from __future__ import annotations

import heapq
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import numpy as np

from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples
from mainstem.schema.ids import key64
from mainstem.schema.records import Event, LogRecord, Served
from mainstem.schema.time import HOUR, parse_duration

__all__ = ["Attribution", "Joined"]

IMPRESSION = "impression"


@dataclass(slots=True)
class Joined:
    """A slate that waits for its windows to pass."""

    served: Served
    seen: set[int]
    labels: dict[tuple[int, str], float] = field(default_factory=dict)


class Attribution:
    """Feed it log records in log order with `add`; take finished Examples from `ready`.

    `lateness` ms of event time are waited beyond the longest window for events out of order.
    """

    def __init__(self, heads: Mapping[str, HeadConfig], *, served_is_seen: bool = False, lateness: int = HOUR) -> None:
        self.heads, self.served_is_seen, self.lateness = heads, served_is_seen, lateness
        self.windows = {name: parse_duration(head.window) for name, head in heads.items()}
        self.horizon = max(self.windows.values()) + lateness
        self.too_late = 0
        self._open: dict[str, Joined] = {}
        self._by_entity: dict[tuple[str, str, str], list[str]] = defaultdict(list)
        self._due: list[tuple[int, str]] = []
        self._clock = 0

    def add(self, records: Iterable[LogRecord]) -> None:
        """Take records in; repeated record ids must have been dropped before (the log does)."""
        for record in records:
            if isinstance(record, Served):
                self._open_slate(record)
            elif isinstance(record, Event):
                self._answer(record)

    def ready(self) -> list[Examples]:
        """Examples of all slates whose windows and lateness have passed, oldest first."""
        made = []
        while self._due and self._due[0][0] <= self._clock:
            _, request_id = heapq.heappop(self._due)
            joined = self._open.pop(request_id)
            for item in joined.served.slate.items:
                name = (joined.served.user or "", item.entity_type, item.entity)
                self._by_entity[name].remove(request_id)
                if not self._by_entity[name]:
                    del self._by_entity[name]
            if joined.seen:
                made.append(self._examples(joined))
        return made

    def waiting(self) -> int:
        """Slates that are held back."""
        return len(self._open)

    def _open_slate(self, served: Served) -> None:
        if served.shown is False or not served.features:
            return
        slate = served.slate
        everything = set(range(len(slate.items)))
        seen = everything if served.shown or self.served_is_seen else set()
        self._open[slate.request_id] = Joined(served, seen)
        for item in slate.items:
            self._by_entity[served.user or "", item.entity_type, item.entity].append(slate.request_id)
        heapq.heappush(self._due, (slate.time + self.horizon, slate.request_id))

    def _answer(self, event: Event) -> None:
        self._clock = max(self._clock, event.time)
        joined = self._slate_of(event)
        if joined is None:
            self.too_late += event.request_id is not None
            return
        places = [
            place
            for place, item in enumerate(joined.served.slate.items)
            if (item.entity_type, item.entity) == (event.entity_type, event.entity)
        ]
        elapsed = event.time - joined.served.slate.time
        for place in places:
            if event.kind == IMPRESSION:
                joined.seen.add(place)
            for name, head in self.heads.items():
                if head.event == event.kind and 0 <= elapsed < self.windows[name]:
                    # An answer proves that it was seen, whatever the client reported.
                    joined.seen.add(place)
                    joined.labels[place, name] = joined.labels.get((place, name), 0.0) + event.value

    def _slate_of(self, event: Event) -> Joined | None:
        if event.request_id is not None:
            return self._open.get(event.request_id)
        if event.entity is None:
            return None
        before = [
            self._open[request_id]
            for request_id in self._by_entity.get((event.user, event.entity_type, event.entity), ())
            if self._open[request_id].served.slate.time <= event.time
        ]
        return max(before, key=lambda joined: joined.served.slate.time, default=None)

    def _examples(self, joined: Joined) -> Examples:
        served, slate = joined.served, joined.served.slate
        rows = sorted(joined.seen)
        inputs = np.frombuffer(served.features, np.float32).reshape(len(slate.items), len(served.feature_names))
        labels = np.full((len(rows), len(self.heads)), np.nan, np.float32)
        for column, (name, head) in enumerate(self.heads.items()):
            for i, place in enumerate(rows):
                value = joined.labels.get((place, name))
                if head.type == "binary":
                    labels[i, column] = float(value is not None)
                elif value is not None:
                    labels[i, column] = value
        items = [slate.items[place] for place in rows]
        return Examples(
            inputs=inputs[rows],
            labels=labels,
            negative_rate=np.ones(len(rows), np.float32),
            fresh=np.zeros(len(rows), np.bool_),
            weight=np.ones(len(rows), np.float32),
            keys=np.array([key64(item.entity_type, item.entity, served.tenant) for item in items], np.uint64),
            offsets=np.array([0, len(rows)], np.int64),
            time=np.array([slate.time], np.int64),
            user=np.array([key64("user", served.user, served.tenant) if served.user else 0], np.uint64),
        )
