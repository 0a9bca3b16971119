"""The ranking network on the stream: revisions add up, labels are learned as they come, the level follows."""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np
import pytest
import torch

from mainstem.models import Head, Ranker, RankerConfig
from mainstem.schema.config import HeadConfig, OnlineConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision
from mainstem.train import RankingLearner
from mainstem.train.ranking_loss import Slates, loss_of
from mainstem.weights.checkpoints import flatten, unflatten

BUY, STARS = HeadConfig(event="purchase"), HeadConfig(event="rating", type="value", weight=0.3)
ALL = [
    BUY, STARS, HeadConfig(event="rating", type="ordinal"), HeadConfig(event="watch", type="weighted_logistic"),
    HeadConfig(event="purchase", type="lifetime_value", window="2d"),
]  # fmt: skip
LOSSES = ("listwise", "pairwise", "pointwise")
WIDTH, ROWS = 4, 12


def ranker(*heads: HeadConfig, seed: int = 0, **options: Any) -> Ranker:
    torch.manual_seed(seed)
    kinds = tuple(Head(f"h{i}", head.type) for i, head in enumerate(heads))
    return Ranker(RankerConfig(features=WIDTH, heads=kinds, hidden=(8,), **options))


def learner(*heads: HeadConfig, rate: float = 1e-2, batch: int = 8) -> RankingLearner:
    train = TrainConfig(ranking_batch=batch, online=OnlineConfig(ranking_learning_rate=rate))
    return RankingLearner(ranker(*heads), heads, train)


def slate(labels: np.ndarray, seed: int = 0, inputs: np.ndarray | None = None) -> Examples:
    rng = np.random.default_rng(seed)
    n = len(labels)
    return Examples(
        inputs=rng.normal(size=(n, WIDTH)).astype(np.float32) if inputs is None else inputs,
        labels=labels.astype(np.float32), negative_rate=np.ones(n, np.float32), fresh=np.arange(n) % 2 == 0,
        weight=np.ones(n, np.float32), keys=np.arange(1, n + 1, dtype=np.uint64), offsets=np.array([0, n]),
        time=np.array([seed]), user=np.array([1], np.uint64),
    )  # fmt: skip


def nothing(heads: int) -> np.ndarray:
    out = np.zeros((ROWS, heads), np.float32)
    out[:, 1:] = np.nan
    return out


def gradients(model: Ranker, revisions: list[Revision], heads: list[HeadConfig]) -> list[torch.Tensor]:
    whole = Revision.concat(revisions)
    slates = Slates.of(whole.examples, heads)
    raw = model(slates.inputs)
    loss = loss_of(model, raw, slates, slates.labels, heads, mean=False)
    (loss - loss_of(model, raw, slates, torch.from_numpy(whole.before), heads, mean=False)).backward()
    return [p.grad.clone() if p.grad is not None else torch.zeros_like(p) for p in model.parameters()]


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
def test_revisions_in_any_order_add_up_to_the_last_labels(order: tuple[int, ...]) -> None:
    heads = [BUY, STARS]
    arrivals = [(2, 0, 1.0), (4, 0, 1.0), (4, 1, 3.0)]
    labels, parts = nothing(2), []
    for number in order:
        row, head, value = arrivals[number]
        now = labels.copy()
        now[row, head] = value
        parts.append(Revision(slate(now), labels))
        labels = now
    total = [torch.zeros_like(p) for p in ranker(*heads).parameters()]
    for part in parts:
        total = [a + b for a, b in zip(total, gradients(ranker(*heads), [part], heads), strict=True)]
    at_once = gradients(ranker(*heads), [Revision(slate(labels), nothing(2))], heads)
    for a, b in zip(total, at_once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)
    kept = gradients(ranker(*heads), [Revision(part.examples, nothing(2)) for part in parts], heads)
    assert any(
        not torch.allclose(a, b, atol=1e-3) for a, b in zip(kept, at_once, strict=True)
    )  # canary: no taking back


@pytest.mark.parametrize("loss", LOSSES)
@pytest.mark.parametrize("sharing", ["none", "ple"])
def test_every_head_and_loss_takes_back_what_it_took_too_early(loss: str, sharing: str) -> None:
    rng = np.random.default_rng(0)
    unanswered = np.tile([head.unanswered for head in ALL], (ROWS, 1)).astype(np.float32)
    unanswered[:, 4] = np.nan  # not known before the end
    labels, parts = unanswered.copy(), []
    for row, head, value in [(2, 0, 1.0), (3, 3, 8.0), (4, 2, 5.0), (3, 3, 30.0), (4, 2, 1.0), (5, 1, 3.0)]:
        now = labels.copy()
        now[row, head] = value
        parts.append(Revision(slate(now), labels))
        labels = now
    due = labels.copy()
    due[:, 4] = np.where(rng.random(ROWS) < 0.5, 7.0, 0.0)
    parts.append(Revision(slate(due), labels))
    new = lambda: ranker(*ALL, loss=loss, sharing=sharing, expert_width=4)  # noqa: E731
    total = [sum(grads) for grads in zip(*(gradients(new(), [part], ALL) for part in parts), strict=True)]
    at_once = gradients(new(), [Revision(slate(due), unanswered)], ALL)
    for a, b in zip(total, at_once, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4)


def test_a_sum_over_slates_is_that_of_each() -> None:
    some = [Revision(slate(np.eye(ROWS, 1, -k), k), np.zeros((ROWS, 1), np.float32)) for k in range(3)]
    whole = gradients(ranker(BUY), some, [BUY])
    apart = [gradients(ranker(BUY), [one], [BUY]) for one in some]
    for a, parts in zip(whole, zip(*apart, strict=True), strict=True):
        torch.testing.assert_close(a, sum(parts), rtol=1e-4, atol=1e-5)


def stream(number: int) -> tuple[Revision, Examples]:
    """A slate in which the first input decides what is taken."""
    rng = np.random.default_rng(number)
    inputs = rng.normal(size=(ROWS, WIDTH)).astype(np.float32)
    labels = np.zeros((ROWS, 1), np.float32)
    labels[inputs[:, 0].argmax()] = 1
    examples = slate(labels, number, inputs)
    return Revision(examples, np.zeros((ROWS, 1), np.float32)), examples


def order(model: Ranker) -> float:
    line = np.zeros((50, WIDTH), np.float32)
    line[:, 0] = np.linspace(-2, 2, 50)
    model.eval()
    with torch.no_grad():
        return float(np.corrcoef(model(torch.from_numpy(line))[:, 0].numpy(), line[:, 0])[0, 1])


def test_it_learns_what_is_taken_from_the_labels_alone() -> None:
    one = learner(BUY)
    losses = [one.step([stream(number)[0]]) for number in range(300)]
    assert np.mean(losses[-50:]) < 0.6 * np.mean(losses[:20])
    assert order(one.ranker) > 0.9
    still = learner(BUY, rate=0.0)  # canary: without a rate nothing moves
    for number in range(20):
        assert np.isnan(still.step([stream(number)[0]]))
        still.level([stream(number)[1]])
    for a, b in zip(still.ranker.state_dict().values(), ranker(BUY).state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)


def test_a_small_batch_moves_the_weights_less() -> None:
    def moved(batch: int) -> float:
        one = learner(BUY, batch=batch)
        one.step([stream(1)[0]])
        fresh = ranker(BUY)
        return sum(
            float((a - b).detach().abs().sum())
            for a, b in zip(one.ranker.parameters(), fresh.parameters(), strict=True)
        )

    assert moved(64) < 0.1 * moved(2)


def test_the_level_follows_how_often_things_are_taken() -> None:
    one = learner(BUY)
    for number in range(600):
        one.level([stream(number)[1]])
    later = [stream(number)[1] for number in range(1000, 1200)]
    with torch.no_grad():
        chance = np.concatenate([one.ranker.scores(torch.from_numpy(each.inputs))[:, 0].numpy() for each in later])
    assert abs(np.log(chance.mean() * ROWS)) < 0.35
    with torch.no_grad():
        before = ranker(BUY).scores(torch.from_numpy(later[0].inputs)).numpy()
    assert abs(np.log(before.mean() * ROWS)) > 1  # canary


@pytest.mark.parametrize("wrong", ["inputs", "labels"])
def test_what_is_not_finite_changes_nothing(wrong: str) -> None:
    one = learner(BUY)
    one.step([stream(0)[0]])
    before = {name: tensor.clone() for name, tensor in one.ranker.state_dict().items()}
    revision, examples = stream(1)
    if wrong == "inputs":
        examples.inputs[0, 0] = np.nan
    else:
        examples.labels[0, 0] = 1e38
        examples.labels[1, 0] = 1e38
        examples.weight[:] = 1e38
    with pytest.raises(FloatingPointError, match="finite"):
        one.step([revision])
    for name, tensor in one.ranker.state_dict().items():
        torch.testing.assert_close(tensor, before[name], rtol=0, atol=0)


def test_a_checkpoint_goes_on_as_if_nothing_had_been() -> None:
    whole, first = learner(BUY), learner(BUY)
    for number in range(5):
        for each in (whole, first):
            each.step([stream(number)[0]])
            each.level([stream(number)[1]])
    arrays, tree = flatten(first.state())
    again = learner(BUY)
    again.load(unflatten(arrays, tree))
    for number in range(5, 9):
        for each in (whole, again):
            each.step([stream(number)[0]])
            each.level([stream(number)[1]])
    for a, b in zip(whole.ranker.state_dict().values(), again.ranker.state_dict().values(), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
    np.testing.assert_array_equal(whole.curvature, again.curvature)
