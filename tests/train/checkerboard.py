"""A world with a known answer: even users take even items, odd users odd ones; `parity` is an attribute."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from mainstem import catalog as catalogs
from mainstem import weights
from mainstem.join.sessions import session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, EntityTypeConfig, ModelConfig, TrainConfig
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.position import START, Position
from mainstem.schema.records import Entity, Event
from mainstem.schema.settings import SlateSettings
from mainstem.schema.time import DAY
from mainstem.train import Towers, Trainer

T0 = 1_500_000_000_000
USERS, ITEMS, DAYS = 30, 60, 30

CONFIG = Config(
    entities={"item": EntityTypeConfig(attributes={"parity": "category"})},
    model=ModelConfig(dim=16, hidden=[16]),
    train=TrainConfig(
        retrieval_batch=256, retrieval_epochs=3, ranking_epochs=2, ranking_learning_rate=0.01, threads=1,
    ),
)  # fmt: skip
ITEM_KEYS = keys64("item", [str(i) for i in range(ITEMS)])


def catalog_of(items: int = ITEMS) -> catalogs.MemoryCatalog:
    catalog = catalogs.open("memory://", entities=CONFIG.entities)
    parity = ("even", "odd")
    catalog.write(
        [Entity(record_id=f"e{i}", time=T0, entity=str(i), attributes={"parity": parity[i % 2]}) for i in range(items)],
        START,
    )
    return catalog


def purchases(days: int = DAYS, seed: int = 0, length: int = DAY) -> EventBatch:
    """Half the users come each day and take four items of their parity. `length`: ms of a day."""
    rng = np.random.default_rng(seed)
    events = [
        Event(
            event_id=f"{day}-{user}-{k}", time=T0 + day * length + user * 1_000 + k, user=f"u{user}",
            kind="purchase", entity=str(int(item) * 2 + user % 2), session=f"{day}-{user}",
        )
        for day in range(days)
        for user in range(USERS)
        if rng.random() < 0.5
        for k, item in enumerate(rng.choice(ITEMS // 2, 4, replace=False))
    ]  # fmt: skip
    return EventBatch.of(events, range(len(events)))


def parity_of(users: Keys) -> np.ndarray:
    known = {key64("user", f"u{u}"): u % 2 for u in range(USERS)}
    return np.array([known[int(user)] for user in users])


class Source:
    """An `ExampleSource` without features: the retrieval score and a constant are the inputs of ten candidates."""

    fingerprint = "checkerboard"
    inputs = ("two_tower", "one")

    def __init__(self, events: EventBatch, on_examples: Callable[[], None] = lambda: None) -> None:
        self.events, self.position, self.on_examples = events, Position.at(len(events)), on_examples
        self.catalog, self.slates = catalog_of(), SlateSettings()
        self.asked: list[tuple[int, int]] = []

    def session_starts(self, events: EventBatch, order: np.ndarray) -> np.ndarray:
        return session_starts(events, order)

    def examples(
        self, towers: Towers, start: int, cut: int, progress: Callable[[int, int], None]
    ) -> tuple[Examples, Examples]:
        self.asked.append((start, cut))
        self.on_examples()
        rng = np.random.default_rng(0)
        vectors = towers.entity_vectors(ITEM_KEYS)
        own = np.arange(ITEMS) % 2
        mean = np.stack([vectors[own == parity].mean(axis=0) for parity in (0, 1)])
        wanted = np.flatnonzero(self.events.time >= start)
        made = []
        for row in wanted[::4]:
            parity = parity_of(self.events.user[row : row + 1])[0]
            some = rng.choice(ITEMS, 10, replace=False)
            made.append(group(vectors[some] @ mean[parity], (own[some] == parity), self.events.time[row]))
        train = [m for m in made if m.time[0] < cut] or [group(np.zeros(0), np.zeros(0), 0, none=True)]
        valid = [m for m in made if m.time[0] >= cut] or [group(np.zeros(0), np.zeros(0), 0, none=True)]
        return Examples.concat(train), Examples.concat(valid)


def group(score: np.ndarray, label: np.ndarray, time: int, none: bool = False) -> Examples:
    n = len(score)
    return Examples(
        inputs=np.column_stack([score, np.ones(n)]).astype(np.float32).reshape(n, 2),
        labels=np.asarray(label, np.float32).reshape(n, 1),
        negative_rate=np.ones(n, np.float32),
        fresh=np.ones(n, bool),
        weight=np.ones(n, np.float32),
        keys=np.arange(n, dtype=np.uint64),
        offsets=np.array([0] if none else [0, n]),
        time=np.array([] if none else [time], np.int64),
        user=np.array([] if none else [0], np.uint64),
    )


def trainer(folder: Path, config: Config = CONFIG) -> Trainer:
    return Trainer(config, catalog_of(), weights.open(str(folder)))
