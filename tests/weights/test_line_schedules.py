"""Whatever happens to the files of a line, its reader has what the trainer had at some place, and moves forward."""

from __future__ import annotations

import logging
import os
import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from line_world import State, Trusting, World

from mainstem.schema.errors import NotReady, StoreError
from mainstem.weights.manifests import Place

_log = logging.getLogger(__name__)


@pytest.fixture
def _no_fsync(monkeypatch: pytest.MonkeyPatch) -> None:
    """Power cuts are not played here, and the disk is slow."""
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)


ACTIONS = st.sampled_from(
    ["publish"] * 6 + ["poll"] * 6 + ["drain", "snapshot", "snapshot", "full", "rollback", "keep", "damage", "damage"]
    + ["lose", "swap", "fork", "reject", "restart", "wait", "refuse"]
)  # fmt: skip


class Schedule:
    """One world, and everything that may happen in it."""

    def __init__(self, root: Path, draw: random.Random) -> None:
        self.world, self.draw = World(root), draw
        self.past: list[tuple[Place, State]] = []

    def do(self, action: str) -> None:
        world = self.world
        try:
            getattr(self, action)()
        except (StoreError, NotReady) as error:  # what a trainer does where its line is broken: start a new one
            _log.info("%s: %s", action, error)
            world.trainer.full()

    def publish(self) -> None:
        self.past.append((self.world.trainer.place, dict(self.world.trainer.state)))
        self.world.trainer.publish(self.draw.randint(0, 9))

    def poll(self) -> None:
        self.world.user.turn()

    def drain(self) -> None:
        self.world.user.drain()

    def snapshot(self) -> None:
        self.world.trainer.snapshot()

    def full(self) -> None:
        self.world.trainer.full()

    def rollback(self) -> None:
        versions = self.world.store.versions("main")
        if not versions:
            raise NotReady("all manifests are lost")
        self.world.trainer.rollback(self.draw.choice(versions))

    def keep(self) -> None:
        self.world.store.keep("main", self.draw.randint(1, 3))

    def damage(self) -> None:
        path = self._file()
        data = bytearray(path.read_bytes())
        if data and self.draw.random() < 0.7:
            data[self.draw.randrange(len(data))] ^= 1 << self.draw.randrange(8)
            path.write_bytes(data)
        else:
            path.write_bytes(data[: self.draw.randint(0, len(data))])

    def lose(self) -> None:
        self._file().unlink()

    def swap(self) -> None:
        self._file().write_bytes(self._file().read_bytes())

    def fork(self) -> None:
        """The trainer goes on from an earlier place of its lineage, as if its disk came back from a backup."""
        trainer = self.world.trainer
        past = [(place, state) for place, state in self.past[-4:] if place.base == trainer.place.base]
        if not past:
            return
        place, state = self.draw.choice(past)
        for sequence in self.world.store.deltas.sequences("main", place.base):
            if sequence > place.sequence:
                self.world.delta(sequence, place.base).unlink()
        for manifest in self.world.store.manifests("main"):
            if manifest.place.after(place):
                self.world.store.files.delete(f"main/{manifest.version}/manifest.json")
        trainer.place, trainer.state = place, dict(state)

    def reject(self) -> None:
        step = self.world.user.reader.poll()
        if step is not None:
            self.world.user.reader.reject(step, "it does not fit")

    def restart(self) -> None:
        self.world.user = self.world.new_user()

    def wait(self) -> None:
        self.world.clock.now += self.draw.choice([0.5, 2.0, 10.0, 400.0])

    def refuse(self) -> None:
        delta = self.world.trainer.step()
        self.world.trainer.state = dict(self.world.trainer.had[self._here()][-1])
        self.world.store.deltas.refuse("main", delta, "canary")

    def _here(self) -> tuple[str, int]:
        return self.world.trainer.place.base, self.world.trainer.place.sequence

    def _file(self) -> Path:
        files = [
            path for path in sorted(self.world.line.rglob("*")) if path.is_file() and not path.name.startswith(".")
        ]
        if not files:
            raise NotReady("all files are lost")
        return self.draw.choice(files[-12:])


@pytest.mark.usefixtures("_no_fsync")
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(actions=st.lists(ACTIONS, min_size=5, max_size=60), seed=st.integers(0, 2**32))
def test_whatever_happens_it_has_what_the_trainer_had(tmp_path: Path, actions: list[str], seed: int) -> None:
    """`User.turn` checks every state; here, that it arrives as soon as there is something whole to arrive at."""
    schedule = Schedule(tmp_path / os.urandom(8).hex(), random.Random(seed))
    for action in actions:
        schedule.do(action)
    world = schedule.world
    world.user.drain()
    world.trainer.full()
    world.publish(2)
    world.user.drain()
    assert world.user.reader.place == world.trainer.place
    assert world.user.state == world.trainer.state


@pytest.mark.usefixtures("_no_fsync")
def test_schedules_find_a_reader_that_does_not_look_at_the_chain(tmp_path: Path) -> None:
    """The canary of the schedules: forks do happen in them."""
    for seed in range(300):
        draw = random.Random(seed)
        schedule = Schedule(tmp_path / str(seed), draw)
        schedule.world.kind = Trusting
        schedule.restart()
        try:
            for _ in range(60):
                schedule.do(draw.choice(["publish", "publish", "poll", "fork", "swap", "snapshot"]))
        except (AssertionError, KeyError):
            return
    pytest.fail("300 schedules, and the reader that trusts everything was always right")
