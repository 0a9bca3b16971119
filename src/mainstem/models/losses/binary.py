"""Binary cross-entropy, calibrated although negatives were sampled."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["binary"]


def binary(
    logits: Tensor, labels: Tensor, weights: Tensor | None = None, negative_rate: Tensor | float | None = None
) -> Tensor:
    """Cross-entropy of 0/1 labels, with the log-odds correction for sampled negatives.

    Optimises
        P(label = 1) of the population. Keeping a share r of the negatives multiplies the odds in the sample by
        1 / r; the loss sees logit - log r, so that the bare logit stays that of the population.
    Inputs
        logits [n]; labels float in {0, 1} [n]; weights float >= 0 [n]: 0 leaves an example out, as one
        whose label is still pending; negative_rate in (0, 1], scalar or [n]: the share of this slate's negatives
        that was kept, the same for its positives and negatives.
    Requirements
        negatives sampled at random within a slate and all positives kept.
    Relations
        pointwise beside `listwise_softmax`; the alternative, weighting negatives by 1 / r, has more variance.
    Reference
        King & Zeng 2001, "Logistic Regression in Rare Events Data", section 4.1 (prior correction).

    Returns the weighted mean, a scalar; 0 where all weights are 0.
    """
    if negative_rate is not None:
        rate = torch.as_tensor(negative_rate, dtype=logits.dtype, device=logits.device)
        logits = logits - rate.log()
    losses = functional.binary_cross_entropy_with_logits(logits, labels, reduction="none")
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)
