"""Whether it happens: the chance of a click, a like, a purchase."""

from __future__ import annotations

from torch import Tensor, nn

from mainstem.models.heads.protocol import known
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
