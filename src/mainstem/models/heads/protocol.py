"""What every head is: raw outputs of the network in, a loss and a prediction in the event's own unit out."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

__all__ = ["VALUE_CAP", "AmountHead", "ExpectedAmountHead", "TaskHead", "known", "weighted_mean"]

VALUE_CAP = 20.0
"""Logarithms of predicted values are cut at this, so that their exponentials stay finite in float32."""


class TaskHead(Protocol):
    """`outputs` raw columns per example belong to the head; its link and its loss are its own affair.

    A label that is NaN is not known (yet): it counts neither in the loss nor in its mean.
    """

    outputs: int

    def loss(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """Weighted mean over known labels, a scalar; 0 where there is none.

        raw [n, outputs]; labels [n], in the event's own unit, NaN where not known; weights float >= 0 [n].
        """
        ...

    def predict(self, raw: Tensor) -> Tensor:
        """[n], in the labels' unit: a chance, an expected grade, an expected amount."""
        ...

    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The raw output that fits these labels best where it is the same for all: [outputs], zeros where no label is
        known. What training starts from, so that it need not learn the level of large values step by step. A head may
        set parameters of its own by it.

        labels [n], as in `loss`; weights float >= 0 [n].
        """
        ...


class AmountHead(nn.Module):
    """A head that predicts amounts on a log scale, where a step beyond what was seen is a factor: what it says is cut
    at the largest label that it has learned from.

    largest: that label, infinite before the first one above 0.
    """

    largest: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("largest", torch.tensor(torch.inf))

    @torch.no_grad()
    def see(self, labels: Tensor, weights: Tensor) -> None:
        """Take labels [n] that count into `largest`, while training."""
        counted = labels[(weights > 0) & (labels > 0)]
        if self.training and len(counted):
            before = torch.where(self.largest.isinf(), torch.zeros_like(self.largest), self.largest)
            self.largest.copy_(torch.maximum(before, counted.max().to(before.dtype)))


class ExpectedAmountHead(AmountHead):
    """One that predicts what to expect, so that its predictions should add up to what comes.

    scale: what predictions are multiplied by, 1 before `fit_scale`.
    """

    scale: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(()))

    @torch.no_grad()
    def fit_scale(self, predicted: Tensor, labels: Tensor, weights: Tensor) -> None:
        """Set the factor so that predictions [n], made with the factor as it is, add up to what was observed: labels
        [n], NaN where not known; weights float >= 0 [n]. It stays where nothing was observed or predicted."""
        values, weights = known(predicted.double(), labels, weights)
        observed, said = (weights * values.clamp(min=0.0)).sum(), (weights * predicted.double()).sum()
        if bool(observed > 0) and bool(said > 0):
            self.scale.mul_((observed / said).to(self.scale.dtype))


def known(raw: Tensor, labels: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Labels with 0 in place of NaN, and weights with 0 there: [n], [n], of the dtype of raw.

    NaN is replaced before anything is computed from it: 0 * NaN in a loss would be NaN in every gradient.
    """
    is_known = ~labels.isnan()
    counted = is_known.to(raw.dtype)
    if weights is not None:
        counted = counted * weights
    return torch.where(is_known, labels, torch.zeros_like(labels)).to(raw.dtype), counted


def weighted_mean(losses: Tensor, weights: Tensor) -> Tensor:
    """sum(losses * weights) / sum(weights), a scalar; 0 where all weights are 0."""
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)
