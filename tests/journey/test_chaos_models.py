"""Rebuilds, rollbacks and refused updates while server and trainer run and are killed."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from chaos_hands import Bursts, RebuildKills, Rollback, Rollbacks, refusals, stages
from chaos_shop import Shop
from chaos_survival import Survived, assert_all_well, seed_of
from chaos_world import Chaos, Fresh, Plan


@pytest.mark.slow
def test_rebuilds_killed_in_every_stage_change_nothing(tmp_path: Path) -> None:
    seed = seed_of("rebuilds")
    dice = random.Random(seed)
    shop = Shop(tmp_path / "shop", rebuild_every="1s", batch=32)
    hand = RebuildKills(shop, [dice.uniform(0, 6)], wanted=2)
    chaos = Chaos(shop, [Plan(True, dice.uniform(2, 12)) for _ in range(3)], [], [hand], seed=seed)
    for stage, reached in stages(shop, lambda: chaos.trainer.running.pid).items():
        delay = dice.uniform(0, 1.5) if stage in ("started", "published", "in use") else dice.uniform(0, 0.1)
        chaos.trainer.plans.append(Plan(True, delay, both=dice.random() < 0.2, when=reached))
    with Survived.of(chaos) as survived:
        assert hand.kills == 1
        assert chaos.trainer.kills >= 6
        history = survived.history
        assert len(history.made("rebuilt")) >= 2
        assert len(history.bases) == 1 + len(history.made("rebuilt"))
        assert assert_all_well(survived, deltas=30).passed_over == 0


@pytest.mark.slow
def test_rollbacks_among_kills_change_nothing_else(tmp_path: Path) -> None:
    seed = seed_of("rollbacks")
    dice = random.Random(seed)
    shop = Shop(tmp_path / "shop")
    plans = [Rollback(dice.uniform(0.5, 3), relearn) for relearn in (True, False) * 4]
    plans += [Rollback(dice.uniform(0.5, 2), dice.random() < 0.5, killed_after=dice.uniform(0, 0.5)) for _ in range(3)]
    dice.shuffle(plans)
    hand = Rollbacks(shop, plans, dice)
    kills = [
        [Plan(dice.random() < 0.8, dice.uniform(0.05, 3), both=dice.random() < 0.1) for _ in range(7)] for _ in "ab"
    ]
    chaos = Chaos(shop, *kills, [hand], seed=seed)
    with Survived.of(chaos) as survived:
        assert hand.done + hand.killed == 11
        made = len(survived.history.made("rolled_back"))
        assert hand.done <= made <= hand.done + hand.killed
        assert len(survived.history.bases) == 1 + made
        assert assert_all_well(survived, deltas=20).passed_over == 0


@pytest.mark.slow
def test_refused_updates_among_kills_are_passed_over_and_no_others(tmp_path: Path) -> None:
    seed = seed_of("refused updates")
    dice = random.Random(seed)
    shop = Shop(tmp_path / "shop", loss_jump=0.2, canary_overlap=0.85)
    hand = Bursts(shop, wanted=8, ordinary=300, events=600, delay=1.0)
    when = [Plan(True, dice.uniform(0, 0.3), when=Fresh(lambda: refusals(shop))) for _ in range(3)]
    kills = [Plan(dice.random() < 0.8, dice.uniform(0.05, 4)) for _ in range(3)]
    chaos = Chaos(
        shop, [Plan(True, dice.uniform(1, 6)) for _ in range(3)], dice.sample(when + kills, 6), [hand],
        seed=seed, most=20,
    )  # fmt: skip
    with Survived.of(chaos) as survived:
        assert len(survived.history.refused) >= 5
        assert assert_all_well(survived, deltas=20).passed_over > 0
        assert len(survived.history.bases) == 1
