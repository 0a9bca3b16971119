"""Slates on record and what followed them -> Examples, with windows, lateness and what was seen.

Which places of a slate count (`seen`):
    shown is False      none: a replayed or shadow slate is never a negative
    shown is True       all of them
    shown is None       those with an `impression` within the longest window that answers the slate, or all, where
                        the configuration takes served as seen; an answer proves that its place was seen

An event answers the slate that its request_id names, else the user's latest slate at or before it that held the
entity ("last touch"; of two at one moment the one with the greater request_id).

    slate          longest window                  lateness
      |---- answers count while in their window ----|---- late ones still arrive ----| joined, then forgotten

Nothing is decided before a slate's windows and the lateness have passed, in event time; then everything is decided
at once, from a set. So as long as no record arrives later than the lateness, neither the order of arrival nor the way
records are cut into batches changes anything, and Examples come by (time, request_id). What arrives even later is
counted in `counts.too_late` and not learned from. The clock is that of the events, and no event can push it beyond
its own arrival.

Labels that are known only long after (`HeadConfig.delayed`) are not waited for, and stay unknown here.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Mapping, Sequence

import msgspec
import numpy as np

from mainstem.join.labels import label_of, shares
from mainstem.schema.config import HeadConfig
from mainstem.schema.errors import InvalidRecord
from mainstem.schema.examples import Examples
from mainstem.schema.ids import key64
from mainstem.schema.pasts import Pasts, past_without, unpack_past
from mainstem.schema.records import Erase, Event, LogRecord, Served
from mainstem.schema.time import HOUR, parse_duration

__all__ = ["Attribution", "JoinCounts"]

IMPRESSION = "impression"

Touch = tuple[str, str | None, str, str]  # tenant, user, entity type, entity


class JoinCounts(msgspec.Struct):
    """What became of the slates and events that were fed in."""

    slates: int = 0
    """Slates taken in."""
    joined: int = 0
    """Slates that became Examples."""
    unseen: int = 0
    """Slates of which nothing is known to have been seen."""
    other_inputs: int = 0
    """Slates whose recorded inputs are not those of the network to train, or that have none."""
    not_shown: int = 0
    """Replayed and shadow slates."""
    too_late: int = 0
    """Slates, and events that name a slate, that came after all was decided."""


class _State(msgspec.Struct):
    """What `Attribution.state` writes."""

    clock: int | None
    counts: JoinCounts
    slates: list[Served]
    events: list[Event]
    closed: list[tuple[int, str]]


class Attribution:
    """Feed it log records in log order with `add`; take finished Examples from `ready`.

    inputs: names of the columns that Examples must have; None takes every slate with inputs (of one kind, then).
    reads: kinds of events whose history Examples must have; None where the network reads none.
    had: the input that is above 0 for what the user had before; None takes nothing for fresh.
    lateness: ms of event time that are waited beyond the longest window for records out of order. Memory holds the
    slates and answers of one longest window and the lateness, and the names of the slates of one window before.
    """

    def __init__(
        self,
        heads: Mapping[str, HeadConfig],
        inputs: Sequence[str] | None = None,
        *,
        reads: Sequence[str] | None = None,
        had: str | None = None,
        served_is_seen: bool = False,
        lateness: int = HOUR,
    ) -> None:
        self.heads, self.inputs, self.had = dict(heads), None if inputs is None else list(inputs), had
        self.reads = None if reads is None else list(reads)
        self.served_is_seen, self.lateness = served_is_seen, lateness
        self.windows = {name: parse_duration(head.window) for name, head in heads.items() if not head.delayed}
        self.longest = max(self.windows.values())
        self.kinds = {heads[name].event for name in self.windows} | {IMPRESSION}
        self.counts = JoinCounts()
        self._clock: int | None = None
        self._slates: dict[str, Served] = {}
        self._due: list[tuple[int, str]] = []
        self._touched: dict[Touch, set[str]] = {}  # which slates held it
        self._events: dict[str, Event] = {}
        self._stale: list[tuple[int, str]] = []  # when each event can answer nothing any more
        self._named: dict[str, set[str]] = {}  # events by the request they name
        self._unnamed: dict[Touch, set[str]] = {}  # events by what they touch
        self._closed: dict[str, int] = {}  # requests decided lately
        self._finished: list[Examples] = []

    # ---- taking in -------------------------------------------------------------------------------

    def add(self, records: Iterable[LogRecord]) -> None:
        """Take records in. One that is there already changes nothing."""
        for record in records:
            if isinstance(record, Served):
                self._take_slate(record)
            elif isinstance(record, Event):
                self._take_event(record)
            elif isinstance(record, Erase):
                self._erase(record)

    def ready(self) -> list[Examples]:
        """Examples of the slates decided since the last call, by (time, request_id)."""
        finished, self._finished = self._finished, []
        return finished

    def waiting(self) -> int:
        """Slates and events that are held in memory."""
        return len(self._slates) + len(self._events)

    def _take_slate(self, served: Served) -> None:
        slate = served.slate
        if served.shown is False:
            self.counts.not_shown += 1
            return
        if slate.request_id in self._slates or slate.request_id in self._closed:
            return
        due = slate.time + self.longest + self.lateness
        if self._clock is not None and due <= self._clock:
            self.counts.too_late += 1
            return
        if served.pool is not None:
            served = msgspec.structs.replace(served, pool=None)  # not needed here, and large
        if self.reads is None and served.past is not None:
            served = msgspec.structs.replace(served, past=None)
        if len(served.features) != 4 * len(slate.items) * len(served.feature_names):
            served = msgspec.structs.replace(served, features=b"")  # it still takes its answers from older slates
        self.counts.slates += 1
        self._slates[slate.request_id] = served
        heapq.heappush(self._due, (due, slate.request_id))
        for touch in _touches(served):
            self._touched.setdefault(touch, set()).add(slate.request_id)

    def _take_event(self, event: Event) -> None:
        self._advance(min(event.time, event.received_at) if event.received_at else event.time)
        if event.kind not in self.kinds or event.event_id in self._events:
            return
        stale = event.time + self.longest + self.lateness
        if event.request_id in self._closed or (self._clock is not None and stale <= self._clock):
            self.counts.too_late += event.request_id is not None
            return
        self._events[event.event_id] = event
        heapq.heappush(self._stale, (stale, event.event_id))
        self._place_of(event).add(event.event_id)

    def _place_of(self, event: Event) -> set[str]:
        if event.request_id is not None:
            return self._named.setdefault(event.request_id, set())
        return self._unnamed.setdefault(_touch(event), set())

    def _erase(self, erase: Erase) -> None:
        """Forget the user, or the entity (law 10): slates lose its places, events about it go."""
        if erase.user is not None:
            name = (erase.tenant, erase.user)
            for request_id in [r for r, served in self._slates.items() if (served.tenant, served.user) == name]:
                self._forget_slate(request_id)
            mine = [e for e, event in self._events.items() if (event.tenant, event.user) == name]
        else:
            wanted = (erase.tenant, erase.entity_type, erase.entity)
            for request_id, served in list(self._slates.items()):
                self._slates[request_id] = self._without(served, wanted)
            for touch in [t for t in self._touched if (t[0], t[2], t[3]) == wanted]:
                del self._touched[touch]
            mine = [e for e, event in self._events.items() if (event.tenant, event.entity_type, event.entity) == wanted]
        for event_id in mine:
            self._forget_event(event_id)

    @staticmethod
    def _without(served: Served, wanted: tuple[str, str, str | None]) -> Served:
        items = served.slate.items
        past = past_without(served.past, np.uint64(key64(wanted[1], str(wanted[2]), wanted[0])))
        if past is not served.past and served.tenant == wanted[0]:
            served = msgspec.structs.replace(served, past=past)
        kept = [i for i, item in enumerate(items) if (served.tenant, item.entity_type, item.entity) != wanted]
        if len(kept) == len(items):
            return served
        features = served.features
        if features:
            features = np.frombuffer(features, np.float32).reshape(len(items), -1)[kept].tobytes()
        slate = msgspec.structs.replace(served.slate, items=[items[i] for i in kept])
        return msgspec.structs.replace(served, slate=slate, features=features)

    # ---- the clock -------------------------------------------------------------------------------

    def _advance(self, time: int) -> None:
        """Decide what is due, oldest first, and forget what can matter to nothing any more."""
        if self._clock is not None and time <= self._clock:
            return
        self._clock = time
        while self._due and self._due[0][0] <= time:
            due, request_id = heapq.heappop(self._due)
            if request_id in self._slates:  # else erased
                self._decide(self._slates[request_id])
                self._forget_slate(request_id)
                self._closed[request_id] = due
        while self._stale and self._stale[0][0] <= time:
            self._forget_event(heapq.heappop(self._stale)[1])
        for request_id, due in list(self._closed.items()):
            if due + self.longest > time:  # oldest first, so the rest is newer; answers to it would not be stale
                break
            del self._closed[request_id]

    def _forget_slate(self, request_id: str) -> None:
        for touch in _touches(self._slates.pop(request_id)):
            _discard(self._touched, touch, request_id)

    def _forget_event(self, event_id: str) -> None:
        event = self._events.pop(event_id, None)
        if event is None:  # erased before it was stale
            return
        if event.request_id is not None:
            _discard(self._named, event.request_id, event_id)
        else:
            _discard(self._unnamed, _touch(event), event_id)

    # ---- deciding --------------------------------------------------------------------------------

    def _decide(self, served: Served) -> None:
        """Join one slate with what followed it."""
        try:
            if not served.features or self.inputs not in (None, served.feature_names):
                raise InvalidRecord("features", "they are not the inputs of the network")
            pasts = None if self.reads is None else unpack_past(served.past, self.reads)
        except InvalidRecord:
            self.counts.other_inputs += 1
            return
        seen = set(range(len(served.slate.items))) if served.shown or self.served_is_seen else set()
        answers: dict[tuple[int, str], list[tuple[int, float]]] = {}
        for event in self._answers(served):
            elapsed = event.time - served.slate.time
            counted = [n for n, w in self.windows.items() if self.heads[n].event == event.kind and elapsed < w]
            for place in _places(event, served):
                if counted or event.kind == IMPRESSION:
                    seen.add(place)
                for name in counted:
                    answers.setdefault((place, name), []).append((event.time, event.value))
        if seen:
            self.counts.joined += 1
            self._finished.append(self._examples(served, pasts, sorted(seen), answers))
        else:
            self.counts.unseen += 1

    def _answers(self, served: Served) -> list[Event]:
        """The events that answer this slate, within the longest window, in an order of their own (sums are exact)."""
        slate = served.slate
        found = {event_id: self._events[event_id] for event_id in self._named.get(slate.request_id, ())}
        for touch in _touches(served):
            for event_id in self._unnamed.get(touch, ()):
                event = self._events[event_id]
                if self._last_touch(event) == slate.request_id:
                    found[event_id] = event
        within = [event for event in found.values() if 0 <= event.time - slate.time < self.longest]
        return sorted(within, key=lambda event: (event.time, event.event_id))

    def _last_touch(self, event: Event) -> str | None:
        held = [self._slates[request_id].slate for request_id in self._touched.get(_touch(event), ())]
        before = [(slate.time, slate.request_id) for slate in held if slate.time <= event.time]
        return max(before)[1] if before else None

    def _examples(
        self, served: Served, pasts: Pasts | None, rows: list[int],
        answers: Mapping[tuple[int, str], list[tuple[int, float]]],
    ) -> Examples:  # fmt: skip
        """One group of these places; answers: (time, value) of the events by place and head."""
        slate, n = served.slate, len(rows)
        inputs = np.frombuffer(served.features, np.float32).reshape(len(slate.items), -1)[rows]
        known = np.full((n, len(self.heads)), np.nan, np.float32)
        for column, (name, head) in enumerate(self.heads.items()):
            if head.delayed:
                continue
            for i, place in enumerate(rows):
                found = answers.get((place, name))
                known[i, column] = label_of(head, found) if found else head.unanswered
            if head.each_next != 1.0:
                taken = [i for i, place in enumerate(rows) if (place, name) in answers]
                first = [min(answers[rows[i], name])[0] for i in taken]
                known[taken, column] = shares(head, np.array(first, np.int64))
        fresh = np.zeros(n, np.bool_)
        if self.had in served.feature_names:
            fresh = inputs[:, served.feature_names.index(self.had)] <= 0
        items = [slate.items[place] for place in rows]
        return Examples(
            inputs=inputs,
            labels=known,
            negative_rate=np.ones(n, np.float32),
            fresh=fresh,
            weight=np.ones(n, np.float32),
            keys=np.array([key64(item.entity_type, item.entity, served.tenant) for item in items], np.uint64),
            offsets=np.array([0, n], np.int64),
            time=np.array([slate.time], np.int64),
            user=np.array([key64("user", served.user, served.tenant) if served.user else 0], np.uint64),
            pasts=pasts,
        )

    # ---- checkpoints -----------------------------------------------------------------------------

    def state(self) -> bytes:
        """Everything that is held, for `load`. Raises ValueError where Examples wait: take them from `ready` first."""
        if self._finished:
            raise ValueError("take what is ready before writing the state")
        closed = [(due, request_id) for request_id, due in self._closed.items()]
        held = list(self._slates.values()), list(self._events.values())
        return msgspec.msgpack.encode(_State(self._clock, self.counts, *held, closed))

    def load(self, state: bytes) -> None:
        """Go on where `state` was taken. Call it on a new object with the same heads and options."""
        kept = msgspec.msgpack.decode(state, type=_State)
        self._clock = None  # nothing is due until all is back
        for served in kept.slates:
            self._take_slate(served)
        for event in kept.events:
            self._events[event.event_id] = event
            heapq.heappush(self._stale, (event.time + self.longest + self.lateness, event.event_id))
            self._place_of(event).add(event.event_id)
        self._closed = {request_id: due for due, request_id in kept.closed}
        self._clock, self.counts = kept.clock, kept.counts


def _touches(served: Served) -> set[Touch]:
    """What an event without a request_id can answer it by; nothing, for a visitor of whom nothing is known."""
    if served.user is None:
        return set()
    return {(served.tenant, served.user, item.entity_type, item.entity) for item in served.slate.items}


def _touch(event: Event) -> Touch:
    return event.tenant, event.user, event.entity_type, event.entity or ""


def _places(event: Event, served: Served) -> list[int]:
    """The places that an event is about: the one it names if that fits, else all that hold its entity."""
    items = served.slate.items
    if event.entity is None:
        return [event.place] if event.place is not None and 0 <= event.place < len(items) else []
    named = (event.entity_type, event.entity)
    held = [i for i, item in enumerate(items) if (item.entity_type, item.entity) == named]
    return [event.place] if event.place in held else held


def _discard(sets: dict[Touch, set[str]] | dict[str, set[str]], name: object, member: str) -> None:
    """Take a member out of the set of this name, and the set with its last member."""
    known: dict[object, set[str]] = sets  # type: ignore[assignment]
    members = known.get(name)
    if members is not None:
        members.discard(member)
        if not members:
            del known[name]
