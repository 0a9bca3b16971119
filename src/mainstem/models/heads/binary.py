"""Whether it happens: the chance of a click, a like, a purchase."""

from __future__ import annotations

from torch import Tensor, nn

from mainstem.models.heads.protocol import known, weighted_mean
from mainstem.models.losses.binary import binary

__all__ = ["BinaryHead"]


class BinaryHead(nn.Module):
    """Logistic link: P(label = 1) = sigmoid(raw). Loss: `losses.binary`."""

    outputs = 1

    def loss(
        self,
        raw: Tensor,
        labels: Tensor,
        weights: Tensor | None = None,
        negative_rate: Tensor | float | None = None,
    ) -> Tensor:
        """raw [n, 1]; labels 0, 1 or NaN [n]; weights [n]; negative_rate: see `losses.binary`. A scalar."""
        labels, weights = known(raw, labels, weights)
        return binary(raw[:, 0], labels, weights, negative_rate)

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, 1] -> chances [n]."""
        return raw[:, 0].sigmoid()

    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """The log-odds of the share of ones: [1]."""
        labels, weights = known(labels, labels, weights)
        if not bool((weights > 0).any()):
            return labels.new_zeros(1)
        return weighted_mean(labels, weights).logit(eps=1e-6)[None]
