"""Logistic loss on pairs of candidates of the same slate."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mainstem.models.jagged import segment_ids

__all__ = ["pairwise"]


def pairwise(
    scores: Tensor, gains: Tensor, offsets: Tensor, weights: Tensor | None = None, *, each: Tensor | None = None,
    mean: bool = True,
) -> Tensor:  # fmt: skip
    """-log sigmoid(score of the better - score of the worse), over all pairs of a slate whose gains differ.

    Optimises
        the chance that of two candidates of a slate the one with more gain scores higher: with 0/1 gains a smooth
        form of the AUC within slates.
    Inputs
        scores [total]: logits of one head; gains float [total]: only their order counts, NaN says that it is not
        known and takes part in no pair; offsets int64 [s + 1]: the candidates of slate i are
        offsets[i]:offsets[i + 1]; weights float >= 0 [s]; each float > 0 [total]: how much the pairs count in which a
        candidate is the better one.
    Requirements
        memory for the pairs: candidates that are not the worst of their slate, times the slate's length.
    Relations
        `listwise_softmax` looks at the top of the slate, this at all pairs alike; like it, it knows no probabilities:
        add `binary` for calibration. With one positive and one drawn negative a slate it is BPR.
    Reference
        Burges et al. 2005, "Learning to Rank using Gradient Descent" (RankNet), section 3; Rendle et al. 2009, "BPR:
        Bayesian Personalized Ranking from Implicit Feedback", section 4.1.

    A slate's loss is the mean over its pairs, so that a long slate counts no more than a short one. Returns the
    weighted mean over slates that have a pair, a scalar; 0 where there is none. With mean=False their weighted sum.
    """
    better, worse, slate = _pairs(gains, offsets)
    losses = functional.softplus(scores[worse] - scores[better])
    slates = offsets.numel() - 1
    if each is None:
        pairs = torch.bincount(slate, minlength=slates).to(scores.dtype)
    else:
        losses = losses * each[better]
        pairs = losses.new_zeros(slates).index_add(0, slate, each[better])
    per_slate = losses.new_zeros(slates).index_add(0, slate, losses) / torch.where(pairs > 0, pairs, 1.0)
    counted = (pairs > 0).to(scores.dtype)
    if weights is not None:
        counted = counted * weights
    total = (per_slate * counted).sum()
    return total / counted.sum().clamp(min=1e-12) if mean else total


def _pairs(gains: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(better, worse, slate), int64 [pairs] each: places of candidates of one slate, gains[better] > gains[worse]."""
    ids = segment_ids(offsets, gains.numel())
    lowest = gains.new_full((offsets.numel() - 1,), torch.inf)
    lowest = lowest.scatter_reduce(0, ids, gains.nan_to_num(nan=torch.inf, posinf=torch.inf), "amin")
    winners = torch.nonzero(gains > lowest[ids])[:, 0]  # false for NaN, and for the worst of a slate
    lengths = offsets.diff()[ids[winners]]
    starts = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    better = torch.repeat_interleave(winners, lengths)
    within = torch.arange(better.numel(), device=gains.device) - torch.repeat_interleave(starts[:-1], lengths)
    worse = offsets[ids[better]] + within
    differ = gains[better] > gains[worse]
    better, worse = better[differ], worse[differ]
    return better, worse, ids[better]
