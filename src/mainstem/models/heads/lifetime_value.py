"""Expected long-term value: what a user will have spent by a horizon, mostly nothing, sometimes very much."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from mainstem.models.heads.protocol import VALUE_CAP, ExpectedAmountHead, known, weighted_mean

__all__ = ["FLOOR", "LifetimeValueHead", "due"]

FLOOR = 1e-3
"""Least sigma: a few equal amounts must not make the likelihood infinite."""


def due(values: Tensor, ages: Tensor, horizon: float) -> Tensor:
    """Labels of a value that is complete only at the horizon: values where ages >= horizon, else NaN (not known).

    values [n]: what was seen so far; ages [n]: how long the example has been watched, in the unit of horizon. What
    was seen before the horizon is a lower bound: taken as the label, it teaches that new examples are worth little.
    """
    return torch.where(ages >= horizon, values, torch.full_like(values, torch.nan))


class LifetimeValueHead(ExpectedAmountHead):
    """Zero-inflated lognormal (Wang et al. 2019, "A Deep Probabilistic Model for Customer Lifetime Value Prediction").

        P(v > 0) = sigmoid(raw_0),  log v | v > 0 ~ Normal(mu = raw_1, sigma = softplus(raw_2))
        E[v]     = P(v > 0) exp(mu + sigma^2 / 2)

    The expected size exp(..) is cut at the largest label learned from: some inputs would make it so large that the mean
    of all is thousands of times what comes.
    The loss is the negative log likelihood: cross-entropy of v > 0 plus, where v > 0, that of the
    lognormal. Unlike a squared error it is not ruled by the few who spend most. Labels that are not due are NaN: see
    `due`.
    """

    outputs = 3

    def loss(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """raw [n, 3]; labels >= 0 or NaN [n], in the event's own unit (negative ones count as 0); weights [n]."""
        labels, weights = known(raw, labels, weights)
        self.see(labels, weights)
        paid = (labels > 0).to(raw.dtype)
        chance = functional.binary_cross_entropy_with_logits(raw[:, 0], paid, reduction="none")
        log_value = torch.where(labels > 0, labels, torch.ones_like(labels)).log()
        mu, sigma = raw[:, 1], self._sigma(raw)
        size = log_value + sigma.log() + 0.5 * math.log(2 * math.pi) + 0.5 * ((log_value - mu) / sigma).square()
        return weighted_mean(chance + paid * size, weights)

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, 3] -> expected values [n], in the event's own unit."""
        log_size = raw[:, 1] + 0.5 * self._sigma(raw).square()
        size = log_size.clamp(max=VALUE_CAP).exp().clamp(max=self.largest)
        return (self.scale * raw[:, 0].sigmoid() * size).clamp(max=self.largest)

    def log_expectation(self, raw: Tensor) -> Tensor:
        """raw [n, 3] -> the logarithm of what `predict` gives, not cut: [n]."""
        return functional.logsigmoid(raw[:, 0]) + raw[:, 1] + 0.5 * self._sigma(raw).square()

    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Log-odds of the share that pays, and mean and deviation of the logarithm of what is paid: [3]."""
        labels, weights = known(labels, labels, weights)
        paid = (labels > 0).to(labels.dtype)
        if not bool((weights * paid).sum() > 0):
            return labels.new_zeros(3)
        log_value = torch.where(labels > 0, labels, torch.ones_like(labels)).log()
        mu = weighted_mean(log_value, weights * paid)
        sigma = weighted_mean((log_value - mu).square(), weights * paid).sqrt().clamp(min=0.1)
        return torch.stack((weighted_mean(paid, weights).logit(eps=1e-6), mu, sigma.expm1().log()))

    def _sigma(self, raw: Tensor) -> Tensor:
        return functional.softplus(raw[:, 2]) + FLOOR
