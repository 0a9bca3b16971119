"""The guard's reference of a loss: what moves it, what does not, and that a new level does not lock learning out."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from stream_world import World, assert_equal, contents, drain, online_config

from mainstem.schema.config import OnlineConfig
from mainstem.schema.protocols import LogBatch
from mainstem.train import OnlineLearner
from mainstem.train import guard as guards
from mainstem.train.guard import LEAST, LEAST_UPDATES, Guard, Refusal
from mainstem.train.online import RETRIEVAL, Step

ENOUGH = LEAST[RETRIEVAL]


def judge(guard: Guard, loss: float, count: int = ENOUGH) -> Refusal | None:
    """Judge an update, and tell the guard where it was refused, as the trainer does."""
    refusal = guard.judge([np.zeros(1, np.float32)], {RETRIEVAL: [(loss, count)]}, {})
    if refusal is not None:
        guard.refuse(refusal.levels)
    return refusal


def usual(guard: Guard) -> float:
    return guard.watches[RETRIEVAL].reference.mean


@pytest.fixture
def guard() -> Guard:
    """One to which a loss near 2 is usual."""
    guard = Guard(OnlineConfig())
    for number in range(20):
        assert judge(guard, 2.0 + 0.05 * (-1) ** number) is None
    return guard


def test_a_level_that_stays_is_the_new_reference(guard: Guard) -> None:
    for number in range(LEAST_UPDATES):
        assert judge(guard, 5.0 + 0.2 * (-1) ** number) is not None
    assert usual(guard) == pytest.approx(5.0, abs=0.1)
    assert judge(guard, 5.1) is None
    assert judge(guard, 50.0) is not None  # canary: it still guards


def test_one_bad_batch_now_and_then_moves_nothing(guard: Guard) -> None:
    for _ in range(3 * LEAST_UPDATES):
        assert judge(guard, 5.0) is not None
        assert judge(guard, 2.0) is None
    assert usual(guard) == pytest.approx(2.0, abs=0.1)


def test_an_explosion_is_no_level(guard: Guard) -> None:
    for number in range(5 * LEAST_UPDATES):
        assert judge(guard, 5.0 * 1.1**number) is not None
    assert usual(guard) == pytest.approx(2.0, abs=0.1)


@pytest.mark.parametrize("loss", [float("nan"), float("inf")])
def test_what_is_not_finite_is_no_level_and_ends_the_row(guard: Guard, loss: float) -> None:
    for _ in range(5 * LEAST_UPDATES):
        assert judge(guard, loss) is not None
    for _ in range(LEAST_UPDATES - 1):
        judge(guard, 5.0)
    judge(guard, loss)
    assert judge(guard, 5.0) is not None
    assert usual(guard) == pytest.approx(2.0, abs=0.1)
    for _ in range(LEAST_UPDATES - 1):  # canary: the row begins anew
        assert usual(guard) == pytest.approx(2.0, abs=0.1)
        judge(guard, 5.0)
    assert usual(guard) == pytest.approx(5.0)


def test_losses_that_waited_do_not_speak_against_the_next_update(guard: Guard) -> None:
    half = ENOUGH // 2
    assert judge(guard, 9.0, half) is None
    assert judge(guard, 9.0, half) is not None
    assert judge(guard, 2.0, half) is None
    assert judge(guard, 2.0, half) is None


def test_its_memory_comes_back(guard: Guard) -> None:
    for _ in range(LEAST_UPDATES - 1):
        judge(guard, 5.0)
    again = Guard(OnlineConfig())
    again.load(guard.state())
    assert again.state() == guard.state()
    judge(again, 5.0)
    assert usual(again) == pytest.approx(5.0)


# ---- in the trainer ----------------------------------------------------------------------------------


@pytest.fixture
def shifted(monkeypatch: pytest.MonkeyPatch) -> None:
    """From the 200th record after the base on, retrieval's loss is three times as high, whoever learns it."""
    monkeypatch.setitem(guards.LEAST, RETRIEVAL, 4)
    learn, first = OnlineLearner.learn, list[int]()

    def told(self: OnlineLearner, batch: LogBatch) -> Step:
        step = learn(self, batch)
        first[:] = [min([*first, batch.next.offset()])]
        loss = (6.0 if batch.next.offset() > first[0] + 200 else 2.0) + 0.001 * (batch.next.offset() % 7)
        return replace(step, losses=step.losses | {RETRIEVAL: (loss, step.positives)})

    monkeypatch.setattr(OnlineLearner, "learn", told)


def world_of(base: Path, folder: Path) -> World:
    shutil.copytree(base, folder)
    return World(folder, online_config(batch=8, ranking_learning_rate=0.0))


@pytest.mark.usefixtures("shifted")
def test_a_shift_for_good_does_not_end_the_learning(
    base: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = world_of(base, tmp_path / "whole")
    online = world.trainer()
    drain(online, publish_every=1)
    assert online.position == world.log.end()
    assert (online.status.refused, online.status.new_levels) == (LEAST_UPDATES, 1)
    assert "usual from now on" in caplog.text
    assert world.store.deltas.load("main", online.place.base, online.place.sequence).extras["cuts"]  # it learns

    # a restart in the middle of the row, over a snapshot or over deltas alone, ends in the same place
    for name, snapshot in (("deltas", False), ("snapshot", True)):
        world = world_of(base, tmp_path / name)
        first = world.trainer()
        while first.status.refused < LEAST_UPDATES // 2:
            first.step()
            first.publish()
        if snapshot:
            first.snapshot(wait=True)
            first.step()
            first.publish()
        again = world.trainer()
        assert len(again.guard.watches[RETRIEVAL].refused) == LEAST_UPDATES // 2 + snapshot
        drain(again, publish_every=1)
        assert again.status.new_levels == 1
        assert again.guard.state() == online.guard.state()
        assert_equal(contents(again), contents(online))
