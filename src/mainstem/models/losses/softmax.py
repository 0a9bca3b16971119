"""Softmax cross-entropy over many entities, in pieces: the whole catalogue, or a sample (`sampled_softmax`)."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from mainstem.models.jagged import pick

__all__ = ["among_others", "full_softmax", "mean", "plain_full_softmax"]

# Logits that are looked at together: few enough to stay in a core's cache.
PIECE = 2**18


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
        [b]; excluded int64 [2, p]: pairs (user, entity) to leave out (a user's other positives); chunk: entities that
        are scored at once, by default as many as make `PIECE` logits.
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
    return mean(among_others(users / temperature, entities, targets, excluded=excluded, chunk=chunk), weights)


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
    return mean(functional.cross_entropy(logits, targets, reduction="none"), weights)


def mean(losses: Tensor, weights: Tensor | None) -> Tensor:
    """The (weighted) mean of losses [b], a scalar; 0 where all weights are 0."""
    if weights is None:
        return losses.mean()
    return (losses * weights).sum() / weights.sum().clamp(min=1e-12)


def among_others(
    users: Tensor,
    entities: Tensor,
    targets: Tensor,
    log_q: Tensor | None = None,
    *,
    others: Tensor | None = None,
    excluded: Tensor | None = None,
    chunk: int | None = None,
) -> Tensor:
    """-log of the share that each user's positive has among the entities: float [b], no matrix [b, n] made.

    users [b, d], already divided by the temperature; entities [n, d]; targets int64 [b]; log_q float [n]: what each
    logit is lowered by. Left out are `excluded` pairs int64 [2, p], and where `others` bool [n] is false an entity for
    all but those whose positive it is. A user's own positive stays whatever is left out. chunk: see `full_softmax`.
    """
    b, n = len(users), len(entities)
    if chunk is None:
        chunk = max(PIECE // max(b, 1), 64)
    if chunk < 1:
        raise ValueError(f"chunk must be at least 1, not {chunk}")
    bias = users.new_zeros(n) if log_q is None else -log_q.to(users.dtype)
    own = (users * pick(entities, targets)).sum(dim=1) + bias[targets]
    if others is not None:
        bias = bias.masked_fill(~others, -torch.inf)
    pairs = torch.stack((torch.arange(b, device=targets.device), targets))
    if excluded is not None:
        pairs = torch.cat((pairs, excluded), dim=1)
    rest: Tensor = _LogSum.apply(users, entities, bias, _Pairs(pairs, n, chunk))  # type: ignore[no-untyped-call]
    return functional.softplus(rest - own)


class _Pairs:
    """Pairs (user, entity), by the pieces of the catalogue that the entities lie in."""

    def __init__(self, pairs: Tensor, entities: int, chunk: int) -> None:
        """pairs int64 [2, p]"""
        by_entity = pairs[1].argsort()
        self.chunk, self._users, self._entities = chunk, pairs[0][by_entity], pairs[1][by_entity]
        bounds = torch.arange(0, entities + chunk, chunk, device=pairs.device)
        self._cuts = torch.searchsorted(self._entities, bounds).tolist()

    def fill(self, start: int, piece: Tensor, value: float) -> None:
        """Write `value` to the pairs that lie in this piece, of the entities from `start` on."""
        first, end = self._cuts[start // self.chunk : start // self.chunk + 2]
        if first < end:
            piece[self._users[first:end], self._entities[first:end] - start] = value


class _LogSum(torch.autograd.Function):
    """log(sum over entities of exp(user . entity + bias)) without some pairs: [b]; -inf where none is left.

    users [b, d]; entities [n, d]; bias [n], which has no gradient, -inf for none.
    """

    @staticmethod
    def forward(ctx: Any, users: Tensor, entities: Tensor, bias: Tensor, without: _Pairs) -> Tensor:
        top = users.new_full((len(users),), torch.finfo(users.dtype).min)
        total = torch.zeros_like(top)
        for start in range(0, len(entities), without.chunk):
            logits = _logits(users, entities, bias, without, start)
            higher = torch.maximum(top, logits.amax(dim=1))
            total = total * (top - higher).exp() + logits.sub_(higher[:, None]).exp_().sum(dim=1)
            top = higher
        out = top + total.log()
        ctx.save_for_backward(users, entities, bias, out.clamp(min=torch.finfo(out.dtype).min))
        ctx.without = without
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, None, None]:
        users, entities, bias, log_sum = ctx.saved_tensors
        of_users = torch.zeros_like(users) if ctx.needs_input_grad[0] else None
        of_entities = torch.empty_like(entities) if ctx.needs_input_grad[1] else None
        for start in range(0, len(entities), ctx.without.chunk):
            stop = start + ctx.without.chunk
            logits = _logits(users, entities, bias, ctx.without, start)
            shares = logits.sub_(log_sum[:, None]).exp_().mul_(gradient[:, None])
            if of_users is not None:
                of_users.addmm_(shares, entities[start:stop])
            if of_entities is not None:
                torch.mm(shares.T, users, out=of_entities[start:stop])
        return of_users, of_entities, None, None


def _logits(users: Tensor, entities: Tensor, bias: Tensor, without: _Pairs, start: int) -> Tensor:
    """A piece [b, chunk] of the logits, -inf where a pair is left out."""
    stop = start + without.chunk
    logits = torch.addmm(bias[start:stop], users, entities[start:stop].T)
    without.fill(start, logits, -torch.inf)
    return logits
