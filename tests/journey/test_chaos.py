"""Server and trainer killed at random moments under load: nothing lost, nothing learned twice, nobody told nonsense."""

from __future__ import annotations

import random
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from chaos_check import (
    History,
    began_wrongly,
    follow,
    follow_all,
    held_differs,
    lost_or_twice,
    new_learner,
    unanswered,
    went_back,
)
from chaos_clients import Evidence, Seen
from chaos_shop import Shop
from chaos_survival import Survived, assert_all_well, seed_of
from chaos_world import Chaos, Plan
from msgspec.structs import replace as replaced

from mainstem import weights
from mainstem.schema.config import Config
from mainstem.schema.position import START
from mainstem.schema.records import Event
from mainstem.train import OnlineTrainer, rebuilt, stream
from mainstem.train.recovery import Recovery, Standing
from mainstem.train.threads import torch_threads
from mainstem.weights import Delta, Snapshot, SnapshotMeta


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Shop:
    return Shop(tmp_path_factory.mktemp("shop"))


@pytest.fixture(scope="module")
def survived(trained: Shop) -> Iterator[Survived]:
    """The shop after both were killed at once under load."""
    chaos = Chaos(trained, [], [Plan(True, 1.0, both=True)])
    with Survived.of(chaos) as found:
        yield found


def test_one_kill_of_both_changes_nothing(survived: Survived) -> None:
    assert survived.chaos.kills == 2
    assert_all_well(survived, deltas=4)


@pytest.mark.slow
def test_fifty_kills_change_nothing(tmp_path: Path) -> None:
    seed = seed_of("fifty kills")
    dice = random.Random(seed)

    def plans(count: int) -> list[Plan]:
        return [
            Plan(False, dice.uniform(0.1, 2)) if dice.random() < 0.35 else
            Plan(True, dice.uniform(0.05, 1.5), both=dice.random() < 0.2)
            for _ in range(count)
        ]  # fmt: skip

    chaos = Chaos(Shop(tmp_path / "shop"), plans(26), plans(26), seed=seed)
    with Survived.of(chaos) as survived:
        assert chaos.kills >= 50
        assert min(chaos.server.kills, chaos.trainer.kills) >= 20
        assert min(chaos.server.killed_starting, chaos.trainer.killed_starting) >= 2
        assert chaos.kills_of_both >= 1
        lineage = assert_all_well(survived, deltas=50)
        assert lineage.passed_over == 0
        assert len(survived.history.bases) == 1


# ---- canaries: the checks can fail ---------------------------------------------------------------


def keeping_all(config: Config) -> Config:
    """No delta goes, however long a training takes here."""
    online = config.train.online.model_copy(update={"keep": 1_000})
    return config.model_copy(update={"train": config.train.model_copy(update={"online": online})})


class Forgetful(Recovery):
    """After a crash it goes on behind the newest delta, without having learned again what came before."""

    def _relearn(self, at: Standing) -> None:
        after = self.store.deltas.sequences(self.line, at.place.base)
        delta = self.store.deltas.load(self.line, at.place.base, after[-1])
        at.place, at.dense_version, at.position = delta.place, delta.dense_version, delta.position


@pytest.mark.parametrize(("kind", "honest"), [(Recovery, True), (Forgetful, False)])
def test_a_trainer_that_skips_the_replay_is_caught(
    survived: Survived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: type[Recovery], honest: bool
) -> None:
    monkeypatch.setattr(stream, "Recovery", kind)
    shop, (base, deltas) = survived.shop, survived.history.bases[0]
    version, half = base.manifest.version, len(deltas) // 2
    shutil.copytree(shop.archive.root / "main" / version, tmp_path / "main" / version)
    (tmp_path / "main" / "deltas" / version).mkdir(parents=True)
    for path in sorted((shop.archive.root / "main" / "deltas" / version).iterdir())[:half]:
        shutil.copy(path, tmp_path / "main" / "deltas" / version)
    store = weights.open(str(tmp_path))
    with torch_threads(1):  # as `mainstem train --online` does, and `follow`
        fingerprint = base.manifest.fingerprint
        config = keeping_all(shop.config)
        trainer = OnlineTrainer(config, survived.log, store, lambda: new_learner(config), fingerprint)
        while trainer.step():
            trainer.publish()
    numbers = store.deltas.sequences("main", version)
    assert len(numbers) > half
    lineage = follow(shop.config, survived.log, base, [store.deltas.load("main", version, n) for n in numbers])
    assert (lineage.faults == []) is honest, lineage.faults
    if not honest:
        assert "uninterrupted" in lineage.faults[0]


def test_ranges_learned_twice_or_left_out_are_caught(survived: Survived) -> None:
    base, deltas = survived.history.bases[0]

    def faults(*altered: Delta) -> list[str]:
        return follow(survived.shop.config, survived.log, base, [*deltas[:at], *altered]).faults

    at = next(n for n, delta in enumerate(deltas) if n > 2 and delta.extras["cuts"])
    delta, before = deltas[at], deltas[at - 1].position.offset()
    assert faults(delta) == []
    assert "already" in faults(replace(delta, extras={"cuts": [[before, True], *delta.extras["cuts"]]}))[0]
    assert faults(replace(delta, extras={"cuts": delta.extras["cuts"][:-1] or [[before + 1, True]]}))
    assert "nothing was refused" in faults(replace(delta, extras={"cuts": []}))[0]
    assert "does not follow on" in faults(*deltas[at + 1 :])[0]


@pytest.fixture
def turned(survived: Survived, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> History:
    """What the shop published, then a rollback to half the log, then a rebuild, learned on to the log's end."""
    monkeypatch.setattr(rebuilt, "LOOK", 0.0)
    shop, (base, deltas) = survived.shop, survived.history.bases[0]
    shutil.copytree(shop.archive.root, tmp_path / "weights")
    store, version = weights.open(str(tmp_path / "weights")), base.manifest.version
    config = keeping_all(shop.config)
    store.rollback("main", version, deltas[len(deltas) // 2].position)
    with torch_threads(1):
        trainer = OnlineTrainer(config, survived.log, store, lambda: new_learner(config), base.manifest.fingerprint)
        rolled_back = trainer.place.base
        assert trainer.step()
        assert trainer.publish()
        extras = {"state": base.manifest.extras["state"]}
        meta = SnapshotMeta(fingerprint=trainer.fingerprint, position=base.position, extras=extras)
        store.save("main-rebuilt", base.tensors, base.tables, meta, base.training)
        while trainer.step() or trainer.place.base == rolled_back:
            trainer.publish()
    return History.of(store)


def test_bases_that_come_from_nowhere_or_lose_their_place_are_caught(survived: Survived, turned: History) -> None:
    config, log = survived.shop.config, survived.log
    assert follow_all(config, log, turned).faults == []
    assert len(turned.made("rolled_back")) == len(turned.made("rebuilt")) == 1
    first, back, new = turned.bases

    def faults(before: tuple[Snapshot, list[Delta]], base: Snapshot, **changed: object) -> str:
        altered = replaced(base, manifest=replaced(base.manifest, **changed))
        return " ".join(began_wrongly(config, log, turned, before, altered))

    assert faults(first, back[0]) == faults(back, new[0]) == ""
    extras = new[0].manifest.extras
    until = log.read(START, new[0].position.offset())
    off = f"p0:{max(o for o, r in zip(until.offsets, until.records, strict=True) if isinstance(r, Event))}"
    older = {name: value for name, value in extras.items() if name != "rebuilt"}
    assert "comes from nowhere" in faults(back, new[0], extras=older)
    assert "comes from nowhere" in faults(back, new[0], extras=older | {"rebuilt": "v-of-nobody"})
    assert "each event once" in faults(back, new[0], position=off)
    assert "learned already" in faults(back, new[0], position=str(back[0].position))
    later = replaced(back[0], manifest=replaced(back[0].manifest, version="v-z"))
    assert "undoes the rollback" in faults((later, back[1]), new[0])
    assert "neither" in faults(first, back[0], position=f"p0:{first[0].position.offset() + 1}")
    assert "is not what" in faults(first, back[0], files=new[0].manifest.files)
    never = {**back[0].manifest.extras, "rolled_back": {"to": "v-of-nobody", "from": ""}}
    assert "never was" in faults(first, back[0], extras=never)


def test_a_server_that_holds_other_rows_is_caught(survived: Survived, tmp_path: Path) -> None:
    learner, place = survived.lineage().learner, survived.history.newest.place
    with np.load(survived.shop.folder / "server.npz") as held:
        keys, values, version = held["keys"], held["values"], str(held["version"])
    assert version == f"{place.base}+{place.sequence}"
    other = values.copy()
    other[0, 0] += 1
    for name, rows, why in (
        ("good", (keys, values, version), ""),
        ("other", (keys, other, version), "not what was learned"),
        ("fewer", (keys[1:], values[1:], version), "rows are served"),
        ("older", (keys, values, f"{place.base}+0"), "is the newest"),
    ):
        path = tmp_path / f"{name}.npz"
        np.savez(path, keys=rows[0], values=rows[1], version=rows[2])
        found = held_differs(learner, path, version)
        assert bool(found) is bool(why), name
        assert why in "".join(found)


@pytest.mark.parametrize(
    ("seen", "why"),
    [
        ([Seen(1, 150, "v", 1, "v"), Seen(1, 250, "v", 2, "v+1"), Seen(2, 260, "v", 1, "v+1")], ""),
        ([Seen(1, 250, "v", 2, "v+1"), Seen(1, 350, "w", 0, "v+1")], ""),  # a rollback to the networks v+1
        ([Seen(1, 250, "v", 2, "v+1"), Seen(1, 260, "v", 1, "v+1")], "life 1"),
        ([Seen(1, 250, "v", 2, "v+2"), Seen(1, 260, "v", 2, "v+1")], "networks"),
        ([Seen(1, 350, "w", 0, "v+1"), Seen(2, 360, "v", 2, "v+1")], "life 2"),
        ([Seen(1, 150, "v", 2, "v+1")], "not published then"),
        ([Seen(1, 250, "v", 3, "v+1")], "not published then"),
        ([Seen(1, 250, "x", 0, "x")], "not published then"),
        ([Seen(1, 250, "v", 1, "v+2")], "networks are"),
        ([Seen(1, 350, "w", 0, "v+2")], "networks are"),
    ],
)
def test_versions_that_went_back_are_caught(seen: list[Seen], why: str) -> None:
    created = {("v", 0): 50, ("v", 1): 100, ("v", 2): 200, ("w", 0): 300}
    found = went_back(seen, created, {"v": "v", "w": "v+1"})
    assert bool(found) is bool(why)
    assert why in "".join(found)


def test_what_clients_were_told_is_judged() -> None:
    assert lost_or_twice(["a", "b"], ["x", "a", "b"]) == []
    assert lost_or_twice(["a", "b"], ["a"]) == ["b was acknowledged and is lost"]
    assert lost_or_twice(["a"], ["a", "a"]) == ["a is there 2 times"]
    assert lost_or_twice(["a", "b"], ["b", "a"])
    evidence = Evidence(broken=[(1.0, 2.0, "reset")], down=[[1.5, 3.0]])
    assert unanswered(evidence) == []
    evidence.broken.append((4.0, 4.1, "refused"))
    assert len(unanswered(evidence)) == 1
