"""Weights between items beside snapshots: the online trainer carries them on, a rebuild brings its own."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from stream_world import TABLE, World, drain, item_keys, online_config

from mainstem.index import Neighbourhood
from mainstem.schema.config import CanvasConfig, Config, SourceConfig
from mainstem.schema.errors import StoreError
from mainstem.train import OnlineTrainer, neighbourhoods, rebuilt
from mainstem.weights import SnapshotMeta
from mainstem.weights.files import FileSum


def config_of(*sources: str) -> Config:
    asking = CanvasConfig(sources={name: SourceConfig() for name in sources})
    return online_config().model_copy(update={"canvases": {"home": asking, "similar": CanvasConfig()}})


@pytest.fixture(scope="module")
def asked_for(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a base that has weights between items, to be copied."""
    folder = tmp_path_factory.mktemp("asked") / "weights"
    World(folder, config_of("item_knn"))
    return folder


@pytest.fixture
def world(asked_for: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(rebuilt, "LOOK", 0.0)
    shutil.copytree(asked_for, tmp_path / "w")
    return World(tmp_path / "w", config_of("item_knn"))


def named(world: World, version: str | None = None) -> dict[str, FileSum]:
    manifest = world.store.manifest("main", version or world.store.versions("main")[-1])
    return world.store.neighbours.named(manifest.extras)


def loaded(world: World, config: Config | None = None) -> dict[str, Neighbourhood | str]:
    manifest = world.store.manifest("main", world.store.versions("main")[-1])
    return neighbourhoods.load(world.store.neighbours, manifest, config or world.config)


def path_of(world: World, line: str = "main") -> Path:
    (path,) = (world.folder / line / "neighbours").iterdir()
    return path


def publish_rebuilt(world: World) -> FileSum:
    """A rebuild of the base's rows and networks, with other weights between items."""
    first = world.store.load("main", world.store.versions("main")[0], training=True)
    keys = np.sort(item_keys(2))
    other = Neighbourhood(keys, np.array([0, 1, 1]), np.array([1], np.uint32), np.array([0.5], np.float32))
    extras = first.manifest.extras | neighbourhoods.keep(world.store.neighbours, "main-rebuilt", {"item_knn": other})
    meta = SnapshotMeta(fingerprint="checkerboard", position=first.position, extras=extras)
    world.store.save("main-rebuilt", first.tensors, {TABLE: first.tables[TABLE]}, meta, first.training)
    return world.store.neighbours.named(extras)["item_knn"]


def switched(online: OnlineTrainer) -> OnlineTrainer:
    base = online.place.base
    while online.place.base == base:
        online.step()
    return online


def test_a_training_keeps_what_a_canvas_names(world: World) -> None:
    assert named(world).keys() == {"item_knn"}
    found = loaded(world)["item_knn"]
    assert isinstance(found, Neighbourhood)
    assert len(found) == 60
    assert loaded(world, config_of()) == {}
    asked = loaded(world, config_of("item_knn", "ease"))
    assert isinstance(asked["item_knn"], Neighbourhood)
    assert asked["ease"] == f"{world.store.versions('main')[-1]} was trained without it: run `mainstem train`"


def test_snapshots_of_the_online_trainer_name_the_same_and_retention_keeps_it(world: World) -> None:
    first, online = named(world), world.trainer()
    for _ in range(world.config.train.online.keep + 1):
        assert drain(online, publish_every=1, most=1) == 1
        online.snapshot(wait=True)
    assert len(world.store.versions("main")) == world.config.train.online.keep
    assert all(named(world, version) == first for version in world.store.versions("main"))
    assert isinstance(loaded(world)["item_knn"], Neighbourhood)
    assert named(World(world.folder, world.config)) == first


def test_a_rebuilt_model_brings_its_own(world: World) -> None:
    first, online = named(world), world.trainer()
    other = publish_rebuilt(world)
    assert other != first["item_knn"]
    switched(online)
    assert named(world) == {"item_knn": other}
    found = loaded(world)["item_knn"]
    assert isinstance(found, Neighbourhood)
    assert found.weights.tolist() == [0.5]


@pytest.mark.parametrize("lost", [False, True])
def test_a_rebuilt_model_whose_weights_are_damaged_comes_without_them(
    world: World, lost: bool, caplog: pytest.LogCaptureFixture
) -> None:
    online = world.trainer()
    publish_rebuilt(world)
    path = path_of(world, "main-rebuilt")
    path.unlink() if lost else path.write_bytes(path.read_bytes()[:-1])
    switched(online)
    assert "source item_knn is left out of 'main'" in caplog.text
    assert str(loaded(world)["item_knn"]).endswith("is missing: run `mainstem train`")


def test_a_switch_waits_for_a_store_that_is_away(world: World) -> None:
    online, base = world.trainer(), world.store.versions("main")[-1]
    publish_rebuilt(world)
    path = path_of(world, "main-rebuilt")
    whole = path.read_bytes()
    path.unlink()
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be read"):
        switched(online)
    assert online.place.base == base
    path.rmdir()
    path.write_bytes(whole)
    switched(online)
    assert isinstance(loaded(world)["item_knn"], Neighbourhood)


def test_a_damaged_or_missing_file_costs_the_source_alone(world: World, caplog: pytest.LogCaptureFixture) -> None:
    path = path_of(world)
    whole = path.read_bytes()
    for place in (0, 8, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        assert str(loaded(world)["item_knn"]).endswith("is damaged: run `mainstem train`")
    path.write_bytes(whole)
    assert isinstance(loaded(world)["item_knn"], Neighbourhood)  # canary
    path.unlink()
    assert str(loaded(world)["item_knn"]).endswith("is missing: run `mainstem train`")
    assert "is left out" in caplog.text
    path.mkdir()
    with pytest.raises(StoreError, match="cannot be read") as caught:
        loaded(world)
    assert isinstance(caught.value.__cause__, OSError)


def test_a_file_that_holds_something_else_costs_the_source_alone(world: World) -> None:
    """Its sum is what the snapshot says; its arrays are no weights."""
    store = world.store.neighbours
    file = store.put("main", {"keys": np.zeros(3, np.uint64)})
    manifest = world.store.manifest("main", world.store.versions("main")[-1])
    manifest.extras.update(store.extras({"item_knn": file}))
    found = neighbourhoods.load(store, manifest, world.config)["item_knn"]
    assert found == f"neighbours/{file.sha256} is damaged: it does not hold keys, offsets, places and weights: run " + (
        "`mainstem train`"
    )
