"""The catalogue beside a snapshot: a start reads the log from there alone, and never gets the erased from it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from stream_world import World, assert_equal, contents, drain, entities, item_keys, online_config

from mainstem.eventlog.memory import MemoryLog
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.position import Position
from mainstem.schema.protocols import LogBatch
from mainstem.schema.records import EntityPatch, Erase, Event
from mainstem.schema.time import DAY, now_ms
from mainstem.train import OnlineTrainer, catalogs, rebuilt
from mainstem.weights import KeptCatalog, SnapshotMeta


@pytest.fixture
def reads(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The offsets from which the log is read."""
    read, starts = MemoryLog.read, list[int]()

    def noted(self: MemoryLog, start: Position, limit: int = 10_000) -> LogBatch:
        starts.append(start.offset())
        return read(self, start, limit)

    monkeypatch.setattr(MemoryLog, "read", noted)
    return starts


@pytest.fixture
def world(base: Path, tmp_path: Path) -> World:
    """It has learned half of the rest and written a snapshot, then a little more."""
    shutil.copytree(base, tmp_path / "w")
    world = World(tmp_path / "w", online_config())
    online = world.trainer()
    drain(online, publish_every=1, most=6)
    online.snapshot(wait=True)
    drain(online, publish_every=1, most=3)
    return world


def newest(world: World) -> KeptCatalog:
    kept = KeptCatalog.of(world.store.manifest("main", world.store.versions("main")[-1]))
    assert kept is not None
    return kept


def known(online: OnlineTrainer) -> dict[int, bytes]:
    return online.learner.catalog.state().revisions


def test_a_start_reads_the_log_from_the_snapshot_on_and_knows_the_same(world: World, reads: list[int]) -> None:
    at = Position.parse(newest(world).position).offset()
    assert at == Position.parse(world.store.manifest("main", world.store.versions("main")[-1]).position).offset()
    reads.clear()
    quick = world.trainer()
    assert min(reads) == at
    shutil.rmtree(world.folder / "main" / "catalog")
    slow = world.trainer()
    assert min(reads) == 0  # canary
    assert known(quick) == known(slow)
    drain(quick)
    drain(slow)
    assert_equal(contents(quick), contents(slow))


def test_it_says_what_the_snapshots_moment_knew(world: World) -> None:
    """Not what came later: the copy is the trainer's, which is at another place in the log than the log's end."""
    world.log.append(entities(61, first=60))
    online = world.trainer()
    new = item_keys(61)[60:]
    assert online.learner.catalog.rows(new)[0] == -1
    drain(online)
    online.publish()
    assert online.learner.catalog.rows(new)[0] >= 0
    online.snapshot(wait=True)
    world.log.append([EntityPatch(record_id="p", time=world.rest[-1].time, entity="60", attributes={"parity": "odd"})])
    again = world.trainer()
    entity = again.learner.catalog.entity(int(new[0]))
    assert entity is not None
    assert entity.attributes == {"parity": "even"}
    drain(again)
    entity = again.learner.catalog.entity(int(new[0]))
    assert entity is not None
    assert entity.attributes == {"parity": "odd"}


def spoil(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


@pytest.mark.parametrize("harm", [spoil, Path.unlink])
def test_without_a_whole_one_the_log_is_read(
    world: World, reads: list[int], harm: object, caplog: pytest.LogCaptureFixture
) -> None:
    before = known(world.trainer())
    assert "not taken up" not in caplog.text  # canary
    assert callable(harm)
    harm(world.folder / "main" / "catalog" / f"{newest(world).sha256}.safetensors")
    reads.clear()
    assert known(world.trainer()) == before
    assert min(reads) == 0
    assert "not taken up, the log is read instead" in caplog.text


def test_one_made_by_another_rule_is_left(world: World, caplog: pytest.LogCaptureFixture) -> None:
    item = EntityTypeConfig(attributes={"parity": "category"}, from_events=False)
    world.config = world.config.model_copy(update={"entities": {"item": item}})
    world.trainer()
    assert "by other attributes, `from_events`" in caplog.text


def test_one_that_is_too_old_to_name_the_erased_is_left(
    world: World, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(catalogs, "now_ms", lambda: now_ms() + 14 * DAY)
    world.trainer()
    assert "not taken up" not in caplog.text  # canary: half of `log.keep_erasures` is 15 days
    monkeypatch.setattr(catalogs, "now_ms", lambda: now_ms() + 16 * DAY)
    world.trainer()
    assert "erasures since it was kept may have lost" in caplog.text


def test_one_that_is_ahead_of_its_snapshot_is_left(world: World, caplog: pytest.LogCaptureFixture) -> None:
    """What comes between would be written a second time, over what is newer."""
    snapshot = world.store.load("main", world.store.versions("main")[-1], training=True)
    extras = dict(snapshot.manifest.extras)
    extras["catalog"] = extras["catalog"] | {"position": str(world.log.end())}
    meta = SnapshotMeta(fingerprint="checkerboard", position=snapshot.position, extras=extras)
    world.store.save("main", snapshot.tensors, snapshot.tables, meta, snapshot.training)
    assert world.trainer().learner.catalog.position() == snapshot.position
    assert "further than the snapshot" in caplog.text


@pytest.mark.parametrize("rolled_back", [False, True])
def test_an_erased_entity_does_not_come_back(world: World, rolled_back: bool, caplog: pytest.LogCaptureFixture) -> None:
    """Also one whose description bears a later time than the erasure, and where the rollback's place is after it."""
    key = item_keys(8)[7:]
    world.log.append([Erase(record_id="x", time=1, entity="7")])
    online = world.trainer()
    assert online.learner.catalog.rows(key)[0] >= 0  # canary: the copy has it, and the log behind it not yet
    drain(online)
    online.publish()
    assert online.learner.catalog.rows(key)[0] == -1
    if rolled_back:
        world.store.rollback("main", world.store.versions("main")[-1], online.position)
    else:
        online.snapshot(wait=True)
    again = world.trainer()
    assert "not taken up" not in caplog.text  # canary
    assert again.learner.catalog.rows(key)[0] == -1
    assert again.learner.catalog.entity(int(key[0])) is None
    world.log.append([Event(event_id="z", time=world.rest[-1].time, user="u4", kind="purchase", entity="7")])
    drain(again)
    assert again.learner.catalog.entity(int(key[0])) is None


def test_they_leave_with_the_snapshots_that_name_them(world: World) -> None:
    online = world.trainer()
    keep = world.config.train.online.keep
    for number in range(2 * keep):
        world.log.append(entities(61 + number, first=60 + number))
        drain(online)
        online.publish()
        online.snapshot(wait=True)
    named = {KeptCatalog.of(manifest) for manifest in world.store.manifests("main")} - {None}
    files = {path.stem for path in (world.folder / "main" / "catalog").iterdir()}
    assert files == {kept.sha256 for kept in named if kept is not None}
    assert len(files) == keep


def test_a_rebuilt_model_brings_its_own(world: World, reads: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rebuilt, "LOOK", 0.0)
    online = world.trainer()
    version = world.store.versions("main")[-1]
    snapshot, kept = world.store.load("main", version, training=True), newest(world)
    world.store.catalogs.put("main-rebuilt", world.store.catalogs.load("main", kept))
    extras = snapshot.manifest.extras | {"rebuilt by": "this test"}
    meta = SnapshotMeta(fingerprint="checkerboard", position=snapshot.position, extras=extras)
    world.store.save("main-rebuilt", snapshot.tensors, snapshot.tables, meta, snapshot.training)
    base = online.place.base
    reads.clear()
    while online.place.base == base:
        online.step()
    assert min(reads) >= snapshot.position.offset()
