"""The model in use: the newest good one, switched whole, with every entity that changed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from mainstem import catalog as catalogs
from mainstem import index, weights
from mainstem.refresh import ModelKeeper, models
from mainstem.schema.config import Config
from mainstem.schema.errors import Incompatible, NotReady, StoreError
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import VectorIndex
from mainstem.schema.records import Entity, EntityDelete, LogRecord
from mainstem.weights import Snapshots


class Model:
    """A version with an index over the catalogue: each entity's vector is the length of its text."""

    def __init__(self, version: str, weight: float, catalog: catalogs.MemoryCatalog) -> None:
        self.version, self.weight, self.catalog = version, weight, catalog
        self.index: VectorIndex = index.open("exact://", 2, version=version)
        keys = catalog.keys()
        self.embed(keys[keys != 0])

    def embed(self, keys: np.ndarray) -> None:
        lengths = np.array([[len(self.catalog.text(key)), self.weight] for key in keys.tolist()], np.float32)
        self.index.upsert(keys, lengths.reshape(-1, 2))


class World:
    """Snapshots in a folder, a catalogue, and a keeper of `Model`s that counts its loads."""

    def __init__(self, folder: Path) -> None:
        self.snapshots: Snapshots = weights.open(str(folder))
        self.catalog = catalogs.open("memory://", entities=Config().entities)
        self.loads: list[str] = []
        self.fails: dict[str, Exception] = {}
        self.written = 0
        self.keeper = ModelKeeper(self.snapshots, self.load, self.touch)

    def load(self, version: str) -> Model:
        self.loads.append(version)
        if version in self.fails:
            raise self.fails[version]
        snapshot = self.snapshots.load("main", version)
        return Model(version, float(snapshot.tensors["weight"][0]), self.catalog)

    @staticmethod
    def touch(model: Model, changed: Sequence[Entity], left: Sequence[int]) -> None:
        model.embed(np.array([key64("item", entity.entity) for entity in changed], np.uint64))
        model.index.delete(np.array(left, np.uint64))

    def publish(self, weight: float = 1.0) -> str:
        return self.snapshots.save("main", {"weight": np.array([weight], np.float32)}, None)

    def write(self, *records: LogRecord) -> None:
        """As a follower does: the catalogue first, then the sink."""
        self.written += 1
        changed = self.catalog.write(records, Position.at(self.written))
        left = [key64("item", r.entity) for r in records if isinstance(r, EntityDelete)]
        self.keeper.entities_changed(changed, left)

    def put(self, name: str, text: str) -> None:
        self.write(Entity(record_id=f"e{self.written}", time=self.written, entity=name, text=text))

    def drop(self, name: str) -> None:
        self.write(EntityDelete(record_id=f"d{self.written}", time=self.written, entity=name))

    def indexed(self) -> dict[int, float]:
        return {
            key: float(v[0])
            for keys, vectors in self.keeper.current().index.items()
            for key, v in zip(keys.tolist(), vectors, strict=True)
        }

    def catalogued(self) -> dict[int, float]:
        keys = self.catalog.keys()
        return {key: float(len(self.catalog.text(key))) for key in keys[keys != 0].tolist()}


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "weights")


def damage(world: World, version: str) -> None:
    path = world.snapshots.root / "main" / version / "dense.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"\xff")


def test_without_a_snapshot_there_is_no_model(world: World) -> None:
    assert not world.keeper.refresh()
    assert world.keeper.version is None
    with pytest.raises(NotReady, match="mainstem train"):
        world.keeper.current()
    world.put("1", "abc")  # and a change hurts nobody


def test_the_newest_comes_into_use_once(world: World) -> None:
    first = world.publish(1.0)
    assert world.keeper.refresh()
    assert not world.keeper.refresh()
    second = world.publish(2.0)
    assert world.keeper.refresh()
    assert world.loads == [first, second]
    assert (world.keeper.version, world.keeper.current().weight) == (second, 2.0)


def test_a_damaged_version_is_refused_once_and_the_last_good_one_stays(
    world: World, caplog: pytest.LogCaptureFixture
) -> None:
    good = world.publish(1.0)
    world.keeper.refresh()
    bad = world.publish(2.0)
    damage(world, bad)
    for _ in range(3):
        assert not world.keeper.refresh()
    assert world.keeper.version == good
    assert "damaged" in world.keeper.refused[bad]
    assert world.loads == [good, bad]
    assert bad in caplog.text
    best = world.publish(3.0)
    assert world.keeper.refresh()
    assert world.keeper.version == best


def test_at_a_start_the_newest_good_one_is_found_behind_bad_ones(world: World) -> None:
    good, bad, other = world.publish(1.0), world.publish(2.0), world.publish(3.0)
    damage(world, bad)
    world.fails[other] = Incompatible("made for other features")
    assert world.keeper.refresh()
    assert world.keeper.version == good
    assert set(world.keeper.refused) == {bad, other}
    assert not world.keeper.refresh()
    assert world.loads == [other, bad, good]


@pytest.mark.parametrize("error", [Incompatible("other features"), StoreError("damaged")])
def test_what_is_wrong_with_a_version_itself_is_refused_and_told(world: World, error: Exception) -> None:
    good = world.publish()
    world.keeper.refresh()
    bad = world.publish()
    world.fails[bad] = error
    assert not world.keeper.refresh()
    assert world.keeper.version == good
    assert str(error) in world.keeper.refused[bad]
    world.put("1", "still touched")
    assert world.indexed() == world.catalogued()


def unreadable() -> StoreError:
    error = StoreError("dense.safetensors cannot be read")
    error.__cause__ = OSError("input/output error")
    return error


@pytest.mark.parametrize(
    "error", [RuntimeError("no thread"), KeyError("k"), MemoryError("m"), OSError("away"), NotReady("y"), unreadable()]
)
def test_what_may_pass_is_told_and_tried_again_ever_less_often(
    world: World, error: Exception, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr(models.time, "monotonic", lambda: now[0])
    good = world.publish()
    world.keeper.refresh()
    late = world.publish()
    world.fails[late] = error
    tried = []
    for second in range(40):
        now[0] = float(second)
        assert not world.keeper.refresh()
        assert (world.keeper.version, world.keeper.failure, world.keeper.refused) == (good, error, {})
        if world.loads.count(late) > len(tried):
            tried.append(second)
    assert tried == [0, 2, 6, 14, 30]
    world.put("1", "still touched")
    assert world.indexed() == world.catalogued()
    del world.fails[late]
    now[0] = 62.0
    assert world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (late, None)


def test_a_newer_version_overtakes_one_that_waits(world: World) -> None:
    stuck = world.publish()
    world.fails[stuck] = MemoryError("m")
    assert not world.keeper.refresh()
    assert isinstance(world.keeper.failure, MemoryError)
    best = world.publish()
    assert world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (best, None)


def test_refused_versions_that_are_gone_are_forgotten(world: World) -> None:
    bad = world.publish()
    world.fails[bad] = StoreError("x")
    world.keeper.refresh()
    world.publish()
    world.keeper.refresh()
    world.snapshots.keep("main", 1)
    world.keeper.refresh()
    assert world.keeper.refused == {}


def test_a_version_that_cannot_take_what_it_missed_is_not_taken(world: World) -> None:
    good = world.publish()
    world.keeper.refresh()
    bad = world.publish()
    load, touch = world.keeper.load, world.keeper.touch

    def loading(version: str) -> Model:
        model = load(version)
        world.put("1", "meanwhile")
        return model

    def touching(model: Model, changed: Sequence[Entity], left: Sequence[int]) -> None:
        if model.version == bad:
            raise ValueError("no such row")
        touch(model, changed, left)

    world.keeper.load, world.keeper.touch = loading, touching
    assert not world.keeper.refresh()
    assert world.keeper.version == good
    assert "no such row" in str(world.keeper.failure)
    world.put("2", "on")
    assert world.indexed() == world.catalogued()


def race(world: World) -> None:
    """Versions come while entities come, change and go."""
    stop, writing = threading.Event(), threading.Lock()
    load = world.keeper.load

    def slowly(version: str) -> Model:
        model = load(version)
        time.sleep(0.02)  # what comes now is in nobody's catalogue scan
        with writing:
            world.put(f"late-{version}", "nor is this")
        return model

    world.keeper.load = slowly

    def changes() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            name = str(rng.integers(20))
            with writing:  # one follower
                if rng.random() < 0.3:
                    world.drop(name)
                else:
                    world.put(name, "x" * int(rng.integers(1, 50)))

    thread = threading.Thread(target=changes)
    thread.start()
    for _ in range(12):
        world.publish()
        assert world.keeper.refresh()
    stop.set()
    thread.join()


def test_no_change_is_missed_while_versions_load(world: World) -> None:
    race(world)
    assert len(world.loads) == 12
    assert world.indexed() == world.catalogued()


class Forgets(ModelKeeper[Model]):
    """Touches the model in use, and not the one that is being loaded."""

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        if self._current is not None:
            self.touch(self._current, changed, left)


def test_the_race_would_catch_a_keeper_that_forgets(world: World) -> None:
    world.keeper = Forgets(world.snapshots, world.load, world.touch)
    race(world)
    assert world.indexed() != world.catalogued()


def test_two_refreshes_at_once_load_once(world: World) -> None:
    world.publish()
    load = world.keeper.load
    world.keeper.load = lambda version: (time.sleep(0.05), load(version))[1]
    threads = [threading.Thread(target=world.keeper.refresh) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.loads) == 1


def test_the_thread_outlives_what_goes_wrong(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    real = world.snapshots.versions

    def away(line: str) -> list[str]:
        raise OSError("stale file handle")

    monkeypatch.setattr(world.snapshots, "versions", away)
    world.keeper.start(every=0.005)
    try:
        end = time.monotonic() + 20
        while world.keeper.failure is None and time.monotonic() < end:
            time.sleep(0.005)
        assert "stale" in str(world.keeper.failure)
        monkeypatch.setattr(world.snapshots, "versions", real)
        version = world.publish()
        while (world.keeper.version != version or world.keeper.failure) and time.monotonic() < end:
            time.sleep(0.005)
        assert (world.keeper.version, world.keeper.failure) == (version, None)
    finally:
        world.keeper.stop()


def test_one_that_waited_and_turns_out_damaged_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RETRY_FIRST", 0.0)
    version = world.publish()
    for error in (OSError("away"), StoreError("damaged")):
        world.fails[version] = error
        assert not world.keeper.refresh()
    assert (world.keeper.refused, world.keeper.failure) == ({version: "damaged"}, None)
