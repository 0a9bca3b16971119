"""Softmax cross-entropy over the candidates of each slate."""

from __future__ import annotations

import torch
from torch import Tensor

from mainstem.models.jagged import segment_ids, segment_log_sum_exp, segment_sum

__all__ = ["listwise_softmax"]


def listwise_softmax(
    scores: Tensor, gains: Tensor, offsets: Tensor, weights: Tensor | None = None, *, mean: bool = True
) -> Tensor:
    """Cross-entropy between the shares of the gains and the softmax of the scores, per slate.

    Optimises
        the order within a slate: all of the softmax on candidates with a gain. A bound on NDCG and MRR.
    Inputs
        scores [total]: logits of one head; gains float >= 0 [total]: 1 for a positive, or graded;
        offsets int64 [s + 1]: the candidates of slate i are offsets[i]:offsets[i + 1];
        weights float >= 0 [s].
    Requirements
        slates without any gain say nothing about order and do not count; scores need no scale of their own.
    Relations
        invariant to adding a constant to a slate's scores, so its scores are no probabilities: add `binary` for
        calibration. `sampled_softmax` is the form with sampled candidates.
    Reference
        Cao et al. 2007, "Learning to Rank: From Pairwise Approach to Listwise Approach" (ListNet, top one);
        Bruch et al. 2019, "An Analysis of the Softmax Cross Entropy Loss for Learning-to-Rank".

    Returns the weighted mean over slates with a gain, a scalar; 0 where there is none. With mean=False
    their weighted sum.
    """
    ids = segment_ids(offsets, scores.numel())
    log_share = scores - segment_log_sum_exp(scores, offsets)[ids]
    total = segment_sum(gains, offsets)
    has_gain = (total > 0).to(scores.dtype)
    losses = -segment_sum(gains * log_share, offsets) / total.clamp(min=torch.finfo(total.dtype).tiny)
    counted = has_gain if weights is None else has_gain * weights
    total_loss = (losses * counted).sum()
    return total_loss / counted.sum().clamp(min=1e-12) if mean else total_loss
