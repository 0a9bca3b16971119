import math
from itertools import product

import pytest
import torch
from fitting import minimise
from torch import Tensor
from torch.nn import functional

from mainstem.models.losses import binary, listwise_softmax, log_inclusion, sampled_softmax, value

SHARES = torch.tensor([0.80, 0.15, 0.05])  # one context; the first entity is taken 16 times as often as the last


def _fitted_shares(sign: float, uniform: int) -> Tensor:
    """softmax of the scores that minimise the *expected* loss: every batch of two users and `uniform` extra
    negatives, weighted by its chance. `sign` multiplies the correction."""
    n, b = len(SHARES), 2
    log_q = sign * log_inclusion(SHARES, b - 1, uniform, n)
    scores = torch.zeros(n, requires_grad=True)
    draws = list(product(range(n), repeat=b + uniform))
    chances = torch.tensor([float(SHARES[list(draw[:b])].prod()) / n**uniform for draw in draws])

    def expected() -> Tensor:
        losses = []
        for draw in draws:
            keys = torch.tensor(draw)
            losses.append(sampled_softmax(torch.ones(b, 1), scores[keys, None], keys, log_q[keys], 1.0))
        # two distinct entities in a batch decide; the mean keeps the free constant of the scores in place
        return (chances * torch.stack(losses)).sum() + scores.mean() ** 2

    minimise(expected, scores)
    return scores.detach().softmax(0)


@pytest.mark.parametrize(("uniform", "tolerance"), [(0, 0.01), (1, 0.1)])
def test_logq_correction_recovers_skewed_popularity(uniform: int, tolerance: float) -> None:
    right = _fitted_shares(+1.0, uniform)
    torch.testing.assert_close(right.log(), SHARES.log(), atol=tolerance, rtol=0)
    # canaries: with the sign flipped, and without the correction, the answer is wrong
    for wrong_sign in (-1.0, 0.0):
        wrong = _fitted_shares(wrong_sign, uniform)
        assert float((wrong.log() - SHARES.log()).abs().max()) > 0.5


def test_sampled_softmax_over_everything_is_the_full_softmax() -> None:
    torch.manual_seed(0)
    users, entities = torch.randn(3, 4), torch.randn(8, 4)
    got = sampled_softmax(users, entities, torch.arange(8), torch.full((8,), 0.7), temperature=0.5)
    torch.testing.assert_close(got, functional.cross_entropy(users @ entities.T / 0.5, torch.arange(3)))


def test_accidental_hits_exclusions_and_weights() -> None:
    torch.manual_seed(0)
    users, entities, log_q = torch.randn(3, 4), torch.randn(5, 4), torch.randn(5)
    keys = torch.tensor([7, 8, 7, 9, 8])  # users 0 and 2 share a positive, negative 4 is user 1's positive
    entities[2], entities[4] = entities[0], entities[1]
    log_q[2], log_q[4] = log_q[0], log_q[1]
    excluded = torch.tensor([[0], [3]])
    logits = users @ entities.T / 0.1 - log_q
    allowed = [[0, 1], [1, 0, 3], [2, 1, 3]]  # every key once
    want = torch.stack([logits[i, a].logsumexp(0) - logits[i, i] for i, a in enumerate(allowed)])
    weights = torch.tensor([1.0, 0.0, 3.0])
    got = sampled_softmax(users, entities, keys, log_q, weights=weights, excluded=excluded)
    torch.testing.assert_close(got, (want * weights).sum() / 4)
    distinct = sampled_softmax(
        users, entities[[3, 0, 1]], keys[[3, 0, 1]], log_q[[3, 0, 1]],
        targets=torch.tensor([1, 2, 1]), weights=weights, excluded=torch.tensor([[0], [0]]),
    )  # fmt: skip
    torch.testing.assert_close(distinct, got)
    assert sampled_softmax(users, entities, keys, log_q, weights=torch.zeros(3)) == 0
    # an exclusion never takes the positive itself
    assert sampled_softmax(users, entities, keys, log_q, excluded=torch.ones(3, 5).nonzero().T) == 0


def test_log_inclusion_is_the_chance_of_being_drawn() -> None:
    share = torch.tensor([0.5, 0.01, 0.0, 1.0])
    got = log_inclusion(share, in_batch=3, uniform=2, catalogue=10).exp()
    torch.testing.assert_close(got, 1 - (1 - share) ** 3 * 0.9**2)
    assert log_inclusion(share, 0, 0, 0).isfinite().all()
    rare = torch.tensor([1e-9])
    torch.testing.assert_close(log_inclusion(rare, 100, 0, 1).exp(), torch.tensor([1e-7]), rtol=1e-3, atol=0)


def test_listwise_softmax_agrees_with_cross_entropy_per_slate() -> None:
    torch.manual_seed(0)
    offsets = torch.tensor([0, 3, 3, 7, 9])
    scores = torch.randn(9, dtype=torch.float64, requires_grad=True)
    gains = torch.tensor([0, 1, 0, 2, 0, 1, 1, 0, 0], dtype=torch.float64)  # slate 1 is empty, 3 has no positive
    weights = torch.tensor([1.0, 5.0, 2.0, 9.0], dtype=torch.float64)
    want = 0.0
    for i, weight in ((0, 1.0), (2, 2.0)):
        a, b = int(offsets[i]), int(offsets[i + 1])
        want = want + weight * functional.cross_entropy(scores[None, a:b], gains[None, a:b] / gains[a:b].sum())
    got = listwise_softmax(scores, gains, offsets, weights)
    torch.testing.assert_close(got, want / 3)
    got.backward()
    assert scores.grad is not None
    assert scores.grad.isfinite().all()
    assert (scores.grad[7:] == 0).all()
    torch.testing.assert_close(listwise_softmax(scores + 50, gains, offsets, weights), got)
    assert listwise_softmax(scores, torch.zeros_like(gains), offsets) == 0


def test_log_odds_correction_recovers_the_base_rate() -> None:
    base, kept = 0.02, 0.05
    # the sample's share of positives when all positives and a share `kept` of the negatives stay
    labels = torch.zeros(10_000)
    labels[: round(10_000 * base / (base + kept * (1 - base)))] = 1.0

    def fitted(rate: float | None) -> float:
        logit = torch.zeros(1, requires_grad=True)
        minimise(lambda: binary(logit.expand(10_000), labels, negative_rate=rate), logit)
        return float(logit.detach().sigmoid())

    assert fitted(kept) == pytest.approx(base, rel=0.01)
    assert fitted(1 / kept) > 0.5  # canary: the sign flipped
    assert fitted(None) > 0.2  # canary: no correction


def test_binary_weights_leave_pending_labels_out() -> None:
    logits, labels = torch.tensor([1.0, -2.0, 30.0]), torch.tensor([1.0, 0.0, 0.0])
    got = binary(logits, labels, torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(got, binary(logits[:2], labels[:2]))
    assert binary(logits, labels, torch.zeros(3)) == 0


def test_value_is_huber_on_the_log_scale() -> None:
    predicted = torch.tensor([math.log1p(9.0), 0.0, 0.5])
    got = value(predicted, torch.tensor([9.0, math.e**3 - 1, 0.0]))
    torch.testing.assert_close(got, torch.tensor((0.0 + 2.5 + 0.125) / 3))
    torch.testing.assert_close(value(predicted[:1], torch.tensor([-5.0])), value(predicted[:1], torch.zeros(1)))
    assert value(predicted, torch.ones(3), torch.zeros(3)) == 0
