"""Updates that are refused, and micro-batches that fail: what stays of them, and how the trainer goes on."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from stream_world import (
    assert_equal,
    contents,
    drain,
    entities,
    item_keys,
    served,
    user_key,
    world_of,
)

from mainstem.schema.errors import StoreError
from mainstem.schema.records import Erase
from mainstem.train import canaries
from mainstem.train import guard as guards
from mainstem.train.guard import Guard
from mainstem.train.retrieval import RetrievalLearner


def test_a_refused_update_is_kept_and_passed_over(base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    world = world_of(base, tmp_path)
    online = world.trainer()
    drain(online, publish_every=2, most=4)
    good = contents(online)
    place = online.place
    with torch.no_grad():
        online.learner.towers.module.mix.fill_(float("nan"))
    online.step()
    bad = online.position
    assert not online.publish()
    assert "finite" in online.status.last_refusal
    assert online.status.refused == 1
    (refused,) = world.store.deltas.refused("main")
    assert "finite" in refused.why
    assert refused.why in caplog.text
    assert online.position == bad
    now = contents(online)
    assert_equal({n: a for n, a in now.items() if n.startswith("module")},
                 {n: a for n, a in good.items() if n.startswith("module")})  # fmt: skip
    assert online.place.sequence == place.sequence + 1  # which says that these records are passed over
    assert world.trainer().position == bad
    rows, dense, _ = served(world)
    assert np.isfinite(dense["towers.mix"]).all()
    assert all(np.isfinite(row).all() for row in rows.values())
    drain(online)
    online.publish()
    assert online.position == world.log.end()
    assert online.status.refused == 1
    assert served(world)[2].place == online.place


def test_what_is_passed_over_still_forgets_and_is_still_known(base: Path, tmp_path: Path) -> None:
    """An erasure among the records of a refused update is an erasure, an entity is in the catalogue."""
    world = world_of(base, tmp_path)
    user = np.array([user_key(3)], np.uint64)
    online = world.trainer()
    drain(online)
    online.publish()
    assert online.learner.towers.table.find(user)[0] >= 0  # canary
    world.log.append([Erase(record_id="x", time=world.rest[-1].time, user="u3"), *entities(61, first=60)])
    online.step()
    with torch.no_grad():
        online.learner.towers.module.mix.fill_(float("nan"))
    assert not online.publish()
    assert online.status.passed_over > 0
    for each in (online, world.trainer()):
        assert each.learner.towers.table.find(user).tolist() == [-1]
        assert user[0] not in each.learner.histories.state()["user"]
        assert each.learner.catalog.rows(item_keys(61)[60:]).min() >= 0
        assert each.learner.catalog.position() == each.position
    assert int(user[0]) not in served(world)[0]


def test_a_refusal_beside_a_new_base_that_has_seen_more_stays_with_it(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    online = world.trainer()
    drain(online, publish_every=1, most=2)
    online.step()
    made = world.store.rollback("main", world.store.versions("main")[0], world.log.end())
    with torch.no_grad():
        online.learner.towers.module.mix.fill_(float("nan"))
    assert not online.publish()
    assert online.place.base == made
    assert online.position == world.log.end()


def test_a_ranking_network_that_is_left_to_rebuilds_is_no_reason_to_refuse(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path, ranking_learning_rate=0.0)
    online = world.trainer()
    drain(online)
    online.publish()
    assert online.learner.labelling is not None
    assert len(online.learner.labelling)  # type: ignore[arg-type]  # canary: it has pools that it could learn from
    assert (online.status.refused, online.status.slates) == (0, 0)


def test_a_jump_of_the_loss_is_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(guards.LEAST, "retrieval", 16)
    world = world_of(base, tmp_path)
    online = world.trainer()
    for _ in range(12):
        online.step()
        assert online.publish()
    online.step()
    online._window.losses = {"retrieval": [(online.guard.watches["retrieval"].reference.mean * 2, 64)]}
    assert not online.publish()
    assert online.status.last_refusal.startswith("loss")


def test_slates_that_turn_over_at_once_are_refused(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(canaries, "CHOICE", 60)
    # whatever the rows, an item's parity alone makes a third of a slate stay
    world = world_of(base, tmp_path, batch=64, canary_overlap=0.5)
    online = world.trainer()
    drain(online, publish_every=1, most=3)
    assert "retrieval" in online.guard.slates
    online.step()
    table = online.learner.towers.table
    rng = np.random.default_rng(1)
    for keys, values in list(table.items()):
        table.write(keys, rng.normal(size=values.shape).astype(np.float32))
    assert not online.publish()
    assert online.status.last_refusal.startswith("canary")
    assert "retrieval" in online.status.last_refusal


def test_a_ranking_network_that_turns_over_at_once_is_refused(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path, batch=64)
    online = world.trainer()
    drain(online, publish_every=1, most=4)
    assert "ranking" in online.guard.slates
    asked, heads = online.guard.slates["ranking"], len(world.config.heads)
    assert canaries.LEAST_POOLS * heads <= len(asked) <= canaries.POOLS * heads
    assert asked.shape[1] == 5  # half of ten candidates
    online.step()
    good = contents(online)
    with torch.no_grad():
        online.learner.ranking.ranker.wide.weight[:, 0] = -100.0  # what was last is first
    assert not online.publish()
    assert online.status.last_refusal.startswith("canary")
    assert "ranking" in online.status.last_refusal
    now = contents(online)
    assert not np.array_equal(now["labels"], good["labels"])  # back to the last delta
    online.step()
    assert online.publish()  # canary: without the turn it passes


def test_an_erasure_chooses_other_canaries(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path, batch=64)
    online = world.trainer()
    drain(online, publish_every=1)
    asked = online._canaries
    assert "ranking" in online.guard.slates
    world.log.append([Erase(record_id="x", time=world.rest[-1].time, user="u3")])
    drain(online, publish_every=1)
    assert online._canaries is not asked
    assert online.status.refused == 0


@pytest.mark.parametrize("then", ["step", "publish", "snapshot"])
def test_nothing_stays_of_a_step_that_failed_half_done(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, then: str
) -> None:
    """The ranking network moves before retrieval; an error there must not leave it moved, nor labels taken twice."""
    whole = world_of(base, tmp_path, "whole")
    unharmed = whole.trainer()
    drain(unharmed, publish_every=1)

    world = world_of(base, tmp_path, "harmed")
    online = world.trainer()
    drain(online, publish_every=1, most=4)

    def fails(*_: object) -> float:
        raise MemoryError("no memory for the look-up")

    step, before = RetrievalLearner.step, contents(online)
    while True:
        monkeypatch.setattr(RetrievalLearner, "step", fails)
        with pytest.raises(MemoryError):
            online.step()
        monkeypatch.setattr(RetrievalLearner, "step", step)
        now = contents(online)
        if any(not np.array_equal(now[name], array) for name, array in before.items() if name.startswith("ranker")):
            break  # canary: this step did move the ranking network
        online.step()
        online.publish()
        before = contents(online)
    if then == "publish":
        assert not online.publish()
    elif then == "snapshot":
        online.snapshot(wait=True)
    drain(online, publish_every=1)
    assert_equal(contents(online), contents(unharmed))


def test_an_update_that_failed_on_its_way_is_published_with_the_next(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_of(base, tmp_path)
    online = world.trainer()
    drain(online, publish_every=10, most=3)
    judge = Guard.judge

    def fails(*_: object) -> None:
        raise MemoryError("no memory for the canaries")

    monkeypatch.setattr(Guard, "judge", fails)
    with pytest.raises(MemoryError):
        online.publish()
    monkeypatch.setattr(Guard, "judge", judge)
    assert online.publish()
    rows, table = served(world)[0], online.learner.towers.table
    keys = np.array(sorted(rows), np.uint64)
    assert len(keys) == len(table)
    np.testing.assert_array_equal(table.read(keys), np.array([rows[key] for key in keys.tolist()]))


def test_a_refusal_that_could_not_be_written_is_tried_again(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the records that it passes over would come back into the next delta at a restart."""
    world = world_of(base, tmp_path)
    online = world.trainer()
    drain(online, publish_every=2, most=4)
    publish = world.store.publish

    def fails(*_: object) -> None:
        raise StoreError("the disk is full")

    monkeypatch.setattr(world.store, "publish", fails)
    online.step()
    with torch.no_grad():
        online.learner.towers.module.mix.fill_(float("nan"))
    with pytest.raises(StoreError, match="full"):
        online.publish()
    monkeypatch.setattr(world.store, "publish", publish)
    drain(online, publish_every=2)
    online.publish()
    assert_equal(contents(world.trainer()), contents(online))
