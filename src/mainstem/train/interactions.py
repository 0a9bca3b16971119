"""What the retrieval step eats: positives with the user's history before each, offline from a whole log.

The same records come online from `histories.py`; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.models.history import How, chunks
from mainstem.schema.batch import EventBatch
from mainstem.schema.canvases import CanvasPlaces
from mainstem.schema.config import HistoryConfig
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.schema.settings import Setting

__all__ = ["Interactions", "Notes", "Positives", "Sequences", "notes", "of_interest", "ranges"]

Ints = NDArray[np.int64]

Notes = NDArray[np.uint32]

# The largest value that a note holds (float16).
MOST_VALUE = 65_504.0


def notes(action: NDArray[Any], canvas: NDArray[Any], value: NDArray[Any]) -> Notes:
    """What an event was, in 32 bits: action and canvas of 8 each, the value as a float16. uint32 [n]"""
    short = np.clip(value, -MOST_VALUE, MOST_VALUE).astype(np.float16).view(np.uint16)
    found: Notes = (action.astype(np.uint32) << 24) | (canvas.astype(np.uint32) << 16) | short.astype(np.uint32)
    return found


@dataclass(frozen=True, slots=True)
class Sequences:
    """What c users did, each oldest first, jagged.

    entity uint64 [t]; note uint32 [t]: see `notes`; time int64 [t], ms; asked int64 [c]: when what follows each was
    asked for; offsets int64 [c + 1]
    """

    entity: Keys
    note: Notes
    time: Ints
    asked: Ints
    offsets: Ints

    def action(self) -> Ints:
        """The place of each event's kind among the configured ones: int64 [t]."""
        return (self.note >> 24).astype(np.int64)

    def canvas(self) -> Ints:
        """Where each happened, as `CanvasPlaces` has it: int64 [t]."""
        return (self.note >> 16 & 0xFF).astype(np.int64)

    def value(self) -> Floats:
        """How much each was: float32 [t]."""
        return (self.note & 0xFFFF).astype(np.uint16).view(np.float16).astype(np.float32)

    def __len__(self) -> int:
        return len(self.asked)

    @classmethod
    def none(cls) -> Sequences:
        ints = np.zeros(0, np.int64)
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint32), ints, ints, np.zeros(1, np.int64))

    def take(self, which: Ints) -> Sequences:
        """The sequences at these places."""
        places, offsets = ranges(self.offsets[which], self.offsets[which + 1])
        return Sequences(self.entity[places], self.note[places], self.time[places], self.asked[which], offsets)


@dataclass(frozen=True, slots=True)
class Interactions:
    """b positives, and the sequences whose beginnings are their users' histories.

    user, entity uint64 [b]; interest float32 [b]; time int64 [b], ms. previous uint64 [b]: the other
    entity that the user took last before, 0 where there is none; canvas, query, setting uint64 [b]: where it was taken,
    what was searched for then, and under which circumstances, as in `EventBatch`. state int64 [b]: the place in the
    sequences of the latest event before the positive's session, -1 where there is none. Several positives may share a
    sequence, and see each its own beginning of it.

    positive 0: a | x y        sequences  x y z      offsets  0 2 3
    positive 1: b |            state      1 -1 2
    positive 2: c | z
    """

    user: Keys
    entity: Keys
    interest: Floats
    time: Ints
    previous: Keys
    canvas: Keys
    query: Keys
    setting: Keys
    state: Ints
    sequences: Sequences
    queries: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[int, Setting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.user)

    def lengths(self) -> Ints:
        """Events in each positive's history: int64 [b]."""
        starts = np.append(self.sequences.offsets, 0)[self._sequence()]
        return np.where(self.state < 0, 0, self.state + 1 - starts)

    def take(self, rows: Ints) -> Interactions:
        """The positives at these places, with the sequences that they need."""
        sequence = self._sequence()[rows]
        known = self.state[rows] >= 0
        used, place = np.unique(sequence[known], return_inverse=True)
        kept = self.sequences.take(used)
        state = np.full(len(rows), -1)
        state[known] = self.state[rows][known] - self.sequences.offsets[used][place] + kept.offsets[place]
        return Interactions(
            self.user[rows], self.entity[rows], self.interest[rows], self.time[rows],
            self.previous[rows], self.canvas[rows], self.query[rows], self.setting[rows], state, kept, self.queries,
            self.settings,
        )  # fmt: skip

    def _sequence(self) -> Ints:
        """The sequence of each positive; of no sequence anything."""
        return np.searchsorted(self.sequences.offsets, self.state, side="right") - 1

    @classmethod
    def none(cls) -> Interactions:
        keys, ints = np.zeros(0, np.uint64), np.zeros(0, np.int64)
        return cls(keys, keys, np.zeros(0, np.float32), ints, keys, keys, keys, keys, ints, Sequences.none())


def of_interest(
    events: EventBatch, interest: Mapping[str, float], canvases: CanvasPlaces
) -> tuple[EventBatch, Floats, Notes]:
    """The events that say what their user likes; how much each says, float32 [n]; and what each was: `notes` [n].

    An action is the place of the event's kind in `interest`.
    """
    names = list(interest)
    action = np.array([names.index(kind) if kind in interest else 0 for kind in events.kinds] or [0], np.int64)
    weight = np.array([interest.get(kind, 0.0) for kind in events.kinds] or [0.0], np.float32)
    wanted = (weight[events.kind] > 0) & (events.entity != 0)
    found = events.take(wanted)
    return found, weight[found.kind], notes(action[found.kind], canvases.of_keys(found.canvas), found.value)


@dataclass(frozen=True, slots=True)
class Positives:
    """All events of interest, sorted by user and time; an event's history is what lies before its session.

    user uint64 [n], entity uint64 [n], note uint32 [n], time int64 [n], interest float32 [n]; previous, canvas, query,
    setting uint64 [n]: see `Interactions`; `begin` int64 [n] the place where the user's events begin, `session` int64
    [n] the place before which the history of the event ends: all that lies there happened strictly before the first
    event of its session (law 4). length: events of a history at most, the latest (`model.history.length`).
    """

    user: Keys
    entity: Keys
    note: Notes
    time: Ints
    interest: Floats
    previous: Keys
    canvas: Keys
    query: Keys
    setting: Keys
    begin: Ints
    session: Ints
    length: int
    queries: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[int, Setting] = field(default_factory=dict)

    @classmethod
    def of(
        cls,
        events: EventBatch,
        interest: Mapping[str, float],
        session_starts: Callable[[EventBatch, Ints], NDArray[np.bool_]],
        canvases: CanvasPlaces = CanvasPlaces(()),  # noqa: B008 - it holds nothing
        length: int = HistoryConfig().length,
    ) -> Positives:
        """`session_starts(events, order)` is the join's definition of where sessions begin: a mask along `order`,
        in which a session's events stand together."""
        events, weight, note = of_interest(events, interest, canvases)
        places = np.arange(len(events))
        order = np.lexsort((places, events.time, events.user))
        user, time = events.user[order], events.time[order]
        new_user = _changes(user)
        # Sessions may overlap (two tabs): group them, find each one's first event, and go back to the user's time.
        grouped = np.lexsort((places, events.time, events.session, events.user))
        opening, place_of = np.empty_like(places), np.empty_like(places)
        opening[grouped] = grouped[_latest(session_starts(events, grouped))]
        place_of[order] = places
        entity, begin = events.entity[order], _latest(new_user)
        return cls(
            user=user,
            entity=entity,
            note=note[order],
            time=time,
            interest=weight[order],
            previous=_previous(entity, begin),
            canvas=events.canvas[order],
            query=events.query[order],
            setting=events.setting[order],
            queries=events.queries,
            settings=events.settings,
            begin=begin,
            # What another session did in that very moment is not before it.
            session=_latest(new_user | _changes(time))[place_of[opening[order]]],
            length=length,
        )

    def __len__(self) -> int:
        return len(self.user)

    def batch(self, rows: Ints) -> Interactions:
        """The positives at these places, with their histories; those of one session share a sequence."""
        end = self.session[rows]
        known = end > self.begin[rows]
        ends, place = np.unique(end[known], return_inverse=True)
        begins = np.maximum(self.begin[ends - 1], ends - self.length)
        asked = np.full(len(ends), np.iinfo(np.int64).max)
        np.minimum.at(asked, place, self.time[rows[known]])
        sequences, offsets = self._sequences(begins, ends, asked)
        state = np.full(len(rows), -1)
        state[known] = offsets[1:][place] - 1
        return self._interactions(rows, state, sequences)

    def sessions(self, rows: Ints) -> Ints:
        """Where in `rows`, which rise, the positives of another session begin: int64 [s + 1], the end included."""
        begins = _changes(self.session[rows]) | _changes(self.begin[rows])
        return np.append(np.flatnonzero(begins), len(rows))

    def windows(self, wanted: NDArray[np.bool_], how: How, epoch: int, seed: int) -> Ints:
        """Places begin, stop int64 [c, 2] of the chunks of histories that an epoch reads (`models.history.chunks`): of
        each user's events up to the last one that is `wanted` [n]."""
        first = np.flatnonzero(_changes(self.user))
        last = np.append(first, len(self))[1:] - 1
        # the latest place that is wanted, of those of the same user
        latest = _latest(wanted)[last]
        lengths = np.where(wanted[latest] & (latest >= first), latest + 1 - first, 0)
        found = chunks(lengths, self.length, how, epoch, seed)
        return np.column_stack([first[found.user] + found.start, first[found.user] + found.stop])

    def window_batch(self, windows: Ints, wanted: NDArray[np.bool_]) -> Interactions:
        """The positives that are `wanted` of these chunks int64 [c, 2] of histories: all events but a chunk's first
        ones, whose session began before it."""
        begins, stops = windows[:, 0], windows[:, 1]
        sequences, offsets = self._sequences(begins, stops, self.time[stops - 1])
        rows, _ = ranges(begins, stops)
        first, shift = (np.repeat(each, stops - begins) for each in (begins, offsets[:-1] - begins))
        end = self.session[rows]
        opening = end == self.begin[rows]  # the user's first session: nothing was before it
        kept = wanted[rows] & ((end > first) | (opening & (first == self.begin[rows])))
        state = np.where(opening, -1, end - 1 + shift)
        return self._interactions(rows[kept], state[kept], sequences)

    def _sequences(self, begins: Ints, ends: Ints, asked: Ints) -> tuple[Sequences, Ints]:
        places, offsets = ranges(begins, ends)
        return Sequences(self.entity[places], self.note[places], self.time[places], asked, offsets), offsets

    def _interactions(self, rows: Ints, state: Ints, sequences: Sequences) -> Interactions:
        return Interactions(
            self.user[rows], self.entity[rows], self.interest[rows], self.time[rows],
            self.previous[rows], self.canvas[rows], self.query[rows], self.setting[rows], state, sequences,
            self.queries, self.settings,
        )  # fmt: skip


def ranges(begins: Ints, ends: Ints) -> tuple[Ints, Ints]:
    """Places int64 [t] of all ranges [begin, end) one after the other; offsets int64 [c + 1]."""
    sizes = ends - begins
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    return np.arange(offsets[-1]) + np.repeat(begins - offsets[:-1], sizes), offsets


def _previous(entity: Keys, begin: Ints) -> Keys:
    """The latest other entity before each place, of the same user; 0 where there is none."""
    places = np.arange(len(entity))
    # along a run of one entity the place before the run
    before = _latest(_changes(entity) | (begin == places)) - 1
    known = before >= begin
    return np.where(known, entity[np.maximum(before, 0)], 0).astype(np.uint64)


def _changes(values: Ints | Keys) -> NDArray[np.bool_]:
    """Mask [n]: where a value differs from the one before it; the first does."""
    changed = np.ones(len(values), np.bool_)
    changed[1:] = values[1:] != values[:-1]
    return changed


def _latest(starts: NDArray[np.bool_]) -> Ints:
    """The place of the latest start at or before each place: int64 [n]."""
    return np.maximum.accumulate(np.where(starts, np.arange(len(starts)), 0))
