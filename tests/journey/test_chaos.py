"""Server and trainer killed at random moments under load: nothing lost, nothing learned twice, nobody told nonsense."""

from __future__ import annotations

import random
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from chaos_check import (
    Lineage,
    follow,
    logged_ids,
    lost_or_twice,
    new_learner,
    served_differs,
    state_differs,
    unanswered,
    went_back,
)
from chaos_world import Chaos, Evidence, Plan, Seen, Shop

from mainstem import weights
from mainstem.assemble import open_log
from mainstem.schema.protocols import Log
from mainstem.train import OnlineTrainer
from mainstem.weights import Delta, Snapshots
from mainstem.weights.files import TEMPORARY

# Seconds within which all that is in the log must be learned and served after the last kill.
CONVERGED = 60.0


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def survived(trained: Shop) -> Iterator[Survived]:
    """The shop after both were killed at once under load."""
    chaos = Chaos(trained, [], [Plan(True, 1.0, both=True)])
    found = Survived.of(chaos)
    yield found
    found.log.close()


class Survived:
    """A shop after its chaos, stopped in order, with what was found of it."""

    def __init__(self, chaos: Chaos, settled: float, statuses: list[int]) -> None:
        self.chaos, self.shop, self.settled, self.statuses = chaos, chaos.shop, settled, statuses
        self.log: Log = open_log(self.shop.config, self.shop.folder)
        self.store: Snapshots = weights.open(str(self.shop.weights))
        self.base = self.shop.archive.load("main", self.shop.base, training=True)
        numbers = self.shop.archive.deltas.sequences("main", self.shop.base)
        self.deltas = [self.shop.archive.deltas.load("main", self.shop.base, number) for number in numbers]

    @classmethod
    def of(cls, chaos: Chaos) -> Survived:
        log = open_log(chaos.shop.config, chaos.shop.folder)
        try:
            chaos.rage()
            settled = chaos.settle(CONVERGED, log.end)
            return cls(chaos, settled, chaos.stop())
        finally:
            chaos.close()
            log.close()

    def lineage(self, deltas: list[Delta] | None = None) -> Lineage:
        return follow(self.shop.config, self.log, self.base, self.deltas if deltas is None else deltas)


def assert_all_well(survived: Survived, deltas: int) -> None:
    shop, evidence = survived.shop, survived.chaos.evidence
    assert survived.statuses == [0, 0]
    assert evidence.faults == []
    assert unanswered(evidence) == []
    assert lost_or_twice(evidence.acknowledged, logged_ids(survived.log)) == []
    assert evidence.posts > 20
    created = {delta.sequence: delta.created for delta in survived.deltas}
    assert went_back(evidence.seen, shop.base, created) == []
    assert len({one.sequence for one in evidence.seen}) >= deltas / 4

    lineage = survived.lineage()
    assert lineage.faults == []
    assert lineage.deltas >= deltas
    assert lineage.dense_parts >= deltas / 10
    assert survived.deltas[-1].position == survived.log.end()
    if lineage.passed_over:  # knowingly
        assert survived.store.deltas.refused("main")
    assert served_differs(lineage.learner, survived.store) == []
    newest = survived.store.latest("main")
    assert newest.skipped == {}
    assert newest.version is not None
    snapshot = survived.store.load("main", newest.version, training=True)
    assert snapshot.place == survived.deltas[-1].place
    assert state_differs(lineage.learner, snapshot, shop.config, survived.log) == []
    assert leftovers(shop) == []
    listed = subprocess.run(
        [sys.executable, "-m", "mainstem", "weights", "list"], cwd=shop.folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert f"delta {survived.deltas[-1].sequence:,} of base {shop.base}" in listed.stdout


def leftovers(shop: Shop) -> list[str]:
    """What killed writers left in the model line; the trainer's last, unkilled life must have cleared it."""
    line = shop.weights / "main"
    found = [str(path.relative_to(line)) for path in line.rglob(f"{TEMPORARY}*")]
    return found + [path.name for path in line.glob("v-*") if not (path / "manifest.json").exists()]


def test_one_kill_of_both_changes_nothing(survived: Survived) -> None:
    assert survived.chaos.kills == 2
    assert_all_well(survived, deltas=4)


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    dice = random.Random(20)

    def plans(count: int) -> list[Plan]:
        return [
            Plan(False, dice.uniform(0.1, 4)) if dice.random() < 0.35 else
            Plan(True, dice.uniform(0.05, 4), both=dice.random() < 0.2)
            for _ in range(count)
        ]  # fmt: skip

    chaos = Chaos(Shop(tmp_path / "shop"), plans(26), plans(26))
    survived = Survived.of(chaos)
    try:
        assert chaos.kills >= 50
        assert min(chaos.server.kills, chaos.trainer.kills) >= 20
        assert min(chaos.server.killed_starting, chaos.trainer.killed_starting) >= 3
        assert chaos.kills_of_both >= 3
        assert_all_well(survived, deltas=50)
    finally:
        survived.log.close()


# ---- canaries: the checks can fail ---------------------------------------------------------------


class Forgetful(OnlineTrainer):
    """After a crash it goes on behind the newest delta, without having learned again what came before."""

    def _relearn(self) -> None:
        after = self.store.deltas.sequences(self.line, self.place.base)
        delta = self.store.deltas.load(self.line, self.place.base, after[-1])
        self.place, self.dense_version, self.position = delta.place, delta.dense_version, delta.position


@pytest.mark.parametrize(("kind", "honest"), [(OnlineTrainer, True), (Forgetful, False)])
def test_a_trainer_that_skips_the_replay_is_caught(
    survived: Survived, tmp_path: Path, kind: type[OnlineTrainer], honest: bool
) -> None:
    shop, half = survived.shop, len(survived.deltas) // 2
    shutil.copytree(shop.archive.root / "main" / shop.base, tmp_path / "main" / shop.base)
    (tmp_path / "main" / "deltas" / shop.base).mkdir(parents=True)
    for path in sorted((shop.archive.root / "main" / "deltas" / shop.base).iterdir())[:half]:
        shutil.copy(path, tmp_path / "main" / "deltas" / shop.base)
    store = weights.open(str(tmp_path))
    trainer = kind(
        shop.config, survived.log, store, lambda: new_learner(shop.config), survived.base.manifest.fingerprint
    )
    while trainer.step():
        trainer.publish()
    numbers = store.deltas.sequences("main", shop.base)
    assert len(numbers) > half
    lineage = survived.lineage([store.deltas.load("main", shop.base, number) for number in numbers])
    assert (lineage.faults == []) is honest, lineage.faults
    if not honest:
        assert "uninterrupted" in lineage.faults[0]


def test_ranges_learned_twice_or_left_out_are_caught(survived: Survived) -> None:
    at = next(n for n, delta in enumerate(survived.deltas) if n > 2 and delta.extras["cuts"])
    delta, before = survived.deltas[at], survived.deltas[at - 1].position.offset()
    for cuts, why in (
        ([[before, True], *delta.extras["cuts"]], "already"),
        (delta.extras["cuts"][:-1] or [[before + 1, True]], "."),
    ):
        altered = [*survived.deltas[:at], replace(delta, extras={"cuts": cuts})]
        faults = survived.lineage(altered).faults
        assert faults
        assert why in faults[0] or why == "."
    without = [*survived.deltas[:at], *survived.deltas[at + 1 :]]
    assert "does not follow on" in survived.lineage(without).faults[0]


def test_what_clients_saw_is_judged() -> None:
    assert lost_or_twice(["a", "b"], ["x", "a", "b"]) == []
    assert lost_or_twice(["a", "b"], ["a"]) == ["b was acknowledged and is lost"]
    assert lost_or_twice(["a"], ["a", "a"]) == ["a is there 2 times"]
    assert lost_or_twice(["a", "b"], ["b", "a"])
    created = {1: 100, 2: 200}
    assert went_back([Seen(1, 150, "v", 1), Seen(1, 250, "v", 2), Seen(2, 260, "v", 1)], "v", created) == []
    assert went_back([Seen(1, 250, "v", 2), Seen(1, 260, "v", 1)], "v", created)
    assert went_back([Seen(1, 150, "v", 2)], "v", created)
    assert went_back([Seen(1, 250, "v", 3)], "v", created)
    evidence = Evidence(broken=[(1.0, 2.0, "reset")], down=[[1.5, 3.0]])
    assert unanswered(evidence) == []
    evidence.broken.append((4.0, 4.1, "refused"))
    assert len(unanswered(evidence)) == 1
