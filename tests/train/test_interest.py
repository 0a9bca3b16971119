"""A ranking network that reads histories: it learns, offline and online, what no sum over the history tells."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from joint_world import group, ranker_of, share_right, vectors

from mainstem.schema.config import HeadConfig, OnlineConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision
from mainstem.train import RankingLearner, fit_ranker
from mainstem.train.ranking_loss import Slates, raw_of

BUY = HeadConfig(event="purchase")
INTERESTS = ("none", "target_attention", "transformer")
LATER = Examples.concat([group(number) for number in range(5_000, 5_200)])


@pytest.mark.parametrize("interest", INTERESTS)
def test_offline_it_learns_what_candidate_and_history_say_together(interest: str) -> None:
    torch.manual_seed(0)
    ranker = ranker_of(interest)
    train, valid = (Examples.concat([group(n) for n in range(*span)]) for span in ((0, 500), (500, 600)))
    config = TrainConfig(ranking_epochs=5, ranking_batch=16, ranking_learning_rate=0.01)
    reads = None if interest == "none" else vectors
    fit_ranker(ranker, train, valid, [BUY], config, vectors=reads)
    with torch.no_grad():
        right = share_right(raw_of(ranker, Slates.of(LATER, [BUY], reads)).numpy(), LATER)
    assert right < 0.5 if interest == "none" else right > 0.9


@pytest.mark.parametrize("interest", INTERESTS)
def test_online_it_learns_the_same_from_revisions(interest: str) -> None:
    torch.manual_seed(0)
    train = TrainConfig(ranking_batch=8, online=OnlineConfig(ranking_learning_rate=0.01))
    learner = RankingLearner(ranker_of(interest), [BUY], train, vectors)
    for step in range(120):
        examples = [group(8 * step + i) for i in range(8)]
        learner.step([Revision(each, np.zeros_like(each.labels)) for each in examples])
        learner.level(examples)
    right = share_right(learner.order(LATER), LATER)
    assert right < 0.5 if interest == "none" else right > 0.9


def test_vectors_are_those_of_the_moment_and_stay_as_they_are() -> None:
    torch.manual_seed(0)
    ranker = ranker_of("target_attention")
    assert ranker.interest is not None
    torch.nn.init.normal_(ranker.interest.out.weight)
    moved = 1.0
    learner = RankingLearner(ranker, [BUY], TrainConfig(), lambda keys: moved * vectors(keys))
    before = learner.order(LATER)
    moved = 0.5
    assert not np.allclose(learner.order(LATER), before)
    slates = Slates.of(LATER, [BUY], vectors)
    assert slates.meetings is not None
    raw_of(ranker, slates).sum().backward()
    assert slates.meetings.table.grad is None
    assert len(slates.meetings.table) == len(np.unique(LATER.keys)) < len(LATER.keys)  # each entity once


def test_groups_keep_their_histories() -> None:
    ranker = ranker_of("transformer")
    assert ranker.interest is not None
    torch.nn.init.normal_(ranker.interest.out.weight)
    slates, which = Slates.of(LATER, [BUY], vectors), torch.tensor([7, 3, 3])
    with torch.no_grad():
        some = raw_of(ranker, slates.groups(which)).reshape(3, 12)
        torch.testing.assert_close(some, raw_of(ranker, slates).reshape(-1, 12)[which], rtol=1e-4, atol=1e-5)


def test_a_network_that_reads_histories_is_not_fed_without() -> None:
    ranker, bare = ranker_of("target_attention"), Examples.concat([group(0)])
    bare = Examples(**{name: getattr(bare, name) for name in Examples.__slots__ if name != "pasts"})
    with pytest.raises(ValueError, match="histories"):
        Slates.of(bare, [BUY], vectors)
    with pytest.raises(ValueError, match="histories"):
        raw_of(ranker, Slates.of(bare, [BUY]))
