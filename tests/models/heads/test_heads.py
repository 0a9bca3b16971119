"""Every head recovers the expectation of a world whose answer is known; unknown labels do not count."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from fitting import minimise
from torch import Tensor
from torch.nn import functional

from mainstem.models.heads import (
    BinaryHead,
    LifetimeValueHead,
    OrdinalHead,
    TaskHead,
    ValueHead,
    WeightedLogisticHead,
    due,
)
from mainstem.models.heads.protocol import AmountHead, ExpectedAmountHead
from mainstem.models.losses import binary, value
from mainstem.models.numpy_heads import numpy_head

N = 1 << 13
ALL = [BinaryHead(), OrdinalHead(), ValueHead(), WeightedLogisticHead(), LifetimeValueHead()]


def _world() -> tuple[Tensor, Tensor]:
    """Which of two kinds of input each of N examples is, and uniforms [N, 2] that cover each kind evenly (Sobol)."""
    draws = torch.quasirandom.SobolEngine(2, scramble=True, seed=0).draw(N // 2).clamp(1e-6, 1 - 1e-6)
    return torch.arange(N) // (N // 2), torch.cat((draws, draws))


def _lognormal(kind: Tensor, uniform: Tensor, sigma: float) -> tuple[Tensor, Tensor]:
    """Sizes of scale e^1 and e^3, and their expectations."""
    mu = torch.tensor([1.0, 3.0])
    return (mu[kind] + sigma * torch.special.ndtri(uniform)).exp(), (mu + sigma**2 / 2).exp()


def _fitted(head: TaskHead, kind: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """What a head predicts for both kinds once fitted, [2], and its raw outputs [2, outputs]."""
    raw = torch.zeros(2, head.outputs, requires_grad=True)
    own = list(head.parameters()) if isinstance(head, torch.nn.Module) else []
    minimise(lambda: head.loss(raw[kind], labels), raw, *own)
    with torch.no_grad():
        return head.predict(raw), raw.detach()


def test_binary_recovers_the_chance() -> None:
    kind, uniform = _world()
    chance = torch.tensor([0.03, 0.4])
    got, _ = _fitted(BinaryHead(), kind, (uniform[:, 0] < chance[kind]).float())
    torch.testing.assert_close(got, chance, rtol=0.05, atol=0)
    raw, labels = torch.randn(8, 1), torch.ones(8)
    torch.testing.assert_close(
        BinaryHead().loss(raw, labels, negative_rate=0.1), binary(raw[:, 0], labels, negative_rate=0.1)
    )


def test_ordinal_recovers_chances_and_expected_grade() -> None:
    kind, uniform = _world()
    levels = (1.0, 2.0, 4.0)
    # a world of the link's own form: thresholds 0 and 1.5, scores -1 and 2
    head = OrdinalHead(levels)
    below = (torch.tensor([0.0, 1.5]) - torch.tensor([[-1.0], [2.0]])).sigmoid()
    chances = torch.stack((below[:, 0], below[:, 1] - below[:, 0], 1 - below[:, 1]), dim=1)
    grade = torch.searchsorted(below[kind].contiguous(), uniform[:, :1].contiguous())[:, 0]
    labels = torch.stack((torch.tensor(levels)[grade], uniform[:, 0]), dim=1)[:, 0]  # a column of many tasks' labels
    got, raw = _fitted(head, kind, labels)
    torch.testing.assert_close(got, chances @ torch.tensor(levels), rtol=0.01, atol=0)
    torch.testing.assert_close(head.log_chances(raw).exp().detach(), chances, rtol=0, atol=0.01)
    # canary: taken as one of evenly spaced grades, the expectation is another
    even, _ = _fitted(OrdinalHead((1.0, 2.0, 3.0)), kind, grade + 1.0)
    assert float((even - got).abs().max()) > 0.5


def test_thresholds_stay_ordered_and_chances_finite_however_hard_they_are_pushed() -> None:
    head = OrdinalHead()
    optimizer = torch.optim.SGD(head.parameters(), lr=50.0)
    for _ in range(50):  # only the extremes are ever given: the middle grades are pushed together
        optimizer.zero_grad()
        head.loss(torch.zeros(2, 1), torch.tensor([1.0, 5.0])).backward()
        optimizer.step()
    assert (head.thresholds.diff() > 0).all()
    logs = head.log_chances(torch.tensor([[-1e4], [0.0], [1e4]]))
    assert logs.isfinite().all()
    torch.testing.assert_close(logs.exp().sum(1), torch.ones(3))
    naive = (head.thresholds - torch.tensor([[1e4]])).sigmoid().diff().log()
    assert not naive.isfinite().all()  # canary: the difference of sigmoids is not


def test_ordinal_starts_with_even_grades_and_refuses_others() -> None:
    torch.testing.assert_close(OrdinalHead().log_chances(torch.zeros(1, 1)).exp().detach(), torch.full((1, 5), 0.2))
    with pytest.raises(ValueError, match="among"):
        OrdinalHead().loss(torch.zeros(1, 1), torch.tensor([2.5]))
    for levels in ((1.0,), (1.0, 1.0), (2.0, 1.0)):
        with pytest.raises(ValueError, match="rise"):
            OrdinalHead(levels)


def test_value_predicts_the_typical_size_and_after_smearing_the_expected_one() -> None:
    kind, uniform = _world()
    sigma = 0.8
    sizes, expected = _lognormal(kind, uniform[:, 1], sigma)
    labels = sizes - 1  # so that log1p is exactly normal; the few below 0 are cut
    head = ValueHead()
    typical, raw = _fitted(head, kind, labels)
    assert float(typical[1]) == pytest.approx(math.exp(3.0) - 1, rel=0.02)
    assert float(typical[1]) < 0.8 * float(expected[1])  # canary: the centre is not the expectation
    head.fit_smearing(raw[kind], labels)
    torch.testing.assert_close(head.predict(raw), expected - 1, rtol=0.04, atol=0)
    assert float(head.smearing) == pytest.approx(math.exp(sigma**2 / 2), rel=0.04)
    with pytest.raises(ValueError, match="known"):
        head.fit_smearing(raw[kind], torch.full((N,), torch.nan))
    torch.testing.assert_close(ValueHead(0.5).loss(raw, sizes[:2]), value(raw[:, 0], sizes[:2], delta=0.5))


@pytest.mark.parametrize("unit", [1.0, 20.0])
def test_weighted_logistic_odds_are_the_expected_value(unit: float) -> None:
    kind, uniform = _world()
    chance = torch.tensor([0.1, 0.5])
    sizes, given_one = _lognormal(kind, uniform[:, 1], 0.5)
    labels = sizes * (uniform[:, 0] < chance[kind]).float()
    want = chance * given_one
    exact, _ = _fitted(WeightedLogisticHead(unit), kind, labels)
    torch.testing.assert_close(exact, want, rtol=0.03, atol=0)
    # as published: E / (1 - p), which (1 + p) approximates where p is small, and only there
    published, _ = _fitted(WeightedLogisticHead(unit, exact=False), kind, labels)
    torch.testing.assert_close(published, want / (1 - chance), rtol=0.03, atol=0)
    assert float(published[0]) == pytest.approx(float(want[0] * 1.1), rel=0.04)
    assert float(published[1]) > 1.25 * float(want[1] * 1.5)


def test_lifetime_value_recovers_the_expectation_when_labels_that_are_not_due_are_masked() -> None:
    kind, uniform = _world()
    chance = torch.tensor([0.1, 0.4])
    sizes, given_one = _lognormal(kind, uniform[:, 1], 1.0)
    final = sizes * (uniform[:, 0] < chance[kind]).float()
    ages = 60 * torch.rand(N, generator=torch.Generator().manual_seed(0))
    seen = final * (ages >= 20)  # it is spent on the 20th day
    want = chance * given_one
    got, raw = _fitted(LifetimeValueHead(), kind, due(seen, ages, 30.0))
    torch.testing.assert_close(got, want, rtol=0.06, atol=0)
    torch.testing.assert_close(raw[:, 0].sigmoid(), chance, rtol=0.05, atol=0)
    torch.testing.assert_close(raw[:, 1], torch.tensor([1.0, 3.0]), rtol=0, atol=0.05)
    early, _ = _fitted(LifetimeValueHead(), kind, seen)
    assert float((early / want).max()) < 0.75  # canary: what was seen so far, taken as the label


def test_lifetime_loss_is_the_likelihood() -> None:
    torch.manual_seed(0)
    raw, labels = torch.randn(6, 3), torch.tensor([0.0, 3.0, 0.5, 0.0, 100.0, 1e-3])
    sigma = functional.softplus(raw[:, 2]) + 1e-3
    log_prob = torch.distributions.LogNormal(raw[:, 1], sigma).log_prob(labels.clamp(min=1e-9))
    p = raw[:, 0].sigmoid()
    want = -torch.where(labels > 0, p.log() + log_prob, (1 - p).log()).mean()
    torch.testing.assert_close(LifetimeValueHead().loss(raw, labels), want)


@pytest.mark.parametrize("head", ALL, ids=lambda head: type(head).__name__)
def test_unknown_labels_do_not_count(head: TaskHead) -> None:
    torch.manual_seed(0)
    raw = torch.randn(5, head.outputs, requires_grad=True)
    labels = torch.tensor([1.0, torch.nan, 1.0, torch.nan, 1.0])
    weights = torch.tensor([1.0, 1.0, 2.0, 1.0, 0.0])
    loss = head.loss(raw, labels, weights)
    torch.testing.assert_close(loss, head.loss(raw[[0, 2]], labels[[0, 2]], weights[[0, 2]]))
    (gradient,) = torch.autograd.grad(loss, raw)
    assert gradient.isfinite().all()
    assert (gradient[[1, 3, 4]] == 0).all()
    assert (gradient[[0, 2]] != 0).any()
    filled = head.loss(raw, labels.nan_to_num(1.0), weights)
    assert not torch.allclose(filled, loss)  # canary: a label in place of NaN does count
    nothing = head.loss(raw, torch.full((5,), torch.nan))
    assert nothing == 0
    assert (torch.autograd.grad(nothing, raw)[0] == 0).all()


@pytest.mark.parametrize("head", ALL, ids=lambda head: type(head).__name__)
def test_predictions_have_a_shape_and_stay_finite(head: TaskHead) -> None:
    for far in (-1e4, 0.0, 1e4):
        predicted = head.predict(torch.full((3, head.outputs), far))
        assert predicted.shape == (3,)
        assert predicted.isfinite().all()
        assert (predicted >= 0).all()
    assert head.predict(torch.zeros(0, head.outputs)).shape == (0,)


@pytest.mark.parametrize("head_of", [ValueHead, WeightedLogisticHead, LifetimeValueHead])
def test_no_amount_is_larger_than_the_largest_learned_from(head_of: Callable[[], AmountHead]) -> None:
    head = head_of()
    raw = torch.tensor([[15.0] * head.outputs, [0.1] * head.outputs])  # far beyond, and within
    beyond, within = head.predict(raw).tolist()
    head.loss(torch.zeros(2, head.outputs), torch.zeros(2))
    assert [beyond, within] == head.predict(raw).tolist(), "of nothing no cut is learned"
    assert beyond > 1e6
    labels = torch.tensor([7.0, torch.nan, 900.0, 40.0])
    head.loss(torch.zeros(4, head.outputs), labels, torch.tensor([1.0, 1.0, 0.0, 1.0]))
    assert head.predict(raw).tolist() == pytest.approx([40.0, within], rel=1e-5), "what does not count is not seen"
    head.eval().loss(torch.zeros(1, head.outputs), torch.tensor([500.0]))
    assert float(head.predict(raw)[0]) == pytest.approx(40.0, rel=1e-5), "validation is not learned from"
    head.train().loss(torch.zeros(1, head.outputs), torch.tensor([3.0]))
    copy = head_of()
    copy.load_state_dict(head.state_dict())
    assert float(copy.predict(raw)[0]) == pytest.approx(40.0, rel=1e-5)
    fast = numpy_head(head, 1.0, 0.0)(raw.numpy())
    np.testing.assert_allclose(fast, head.predict(raw).numpy(), rtol=1e-5)


@pytest.mark.parametrize("head_of", [WeightedLogisticHead, LifetimeValueHead])
def test_one_factor_makes_expected_amounts_add_up(head_of: Callable[[], ExpectedAmountHead]) -> None:
    head, raw = head_of(), torch.linspace(-1, 1, 12).reshape(-1, 1).repeat(1, head_of().outputs)
    labels, weights = 3.0 * head.predict(raw), torch.arange(12.0)
    labels[0], labels[1] = torch.nan, 1e9  # not known; counts nothing
    weights[1] = 0.0
    head.fit_scale(head.predict(raw), labels, weights)
    torch.testing.assert_close(head.predict(raw)[2:], labels[2:])
    np.testing.assert_allclose(numpy_head(head, 1.0, 0.0)(raw.numpy())[2:], labels[2:].numpy(), rtol=1e-5)
    head.fit_scale(head.predict(raw), labels, weights)
    assert float(head.scale) == pytest.approx(3.0), "what adds up stays"
    head.fit_scale(head.predict(raw), torch.zeros(12), weights)
    assert float(head.scale) == pytest.approx(3.0), "of nothing nothing is learned"
