"""A log that the checkerboard's purchases go into, a base trained on its beginning, and online trainers on the rest."""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
from checkerboard import CONFIG, ITEMS, T0, Source, catalog_of, purchases, trainer

from mainstem import catalog as catalogs
from mainstem import eventlog, weights
from mainstem.learning import learner_of
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.pools import pack_pool
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Context, Entity, Event, LogRecord, Served, Slate, SlateRequest
from mainstem.train import OnlineLearner, OnlineTrainer
from mainstem.train.towers import TABLE
from mainstem.weights import Apply, LineReader, Rebase, Snapshots

PARITY = ("even", "odd")


def entities(items: int = ITEMS, first: int = 0) -> list[LogRecord]:
    return [
        Entity(record_id=f"e{i}", time=T0, entity=str(i), attributes={"parity": PARITY[i % 2]})
        for i in range(first, items)
    ]


def online_config(**changes: Any) -> Config:
    """Deltas and dense parts whenever asked, snapshots only when called for; users with rows, so that erasures have
    something to reach."""
    defaults = {"batch": 32, "publish_every": "0ms", "dense_every": "0ms", "snapshot_every": "30d"}
    online = CONFIG.train.online.model_copy(update=defaults | changes)
    train = CONFIG.train.model_copy(update={"online": online})
    return CONFIG.model_copy(update={"train": train, "model": CONFIG.model.model_copy(update={"user_rows": True})})


class World:
    """`days` of purchases in the log, the first `trained` of them in the base."""

    def __init__(self, folder: Path, config: Config, *, days: int = 20, trained: int = 12) -> None:
        self.folder, self.config = folder, config
        self.log: Log = eventlog.open("memory://", history="file:///nowhere")
        self.store: Snapshots = weights.open(str(folder))
        self.events = events_of(days)
        cut = T0 + trained * 86_400_000
        self.past = [event for event in self.events if event.time < cut]
        self.rest = [event for event in self.events if event.time >= cut]
        self.log.append([*entities(), *self.past])
        if self.store.latest("main").version is None:
            source = Source(EventBatch.of(self.past, range(len(self.past))))
            source.position = self.log.end()
            trainer(folder, config).run(source)
        self.log.append(with_pools(self.rest))

    def new_learner(self) -> OnlineLearner:
        catalog = catalogs.open("memory://", entities=self.config.entities)
        return learner_of(self.config, catalog, Source.inputs)

    def trainer(self, store: Snapshots | None = None) -> OnlineTrainer:
        return OnlineTrainer(self.config, self.log, store or self.store, self.new_learner, "checkerboard")


def events_of(days: int) -> list[Event]:
    batch = purchases(days=days)
    names = {key: f"u{u}" for u in range(30) for key in [user_key(u)]}
    items = {int(key): str(i) for i, key in enumerate(item_keys())}
    return [
        Event(
            event_id=f"p{i}", time=int(batch.time[i]), user=names[int(batch.user[i])], kind="purchase",
            entity=items[int(batch.entity[i])], session=str(int(batch.session[i])),
        )
        for i in range(len(batch))
    ]  # fmt: skip


def with_pools(events: list[Event]) -> list[LogRecord]:
    """A slate on record before each third session: ten candidates, the first input says how near each is."""
    out: list[LogRecord] = []
    rng, seen = np.random.default_rng(1), set[str]()
    for event in events:
        session = str(event.session)
        if session not in seen and len(seen) % 3 == 0:
            own = int(event.user[1:]) % 2
            items = rng.choice(ITEMS, 10, replace=False)
            near = np.where(items % 2 == own, 0.7, -0.7) + rng.normal(0, 0.2, 10)
            inputs = np.column_stack([near, np.ones(10)]).astype(np.float32)
            out.append(
                Served(
                    record_id=f"pool-{session}", time=event.time, user=event.user,
                    request=SlateRequest(context=Context(user=event.user)),
                    slate=Slate(request_id=f"pool-{session}", canvas="home", time=event.time, items=[]), shown=False,
                    feature_names=list(Source.inputs), pool=pack_pool(item_keys()[items], inputs),
                )
            )  # fmt: skip
        seen.add(session)
        out.append(event)
    return out


def world_of(base: Path, tmp_path: Path, name: str = "w", **changes: object) -> World:
    shutil.copytree(base, tmp_path / name)
    return World(tmp_path / name, online_config(**changes))


def served(world: World) -> tuple[dict[int, np.ndarray], dict[str, np.ndarray], LineReader]:
    """What a server that follows the line holds in the end: rows, networks, and its reader."""
    rows: dict[int, np.ndarray] = {}
    dense: dict[str, np.ndarray] = {}
    reader = LineReader(world.store, "main")
    while (step := reader.poll()) is not None:
        if isinstance(step, Rebase):
            table = step.snapshot.tables[TABLE]
            rows = dict(zip(table["keys"].tolist(), table["values"].copy(), strict=True))
            dense = dict(step.snapshot.tensors)
        elif isinstance(step, Apply):
            change = step.delta.tables[TABLE]
            for key in change.deleted.tolist():
                rows.pop(key, None)
            rows |= dict(zip(change.keys.tolist(), change.values.copy(), strict=True))
            dense |= dict(step.delta.dense or {})
        reader.accept(step)
    return rows, dense, reader


def user_key(number: int) -> int:
    from mainstem.schema.ids import key64

    return key64("user", f"u{number}")


def item_keys(count: int = ITEMS) -> np.ndarray:
    from mainstem.schema.ids import keys64

    return keys64("item", [str(i) for i in range(count)])


def drain(online: OnlineTrainer, publish_every: int = 3, most: int = 10**6) -> int:
    """Steps until the log is learned from, publishing after every few; how many steps."""
    steps = 0
    while steps < most and online.step():
        steps += 1
        if steps % publish_every == 0:
            online.publish()
    return steps


def contents(online: OnlineTrainer) -> dict[str, np.ndarray]:
    """Everything that decides what is learned next, and what is served."""
    learner = online.learner
    found = {f"table {name}": array for name, array in learner.towers.table.state().items()}
    found |= {f"module {name}": tensor.numpy().copy() for name, tensor in learner.towers.module.state_dict().items()}
    found |= {f"histories {name}": array for name, array in learner.histories.state().items()}
    found |= {f"ranker {name}": t.numpy().copy() for name, t in learner.ranking.ranker.state_dict().items()}
    assert learner.labelling is not None
    found["labels"] = np.frombuffer(learner.labelling.state(), np.uint8)
    found |= {f"population {name}": np.asarray(value) for name, value in learner.population.state().items()}
    return found


def assert_equal(a: dict[str, np.ndarray], b: dict[str, np.ndarray]) -> None:
    assert a.keys() == b.keys()
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name], err_msg=name)


__all__ = ["START", "TABLE", "Position", "World", "assert_equal", "catalog_of", "contents", "dataclasses", "drain"]
