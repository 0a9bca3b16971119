"""Softmax cross-entropy over a whole catalogue, in chunks."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["full_softmax", "plain_full_softmax"]


def full_softmax(
    users: Tensor,
    entities: Tensor,
    targets: Tensor,
    temperature: float = 0.1,
    *,
    weights: Tensor | None = None,
    chunk: int = 8192,
) -> Tensor:
    """Cross-entropy of each user's positive among *all* entities, none of them sampled.

    Optimises
        the likelihood of the positive under softmax(dot / temperature) over the catalogue.
    Inputs
        users [b, d]; entities [n, d]; targets int64 [b]: the entity that is each user's positive; weights float >= 0
        [b]; chunk: entities that are scored at once.
    Requirements
        b * n * d * 2 multiplications forward and twice that backward, in pieces of [b, chunk]: the matrix of logits
        [b, n] never exists, neither forward nor backward, which makes its pieces anew from the [b] normalisers. There
        is no second derivative.
    Relations
        `sampled_softmax` estimates it from a sample, for catalogues where all of it is too much; `plain_full_softmax`
        is the same by torch's own cross-entropy, and its oracle.
    Reference
        Milakov & Gimelshein 2018, "Online normalizer calculation for softmax", algorithm 3 (the running normaliser);
        Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (remaking the pieces backward).

    Returns the weighted mean over users, a scalar; 0 where all weights are 0.
    """
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    log_normaliser: Tensor = _LogNormaliser.apply(users / temperature, entities, chunk)  # type: ignore[no-untyped-call]
    return _mean(log_normaliser - (users * entities[targets]).sum(dim=1) / temperature, weights)


def plain_full_softmax(
    users: Tensor, entities: Tensor, targets: Tensor, temperature: float = 0.1, *, weights: Tensor | None = None
) -> Tensor:
    """`full_softmax` with all logits [b, n] at once."""
    losses = functional.cross_entropy(users @ entities.T / temperature, targets, reduction="none")
    return _mean(losses, weights)


def _mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)


class _LogNormaliser(torch.autograd.Function):
    """log(sum over entities of exp(user . entity)): [b], from users [b, d] and entities [n, d]."""

    @staticmethod
    def forward(ctx: Any, users: Tensor, entities: Tensor, chunk: int) -> Tensor:
        top = users.new_full((len(users),), -torch.inf)
        total = users.new_zeros(len(users))
        for start in range(0, len(entities), chunk):
            logits = users @ entities[start : start + chunk].T
            higher = torch.maximum(top, logits.amax(dim=1))
            total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(dim=1)
            top = higher
        out = top + total.log()
        ctx.save_for_backward(users, entities, out)
        ctx.chunk = chunk
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        users, entities, log_normaliser = ctx.saved_tensors
        of_users = torch.zeros_like(users) if ctx.needs_input_grad[0] else None
        of_entities = torch.empty_like(entities) if ctx.needs_input_grad[1] else None
        for start in range(0, len(entities), ctx.chunk):
            piece = entities[start : start + ctx.chunk]
            shares = (users @ piece.T).sub_(log_normaliser[:, None]).exp_().mul_(gradient[:, None])
            if of_users is not None:
                of_users.addmm_(shares, piece)
            if of_entities is not None:
                torch.mm(shares.T, users, out=of_entities[start : start + ctx.chunk])
        return of_users, of_entities, None
