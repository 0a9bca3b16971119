"""Models rebuilt from history: learned from once, taken up once, and not against the will of who rolls back."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from checkerboard import CONFIG, Source, catalog_of, purchases
from stream_world import TABLE, World, drain, online_config

from mainstem import curriculum, eventlog, weights
from mainstem.schema.errors import StoreError
from mainstem.train import OnlineTrainer, Trainer, rebuilt
from mainstem.weights import SnapshotMeta, Superseded


@pytest.fixture
def world(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.setattr(rebuilt, "LOOK", 0.0)
    shutil.copytree(base, tmp_path / "w")
    return World(tmp_path / "w", online_config())


def first_of(world: World) -> str:
    return world.store.versions("main")[0]


def publish_rebuilt(
    world: World, like: str, spoil: Callable[[np.ndarray], object] = lambda values: None, begun_on: str | None = None
) -> str:
    """A rebuild that came to what version `like` of the line is."""
    snapshot = world.store.load("main", like, training=True)
    begun = {} if begun_on is None else {rebuilt.BEGUN_ON: begun_on}
    meta = SnapshotMeta(
        fingerprint="checkerboard", position=snapshot.position,
        extras={"state": snapshot.manifest.extras["state"], "rebuilt by": "this test", **begun},
    )  # fmt: skip
    table = {name: array.copy() for name, array in snapshot.tables[TABLE].items()}
    spoil(table["values"])
    return world.store.save("main-rebuilt", snapshot.tensors, {TABLE: table}, meta, snapshot.training)


def is_rebuilt(online: OnlineTrainer) -> bool:
    return "rebuilt by" in online.store.manifest("main", online.place.base).extras


def assert_learned_once(world: World, online: OnlineTrainer) -> None:
    """Its histories are those of a learner that notes the log from the base's beginning, each event once."""
    drain(online)
    online.publish()
    snapshot = world.store.load("main", first_of(world), training=True)
    alone = world.new_learner()
    rebuilt.adopt(snapshot, alone, online.guard, world.log)
    seen = snapshot.position
    while (batch := world.log.read(seen, 1_000)).records:
        alone.fold(batch)
        seen = batch.next
    ours, theirs = online.learner.histories.state(), alone.histories.state()
    assert ours.keys() == theirs.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, theirs[name], err_msg=name)


def test_it_is_brought_up_to_date_and_switched_to(world: World) -> None:
    online = world.trainer()
    old = online.place.base
    drain(online, publish_every=2, most=6)
    made = publish_rebuilt(world, old)
    before = online.position
    while online.place.base == old and online.step():
        online.publish()
    assert is_rebuilt(online)
    assert online.position.offset() >= before.offset()
    assert world.store.manifest("main", online.place.base).extras["rebuilt"] == made
    new = online.place.base
    assert_learned_once(world, online)
    online.step()
    assert online.place.base == new  # once


def test_one_that_has_seen_more_than_a_trainer_that_lags_is_not_learned_from_twice(world: World) -> None:
    ahead = world.trainer()
    drain(ahead, publish_every=2, most=12)
    ahead.publish()
    ahead.snapshot(wait=True)
    first, later = world.store.versions("main")
    publish_rebuilt(world, later)
    position = ahead.position
    shutil.rmtree(world.folder / "main" / later)
    shutil.rmtree(world.folder / "main" / "deltas")
    online = world.trainer()
    assert online.place.base == first
    assert online.position.offset() < position.offset()
    online.step()
    assert is_rebuilt(online)
    assert online.position == position
    assert_learned_once(world, online)


@pytest.mark.parametrize("relearn", [False, True])
@pytest.mark.parametrize("restarted", [False, True])
def test_a_rollback_leaves_behind_what_was_rebuilt_before_it(world: World, relearn: bool, restarted: bool) -> None:
    online = world.trainer()
    drain(online, publish_every=2, most=6)
    publish_rebuilt(world, first_of(world))
    online.step()  # finds it; it is catching up now or in use
    made = world.store.rollback("main", first_of(world), None if relearn else online.position)
    if restarted:
        online = world.trainer()
    drain(online, publish_every=1)
    online.publish()
    assert online.place.base == made
    online.snapshot(wait=True)
    assert world.trainer().place.base == made
    later = publish_rebuilt(world, first_of(world))  # canary: one from after it is taken up
    drain(online)
    online.step()
    while online.place.base == made:
        online.step()
    assert world.store.manifest("main", online.place.base).extras["rebuilt"] == later


@pytest.mark.parametrize("restarted", [False, True])
def test_a_rollback_leaves_behind_what_was_begun_before_it_and_ends_after_it(
    world: World, restarted: bool, caplog: pytest.LogCaptureFixture
) -> None:
    online = world.trainer()
    drain(online, publish_every=2, most=6)
    begun_on = world.store.versions("main")[-1]
    made = world.store.rollback("main", first_of(world), online.position)
    drain(online, publish_every=1)
    online.snapshot(wait=True)
    online.store.keep("main", 1)  # the version that the rollback made is gone
    assert made not in world.store.versions("main")
    publish_rebuilt(world, world.store.versions("main")[0], begun_on=begun_on)
    if restarted:
        online = world.trainer()
    for _ in range(5):
        online.step()
    assert online.place.base == made
    assert "begun before a rollback" in caplog.text
    publish_rebuilt(world, world.store.versions("main")[0], begun_on=made)  # canary: one begun on it is taken up
    while online.place.base == made:
        online.step()
    assert is_rebuilt(online)


def test_a_rebuild_says_what_it_was_begun_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where the line has gone on by the time that it has read the log."""
    begun: list[tuple[object, ...]] = []
    versions = iter([["v-1", "v-2"], ["v-1", "v-2", "v-3"]])
    store = weights.open(str(tmp_path))
    monkeypatch.setattr(store, "versions", lambda line: next(versions))
    monkeypatch.setattr(curriculum.weights, "open", lambda url: store)
    monkeypatch.setattr(curriculum, "Trainer", lambda *given: begun.append(given[3:6]) or Nothing())
    config = online_config()
    log = eventlog.open("memory://", history="file:///nowhere")
    with store.trainer_lock("main"):
        curriculum.train(config, log, tmp_path, lambda stage, done, total: None)
    assert begun == [("main-rebuilt", {rebuilt.BEGUN_ON: "v-2"}, None)]


def test_who_trains_the_line_says_which_base_it_was_begun_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begun: list[tuple[object, ...]] = []
    store = weights.open(str(tmp_path))
    monkeypatch.setattr(store, "newest_base", lambda line: "v-2")
    monkeypatch.setattr(curriculum.weights, "open", lambda url: store)
    monkeypatch.setattr(curriculum, "Trainer", lambda *given: begun.append(given[3:6]) or Nothing())
    log = eventlog.open("memory://", history="file:///nowhere")
    curriculum.train(online_config(), log, tmp_path, lambda stage, done, total: None)
    assert begun == [("main", {rebuilt.BEGUN_ON: ""}, "v-2")]


def test_a_rollback_while_somebody_trains_the_line_stands(tmp_path: Path) -> None:
    store = weights.open(str(tmp_path))
    source = Source(purchases())
    first = Trainer(CONFIG, catalog_of(), store).run(source).version
    made: list[str] = []

    def roll_back(stage: str, done: int, total: int) -> None:
        if not made:
            made.append(store.rollback("main", first))

    with pytest.raises(Superseded, match=first):
        Trainer(CONFIG, catalog_of(), store, expect=store.newest_base("main")).run(source, roll_back)
    assert store.latest("main").version == made[0]
    after = Trainer(CONFIG, catalog_of(), store, expect=store.newest_base("main")).run(source).version
    assert store.latest("main").version == after, "canary: without a rollback it is published"


class Nothing:
    """A training that does nothing."""

    def run(self, *given: object) -> None:
        return None


def test_a_rollback_in_the_moment_of_the_switch_stands(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    online = world.trainer()
    drain(online)
    online.publish()
    publish_rebuilt(world, first_of(world))
    made: list[str] = []
    write = online._writer.write

    def rolled_back_meanwhile(*args: object, **named: object) -> None:
        made.append(world.store.rollback("main", first_of(world), online.position))
        write(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(online._writer, "write", rolled_back_meanwhile)
    while not made:
        online.step()
    assert online.place.base == made[0]


def test_a_switch_that_could_not_be_written_is_tried_again(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    online = world.trainer()
    drain(online)
    online.publish()
    old = online.place.base
    publish_rebuilt(world, first_of(world))

    def until_switched() -> None:
        while online.place.base == old:
            online.step()

    with world.store._writing("main"), pytest.raises(StoreError, match="written by another"):
        until_switched()
    until_switched()
    assert is_rebuilt(online)


@pytest.mark.parametrize(
    ("value", "why"), [(np.nan, "value or a number of optimizer state is not finite"), (1e38, "finite: ")]
)
def test_one_that_is_spoiled_is_refused_and_learning_goes_on(world: World, value: float, why: str) -> None:
    online = world.trainer()
    old = online.place.base
    drain(online, publish_every=2, most=4)
    publish_rebuilt(world, first_of(world), spoil=lambda values: values.fill(value))
    drain(online)
    online.publish()
    online.step()
    assert online.place.base == old
    assert online.status.refused == 1  # once
    assert why in online.status.last_refusal
    assert online.position == world.log.end()
    assert world.store.deltas.load("main", old, online.place.sequence).position == world.log.end()
