"""Columns: a run of the log as numpy arrays, which is what features, join and training eat (law 5)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import NO_KEY, Keys, key64
from mainstem.schema.records import Event
from mainstem.schema.settings import Setting

__all__ = ["EventBatch"]


@dataclass(frozen=True, slots=True)
class EventBatch:
    """n events in log order, one array per field.

    time     int64  [n]  ms
    user     uint64 [n]  key64("user", id)
    entity   uint64 [n]  key64(entity_type, id), 0 where the event has none
    kind     int16  [n]  index into `kinds`
    value    float64[n]
    session  uint64 [n]  key64("session", id), 0 where the event has none
    place    uint64 [n]  key64("place", extras["store"]) or whatever extra the configuration names, else 0
    offset   int64  [n]  place in the log (partition 0), -1 where it is not in a log
    canvas   uint64 [n]  key64("canvas", name) of where it happened, 0 where that is not known
    query    uint64 [n]  key64("query", text) of what was searched for, 0 where nothing was; `queries` has the texts
    setting  uint64 [n]  `Setting.key` of country, language and device, 0 where none is known; `settings` has them
    """

    time: NDArray[np.int64]
    user: Keys
    entity: Keys
    kind: NDArray[np.int16]
    value: NDArray[np.float64]
    session: Keys
    place: Keys
    offset: NDArray[np.int64]
    canvas: Keys
    query: Keys
    setting: Keys
    kinds: tuple[str, ...] = field(default=())
    queries: Mapping[int, str] = field(default_factory=dict)
    settings: Mapping[int, Setting] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def of(
        cls,
        events: Sequence[Event],
        offsets: Sequence[int] | None = None,
        *,
        place_extra: str | None = None,
        settings: Sequence[Setting] = (),
    ) -> EventBatch:
        """Columns of `events`. `place_extra` names the extra that says where it happened (a store, a country);
        `settings` are the events', where they matter (`SlateSettings.follow`)."""
        kinds: dict[str, int] = {}
        keyed = {setting: setting.key() for setting in dict.fromkeys(settings)}
        queries = {key64("query", e.query, e.tenant): e.query for e in events if e.query}
        return cls(
            time=np.fromiter((e.time for e in events), np.int64, len(events)),
            user=np.fromiter((key64("user", e.user, e.tenant) for e in events), np.uint64, len(events)),
            entity=np.fromiter(
                (key64(e.entity_type, e.entity, e.tenant) if e.entity is not None else NO_KEY for e in events),
                np.uint64,
                len(events),
            ),
            kind=np.fromiter((kinds.setdefault(e.kind, len(kinds)) for e in events), np.int16, len(events)),
            value=np.fromiter((e.value for e in events), np.float64, len(events)),
            session=np.fromiter(
                (key64("session", e.session, e.tenant) if e.session else NO_KEY for e in events), np.uint64, len(events)
            ),
            place=np.fromiter(
                (
                    key64("place", str(e.extras[place_extra]), e.tenant)
                    if place_extra and place_extra in e.extras
                    else NO_KEY
                    for e in events
                ),
                np.uint64,
                len(events),
            ),
            offset=np.asarray(offsets if offsets is not None else np.full(len(events), -1), np.int64),
            canvas=_keys("canvas", events, [e.canvas for e in events]),
            query=_keys("query", events, [e.query for e in events]),
            setting=(
                np.fromiter((keyed[setting] for setting in settings), np.uint64, len(events))
                if settings
                else np.zeros(len(events), np.uint64)
            ),
            kinds=tuple(kinds),
            queries=queries,
            settings={key: setting for setting, key in keyed.items() if key},
        )

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64] | slice) -> EventBatch:
        """The rows named by a mask, places or a slice, in that order."""
        return EventBatch(
            self.time[rows], self.user[rows], self.entity[rows], self.kind[rows], self.value[rows],
            self.session[rows], self.place[rows], self.offset[rows], self.canvas[rows], self.query[rows],
            self.setting[rows], self.kinds, self.queries, self.settings,
        )  # fmt: skip

    @classmethod
    def concat(cls, parts: Sequence[EventBatch]) -> EventBatch:
        """One after the other, kinds renumbered to one list."""
        kinds = {kind: i for i, kind in enumerate(dict.fromkeys(kind for part in parts for kind in part.kinds))}
        renamed = [np.array([kinds[kind] for kind in part.kinds] or [0], np.int16)[part.kind] for part in parts]
        empty = cls.of([])
        chosen = list(parts) or [empty]
        return cls(
            time=np.concatenate([part.time for part in chosen]),
            user=np.concatenate([part.user for part in chosen]),
            entity=np.concatenate([part.entity for part in chosen]),
            kind=np.concatenate(renamed or [empty.kind]),
            value=np.concatenate([part.value for part in chosen]),
            session=np.concatenate([part.session for part in chosen]),
            place=np.concatenate([part.place for part in chosen]),
            offset=np.concatenate([part.offset for part in chosen]),
            canvas=np.concatenate([part.canvas for part in chosen]),
            query=np.concatenate([part.query for part in chosen]),
            setting=np.concatenate([part.setting for part in chosen]),
            kinds=tuple(kinds),
            queries={key: text for part in parts for key, text in part.queries.items()},
            settings={key: setting for part in parts for key, setting in part.settings.items()},
        )

    def where(self, kinds: Sequence[str]) -> NDArray[np.bool_]:
        """Mask [n] of the events whose kind is one of `kinds`."""
        wanted = np.array([kind in kinds for kind in self.kinds] or [False])
        return wanted[self.kind] if len(self) else np.zeros(0, np.bool_)


def _keys(family: str, events: Sequence[Event], values: Sequence[str | None]) -> Keys:
    """uint64 [n]: 0 where there is no value."""
    if not any(values):
        return np.zeros(len(events), np.uint64)
    found = (key64(family, v, e.tenant) if v else NO_KEY for e, v in zip(events, values, strict=True))
    return np.fromiter(found, np.uint64, len(events))
