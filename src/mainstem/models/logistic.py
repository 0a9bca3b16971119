"""Logistic regression: the small baseline that every larger model has to beat."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from mainstem.models.ranker import CLIP

__all__ = ["Logistic"]


class Logistic(nn.Module):
    """P(label = 1) = sigmoid(w . z + b), z the standardised features. `fit_normaliser` must see data before training.

    `losses.binary` trains it; with it and an L2 penalty (weight decay) the loss is convex: there is one answer.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, features: int) -> None:
        super().__init__()
        self.register_buffer("mean", torch.zeros(features))
        self.register_buffer("scale", torch.ones(features))
        self.linear = nn.Linear(features, 1)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear.bias)

    @torch.no_grad()
    def fit_normaliser(self, x: Tensor) -> None:
        """Take mean and standard deviation per column from x [n, features]; constant columns keep scale 1.

        Raises ValueError on values that are not finite.
        """
        if not bool(x.isfinite().all()):
            raise ValueError("features must be finite")
        deviation = x.double().std(dim=0, correction=0)
        self.mean.copy_(x.double().mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor) -> Tensor:
        """Logits [n] of raw features x [n, features], clipped to CLIP standard deviations as the ranker's are."""
        out: Tensor = self.linear(((x - self.mean) / self.scale).clamp(-CLIP, CLIP))
        return out[:, 0]

    def scores(self, x: Tensor) -> Tensor:
        """Chances [n]."""
        logits: Tensor = self(x)
        return logits.sigmoid()
