"""What comes first or last in a visit counts more in the order that is learned, and a chance stays a chance."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from mainstem.join.labels import shares
from mainstem.models import Head, Ranker, RankerConfig
from mainstem.schema.config import HeadConfig, OnlineConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision
from mainstem.train import RankingLearner, fit_ranker

# each loss, and how far apart it is to set the two; pairwise is a mean over a slate's pairs, most of one positive alone
LOSSES = {"listwise": 0.15, "pairwise": 0.05, "pointwise": 0.15}
OTHERS = 10
N = 2 + OTHERS


def visit(number: int, head: HeadConfig) -> Examples:
    """Candidate 0 is taken in half of the visits, at once; candidate 1 in half of them too, a minute later; of ten
    others each in one of twenty, later. The inputs say which of the three a candidate is."""
    rng = np.random.default_rng((11, number))
    taken = rng.random(N) < np.array([0.5, 0.5] + [0.05] * OTHERS)
    labels = np.zeros((N, 1), np.float32)
    labels[taken, 0] = shares(head, np.array([0, 60_000] + [90_000] * OTHERS)[taken])
    return Examples(
        inputs=np.eye(3, dtype=np.float32)[np.minimum(np.arange(N), 2)], labels=labels,
        negative_rate=np.ones(N, np.float32), fresh=np.ones(N, np.bool_), weight=np.ones(N, np.float32),
        keys=np.arange(1, N + 1, dtype=np.uint64), offsets=np.array([0, N]), time=np.array([number]),
        user=np.array([1], np.uint64),
    )  # fmt: skip


def ranker_of(loss: str) -> Ranker:
    torch.manual_seed(0)
    return Ranker(RankerConfig(3, (Head("buy"),), hidden=(), cross_layers=0, loss=loss))  # type: ignore[arg-type]


def ahead(logits: np.ndarray) -> float:
    """By how much candidate 0 stands above candidate 1."""
    return float(logits[0, 0] - logits[1, 0])


@pytest.mark.parametrize("loss", LOSSES)
def test_offline_the_order_goes_by_place_and_the_chance_does_not(loss: str) -> None:
    config = TrainConfig(ranking_epochs=4, ranking_batch=16, ranking_learning_rate=0.05, patience=9)
    found, whole = {}, 0.0
    for each_next in (0.5, 1.0, 2.0):
        head = HeadConfig(event="purchase", each_next=each_next)
        train, valid = (Examples.concat([visit(n, head) for n in range(*span)]) for span in ((0, 600), (600, 800)))
        ranker = ranker_of(loss)
        fit_ranker(ranker, train, valid, [head], config)
        with torch.no_grad():
            found[each_next] = ahead(ranker(torch.from_numpy(valid.inputs[:N])).numpy())
            whole = float(ranker.scores(torch.from_numpy(valid.inputs)).sum())
        assert whole == pytest.approx(float((valid.labels > 0).sum()), rel=0.02)
    assert found[0.5] > found[1.0] + LOSSES[loss]
    assert found[2.0] < found[1.0] - LOSSES[loss]


def test_online_the_order_goes_by_place_too_and_the_level_does_not() -> None:
    found = {}
    for each_next in (0.5, 2.0):
        head = HeadConfig(event="purchase", each_next=each_next)
        train = TrainConfig(ranking_batch=4, online=OnlineConfig(ranking_learning_rate=0.02))
        learner = RankingLearner(ranker_of("listwise"), [head], train)
        for step in range(150):
            some = [visit(4 * step + i, head) for i in range(4)]
            learner.step([Revision(each, np.zeros_like(each.labels)) for each in some])
            learner.level(some)
        later = Examples.concat([visit(n, head) for n in range(2_000, 2_200)])
        found[each_next] = ahead(learner.order(later.groups(np.array([0]))))
        with torch.no_grad():
            whole = float(learner.ranker.scores(torch.from_numpy(later.inputs)).sum())
        assert whole == pytest.approx(float((later.labels > 0).sum()), rel=0.3)
    assert found[0.5] > found[2.0] + 0.3


@pytest.mark.parametrize("loss", LOSSES)
def test_taking_back_what_counted_otherwise_leaves_what_counts_now(loss: str) -> None:
    head = HeadConfig(event="purchase", each_next=0.5)
    train = TrainConfig(ranking_batch=1, online=OnlineConfig(ranking_learning_rate=0.01))
    one = next(each for each in (visit(n, head) for n in range(99)) if (each.labels[:2] > 0).all())
    alone = (np.arange(N) == 1)[:, None].astype(np.float32)  # of candidate 1 was known first, and it counted 1

    def gradient(labels: np.ndarray, before: np.ndarray) -> np.ndarray:
        learner = RankingLearner(ranker_of(loss), [head], train)
        learner.step([Revision(dataclasses.replace(one, labels=labels), before)])
        return np.concatenate([p.grad.ravel().numpy() for p in learner.ranker.parameters() if p.grad is not None])

    nothing = np.zeros_like(alone)
    parts = gradient(alone, nothing) + gradient(one.labels, alone)
    np.testing.assert_allclose(parts, gradient(one.labels, nothing), atol=1e-5)
    kept = gradient(alone, nothing) + gradient(one.labels, nothing)
    assert not np.allclose(kept, gradient(one.labels, nothing), atol=1e-3)  # canary: no taking back
