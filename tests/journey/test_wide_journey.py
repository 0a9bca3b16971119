"""Exact combinations in the product: learned from the log, served, put on record, learned on online, the same in all.

The world is that of the interest's journey: whether a new user buys the parity that they last saw or the other one goes
by whether they liked or viewed it. A cross of all three says it; crosses of two of them do not.
"""

from __future__ import annotations

import dataclasses
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from test_interest_journey import A_DAY, NEW, NOW, T0, THINGS, USERS, config_of, life_of, some_of, wanted_by
from test_loop import thing

from mainstem.learning import learner_of, online_trainer
from mainstem.loop import Loop
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, RankingConfig
from mainstem.schema.examples import Examples
from mainstem.schema.ids import key64, keys64
from mainstem.schema.position import START
from mainstem.schema.records import Context, LogRecord, Served, Slate, SlateRequest
from mainstem.schema.time import DAY, HOUR
from mainstem.train import OnlineTrainer

PAIRS = [["kind", "candidate.parity"], ["latest.parity", "candidate.parity"], ["canvas", "candidate"]]
ALL = [["kind", "latest.parity", "candidate.parity"], ["canvas", "candidate"]]
LIKE, VIEW = 1, 2  # places among the kinds of interest
ARMS = {
    "pairs, deep": (PAIRS, "deep"),
    "all, deep": (ALL, "deep"),
    "all, logistic": (ALL, "logistic"),
    "logistic": ([], "logistic"),
}


def config_for(arm: str) -> Config:
    crosses, network = ARMS[arm]
    config = config_of("none")
    ranking = RankingConfig.model_validate({"network": network, "wide": {"crosses": crosses}})
    return config.model_copy(update={"model": config.model.model_copy(update={"ranking": ranking})})


@pytest.fixture(scope="module", params=list(ARMS))
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, Loop]]:
    """A trained product, to which forty more users have come a day ago."""
    dice = random.Random(1)
    lives = [life_of(user, dice, T0 + user // A_DAY * DAY + dice.randrange(20) * HOUR) for user in range(USERS)]
    events = sorted((event for life in lives for event in life), key=lambda event: event.time)
    with Loop(config_for(request.param), tmp_path_factory.mktemp("wide")) as loop:
        loop.append([*(thing(number) for number in range(THINGS)), *events])
        loop.train()
        loop.append([event for user in NEW for event in life_of(user, dice, NOW - DAY)[:4]])
        loop.catch_up()
        yield request.param, loop


def ask(loop: Loop, user: int, **fields: bool) -> Slate:
    context = Context(user=f"u{user}", time=NOW)
    return loop.slate(SlateRequest(context=context, deadline_ms=60_000, **fields))  # type: ignore[arg-type]


def test_what_is_shown_goes_by_the_whole_combination(shop: tuple[str, Loop]) -> None:
    arm, loop = shop
    wanted = [
        int(item.entity) % 2 == wanted_by(user) for user in NEW[::2] for item in ask(loop, user, shown=False).items
    ]
    right = float(np.mean(wanted))
    assert right > 0.85 if arm.startswith("all") else right < 0.6, right


def test_the_trainer_learns_from_the_very_numbers_that_serving_scored_by(shop: tuple[str, Loop]) -> None:
    arm, loop = shop
    slate = ask(loop, NEW[1], pool=True, shown=False)
    loop.parts.recorder.close()
    trainer = online_trainer(loop.config, loop.parts.log, loop.base)
    ranking, pool = trainer.learner.ranking, pool_of(loop, trainer, slate)
    logits = ranking.order(pool)[:, 0] * ranking.ranker.slope[0].item() + ranking.ranker.shift[0].item()
    learned = dict(zip(pool.keys.tolist(), 1 / (1 + np.exp(-logits.astype(np.float64))), strict=True))
    for item in slate.items:
        assert item.scores["purchase"] == pytest.approx(learned[key64("item", item.entity)], rel=2e-3)
    if ranking.wide is None:
        assert pool.pasts is None
        return
    assert pool.pasts is not None
    before, actions = ranking.order(pool), pool.pasts.action.copy()
    actions[-1] = LIKE + VIEW - actions[-1]
    other = dataclasses.replace(pool, pasts=dataclasses.replace(pool.pasts, action=actions))
    # canary: the scores agree because of the kind of the very latest event
    assert not arm.startswith("all") or np.abs(ranking.order(other) - before).max() > 0.1


def pool_of(loop: Loop, trainer: OnlineTrainer, slate: Slate) -> Examples:
    """The slate's candidates as the trainer reads them from the log."""
    records: list[LogRecord] = loop.parts.log.read(START, 100_000).records
    (served,) = [each for each in records if isinstance(each, Served) and each.record_id == slate.request_id]
    labelling = learner_of(loop.config, trainer.learner.catalog, served.feature_names).labelling
    assert labelling is not None
    labelling.take([served], EventBatch.of([]))
    (pool,) = labelling.pools(1)
    return pool


def test_what_is_learned_online_is_served_with_the_next_delta(shop: tuple[str, Loop], tmp_path: Path) -> None:
    """From now on it is the other way round: the weights of the whole combinations turn, in serving's table too."""
    arm, trained = shop
    if not arm.startswith("all"):  # nothing is remembered of whole combinations
        assert (trained.parts.keeper.current().wide is None) == (arm == "logistic")
        return
    shutil.copytree(trained.base, tmp_path / "shop")
    with Loop(trained.config, tmp_path / "shop") as loop:
        loop.catch_up()
        users = NEW[1:20:2]
        slates = [ask(loop, user, pool=True, shown=False) for user in users]
        loop.parts.recorder.close()
        trainer = online_trainer(loop.config, loop.parts.log, loop.base)
        pool = pool_of(loop, trainer, slates[0])
        live, learned = loop.parts.keeper.current().wide, trainer.learner.ranking.wide
        assert live is not None
        assert learned is not None
        combination = learned.crosses.keys(pool.inputs, pool.keys, pool.offsets, pool.pasts)[:, 0]
        turned = np.isin(pool.keys, keys64("item", [str(2 * k + 1 - wanted_by(users[0])) for k in range(THINGS // 2)]))
        before = live.table.read(combination)[:, 0]
        assert before[~turned].min() > before[turned].max()
        dice = random.Random(2)
        loop.append(
            [event for user in users for event in some_of(user, "purchase", 1 - wanted_by(user), 5, NOW + 1_000, dice)]
        )
        while trainer.step():
            pass
        assert trainer.publish()
        loop.parts.keeper.refresh()
        after = loop.parts.keeper.current()
        assert after.wide is not None
        assert after.wide.table is live.table  # by the delta alone
        assert (live.table.read(combination)[turned, 0] > before[turned]).all()
        assert (live.table.read(combination)[~turned, 0] < before[~turned]).all()
        for column in ("keys", "values"):
            np.testing.assert_array_equal(live.table.state()[column], learned.table.state()[column])
        assert ask(loop, users[0], shown=False).sparse_version != slates[0].sparse_version
        # a trainer that starts again learns the same from the log, and later finds it in the snapshot
        for _ in range(2):
            again = online_trainer(loop.config, loop.parts.log, loop.base).learner.ranking.wide
            assert again is not None
            for column, array in learned.table.state().items():
                np.testing.assert_array_equal(again.table.state()[column], array, err_msg=column)
            trainer.snapshot(wait=True)
