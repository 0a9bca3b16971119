"""Learns from the stream: log records in log order, one micro-batch at a time.

Everything that decides what is learned is in here and in `state`: weights, optimizers, histories, counts, pools that
wait for labels, random states. So the same records cut at the same places give the same learner, also when it was
stopped in between.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem.catalog import EventEntities, MemoryCatalog
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.errors import StoreError
from mainstem.schema.examples import Labelling
from mainstem.schema.expiry import ExpiryClock
from mainstem.schema.ids import Keys, key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log, LogBatch
from mainstem.schema.records import Erase, Event, Served
from mainstem.schema.settings import SlateSettings
from mainstem.schema.time import parse_duration
from mainstem.train.histories import Histories
from mainstem.train.interactions import Interactions, of_interest
from mainstem.train.population import Population
from mainstem.train.ranking_online import RankingLearner
from mainstem.train.retrieval import RetrievalLearner
from mainstem.train.towers import TABLE, Towers
from mainstem.train.wide import WIDE
from mainstem.train.words import keys_of
from mainstem.weights import Changes, Table
from mainstem.weights.checkpoints import random_states, restore_random

__all__ = ["RANKING", "RETRIEVAL", "Carried", "OnlineLearner", "Step"]

# What is learned, by the names under which its losses are watched.
RETRIEVAL, RANKING = "retrieval", "ranking"

# Positives after which one counts half in Q.
HALF_LIFE = 1_000_000
# Events taken in at once where nothing is learned.
CHUNK = 50_000
# Canaries: events of their past, and users, at least.
LEAST_PAST, LEAST_CANARIES = 3, 8
# Rows of the table looked at for expiry after each step: a slice, never a stall.
SWEEP = 2_048


@dataclass(frozen=True, slots=True)
class Carried:
    """What a snapshot holds that the stream does not change."""

    extras: dict[str, Any]
    metrics: dict[str, float]


@dataclass(frozen=True, slots=True)
class Step:
    """What one micro-batch was. losses: the mean loss before it was learned, and of how many: of positives in
    retrieval, of slates in ranking; NaN of none."""

    records: int
    losses: dict[str, tuple[float, int]]

    @property
    def positives(self) -> int:
        return self.losses[RETRIEVAL][1]


class OnlineLearner:
    """`towers` and a ranking network with everything that learning them from the stream needs. `labelling` tells which
    labels of slates on record became known; without it the ranking network stays. Not safe for several threads."""

    def __init__(
        self, config: Config, towers: Towers, ranking: RankingLearner, catalog: MemoryCatalog,
        labelling: Labelling | None = None,
    ) -> None:  # fmt: skip
        self.config, self.towers, self.catalog = config, towers, catalog
        self.ranking, self.labelling = ranking, labelling
        self.retrieval = RetrievalLearner(towers, config.model, config.train, online=True)
        self.population = Population(HALF_LIFE)
        self.histories = Histories(length=config.history_length())
        self.slates = SlateSettings()
        self.rng = np.random.default_rng(config.train.seed)
        self.clock = ExpiryClock()
        self.carried = Carried({}, {})
        """What its snapshot holds besides."""
        self._latest = Interactions.none()
        self._interest = config.interest()
        self._entities = EventEntities.of(config)

    def learn(self, batch: LogBatch) -> Step:
        """Learn from records that follow the last ones."""
        return self._take(batch, learn=True)

    def fold(self, batch: LogBatch) -> Step:
        """Only note them: in catalogue, histories, counts and labels."""
        return self._take(batch, learn=False)

    def pass_over(self, batch: LogBatch) -> None:
        """Take from records that are not learned from what the catalogue needs, and whom to forget."""
        self._describe(batch)
        self.slates.follow(batch.records)
        for record in batch.records:
            if isinstance(record, Erase):
                self.erase(record)

    def _take(self, batch: LogBatch, *, learn: bool) -> Step:
        self._describe(batch)
        served = [record for record in batch.records if isinstance(record, Served)]
        return Step(len(batch), self.take(self._events(batch), served, learn=learn))

    def take(
        self, events: EventBatch, served: Sequence[Served] = (), *, learn: bool = True
    ) -> dict[str, tuple[float, int]]:
        """One micro-batch, its events in columns: its losses (see `Step`). Where it raises, a part of it may be learned
        already (the ranking network goes first): `load` leads back."""
        return {RANKING: self._rank(events, served, learn), RETRIEVAL: self._retrieve(events, learn)}

    def _rank(self, events: EventBatch, served: Sequence[Served], learn: bool) -> tuple[float, int]:
        if self.labelling is None:
            return float("nan"), 0
        revisions, closed = self.labelling.take(served, events)
        if not learn or not self.ranking.rate:
            return float("nan"), 0
        loss = self.ranking.step(revisions)
        self.ranking.level(closed)
        return loss, len(revisions)

    def _retrieve(self, events: EventBatch, learn: bool) -> tuple[float, int]:
        found, weight, note = of_interest(events, self._interest, self.towers.canvases.places)
        if not len(found):
            return float("nan"), 0
        self.clock.add(found.time)
        self.population.add(found.entity)
        loss = float("nan")
        if learn:
            self._latest = self.histories.before(found, weight, note)
            loss = self.retrieval.step(self._latest, self.population, self.rng)
        else:
            self.histories.fold(found, note)
        self._sweep()
        return loss, len(found)

    def prime(self, events: EventBatch) -> None:
        """Note a whole past, in order of time, that other means have learned from."""
        found, _, note = of_interest(events, self._interest, self.towers.canvases.places)
        for start in range(0, len(found), CHUNK):
            some = slice(start, start + CHUNK)
            self.population.add(found.entity[some])
            self.histories.fold(found.take(some), note[some])
        self.clock.add(found.time)

    def catch_up(self, log: Log, until: Position) -> None:
        """Bring the catalogue from where it stands to where the log stood at `until`. Raises StoreError."""
        seen, end = self.catalog.position(), log.end()
        if end.offset() < until.offset():
            raise StoreError(f"the log ends at {end}, the snapshot has seen it up to {until}: it is another log")
        while seen.offset() < until.offset():
            batch = log.read(seen, min(CHUNK, until.offset() - seen.offset()))
            if not batch.records:
                raise StoreError(f"the log ends at {seen}, a part of it up to {until} is lost")
            self._describe(batch)
            seen = batch.next

    def _describe(self, batch: LogBatch) -> None:
        """Take in what the records say of entities."""
        changed = self.catalog.write(self._entities.records(batch.records, self.catalog), batch.next)
        self.towers.forget(keys_of(changed))

    def canaries(self, users: int, choice: int) -> tuple[Interactions, Keys] | None:
        """Users with a past from the latest micro-batch, and entities to choose from; None where either is too few."""
        latest, keys = self._latest, self.population.keys
        _, first = np.unique(latest.user, return_index=True)
        rows = first[latest.lengths()[first] >= LEAST_PAST][:users]
        if len(rows) < LEAST_CANARIES or len(keys) < choice // 20:
            return None
        return latest.take(rows), keys[np.linspace(0, len(keys) - 1, min(choice, len(keys))).astype(np.int64)]

    def _events(self, batch: LogBatch) -> EventBatch:
        """The events in columns, without those of users that were erased later in the batch."""
        pairs = [(r, o) for r, o in zip(batch.records, batch.offsets, strict=True) if isinstance(r, Event)]
        settings = self.slates.follow(batch.records)
        events = EventBatch.of([r for r, _ in pairs], [o for _, o in pairs], settings=settings)
        for record, offset in zip(batch.records, batch.offsets, strict=True):
            if isinstance(record, Erase):
                key = self.erase(record)
                events = events.take(((events.user != key) & (events.entity != key)) | (events.offset > offset))
        return events

    def erase(self, erase: Erase) -> np.uint64:
        """Forget a user or an entity (law 10); its key."""
        family, name = ("user", erase.user) if erase.user is not None else (erase.entity_type, erase.entity)
        key = np.uint64(key64(family, str(name), erase.tenant))
        keys: Keys = np.array([key], np.uint64)
        self.towers.table.delete(keys)
        if self.labelling is not None:
            self.labelling.erase(erase)
        if family == "user":
            self.histories.forget(keys)
        return key

    def _sweep(self) -> None:
        """What was not seen for long leaves: rows in slices, histories once a day."""
        for table in self.tables().values():
            table.sweep(self.clock.reached(), SWEEP)
        if (day := self.clock.due()) is not None:
            self.histories.expire(day - parse_duration(self.config.features.expire))
            self.clock.swept(day)

    def tables(self) -> dict[str, Table]:
        """The tables of rows, by the names that serving knows them by."""
        wide = self.ranking.wide
        return {TABLE: self.towers.table} if wide is None else {TABLE: self.towers.table, WIDE: wide.table}

    def take_changes(self) -> dict[str, Changes]:
        """What happened to the rows of each table since the last call."""
        return {name: table.take_changes() for name, table in self.tables().items()}

    def dense(self) -> dict[str, NDArray[Any]]:
        """A copy of the networks' weights, by the names that serving knows them by."""
        networks: dict[str, torch.nn.Module] = {"towers": self.towers.module, "ranker": self.ranking.ranker}
        return {
            f"{prefix}.{name}": tensor.numpy().copy()
            for prefix, network in networks.items()
            for name, tensor in network.state_dict().items()
        }

    # ---- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """All but the tables, for `flatten`."""
        return {
            "module": self.towers.module.state_dict(),
            "adam": self.retrieval.adam.state_dict(),
            "negatives": self.retrieval.negatives.state(),
            "ranking": self.ranking.state(),
            "labels": np.frombuffer(b"" if self.labelling is None else self.labelling.state(), np.uint8).copy(),
            "population": self.population.state(),
            "histories": self.histories.state(),
            "slates": self.slates.state(),
            "random": random_states(self.rng),
            "clock": self.clock.state(),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave; the tables are loaded by themselves."""
        self.towers.module.load_state_dict(state["module"])
        self.retrieval.adam.load_state_dict(state["adam"])
        # a release that held no batches wrote none
        self.retrieval.negatives.load(state.get("negatives", {"queue": []}))
        self.ranking.load(state["ranking"])
        if self.labelling is not None:
            self.labelling.load(state["labels"].tobytes())
        self.population.load(state["population"])
        self.histories.load(state["histories"])
        self.slates.load(state["slates"])
        restore_random(state["random"], self.rng)
        self.clock.load(state["clock"])
