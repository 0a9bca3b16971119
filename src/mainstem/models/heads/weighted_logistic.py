"""The expected amount of an impression as odds: watch time, spending, with everything that brought nothing."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mainstem.models.heads.protocol import VALUE_CAP, ExpectedAmountHead, known, weighted_mean

__all__ = ["WeightedLogisticHead"]


class WeightedLogisticHead(ExpectedAmountHead):
    """Logistic regression whose positives weigh as much as their value (Covington et al. 2016, section 4.2).

    A label is the value v >= 0 of an impression, 0 where nothing came of it; prediction exp(raw), the odds. With p the
    share of positives (v > 0) at a given input, the odds that minimise the loss are

        as published   E[v] / (1 - p)     positives weigh v, negatives 1: sum of v over the count of *negatives*
        exact          E[v]               every impression also counts once as a negative: over the count of *all*

    1 / (1 - p) = 1 + p + p^2 + ..., which the paper cuts to E[v] (1 + p) and takes as E[v] for small p. Where p is
    not small, or differs between what is ranked, the exact form is the one to use; it is the default. The loss is
    convex in raw, and an example's gradient at most max(v / unit, 1).
    """

    def __init__(self, unit: float = 1.0, exact: bool = True) -> None:
        """unit: what counts as 1, in the event's own unit (a typical value: then positives do not drown negatives)."""
        super().__init__()
        self.outputs, self.unit, self.exact = 1, unit, exact

    def loss(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """raw [n, 1]; labels >= 0 or NaN [n], in the event's own unit (negative ones count as 0); weights [n].

        A scalar: the mean per impression, not per unit of value.
        """
        labels, weights = known(raw, labels, weights)
        self.see(labels, weights)
        size = labels.clamp(min=0.0) / self.unit
        as_negative = torch.ones_like(size) if self.exact else (size == 0).to(size.dtype)
        losses = size * functional.softplus(-raw[:, 0]) + as_negative * functional.softplus(raw[:, 0])
        return weighted_mean(losses, weights)

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, 1] -> expected values [n], in the event's own unit; as published, 1 / (1 - p) times those."""
        return (self.scale * self.unit * raw[:, 0].clamp(max=VALUE_CAP).exp()).clamp(max=self.largest)

    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The log of the odds that the loss finds without inputs: [1]."""
        labels, weights = known(labels, labels, weights)
        size = labels.clamp(min=0.0) / self.unit
        as_negative = torch.ones_like(size) if self.exact else (size == 0).to(size.dtype)
        negatives = (weights * as_negative).sum()
        if not bool(negatives > 0):
            return labels.new_zeros(1)
        return ((weights * size).sum() / negatives).clamp(min=1e-6).log()[None]
