"""What users did, in order, with what the catalogue knows of it: the form in which next-item evaluation eats any data.

A user's actions at one moment stand in the order in which the data give them. The loaders of public sets sort by id
there, from which a model that reads order would learn: so those stand in an order drawn from user and item.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem.catalog import MemoryCatalog
from mainstem.curriculum import Curriculum
from mainstem.datasets import Dataset
from mainstem.evaluate.next_item import LeaveOneOut
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys
from mainstem.schema.position import START
from mainstem.schema.protocols import Log
from mainstem.schema.records import Entity, Event
from mainstem.train.interactions import Positives

__all__ = ["Actions", "apart", "of_dataset", "of_log", "of_records"]

Ints = NDArray[np.int64]
Progress = Callable[[str, int, int], None]
# The 64-bit golden ratio: spreads what is multiplied by it.
_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


@dataclass(frozen=True, slots=True)
class Actions:
    """Events of interest, each a session of its own, sorted by user and time.

    entities uint64 [items]: the catalogue of the protocol, what occurs at all; `data` has the same actions at the same
    places as `positives`. config: what the data ask for (events, entities), before any preset.
    """

    name: str
    config: Config
    catalog: MemoryCatalog
    positives: Positives
    entities: Keys
    data: LeaveOneOut

    @classmethod
    def of(
        cls, name: str, config: Config, catalog: MemoryCatalog, events: EventBatch, *, min_count: int = 1,
        context: bool = False,
    ) -> Actions:  # fmt: skip
        """Of events in their order. min_count: entities with fewer actions are left out, once. context: keep what was
        searched for, where and on which device; else who did what and when is all that is known.

        Raises NotReady where nothing is left.
        """
        events = events.take(events.where(list(config.interest())) & (events.entity != 0))
        entities, place, counts = np.unique(events.entity, return_inverse=True, return_counts=True)
        if not (counts >= min_count).any():
            raise NotReady(f"{name}: no item has {min_count} actions; there are {len(events):,} actions")
        events = events.take(counts[place] >= min_count)
        if not context:
            nothing = np.zeros(len(events), np.uint64)
            events = replace(events, query=nothing, setting=nothing, canvas=nothing, queries={}, settings={})
        order = np.lexsort((np.arange(len(events)), events.time, events.user))
        events = events.take(order)
        events = replace(events, time=apart(events.user, events.time))
        positives = Positives.of(events, config.interest(), lambda _, order: np.ones(len(order), np.bool_))
        kept: Keys = entities[counts >= min_count]
        begins = np.flatnonzero(np.append(True, positives.user[1:] != positives.user[:-1]))
        offsets = np.append(begins, len(positives))
        data = LeaveOneOut(np.searchsorted(kept, positives.entity), offsets, len(kept))
        return cls(name, config, catalog, positives, kept, data)


def apart(user: Keys, time: Ints) -> Ints:
    """Times int64 [n] that rise within each user, moved by as few ms as that takes; both sorted by user, then time.

    What happened at one moment would otherwise be one visit, and none of it in the history of the rest.
    """
    n = len(time)
    place = np.arange(n)
    # t[i] = max(t[i], t[i-1] + 1) is a running maximum of t[i] - i; by rank, so that it can begin anew at each user
    least, rank = np.unique(time - place, return_inverse=True)
    of = np.cumsum(np.append(True, user[1:] != user[:-1]))[:n] if n else place
    highest = np.maximum.accumulate(of * (len(least) + 1) + rank) - of * (len(least) + 1)
    return least[highest] + place if n else time


def of_dataset(
    known: Dataset, *, users: float = 1.0, min_count: int = 1, queries: Callable[[Entity], str] | None = None
) -> Actions:
    """A public set. users: share of them. queries: of each entity what those searched for who took it.

    Raises DatasetError where the set is absent.
    """
    records, config = known.load(), Config.model_validate(dict(known.config))
    entities, events = list(records.entities()), records.events()
    if queries is not None:
        texts = {entity.entity: queries(entity) for entity in entities}
        events = (msgspec.structs.replace(event, query=texts.get(event.entity or "") or None) for event in events)
    return of_records(
        known.name, config, entities, events, users=users, min_count=min_count, context=queries is not None
    )


def of_records(
    name: str, config: Config, entities: Iterable[Entity], events: Iterable[Event], *, users: float = 1.0,
    min_count: int = 1, context: bool = False,
) -> Actions:  # fmt: skip
    """Of records that are sorted by time, and by anything at one moment."""
    catalog = catalogs.open("memory://", entities=config.entities)
    catalog.write(list(entities), START)
    found = list(events)
    if users < 1:
        names = sorted({event.user for event in found})
        kept = set(names[: round(users * len(names))])
        found = [event for event in found if event.user in kept]
    batch = EventBatch.of(found, range(len(found)))
    drawn = (batch.user ^ (batch.entity * _GOLDEN)) * _GOLDEN
    batch = batch.take(np.lexsort((drawn, batch.time)))
    return Actions.of(name, config, catalog, batch, min_count=min_count, context=context)


def of_log(config: Config, log: Log, progress: Progress, *, min_count: int = 1) -> Actions:
    """The configured log. Raises NotReady where it has no events yet."""
    source = Curriculum(config, log, progress)
    if not len(source.events):
        source.close()
        raise NotReady("the log has no events yet: ingest some first, or name a --dataset")
    return Actions.of(config.name, config, source.catalog, source.events, min_count=min_count)
