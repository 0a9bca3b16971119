"""Thousands of dense inputs: trained, calibrated, learned on online, put on record and scored without torch."""

from __future__ import annotations

import numpy as np
import torch

from mainstem.models import numpy_scorer
from mainstem.schema.config import Config, HeadConfig, OnlineConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision
from mainstem.schema.pools import pack_pool, unpack_pool
from mainstem.train import RankingLearner, fit_ranker, new_ranker

INPUTS, TOLD, CANDIDATES = 2_000, 10, 40
BUY = HeadConfig(event="purchase")


def group(number: int) -> Examples:
    """The sum of the last ten inputs says what is taken; the others are noise of many scales."""
    rng = np.random.default_rng((13, number))
    inputs = rng.normal(size=(CANDIDATES, INPUTS))
    labels = np.zeros((CANDIDATES, 1), np.float32)
    labels[inputs[:, -TOLD:].sum(axis=1).argmax()] = 1
    return Examples(
        inputs=(inputs * 10.0 ** np.linspace(-3, 3, INPUTS)).astype(np.float32), labels=labels,
        negative_rate=np.ones(CANDIDATES, np.float32), fresh=np.ones(CANDIDATES, np.bool_),
        weight=np.ones(CANDIDATES, np.float32), keys=np.arange(1, CANDIDATES + 1, dtype=np.uint64),
        offsets=np.array([0, CANDIDATES]), time=np.array([number]), user=np.array([1], np.uint64),
    )  # fmt: skip


def share_right(scores: np.ndarray, examples: Examples) -> float:
    """Share of the groups whose best by score was taken; one in forty by chance."""
    best = scores[:, 0].reshape(-1, CANDIDATES).argmax(axis=1)
    return float(examples.labels.reshape(-1, CANDIDATES)[np.arange(len(examples)), best].mean())


def test_two_thousand_inputs_are_learned_and_served_as_a_hundred_are() -> None:
    torch.manual_seed(0)
    config = Config()
    ranker = new_ranker(config, INPUTS)
    train, valid, later = (
        Examples.concat([group(n) for n in range(*span)]) for span in ((0, 300), (300, 330), (330, 380))
    )
    settings = TrainConfig(ranking_epochs=3, ranking_batch=4, ranking_learning_rate=2e-3)
    fit_ranker(ranker, train, valid, [BUY], settings)
    scorer = numpy_scorer(ranker.eval())
    scores = scorer(later.inputs)
    with torch.no_grad():
        np.testing.assert_allclose(scores, ranker.scores(torch.from_numpy(later.inputs)).numpy(), atol=1e-4)
    assert share_right(scores, later) > 0.15

    online = TrainConfig(ranking_batch=4, online=OnlineConfig(ranking_learning_rate=1e-3))
    learner = RankingLearner(ranker, [BUY], online)
    _, inputs = unpack_pool(pack_pool(valid.keys[:CANDIDATES], valid.inputs[:CANDIDATES]), INPUTS)
    np.testing.assert_array_equal(inputs, valid.inputs[:CANDIDATES])
    on_record = valid.groups(np.array([0]))
    before = learner.step([Revision(on_record, np.zeros_like(on_record.labels))])
    for _ in range(5):
        after = learner.step([Revision(on_record, np.zeros_like(on_record.labels))])
    assert after < before
