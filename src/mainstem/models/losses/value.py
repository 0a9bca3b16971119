"""Regression of a size: watch seconds, amount."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["value"]


def value(predicted: Tensor, values: Tensor, weights: Tensor | None = None, delta: float = 1.0) -> Tensor:
    """Huber loss on log1p of the value.

    Optimises
        the typical size on a log scale: sizes are skewed over orders of magnitude, and beyond `delta` (in
        log units) an error counts linearly, so that a few giants do not rule the fit.
    Inputs
        predicted [n]: a value head's raw output, an estimate of log1p(value); values float >= 0 [n], in
        the event's own unit; weights float >= 0 [n]: 0 leaves an example out.
    Requirements
        values >= 0 (negative ones count as 0).
    Relations
        `binary` says whether it happens, this how large it is if it does.
    Reference
        Huber 1964, "Robust Estimation of a Location Parameter".

    Returns the weighted mean, a scalar; 0 where all weights are 0.
    """
    target = torch.log1p(values.clamp(min=0.0)).to(predicted.dtype)
    losses = functional.huber_loss(predicted, target, reduction="none", delta=delta)
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)
