"""One step of each touched row's optimizer in torch, on any device: the formulas of `weights.optimizers.apply`.

Gradients of a row that is named several times are summed in float32 in a fixed order, pairs of neighbours first, then
pairs of pairs, and no atomics: the same call gives the same bits. Sums of three and more, and the roots, may differ in
the last bits from those of `SlabTable`, which adds one after the other.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mainstem.weights.family import Adagrad, Adam, Optimizer, RowwiseAdagrad

__all__ = ["step", "summed"]


def summed(rows: Tensor, gradients: Tensor) -> tuple[Tensor, Tensor]:
    """Rows int64 [n], each once, ascending [u], and the sums of their gradients [n, dim] -> [u, dim]."""
    named, order = torch.sort(rows, stable=True)
    named, lengths = torch.unique_consecutive(named, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    within = torch.arange(len(rows), device=rows.device) - torch.repeat_interleave(starts, lengths)
    left = torch.repeat_interleave(lengths, lengths) - within  # to the end of the row's run
    totals = gradients[order]
    active = torch.arange(len(rows), device=rows.device)
    stride = 1
    while True:
        # those that have a partner at this distance had one at half of it
        active = active[(within[active] % (2 * stride) == 0) & (left[active] > stride)]
        if not len(active):
            return named, totals[starts]
        totals[active] += totals[active + stride]
        stride *= 2


def step(optimizer: Optimizer, values: Tensor, state: Tensor, rows: Tensor, g: Tensor, rate: float) -> None:
    """One step of `optimizer`, in place, for rows int64 [n], 0 and above, distinct, with gradients g float32 [n, dim].

    values float32 [capacity, dim], state float32 [capacity, width] as `weights.optimizers.apply` says.
    """
    dim = values.shape[1]
    w = values[rows]
    if isinstance(optimizer, RowwiseAdagrad):
        total = state[rows, 0] + (g * g).sum(1) / dim
        state[rows, 0] = total
        size = rate / (total.to(torch.float64).sqrt() + optimizer.epsilon)
        w.addcmul_(g, size.to(torch.float32)[:, None], value=-1.0)
    elif isinstance(optimizer, Adagrad):
        a = state[rows, :dim].addcmul_(g, g)
        state[rows, :dim] = a
        w.addcdiv_(g, a.sqrt_().add_(optimizer.epsilon), value=-rate)
    elif isinstance(optimizer, Adam):
        m, v, t = state[rows, :dim], state[rows, dim : 2 * dim], state[rows, 2 * dim] + 1
        m = m.mul_(optimizer.beta1).add_(g, alpha=1 - optimizer.beta1)
        v = v.mul_(optimizer.beta2).addcmul_(g, g, value=1 - optimizer.beta2)
        state[rows, :dim], state[rows, dim : 2 * dim], state[rows, 2 * dim] = m, v, t
        t = t.to(torch.float64)[:, None]
        size = (rate / (1 - optimizer.beta1**t)).to(torch.float32)
        spread = (1 / (1 - optimizer.beta2**t).sqrt()).to(torch.float32)
        w -= m * size / (v.sqrt_() * spread + optimizer.epsilon)
    else:
        z, n = state[rows, :dim], state[rows, dim : 2 * dim]
        before, square = n.sqrt(), g * g
        n = n + square
        after = n.sqrt()
        # sqrt(n + g^2) - sqrt(n), written so that it does not cancel
        sigma = square / (after + before).clamp_(min=1e-30) / rate
        z = z + g - sigma * w
        state[rows, :dim], state[rows, dim : 2 * dim] = z, n
        shrunk = (z.abs() - optimizer.l1).clamp_(min=0.0) * z.sign()
        w = 0.0 - shrunk / ((optimizer.beta + after) / rate + optimizer.l2)
    values[rows] = w
