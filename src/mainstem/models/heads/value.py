"""How large it is, robustly: watch seconds or an amount whose giants should not rule the fit."""

from __future__ import annotations

import torch
from torch import Tensor

from mainstem.models.heads.protocol import VALUE_CAP, AmountHead, known, weighted_mean
from mainstem.models.losses.value import value

__all__ = ["ValueHead"]


class ValueHead(AmountHead):
    """Link log1p, loss `losses.value` (Huber on the log scale).

    What is fitted is the centre on the log scale, a value that is *typical*; where values scatter it lies below the
    expected one (for a lognormal by the factor exp(-sigma^2 / 2)). `fit_smearing` makes up for it with one factor
    (Duan 1983, "Smearing Estimate: A Nonparametric Retransformation Method").
    """

    smearing: Tensor

    def __init__(self, delta: float = 1.0) -> None:
        """delta: where the loss turns linear, in log units."""
        super().__init__()
        self.outputs, self.delta = 1, delta
        self.register_buffer("smearing", torch.ones(()))

    def loss(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """raw [n, 1]; labels >= 0 or NaN [n], in the event's own unit; weights [n]. A scalar."""
        labels, weights = known(raw, labels, weights)
        self.see(labels, weights)
        return value(raw[:, 0], labels, weights, self.delta)

    @torch.no_grad()
    def fit_smearing(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> None:
        """Set the factor so that predictions of 1 + value sum up to those observed: raw [n, 1], labels [n].

        Raises ValueError where no label is known.
        """
        values, weights = known(raw.double(), labels, weights)
        if not bool((weights > 0).any()):
            raise ValueError("smearing needs known labels")
        grown = raw[:, 0].double().clamp(0.0, VALUE_CAP).exp()
        self.smearing.copy_((weights * (1 + values.clamp(min=0.0))).sum() / (weights * grown).sum())

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, 1] -> sizes >= 0 [n]: typical ones before `fit_smearing`, expected ones after."""
        grown = raw[:, 0].clamp(0.0, VALUE_CAP).exp() * self.smearing - 1
        return grown.clamp(min=0.0).clamp(max=self.largest)

    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The mean of log1p(value): [1]."""
        values, weights = known(labels, labels, weights)
        return weighted_mean(values.clamp(min=0.0).log1p(), weights)[None]
