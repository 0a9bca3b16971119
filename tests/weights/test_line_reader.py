"""A reader of a line: what it proposes, what it sets aside and says, that it stays where nothing better is there."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from line_world import Trainer, Trusting, User, World

from mainstem import weights
from mainstem.weights.delta_store import delta_name
from mainstem.weights.deltas import TableDelta, encode
from mainstem.weights.line_reader import Apply, LineReader, Rebase
from mainstem.weights.snapshots import Snapshots


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def test_from_nothing_to_the_newest(tmp_path: Path) -> None:
    reader = LineReader(Snapshots(tmp_path))
    assert reader.poll() is None
    assert (reader.place, reader.version, reader.failure, reader.set_aside) == (None, None, None, {})
    world = World(tmp_path)
    assert world.user.drain() == ["Rebase"]
    world.publish(3)
    assert world.user.drain() == ["Apply"] * 3
    assert world.at == (world.trainer.place.base, 3)
    assert world.user.reader.place == world.trainer.place
    assert world.user.drain() == []


def test_over_a_url(tmp_path: Path) -> None:
    store = weights.open(f"memory://reader-{os.urandom(6).hex()}")
    trainer = Trainer(store)
    user = User(LineReader(store), trainer.had)
    trainer.publish()
    assert user.drain() == ["Rebase", "Apply"]
    trainer.snapshot()
    trainer.publish()
    assert user.drain() == ["Apply"]
    trainer.full()
    assert user.drain() == ["Rebase"]


def test_a_new_one_starts_from_the_newest_snapshot(world: World) -> None:
    world.publish(2)
    version = world.trainer.snapshot()
    world.publish(1)
    assert world.user.drain() == ["Rebase", "Apply"]
    assert world.user.reader.version == version


def test_deltas_are_taken_though_a_snapshot_lies_ahead(world: World) -> None:
    world.user.drain()
    world.publish(2)
    world.trainer.snapshot()
    assert world.user.drain() == ["Apply", "Apply"]


def test_a_newer_base_is_taken_at_once(world: World) -> None:
    world.user.drain()
    world.publish(2)
    world.trainer.full()
    world.trainer.publish()
    assert world.user.drain() == ["Rebase", "Apply"]
    world.trainer.rollback(world.store.versions("main")[0])
    assert world.user.drain() == ["Rebase"]


@pytest.mark.parametrize("damage", [Path.unlink, truncate, lambda path: path.write_bytes(b"")])
def test_a_lost_or_damaged_delta_is_passed_by_the_next_snapshot(world: World, damage: Callable[[Path], Any]) -> None:
    world.user.drain()
    world.publish(3)
    damage(world.delta(2))
    assert world.user.drain() == ["Apply"]
    assert world.at[1] == 1  # the last good state stays
    world.clock.now += 5.0
    assert world.user.turn() is None
    assert world.user.reader.set_aside  # and it is said why
    assert world.user.reader.failure is None
    world.trainer.snapshot()
    world.publish(1)
    assert world.user.drain() == ["Rebase", "Apply"]
    assert world.user.reader.set_aside == {}


def test_what_a_gap_is_called(world: World) -> None:
    world.user.drain()
    world.publish(3)
    world.delta(1).unlink()
    assert world.user.turn() is None
    world.clock.now += 5.0  # all deltas are listed now and then
    assert world.user.turn() is None
    assert world.user.reader.set_aside == {f"deltas/{world.trainer.place.base}": "delta 1 is missing, 3 is there"}


def test_a_delta_that_is_put_right_is_taken(world: World) -> None:
    world.user.drain()
    world.publish(2)
    path = world.delta(1)
    good = path.read_bytes()
    truncate(path)
    assert world.user.turn() is None
    assert list(world.user.reader.set_aside) == [delta_name(world.trainer.place.base, 1)]
    path.write_bytes(good)
    assert world.user.turn() is None  # not looked at all the time
    world.clock.now += 5.0
    assert world.user.drain() == ["Apply", "Apply"]
    assert world.user.reader.set_aside == {}


def test_a_fork_is_not_followed(world: World) -> None:
    """The trainer's disk came back from a backup: delta 2 is another than the one that was read."""
    fork(world)
    assert world.user.drain() == []
    assert world.at[1] == 2
    (why,) = world.user.reader.set_aside.values()
    assert "another history" in why
    world.trainer.snapshot()
    assert world.user.drain() == ["Rebase"]
    assert world.at[1] == 3


def fork(world: World) -> None:
    world.publish(1)
    there, state = world.trainer.place, dict(world.trainer.state)
    world.trainer.publish(seed=1)
    world.user.drain()
    world.delta(2).unlink()
    world.trainer.place, world.trainer.state = there, state
    world.trainer.state[1] = 77.0
    world.trainer.publish(seed=2)
    world.trainer.publish(seed=2)


def test_a_reader_that_does_not_look_at_the_chain_is_found_out(tmp_path: Path) -> None:
    world = World(tmp_path, Trusting)
    fork(world)
    with pytest.raises((AssertionError, KeyError)):
        world.user.drain()


class Backward(LineReader):
    """The canary: it takes any snapshot where no delta follows."""

    def _ahead(self) -> list[Any]:
        return self.snapshots.manifests(self.line)[-1:]

    def accept(self, step: Rebase | Apply) -> None:
        self.place = step.snapshot.place if isinstance(step, Rebase) else step.delta.place


def test_a_reader_that_goes_back_is_found_out(tmp_path: Path) -> None:
    world = World(tmp_path, Backward)
    world.publish(2)
    with pytest.raises(AssertionError, match="moved back"):
        world.user.drain()


def test_anothers_delta_in_the_place_of_the_next(world: World) -> None:
    world.user.drain()
    world.publish(3)
    world.delta(2).write_bytes(world.delta(1).read_bytes())
    assert world.user.drain() == ["Apply"]
    assert "holds delta 1" in next(iter(world.user.reader.set_aside.values()))


def test_a_damaged_snapshot_stays_aside(world: World) -> None:
    world.user.drain()
    first = world.trainer.place.base
    world.publish(1)
    damaged = world.trainer.full()
    truncate(world.line / damaged / "table-rows.safetensors")
    assert world.user.drain() == ["Apply"]
    assert world.at == (first, 1)
    assert list(world.user.reader.set_aside) == [damaged]
    good = world.trainer.full()
    assert world.user.drain() == ["Rebase"]
    assert world.user.reader.version == good


def test_without_a_state_an_older_one_is_taken(world: World) -> None:
    older = world.trainer.place.base
    world.publish(2)
    damaged = world.trainer.full()
    truncate(world.line / damaged / "manifest.json")
    assert world.user.drain() == ["Rebase", "Apply", "Apply"]
    assert world.at == (older, 2)


def test_what_its_user_rejects(world: World) -> None:
    old = world.trainer.place.base
    world.publish(1)
    other = world.trainer.full()
    reader = world.user.reader
    step = reader.poll()
    assert isinstance(step, Rebase)
    assert step.snapshot.manifest.version == other
    reader.reject(step, "it was trained for other features")
    assert reader.set_aside == {other: "it was trained for other features"}
    assert world.user.drain() == ["Rebase", "Apply"]  # there was none: the older one
    assert world.at == (old, 1)
    world.clock.now += 1e6
    assert world.user.drain() == []  # and it is not proposed again
    assert reader.set_aside == {other: "it was trained for other features"}
    good = world.trainer.full()
    assert world.user.drain() == ["Rebase"]
    world.publish(1)
    step = reader.poll()
    assert isinstance(step, Apply)
    reader.reject(step, "it has another dim")
    assert world.user.drain() == []
    assert reader.set_aside[delta_name(good, 1)] == "it has another dim"
    world.trainer.snapshot()
    assert world.user.drain() == ["Rebase"]


def test_what_is_neither_accepted_nor_rejected_comes_again(world: World) -> None:
    reader = world.user.reader
    first, again = reader.poll(), reader.poll()
    assert isinstance(first, Rebase)
    assert isinstance(again, Rebase)
    assert first.snapshot.manifest == again.snapshot.manifest
    reader.accept(again)
    with pytest.raises(ValueError, match="not ahead"):
        reader.accept(first)
    world.publish(2)
    step = reader.poll()
    assert isinstance(step, Apply)
    assert step.delta.sequence == 1
    with pytest.raises(ValueError, match="does not follow"):
        reader.accept(Apply(replace(step.delta, sequence=2)))
    reader.accept(step)
    with pytest.raises(ValueError, match="does not follow"):
        reader.accept(step)


def test_retention_under_a_reader_in_mid_flight(world: World) -> None:
    world.user.drain()
    world.publish(4)
    assert world.user.turn() is not None
    world.trainer.snapshot()
    world.store.keep("main", 1)
    world.publish(1)
    assert world.user.drain() == ["Rebase", "Apply"]


def test_a_snapshot_deleted_while_it_was_read(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    world.publish(1)
    load, old = world.store.load, world.trainer.place.base

    def deleted_meanwhile(line: str, version: str, training: bool = False) -> Any:
        monkeypatch.undo()
        world.trainer.full()
        world.store.keep("main", 1)
        return load(line, version, training)

    monkeypatch.setattr(world.store, "load", deleted_meanwhile)
    assert world.user.turn() is None
    assert world.user.reader.set_aside == {}
    assert world.user.drain() == ["Rebase"]
    assert world.at[0] > old


@pytest.mark.parametrize("call", ["list", "exists", "get"])
def test_a_store_that_is_away_for_a_while(world: World, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    world.user.drain()
    world.publish(2)
    reader = world.user.reader

    def away(*arguments: object) -> None:
        raise OSError(5, "Input/output error")

    monkeypatch.setattr(world.store.files, call, away)
    assert world.user.drain() == []
    assert reader.failure is not None
    assert "Input/output error" in reader.failure
    assert reader.set_aside == {}  # nothing is wrong with what is there
    monkeypatch.undo()
    world.clock.now += 1.0
    assert world.user.drain() == ["Apply", "Apply"]
    assert reader.failure is None


def test_a_folder_that_is_gone_is_said(world: World) -> None:
    world.user.drain()
    world.line.rename(world.root / "away")
    assert world.user.turn() is None
    assert "no snapshot any more" in str(world.user.reader.failure)
    (world.root / "away").rename(world.line)
    world.publish(1)
    assert world.user.drain() == ["Apply"]
    assert world.user.reader.failure is None


def test_a_delta_that_nobody_published_is_found_out(world: World) -> None:
    """The canary of the check itself: a well-formed delta that follows on and is not the trainer's."""
    world.user.drain()
    delta = world.trainer.step()
    forged = TableDelta(np.array([8], np.uint64), np.array([[9, -9]], np.float32), delta.tables["rows"].deleted)
    world.delta(1).parent.mkdir(parents=True)
    world.delta(1).write_bytes(encode(replace(delta, tables={"rows": forged})))
    with pytest.raises((AssertionError, KeyError)):
        world.user.drain()
