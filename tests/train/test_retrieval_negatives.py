"""Negatives on the product's own path: every mixture learns what the full softmax does, by chances that are true."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, T0, Source, catalog_of, purchases
from hypothesis import given, settings
from hypothesis import strategies as st
from learned_towers import positives_of, share_right, trained, trainer_of, user_vector

from mainstem.learning import learner_of
from mainstem.models.losses import negatives as sources
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.ids import keys64
from mainstem.schema.records import Event
from mainstem.schema.retrieval_config import RetrievalConfig
from mainstem.schema.time import DAY
from mainstem.train import OnlineLearner, RetrievalTrainer, negatives
from mainstem.train.interactions import Interactions
from mainstem.train.negatives import Candidates, Negatives, mine, others
from mainstem.train.population import Population
from mainstem.weights.checkpoints import flatten, unflatten

MIXTURES: dict[str, dict[str, Any]] = {
    "in batch": {"uniform": 0},
    "uniform": {"in_batch": False, "uniform": 5},
    "popular": {"in_batch": False, "uniform": 0, "popular": {"draws": 5}},
    "hard": {"in_batch": False, "uniform": 3, "hard": {"draws": 2, "among": 6, "every": 3}},
    "queue": {"in_batch": False, "uniform": 1, "queue": 3},
    "all": {"uniform": 3, "popular": {"draws": 3}, "hard": {"draws": 1, "among": 6, "every": 3}, "queue": 1},
}


def slow(*names: str) -> list[Any]:
    return [pytest.param(name, marks=pytest.mark.slow) for name in names]


def drawing(**changes: Any) -> RetrievalConfig:
    return RetrievalConfig.model_validate(changes)


def with_negatives(config: RetrievalConfig, **train: Any) -> Config:
    return CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"retrieval": config} | train)})


# ---- what is learned ---------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*MIXTURES, "full"])
def test_every_mixture_learns_the_checkerboard(name: str) -> None:
    config = RetrievalConfig(softmax="full") if name == "full" else drawing(**MIXTURES[name])
    assert share_right(trained(purchases(), 4, with_negatives(config)).towers) > 0.95


# One entity in four purchases is the first, one the second; the others share the rest.
SKEW = np.array([0.25, 0.25, *[0.5 / 58] * 58])
ODDS = float(np.log(SKEW[0] / SKEW[-1]))


def level(config: RetrievalConfig) -> float:
    """How much higher the two popular entities score than the others, in log-odds, where nobody has a taste."""
    taken = np.random.default_rng(0).choice(60, 2_000, p=SKEW)
    events = [
        Event(event_id=str(i), time=T0 + i * DAY // 50, user=f"u{i % 50}", kind="purchase", entity=f"x{item}")
        for i, item in enumerate(taken)
    ]
    torch.manual_seed(0)
    chosen = with_negatives(config, retrieval_batch=16)
    trainer = trainer_of(positives_of(EventBatch.of(events)), chosen)
    for epoch in range(2):
        list(trainer.epoch(np.arange(len(events)), np.random.default_rng(0), epoch))
    keys = keys64("item", [f"x{i}" for i in range(60)])
    users = np.mean([user_vector(trainer.towers, keys[[i]]) for i in range(60)], axis=0)
    scores = trainer.towers.entity_vectors(keys) @ users / chosen.model.temperature
    return float(scores[:2].mean() - scores[2:].mean())


def flipped(right: Callable[..., sources.Drawn]) -> Callable[..., sources.Drawn]:
    def draw(*args: Any) -> sources.Drawn:
        found = right(*args)
        return found._replace(log_q=-found.log_q)

    return draw


LEVELS = {name: MIXTURES[name] for name in ("in batch", "popular", "queue", "all")}


@pytest.mark.parametrize("name", ["in batch", "popular", *slow("queue", "all", "full")])
def test_scores_are_log_odds_of_being_taken(name: str) -> None:
    config = RetrievalConfig(softmax="full") if name == "full" else drawing(**LEVELS[name])
    found = level(config)
    assert found == pytest.approx(ODDS, abs=0.6)


@pytest.mark.parametrize("name", ["in batch", *slow("popular", "queue", "all")])
def test_a_flipped_correction_is_seen_in_the_scores(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(negatives, "draw", flipped(negatives.draw))
    assert level(drawing(**LEVELS[name])) < ODDS - 1.2


@pytest.mark.parametrize("estimate", ["ten times the share", *slow("even")])
def test_a_wrong_estimate_of_the_share_is_seen_in_the_scores(estimate: str, monkeypatch: pytest.MonkeyPatch) -> None:
    right = sources.ByPopularity.log_missed
    wrong = {
        "ten times the share": off_by(10.0, right),
        "even": lambda self, keys: torch.full(keys.shape, -0.1).double(),
    }
    monkeypatch.setattr(sources.ByPopularity, "log_missed", wrong[estimate])
    assert level(drawing(**LEVELS["popular"])) < ODDS - 1.2


# ---- the chances -------------------------------------------------------------------------------------

COUNTS = np.arange(1, 17)[::-1] ** 2
STOCK = keys64("item", [f"s{i}" for i in range(16)])
LISTS = np.array([[0, 1, 2, 3, 9, 12], [1, 2, 5, 6, 9, 15], [2, 9, 10, 11, 13, 14]])


def stock() -> Population:
    population = Population()
    population.add(np.repeat(STOCK, COUNTS))
    return population


def misfit(config: RetrievalConfig, samples: int = 1_200) -> float:
    """By how many standard deviations the chance that is told of an entity is off how often it is drawn, at most.

    The first positive of each batch, whose own it is, is not looked at: it is always there.
    """
    population, rng, tool = stock(), np.random.default_rng(0), Negatives(config)
    seen, told = np.zeros(16), np.full(16, np.nan)
    share = population.shares().astype(np.float64)
    for step in range(-3, samples):  # three steps fill the queue
        batch = np.concatenate([population.keys[:1], rng.choice(population.keys, 7, p=share / share.sum())])
        found = tool.candidates(batch, population, rng, LISTS if config.hard.draws else None)
        tool.learned(batch[1:], population)
        assert found.log_q is not None
        assert found.drawn is not None
        if step >= 0:
            places = population.places(found.keys)
            seen[places[found.drawn.numpy()]] += 1
            told[places] = found.log_q.exp().numpy()
    assert not np.isnan(told).any()
    spread = np.sqrt(np.maximum(told * (1 - told), 1e-6) / samples)
    return float((np.abs(seen / samples - told) / spread)[1:].max())


def off_by(factor: float, right: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """`log_missed` of a source whose estimate of the share is so many times the true one."""

    def log_missed(self: Any, keys: torch.Tensor) -> torch.Tensor:
        return factor * right(self, keys)

    return log_missed


@pytest.mark.parametrize("name", MIXTURES)
def test_what_is_told_is_the_chance_drawn_by(name: str) -> None:
    assert misfit(drawing(**MIXTURES[name])) < 4.5


@pytest.mark.parametrize("name", ["in batch", "uniform", "popular", "hard", "queue"])
def test_a_chance_that_is_off_by_a_factor_is_caught(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    kinds = {"in batch": "InBatch", "uniform": "Uniform", "popular": "ByPopularity", "hard": "Hard", "queue": "Queue"}
    source = getattr(sources, kinds[name])
    monkeypatch.setattr(source, "log_missed", off_by(1.5, source.log_missed))
    assert misfit(drawing(**MIXTURES[name])) > 6.0


# ---- the full softmax --------------------------------------------------------------------------------


def one_step(config: RetrievalConfig, events: EventBatch, **train: Any) -> tuple[float, RetrievalTrainer]:
    """The loss of a first step on all events, whole lists mined for it if any, and what learned from it."""
    torch.manual_seed(0)
    trainer = trainer_of(positives_of(events), with_negatives(config, **train))
    rng, rows = np.random.default_rng(0), np.arange(len(trainer.positives))
    trainer.draw_from(rows)
    batch = trainer.positives.batch(rows)
    lists = None
    if trainer.learner.negatives.mines(trainer.population):
        (lists,) = mine(trainer.towers, [batch], trainer.population, config.hard.among)
    return trainer.learner.step(batch, trainer.population, rng, lists), trainer


def test_with_everything_sampled_it_is_the_full_softmax() -> None:
    everything = drawing(uniform=1, hard={"draws": ITEMS, "among": ITEMS})
    sampled, by_sample = one_step(everything, purchases(days=4))
    full, by_all = one_step(RetrievalConfig(softmax="full"), purchases(days=4))
    assert sampled == pytest.approx(full, rel=1e-5)
    a, b = (each.towers.entity_vectors(ITEM_KEYS) for each in (by_sample, by_all))
    np.testing.assert_allclose(a, b, atol=1e-5)
    part, by_part = one_step(drawing(in_batch=False, uniform=9), purchases(days=4))  # canary
    assert part != pytest.approx(full, rel=1e-3)
    assert np.abs(by_part.towers.entity_vectors(ITEM_KEYS) - a).max() > 1e-3


@pytest.mark.parametrize("config", [RetrievalConfig(softmax="full"), drawing(), drawing(**MIXTURES["all"])])
def test_what_the_user_takes_besides_is_no_negative(config: RetrievalConfig) -> None:
    """One user took everything there is: nothing is left to tell a positive from."""
    one = [Event(event_id=str(i), time=T0, user="u1", kind="purchase", entity=f"i{i}", session="s") for i in range(9)]
    assert one_step(config, EventBatch.of(one))[0] == 0
    two = [*one, Event(event_id="x", time=T0, user="u2", kind="purchase", entity="i9", session="s")]
    assert one_step(config, EventBatch.of(two))[0] > 0.1  # canary


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 4), st.integers(0, 5)), min_size=1, max_size=12), st.data())
def test_others_are_all_that_the_user_took(taken: list[tuple[int, int]], data: st.DataObject) -> None:
    user, places = np.array([u for u, _ in taken], np.uint64), np.array([p for _, p in taken])
    asked = data.draw(st.lists(st.integers(0, len(taken) - 1), max_size=8))
    found = {(request, place) for request, place in others(user, places, np.array(asked, np.int64)).T.tolist()}
    assert found == {
        (request, place) for request, at in enumerate(asked) for u, place in taken if u == taken[at][0]
    }  # fmt: skip


# ---- when which --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choice", "offline", "online"),
    [
        ("sampled", [False, False], [False, False]),
        ("auto", [True, False], [True, False]),
        ("full", [True, True], [True, False]),
    ],
)
def test_the_full_softmax_is_for_few_entities_and_online_always_is(
    choice: str, offline: list[bool], online: list[bool]
) -> None:
    for each, wanted in ((False, offline), (True, online)):
        found = []
        for most in (16, 15):
            tool = Negatives(RetrievalConfig.model_validate({"softmax": choice, "full_up_to": most}), online=each)
            candidates = tool.candidates(STOCK[[3, 3]], stock(), np.random.default_rng(0))
            found.append(candidates.log_q is None)
            assert candidates.keys[candidates.places].tolist() == STOCK[[3, 3]].tolist()
            assert not found[-1] or len(candidates.keys) == 16
        assert found == wanted


def test_positives_that_nobody_counted_are_refused() -> None:
    unknown = keys64("item", ["unknown"])
    for choice in ("full", "sampled"):
        with pytest.raises(ValueError, match="must count the positives"):
            Negatives(drawing(softmax=choice)).candidates(unknown, stock(), np.random.default_rng(0))


def test_nothing_is_mined_online_or_where_all_are_candidates() -> None:
    hard = {"draws": 1, "among": 5}
    assert Negatives(drawing(hard=hard)).mines(stock())
    assert not Negatives(drawing()).mines(stock())
    assert not Negatives(drawing(hard=hard), online=True).mines(stock())
    assert not Negatives(RetrievalConfig.model_validate({"softmax": "full", "hard": hard})).mines(stock())


def test_lists_are_what_each_visit_scores_best() -> None:
    trainer = trained(purchases(days=10), 1)
    data, population = trainer.positives, trainer.population
    batches = [data.batch(np.arange(0, 40)), data.batch(np.arange(60, 70))]
    vectors = trainer.towers.entity_vectors(population.keys)
    for batch, lists in zip(batches, mine(trainer.towers, batches, population, 7), strict=True):
        visits = {
            (user, state): i
            for i, (user, state) in enumerate(zip(batch.user.tolist(), batch.state.tolist(), strict=True))
        }
        assert lists.shape == (len(visits), 7)
        scores = trainer.towers.vectors_before(batch) @ vectors.T
        want = sorted(sorted(np.argsort(-scores[i])[:7].tolist()) for i in visits.values())
        assert sorted(sorted(row) for row in lists.tolist()) == want
    (whole,) = mine(trainer.towers, batches[1:], population, 10_000)
    assert whole.shape[1] == len(population)


def test_batches_wait_for_their_lists_and_none_is_lost(monkeypatch: pytest.MonkeyPatch) -> None:
    trainer = trainer_of(
        positives_of(purchases(days=10)), with_negatives(drawing(**MIXTURES["hard"]), retrieval_batch=64)
    )
    mined: list[int] = []
    lists: list[int] = []
    right_mine, right_step = negatives.mine, trainer.learner.step

    def noted_mine(towers: Any, batches: list[Interactions], *rest: Any) -> Any:
        mined.append(len(batches))
        return right_mine(towers, batches, *rest)

    def noted_step(*args: Any) -> float:
        lists.append(len(args[3]))
        return right_step(*args)

    monkeypatch.setattr("mainstem.train.retrieval.mine", noted_mine)
    monkeypatch.setattr(trainer.learner, "step", noted_step)
    rows = np.arange(len(trainer.positives))
    assert sum(count for _, count in trainer.epoch(rows, np.random.default_rng(0))) == len(rows)
    assert sum(mined) == len(lists)
    assert mined[0] == 3
    assert min(lists) > 0


# ---- the queue ---------------------------------------------------------------------------------------


def candidates_after(tool: Negatives, population: Population) -> Candidates:
    return tool.candidates(STOCK[:2], population, np.random.default_rng(5))


def test_a_queue_is_taken_up_where_it_was_and_begins_anew_with_an_epoch() -> None:
    population, tool = stock(), Negatives(drawing(queue=2, uniform=1))
    for batch in ([3, 4], [5, 6, 6], [7, 8]):
        tool.learned(STOCK[batch], population)
    again = Negatives(tool.config)
    again.load(unflatten(*flatten(tool.state())))
    found, same = candidates_after(tool, population), candidates_after(again, population)
    assert set(STOCK[[5, 6, 7, 8]].tolist()) <= set(found.keys.tolist())
    np.testing.assert_array_equal(found.keys, same.keys)
    assert found.log_q is not None
    assert same.log_q is not None
    assert found.log_q.tolist() == same.log_q.tolist()
    tool.forget()
    assert len(candidates_after(tool, population).keys) <= 3
    trainer = trained(purchases(days=4), 1, with_negatives(drawing(queue=3)))
    assert trainer.learner.negatives.state()["queue"]
    trainer.draw_from(np.arange(4))
    assert not trainer.learner.negatives.state()["queue"]


def test_what_the_queue_holds_and_nobody_takes_any_more_is_left_out() -> None:
    tool, other = Negatives(drawing(queue=2, uniform=1)), keys64("item", ["gone"])
    elsewhere = Population()
    elsewhere.add(other)
    tool.learned(other, elsewhere)
    found = candidates_after(tool, stock())
    assert other[0] not in found.keys
    assert found.log_q is not None
    assert found.log_q.isfinite().all()


def online(config: Config) -> OnlineLearner:
    torch.manual_seed(0)
    return learner_of(config, catalog_of(), Source.inputs)


@pytest.mark.parametrize("name", ["queue", "all"])
def test_an_online_learner_goes_on_with_its_queue(name: str) -> None:
    config, events = with_negatives(drawing(**MIXTURES[name])), purchases(days=9)
    parts = [events.take((events.time - T0) // DAY == day) for day in range(9)]

    def rest(learner: OnlineLearner) -> np.ndarray:
        losses = [learner.take(part)["retrieval"][0] for part in parts[6:]]
        assert np.isfinite(losses).all()
        rows: np.ndarray = learner.towers.table.state()["values"]
        return rows.copy()

    def resumed(state: dict[str, Any]) -> OnlineLearner:
        learner = online(config)
        learner.towers.table.load(table)
        learner.load(state)
        return learner

    first = online(config)
    for part in parts[:6]:
        first.take(part)
    table = {column: array.copy() for column, array in first.towers.table.state().items()}
    stopped = flatten(first.state())
    whole = rest(first)
    np.testing.assert_array_equal(rest(resumed(unflatten(*stopped))), whole)
    state = unflatten(*stopped)
    del state["negatives"]  # as a release without a queue wrote it
    assert not np.array_equal(rest(resumed(state)), whole)  # canary: the queue matters


def test_an_online_step_over_many_entities_is_sampled(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    right = Negatives.candidates

    def noted(*args: Any) -> Candidates:
        seen.append(right(*args))
        return seen[-1]

    monkeypatch.setattr(Negatives, "candidates", noted)
    for most in (ITEMS, ITEMS - 1):
        learner = online(with_negatives(RetrievalConfig(softmax="full", full_up_to=most)))
        learner.take(purchases())
    assert [found.log_q is None for found in seen] == [True, False]
