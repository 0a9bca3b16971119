"""Softmax cross-entropy over many entities, in pieces: the whole catalogue, or a sample (`sampled_softmax`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["among_others", "full_softmax", "plain_full_softmax"]

# Users that are looked at together: enough for the products to run at full speed.
USERS = 256
# Logits of these at most, while that leaves `LEAST` users.
PIECE = 2**22
LEAST = 16
# On a GPU: 1 GB of float32, as a piece is a handful of kernels however large it is.
DEVICE_PIECE = 2**28


def full_softmax(
    users: Tensor,
    entities: Tensor,
    targets: Tensor,
    temperature: float = 0.1,
    *,
    weights: Tensor | None = None,
    excluded: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """Cross-entropy of each user's positive among *all* entities, none of them sampled.

    Optimises
        the likelihood of the positive under softmax(dot / temperature) over the catalogue.
    Inputs
        users [b, d]; entities [n, d]; targets int64 [b]: the entity that is each user's positive; weights float >= 0
        [b]; excluded int64 [2, p]: pairs (user, entity) to leave out (a user's other positives); chunk: users that are
        scored at once, by default `USERS`, or fewer where the entities are many; on a GPU as many as fit
        `DEVICE_PIECE` logits.
    Requirements
        b * n * d * 3 multiplications, all of them forward, in pieces of [chunk, n]: the matrix of logits [b, n] never
        exists. A piece gives its share of the gradient as soon as it is there, for what comes backward is one number.
        There is no second derivative.
    Relations
        `sampled_softmax` estimates it from a sample, for catalogues where all of it is too much; `plain_full_softmax`
        is the same by torch's own cross-entropy, and its oracle.
    Reference
        Wijmans et al. 2024, "Cut Your Losses in Large-Vocabulary Language Models" (no matrix of logits); Hsu et al.
        2024, "Liger Kernel: Efficient Triton Kernels for LLM Training", section 3.2 (the gradient in the forward pass).

    Returns the weighted mean over users, a scalar; 0 where all weights are 0.
    """
    return among_others(users / temperature, entities, targets, weights=weights, excluded=excluded, chunk=chunk)


def plain_full_softmax(
    users: Tensor,
    entities: Tensor,
    targets: Tensor,
    temperature: float = 0.1,
    *,
    weights: Tensor | None = None,
    excluded: Tensor | None = None,
) -> Tensor:
    """`full_softmax` with all logits [b, n] at once."""
    logits = users @ entities.T / temperature
    if excluded is not None:
        left_out = torch.zeros_like(logits, dtype=torch.bool)
        left_out[excluded[0], excluded[1]] = True
        left_out[torch.arange(len(users), device=users.device), targets] = False
        logits = logits.masked_fill(left_out, -torch.inf)
    return (functional.cross_entropy(logits, targets, reduction="none") * _counted(users, weights)).sum()


def among_others(
    users: Tensor,
    entities: Tensor,
    targets: Tensor,
    log_q: Tensor | None = None,
    *,
    weights: Tensor | None = None,
    others: Tensor | None = None,
    excluded: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """The (weighted) mean over users of -log of the share that the positive has among the entities, a scalar; 0 where
    all weights are 0. No matrix [b, n] is made.

    users [b, d], already divided by the temperature; entities [n, d]; targets int64 [b]; log_q float [n]: what each
    logit is lowered by. Left out are `excluded` pairs int64 [2, p], and where `others` bool [n] is false an entity for
    all but those whose positive it is. A user's own positive stays whatever is left out. chunk: see `full_softmax`.
    """
    if chunk is None:
        at_once, piece = (USERS, PIECE) if users.device.type == "cpu" else (len(users), DEVICE_PIECE)
        chunk = max(min(at_once, piece // max(len(entities), 1)), LEAST)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    bias = users.new_zeros(len(entities)) if log_q is None else -log_q.to(users.dtype)
    own = bias[targets]
    if others is not None:
        bias = bias.masked_fill(~others, -torch.inf)
    pairs = users.new_zeros((2, 0), dtype=torch.int64) if excluded is None else excluded[:, excluded[0].argsort()]
    counted = _counted(users, weights)
    out: Tensor = _MeanLoss.apply(users, entities, targets, counted, bias, own, pairs, chunk)  # type: ignore[no-untyped-call]
    return out


def _counted(users: Tensor, weights: Tensor | None) -> Tensor:
    """What each user counts in the mean: [b]."""
    if weights is None:
        return users.new_full((len(users),), 1 / max(len(users), 1))
    return (weights / weights.sum().clamp(min=1e-12)).to(users.dtype)


class _MeanLoss(torch.autograd.Function):
    """sum over users of counted * (log(sum over entities of exp(user . entity + bias)) - that of the own positive).

    users [b, d]; entities [n, d]; targets int64 [b]; counted [b]; bias [n]: -inf for what is nobody's negative; own
    [b]: the bias of each user's positive; pairs int64 [2, p], by user: left out. Gradients for users and entities
    alone.
    """

    @staticmethod
    def forward(
        ctx: Any, users: Tensor, entities: Tensor, targets: Tensor, counted: Tensor, bias: Tensor, own: Tensor,
        pairs: Tensor, chunk: int,
    ) -> Tensor:  # fmt: skip
        learn_users, learn_entities = ctx.needs_input_grad[:2]
        of_users = torch.empty_like(users) if learn_users else None
        of_entities = torch.zeros_like(entities) if learn_entities else None
        loss = users.new_zeros(())
        starts = range(0, len(users), chunk)
        cuts = torch.searchsorted(
            pairs[0].contiguous(), torch.arange(0, len(users) + chunk, chunk, device=users.device)
        )
        for start, first, end in zip(starts, cuts[:-1].tolist(), cuts[1:].tolist(), strict=False):
            some, targeted, counts = (each[start : start + chunk] for each in (users, targets, counted))
            rows = torch.arange(len(some), device=users.device)
            logits = torch.addmm(bias, some, entities.T)
            logits[pairs[0, first:end] - start, pairs[1, first:end]] = -torch.inf
            right = (some * entities[targeted]).sum(dim=1) + own[start : start + chunk]
            logits[rows, targeted] = right
            top = logits.amax(dim=1)
            total = logits.sub_(top[:, None]).exp_().sum(dim=1)
            loss += (counts * (total.log() + top - right)).sum()
            if not (learn_users or learn_entities):
                continue
            slopes = logits.mul_((counts / total)[:, None])
            slopes[rows, targeted] -= counts
            if of_users is not None:
                torch.mm(slopes, entities, out=of_users[start : start + chunk])
            if of_entities is not None:
                of_entities.addmm_(slopes.T, some)
        ctx.save_for_backward(of_users, of_entities)
        return loss

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        of_users, of_entities = (None if each is None else each * gradient for each in ctx.saved_tensors)
        return of_users, of_entities, None, None, None, None, None, None
