"""A model line with its writer, a catalogue, and a keeper of small models whose every number is known."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mainstem import catalog as catalogs
from mainstem import index, weights
from mainstem.catalog import MemoryCatalog
from mainstem.refresh import ModelKeeper
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys, key64
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import VectorIndex
from mainstem.schema.records import Entity, EntityDelete, LogRecord
from mainstem.weights import Delta, Family, LineReader, SlabTable, Snapshot, SnapshotMeta, Snapshots, Table, TableDelta

Contents = dict[int, tuple[float, ...]]


@dataclass(frozen=True)
class Model:
    """An entity's vector: the length of its text, the networks' weight, its row of two equal numbers."""

    dense: str
    sparse: str
    weight: float
    table: Table
    index: VectorIndex

    def contents(self) -> Contents:
        """What is in the index."""
        return {
            key: tuple(vector)
            for keys, vectors in self.index.items()
            for key, vector in zip(keys.tolist(), vectors.tolist(), strict=True)
        }


class SmallModels:
    """A `Models` that notes what it is asked for, and fails where it is told to."""

    def __init__(self, catalog: MemoryCatalog) -> None:
        self.catalog = catalog
        self.builds: list[str] = []
        self.renewals: list[str] = []
        self.embedded: list[set[int]] = []
        self.fails: dict[str, Exception] = {}
        """Version, `delta N` or dense version -> what is raised."""
        self.before_renewed: Callable[[], None] = lambda: None
        self.before_built: Callable[[], None] = lambda: None

    def build(self, snapshot: Snapshot) -> Model:
        manifest = snapshot.manifest
        self.builds.append(manifest.version)
        self._fail(manifest.version)
        table = SlabTable(2, (Family("all"),), concurrent=True)
        table.load(snapshot.tables["rows"])
        sparse = f"{manifest.base}+{manifest.sequence}"
        model = self._model(manifest.dense_version, sparse, float(snapshot.tensors["weight"][0]), table)
        self.before_built()
        return model

    def apply(self, model: Model, delta: Delta) -> tuple[Model, Keys]:
        self._fail(f"delta {delta.sequence}")
        found = delta.tables["rows"]
        model.table.delete(found.deleted)
        model.table.write(found.keys, found.values)
        touched = np.concatenate([found.keys, found.deleted])
        return replace(model, sparse=f"{delta.base}+{delta.sequence}"), touched[self.catalog.rows(touched) >= 0]

    def renew(self, model: Model, delta: Delta) -> Model:
        self.renewals.append(delta.dense_version)
        self._fail(delta.dense_version)
        assert delta.dense is not None
        renewed = self._model(delta.dense_version, model.sparse, float(delta.dense["weight"][0]), model.table)
        self.before_renewed()
        return renewed

    def take_over(self, renewed: Model, current: Model) -> Model:
        return replace(renewed, sparse=current.sparse)

    def embed(self, model: Model, entities: Keys) -> None:
        self.embedded.append(set(entities.tolist()))
        self._embed(model, entities)

    def touch(self, model: Model, changed: Sequence[Entity], left: Sequence[int]) -> None:
        self._embed(model, np.array([item(entity.entity) for entity in changed], np.uint64))
        model.index.delete(np.array(left, np.uint64))

    def _model(self, dense: str, sparse: str, weight: float, table: Table) -> Model:
        model = Model(dense, sparse, weight, table, index.open("exact://", 4, version=dense))
        keys = self.catalog.keys()
        self._embed(model, keys[keys != 0])
        return model

    def _embed(self, model: Model, keys: Keys) -> None:
        text = np.array([[len(self.catalog.text(key))] for key in keys.tolist()], np.float32).reshape(-1, 1)
        weight = np.full((len(keys), 1), model.weight, np.float32)
        model.index.upsert(keys, np.hstack([text, weight, model.table.read(keys)]))

    def _fail(self, name: str) -> None:
        if name in self.fails:
            raise self.fails[name]


class Writer:
    """Publishes snapshots and deltas, and knows what was published last."""

    def __init__(self, store: Snapshots) -> None:
        self.store = store
        self.rows: dict[int, float] = {}
        self.weight, self.dense = 1.0, ""

    def full(self, weight: float | None = None) -> str:
        """A new base."""
        self.weight = self.weight if weight is None else weight
        version = self.store.save("main", self._dense(), {"rows": self._table(self.rows)})
        self.dense = version
        return version

    def snapshot(self) -> str:
        """At the newest delta."""
        place = self.store.place("main")
        assert place is not None
        meta = SnapshotMeta(base=place.base, sequence=place.sequence, dense_version=self.dense)
        return self.store.save("main", self._dense(), {"rows": self._table(self.rows)}, meta)

    def delta(
        self, rows: dict[int, float] | None = None, deleted: Sequence[int] = (), weight: float | None = None
    ) -> Delta:
        """The next one: `rows` by key, `deleted` keys, a dense part where a weight is given."""
        place = self.store.place("main")
        assert place is not None
        gone = [key for key in deleted if key in self.rows]
        self.rows |= rows or {}
        for key in gone:
            self.rows.pop(key)
        written = self._table({key: value for key, value in (rows or {}).items() if key not in gone})
        if weight is not None:
            self.weight, self.dense = weight, f"{place.base}+{place.sequence + 1}"
        delta = Delta(
            line="main", base=place.base, sequence=place.sequence + 1, previous=place.sha256, position=START,
            dense_version=self.dense, dense=None if weight is None else self._dense(),
            tables={"rows": TableDelta(written["keys"], written["values"], np.array(gone, np.uint64))},
        )  # fmt: skip
        self.store.publish("main", delta)
        return delta

    def rollback(self, version: str) -> str:
        made = self.store.rollback("main", version)
        snapshot = self.store.load("main", made)
        table = snapshot.tables["rows"]
        self.rows = dict(zip(table["keys"].tolist(), table["values"][:, 0].tolist(), strict=True))
        self.weight, self.dense = float(snapshot.tensors["weight"][0]), snapshot.manifest.dense_version
        return made

    def _dense(self) -> dict[str, Any]:
        return {"weight": np.array([self.weight], np.float32)}

    @staticmethod
    def _table(rows: dict[int, float]) -> dict[str, Any]:
        keys = sorted(rows)
        return {
            "keys": np.array(keys, np.uint64),
            "values": np.array([[rows[key]] * 2 for key in keys], np.float32).reshape(-1, 2),
        }


class World:
    """Writer, catalogue and keeper; `clock` is the reader's."""

    def __init__(self, folder: Path, kind: type[ModelKeeper[Model]] = ModelKeeper) -> None:
        self.folder, self.store = folder, weights.open(str(folder))
        self.writer = Writer(weights.open(str(folder)))
        self.catalog = catalogs.open("memory://", entities=Config().entities)
        self.models = SmallModels(self.catalog)
        self.now, self.written = 0.0, 0
        self.keeper: ModelKeeper[Model] = kind(self.reader(), self.models)

    def reader(self) -> LineReader:
        return LineReader(self.store, "main", clock=lambda: self.now)

    def write(self, *records: LogRecord) -> None:
        """As a follower does: the catalogue first, then the sink."""
        self.written += 1
        changed = self.catalog.write(records, Position.at(self.written))
        left = [item(r.entity) for r in records if isinstance(r, EntityDelete)]
        self.keeper.entities_changed(changed, left)

    def put(self, name: str, text: str = "") -> None:
        self.write(Entity(record_id=f"e{self.written}", time=self.written, entity=name, text=text))

    def drop(self, name: str) -> None:
        self.write(EntityDelete(record_id=f"d{self.written}", time=self.written, entity=name))

    def expected(self) -> Contents:
        """The index of a model built at once from all that the writer published."""
        keys = self.catalog.keys()
        return {
            key: (float(len(self.catalog.text(key))), self.writer.weight, row, row)
            for key in keys[keys != 0].tolist()
            for row in [self.writer.rows.get(key, 0.0)]
        }

    def contents(self) -> Contents:
        return self.keeper.current().contents()

    def damage(self, version: str) -> None:
        path = self.folder / "main" / version / "dense.safetensors"
        path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def item(name: str) -> int:
    return key64("item", name)


def eventually(holds: Callable[[], bool], seconds: float = 30.0) -> None:
    """Wait until it holds; the time is only the end of patience."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.002)
