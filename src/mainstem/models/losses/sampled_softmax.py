"""Sampled softmax with the logQ correction."""

from __future__ import annotations

import torch
from torch import Tensor

from mainstem.models.losses.softmax import among_others

__all__ = ["log_inclusion", "sampled_softmax"]


def log_inclusion(share: Tensor, in_batch: int, uniform: int, catalogue: int) -> Tensor:
    """log Q, Q = 1 - (1 - share)^in_batch (1 - 1/catalogue)^uniform: the chance that an entity is drawn at all.

    share float [n]: the part of all training positives that the entity is. `in_batch` draws are made by share: the
    *other* positives of the batch, b - 1 (not b: a user's own positive is there for certain). `uniform` draws
    are made evenly from `catalogue` entities.
    """
    missed = in_batch * torch.log1p(-share.clamp(1e-12, 1 - 1e-6))
    even = torch.full_like(share, 1 / max(catalogue, 1)).clamp(max=1 - 1e-6)
    return torch.log(-torch.expm1(missed + uniform * torch.log1p(-even)).clamp(max=-1e-12))


def sampled_softmax(
    users: Tensor,
    candidates: Tensor,
    keys: Tensor | None,
    log_q: Tensor,
    temperature: float = 0.1,
    *,
    targets: Tensor | None = None,
    weights: Tensor | None = None,
    drawn: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """Cross-entropy of each user's positive among the distinct candidates, corrected for how these were drawn.

    Optimises
        the likelihood of the positive under softmax(dot / temperature) over the *whole* catalogue, from a sample
        of it: each candidate's logit is lowered by log Q, the log of its chance of being in the sample.
        Without it popular entities, which are drawn often, are pushed down for being drawn.
    Inputs
        users [b, d]; candidates [c, d]; keys int64 [c]: which entity each candidate is, or None where all are
        different; log_q float [c]: see `negatives`; targets int64 [b]: the candidate that is the positive of each user,
        by default user i's at place i, followed by extra negatives; weights float >= 0 [b]; drawn bool [c]: false for
        candidates that are there as somebody's positive alone, no negative of others, read where a key stands first;
        excluded int64 [2, p]: pairs (user, candidate) to leave out (a user's other positives), wherever else the key
        stands too.
    Requirements
        vectors already normalised if cosines are meant; the same vector wherever a key is repeated. The sample is taken
        as a set: each key counts once, so no accidental hit (the positive again among the negatives) remains,
        and an entity that is in nearly every batch (expected count above 1) is not over-corrected, as it is
        where repeats stay and Q is the expected count. The matrix [b, c] is made in pieces, as `full_softmax` does;
        there is no second derivative.
    Relations
        with every entity a candidate and log_q constant it is the full softmax; `listwise_softmax` is its form
        where the candidates are a given slate and nothing was sampled.
    Reference
        Bengio & Senecal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic
        Language Model"; Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item
        Recommendations", equation 3; Yang et al. 2020, "Mixed Negative Sampling" for the mixture. Over sets,
        P(positive is y | sample) is proportional to P(y | user) / Q(y) where entities enter the sample independently,
        and nearly so where a fixed number is drawn.

    Returns the weighted mean over users, a scalar; 0 where all weights are 0.
    """
    if targets is None:
        targets = torch.arange(len(users), device=users.device)
    if keys is not None:
        distinct, group = torch.unique(keys, return_inverse=True)
        places = torch.arange(len(keys), device=keys.device)
        first = places.new_full((len(distinct),), len(keys)).scatter_reduce(0, group, places, "amin")
        candidates, log_q, targets = candidates[first], log_q[first], group[targets]
        drawn = None if drawn is None else drawn[first]
        if excluded is not None:
            excluded = torch.stack((excluded[0], group[excluded[1]]))
    asked = users / temperature
    return among_others(asked, candidates, targets, log_q, weights=weights, others=drawn, excluded=excluded)
