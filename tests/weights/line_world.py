"""A line with a trainer that remembers all it ever had, and a user of a reader that compares."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.position import START
from mainstem.weights.delta_store import delta_name
from mainstem.weights.deltas import Delta, TableDelta
from mainstem.weights.line_reader import Apply, LineReader, Rebase
from mainstem.weights.manifests import Place
from mainstem.weights.snapshots import SnapshotMeta, Snapshots

State = dict[int, float]


def arrays(state: State) -> dict[str, Any]:
    keys = sorted(state)
    return {
        "keys": np.array(keys, np.uint64),
        "values": np.array([[state[key], -state[key]] for key in keys], np.float32).reshape(-1, 2),
        "seen": np.zeros(len(keys), np.uint32),
    }


class Trainer:
    """A line's writer, and what it had at every place that it ever published."""

    def __init__(self, store: Snapshots) -> None:
        self.store = store
        self.state: State = {1: 0.5, 2: 0.25}
        self.had: dict[tuple[str, int], list[State]] = {}
        self.place = Place("", 0, "")
        self.steps = 0
        self.full()

    def full(self) -> str:
        return self.stand(self.store.save("main", {}, {"rows": arrays(self.state)}))

    def stand(self, base: str) -> str:
        self.place = self.store.manifest("main", base).place
        self.remember()
        return base

    def remember(self) -> None:
        self.had.setdefault((self.place.base, self.place.sequence), []).append(dict(self.state))

    def step(self, seed: int = 0) -> Delta:
        """The delta that comes next; `state` is what it leads to."""
        self.steps += 1
        draw = random.Random(seed * 1_000 + self.steps)
        before = dict(self.state)
        for _ in range(draw.randint(0, 3)):
            self.state[draw.randint(1, 9)] = draw.randint(-99, 99) / 4
        for key in draw.sample(sorted(self.state), min(len(self.state), draw.randint(0, 2))):
            del self.state[key]
        touched = [key for key in self.state if before.get(key) != self.state[key]]
        written = arrays({key: self.state[key] for key in touched})
        deleted = np.array([key for key in before if key not in self.state], np.uint64)
        return Delta(
            line="main",
            base=self.place.base,
            sequence=self.place.sequence + 1,
            previous=self.place.sha256,
            dense_version="d",
            position=START,
            tables={"rows": TableDelta(written["keys"], written["values"], deleted)},
        )

    def publish(self, seed: int = 0) -> None:
        delta = self.step(seed)
        self.place = self.store.publish("main", delta)
        self.remember()

    def snapshot(self) -> str:
        meta = SnapshotMeta(base=self.place.base, sequence=self.place.sequence)
        return self.store.save("main", {}, {"rows": arrays(self.state)}, meta)

    def rollback(self, version: str) -> str:
        new = self.store.rollback("main", version)
        self.state = state_of(self.store.load("main", new).tables["rows"])
        return self.stand(new)


def state_of(table: dict[str, Any]) -> State:
    assert (table["values"][:, 0] == -table["values"][:, 1]).all()
    return dict(zip(table["keys"].tolist(), table["values"][:, 0].tolist(), strict=True))


class User:
    """What serving does with a reader: it holds a state, and checks each against the trainer's."""

    def __init__(self, reader: LineReader, had: dict[tuple[str, int], list[State]]) -> None:
        self.reader, self.had = reader, had
        self.state: State = {}

    def turn(self) -> Rebase | Apply | None:
        before, step = self.reader.place, self.reader.poll()
        assert self.reader.place == before  # a poll moves nothing
        if step is None:
            return None
        if isinstance(step, Rebase):
            self.state = state_of(step.snapshot.tables["rows"])
        else:
            table = step.delta.tables["rows"]
            self.state |= dict(zip(table.keys.tolist(), table.values[:, 0].tolist(), strict=True))
            for key in table.deleted.tolist():
                del self.state[key]
        self.reader.accept(step)
        place = self.reader.place
        assert place is not None
        assert before is None or (place.base, place.sequence) > (before.base, before.sequence), "it moved back"
        assert self.state in self.had[place.base, place.sequence], f"nobody ever had {self.state} at {place}"
        return step

    def drain(self) -> list[str]:
        steps = []
        while (step := self.turn()) is not None:
            steps.append(type(step).__name__)
        return steps


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class World:
    def __init__(self, root: Path, reader: type[LineReader] = LineReader) -> None:
        self.root, self.line = root, root / "main"
        self.store = Snapshots(root)
        self.trainer = Trainer(Snapshots(root))
        self.clock = Clock()
        self.kind = reader
        self.user = self.new_user()

    def new_user(self) -> User:
        return User(self.kind(self.store, clock=self.clock), self.trainer.had)

    def delta(self, sequence: int, base: str = "") -> Path:
        return self.line / delta_name(base or self.trainer.place.base, sequence)

    @property
    def at(self) -> tuple[str, int]:
        place = self.user.reader.place
        assert place is not None
        return place.base, place.sequence

    def publish(self, count: int) -> None:
        for _ in range(count):
            self.trainer.publish()


class Trusting(LineReader):
    """The canary: it does not look at the chain."""

    def _next_delta(self, place: Place) -> Apply | None:
        try:
            return Apply(self.snapshots.deltas.load(self.line, place.base, place.sequence + 1))
        except (StoreError, NotReady):
            return None

    def accept(self, step: Rebase | Apply) -> None:
        self.place = step.snapshot.place if isinstance(step, Rebase) else step.delta.place
