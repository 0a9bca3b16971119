"""Entities that only events know of: bare ones, so that they can be shown before anybody described them.

A bare entity bears the earliest time there is. So every record about it wins, field by field, also one
older than the event (`revisions.py`); and what was deleted or erased once is never made again.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from mainstem.catalog.memory import MemoryCatalog
from mainstem.schema.config import Config
from mainstem.schema.ids import digest128, key64
from mainstem.schema.records import Entity, EntityDelete, EntityPatch, Erase, Event, LogRecord
from mainstem.schema.time import parse_time

__all__ = ["EventEntities"]

_EARLIEST = parse_time("0001-01-01T00:00:00Z")


@dataclass(frozen=True, slots=True)
class EventEntities:
    """Which events' entities are made: of `types`, by events of `kinds`."""

    types: frozenset[str]
    kinds: frozenset[str]

    @classmethod
    def of(cls, config: Config) -> EventEntities:
        """Types with `from_events`, and the kinds of events that count as interest."""
        types = (name for name, kind in config.entities.items() if kind.from_events)
        return cls(frozenset(types), frozenset(config.interest()))

    @property
    def fingerprint(self) -> str:
        """Of the rule: two catalogues of one log are the same where it is."""
        return digest128(f"{sorted(self.types)} {sorted(self.kinds)}").hex()

    def records(self, records: Sequence[LogRecord], catalog: MemoryCatalog) -> list[LogRecord]:
        """What of `records` is to be written to `catalog`, in order, each bare entity at the place of its event.

        In order, so that the catalogue does not depend on where a log is cut into batches. `catalog` is read only.
        """
        kinds, types = self.kinds, self.types
        events = [record for record in records if isinstance(record, Event)]
        named = {(event.entity_type, event.entity, event.tenant) for event in events if event.kind in kinds}
        names = [(family, name, tenant) for family, name, tenant in named if name is not None and family in types]
        keys = np.fromiter((key64(family, name, tenant) for family, name, tenant in names), np.uint64, len(names))
        unheard = {names[place] for place in np.flatnonzero(catalog.unheard(keys)).tolist()}
        if not unheard and len(events) == len(records):  # most of a log: events of known entities
            return []
        found: list[LogRecord] = []
        for record in records:
            if isinstance(record, Entity | EntityPatch | EntityDelete | Erase):
                found.append(record)
            elif unheard and isinstance(record, Event) and record.entity is not None and record.kind in kinds:
                name = (record.entity_type, record.entity, record.tenant)
                if name in unheard:
                    unheard.remove(name)
                    found.append(_bare(record, record.entity))
        return found


def _bare(event: Event, entity: str) -> Entity:
    return Entity(
        record_id=f"bare-{event.event_id}",
        time=_EARLIEST,
        entity=entity,
        entity_type=event.entity_type,
        tenant=event.tenant,
    )
