import pytest
import torch
from fitting import minimise
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mainstem.models.losses import pairwise

SLATE = st.lists(st.sampled_from([0.0, 1.0, 2.0, float("nan")]), max_size=5)


def _by_loops(scores: Tensor, slates: list[list[float]], weights: list[float], each: Tensor | None = None) -> Tensor:
    total, counted, start = 0.0 * scores.sum(), 0.0, 0
    each = torch.ones_like(scores) if each is None else each
    for gains, weight in zip(slates, weights, strict=True):
        pairs = [
            (functional.softplus(-(scores[start + i] - scores[start + j])), each[start + i])
            for i, a in enumerate(gains)
            for j, b in enumerate(gains)
            if a > b
        ]
        if pairs:
            mean = sum(loss * counts for loss, counts in pairs) / sum(counts for _, counts in pairs)
            total, counted = total + weight * mean, counted + weight
        start += len(gains)
    return total / max(counted, 1e-12)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(SLATE, st.sampled_from([0.0, 1.0, 3.0])), min_size=1, max_size=5))
def test_pairs_agree_with_plain_loops(world: list[tuple[list[float], float]]) -> None:
    slates, weights = [list(s) for s, _ in world], [w for _, w in world]
    gains = torch.tensor([g for s in slates for g in s], dtype=torch.float64)
    offsets = torch.tensor([0, *(len(s) for s in slates)]).cumsum(0)
    scores = torch.randn(len(gains), dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    got = pairwise(scores, gains, offsets, torch.tensor(weights, dtype=torch.float64))
    want = _by_loops(scores, slates, weights)
    torch.testing.assert_close(got, want)
    gradients = torch.autograd.grad(got, scores), torch.autograd.grad(want, scores)
    torch.testing.assert_close(*gradients)
    unweighted = pairwise(scores, gains, offsets, mean=False)
    torch.testing.assert_close(unweighted, _by_loops(scores, slates, [1.0] * len(slates)) * _with_pairs(slates))
    each = torch.rand(len(gains), dtype=torch.float64, generator=torch.Generator().manual_seed(1)) + 0.1
    counting = pairwise(scores, gains, offsets, torch.tensor(weights, dtype=torch.float64), each=each)
    torch.testing.assert_close(counting, _by_loops(scores, slates, weights, each))


def _with_pairs(slates: list[list[float]]) -> int:
    return sum(len({g for g in slate if g == g}) > 1 for slate in slates)


def test_recovers_the_strengths_of_a_bradley_terry_world() -> None:
    """P(i beats j) = sigmoid(strength_i - strength_j): the loss's own model, with its known answer."""
    strengths = torch.tensor([-1.0, -0.2, 0.1, 1.1])
    first, second = torch.combinations(torch.arange(4)).T
    chance = (strengths[first] - strengths[second]).sigmoid()
    places = torch.stack((first, second), 1).flatten().repeat(2)
    gains = torch.cat((torch.tensor([1.0, 0.0]).repeat(6), torch.tensor([0.0, 1.0]).repeat(6)))
    offsets = torch.arange(0, 25, 2)
    weights = torch.cat((chance, 1 - chance))

    def fitted(gains: Tensor) -> Tensor:
        scores = torch.zeros(4, requires_grad=True)
        minimise(lambda: pairwise(scores[places], gains, offsets, weights) + 1e-6 * scores.mean() ** 2, scores)
        return scores.detach() - scores.detach().mean()

    torch.testing.assert_close(fitted(gains), strengths, rtol=0, atol=0.01)
    torch.testing.assert_close(fitted(1 - gains), -strengths, rtol=0, atol=0.01)  # canary: the gains turned around


def test_nothing_to_compare_gives_zero_with_a_gradient() -> None:
    scores = torch.randn(4, requires_grad=True)
    loss = pairwise(scores, torch.tensor([1.0, 1.0, torch.nan, 0.0]), torch.tensor([0, 2, 4]))
    assert loss == 0
    (gradient,) = torch.autograd.grad(loss, scores)
    assert (gradient == 0).all()
    assert float(pairwise(scores.detach() + 1, torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([0, 2, 4]))) == (
        pytest.approx(float(functional.softplus(scores[1] - scores[0]).detach()))
    )
