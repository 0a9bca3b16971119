"""The candidate against the history in the product: learned from the log, served, put on record, the same in both.

The world: a new user likes or views four things of one parity; a day later they buy five of that parity where they
liked, and of the other where they viewed. A mean over the history is the same in both cases, so no dot product tells:
only how a candidate goes with each event, and what that event was.
"""

from __future__ import annotations

import random
from collections.abc import Iterator

import numpy as np
import pytest
from test_loop import thing

from mainstem.learning import online_trainer
from mainstem.loop import Loop
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import (
    CanvasConfig,
    Config,
    EntityTypeConfig,
    EventConfig,
    ModelConfig,
    RankingConfig,
    TrainConfig,
)
from mainstem.schema.ids import key64
from mainstem.schema.position import START
from mainstem.schema.records import Context, Event, LogRecord, Served, Slate, SlateRequest
from mainstem.schema.time import DAY, HOUR

T0 = 1_500_000_000_000
USERS, A_DAY, THINGS = 900, 10, 20
NEW = range(USERS, USERS + 40)
NOW = T0 + (USERS // A_DAY + 3) * DAY


def config_of(interest: str) -> Config:
    return Config(
        events={"purchase": EventConfig(owned=True), "like": EventConfig(), "view": EventConfig()},
        entities={"item": EntityTypeConfig(attributes={"parity": "category"})},
        canvases={"home": CanvasConfig(limit=10)},
        model=ModelConfig(dim=16, hidden=[16], ranking=RankingConfig(interest=interest)),  # type: ignore[arg-type]
        train=TrainConfig(
            retrieval_batch=256, retrieval_epochs=1, ranking_slates=400, ranking_epochs=12, ranking_batch=8,
            ranking_learning_rate=0.01,
        ),
    )  # fmt: skip


def life_of(user: int, dice: random.Random, at: int) -> list[Event]:
    """Four things of a kind and parity; even numbers view, odd ones like."""
    kind, parity = ("view", "like")[user % 2], user // 2 % 2
    first = some_of(user, kind, parity, 4, at, dice)
    return [*first, *some_of(user, "purchase", wanted_by(user), 5, at + DAY, dice)]


def wanted_by(user: int) -> int:
    """The parity of what a user will buy."""
    parity = user // 2 % 2
    return parity if user % 2 else 1 - parity


def some_of(user: int, kind: str, parity: int, count: int, at: int, dice: random.Random) -> list[Event]:
    """So many different things of a parity."""
    return [
        Event(
            event_id=f"{user}-{kind}-{k}", time=at + k * 1_000, user=f"u{user}", kind=kind,
            entity=str(2 * pick + parity), session=f"{user}-{kind}",
        )
        for k, pick in enumerate(dice.sample(range(THINGS // 2), count))
    ]  # fmt: skip


@pytest.fixture(scope="module", params=["none", "target_attention", "transformer"])
def shop(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loop]:
    """A trained product, to which forty more users have come a day ago."""
    dice = random.Random(1)
    lives = [life_of(user, dice, T0 + user // A_DAY * DAY + dice.randrange(20) * HOUR) for user in range(USERS)]
    events = sorted((event for life in lives for event in life), key=lambda event: event.time)
    with Loop(config_of(request.param), tmp_path_factory.mktemp(request.param)) as loop:
        loop.append([*(thing(number) for number in range(THINGS)), *events])
        loop.train()
        loop.append([event for user in NEW for event in life_of(user, dice, NOW - DAY)[:4]])
        loop.catch_up()
        yield loop


def ask(loop: Loop, user: int, **fields: bool) -> Slate:
    context = Context(user=f"u{user}", time=NOW)
    return loop.slate(SlateRequest(context=context, deadline_ms=60_000, **fields))  # type: ignore[arg-type]


def reads(loop: Loop) -> str:
    return loop.config.model.ranking.interest


def test_what_is_shown_goes_by_both(shop: Loop) -> None:
    wanted = [
        int(item.entity) % 2 == wanted_by(user) for user in NEW[::2] for item in ask(shop, user, shown=False).items
    ]
    right = float(np.mean(wanted))
    assert right < 0.6 if reads(shop) == "none" else right > 0.85, right


def test_the_trainer_learns_from_the_very_numbers_that_serving_scored_by(shop: Loop) -> None:
    slate = ask(shop, USERS + 1, pool=True, shown=False)
    shop.parts.recorder.close()
    records: list[LogRecord] = shop.parts.log.read(START, 100_000).records
    (served,) = [each for each in records if isinstance(each, Served) and each.record_id == slate.request_id]
    with shop.parts.features.view(Context(user=f"u{USERS + 1}", time=NOW)) as view:
        history = view.history()
    trainer = online_trainer(shop.config, shop.parts.log, shop.base)
    labelling, ranking = trainer.learner.labelling, trainer.learner.ranking
    assert labelling is not None
    labelling.take([served], EventBatch.of([]))
    (pool,) = labelling.pools(1)
    logits = ranking.order(pool)[:, 0] * ranking.ranker.slope[0].item() + ranking.ranker.shift[0].item()
    learned = dict(zip(pool.keys.tolist(), 1 / (1 + np.exp(-logits.astype(np.float64))), strict=True))
    for item in slate.items:
        assert item.scores["purchase"] == pytest.approx(learned[key64("item", item.entity)], rel=2e-3)
    if reads(shop) == "none":
        assert served.past is None
        assert pool.pasts is None
        return
    assert pool.pasts is not None
    np.testing.assert_array_equal(pool.pasts.entity, history.entity[-50:])
    np.testing.assert_array_equal(pool.pasts.time, history.time[-50:])
    assert served.past is not None
    assert {served.past.kinds[action] for action in pool.pasts.action[-4:]} == {"like"}
    before = ranking.order(pool)
    pool.pasts.entity[:] = key64("item", "nobody knows")
    assert not np.allclose(ranking.order(pool), before, atol=1e-2)  # canary: the history matters to what is compared
