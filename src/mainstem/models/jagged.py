"""Segments of a flat tensor. `offsets [s+1]` starts at 0, never falls and ends at the length of the values.

values   a b c d e f        offsets 0 2 2 6
segment  [a b] [] [c d e f]
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mainstem.schema.keyrows import compiled

__all__ = ["bag", "padded", "pick", "plain_bag", "segment_ids", "segment_log_sum_exp", "segment_sum"]

_COMPILED = (torch.float32, torch.float64)


def segment_ids(offsets: Tensor, total: int) -> Tensor:
    """Which segment each of `total` values lies in: int64 [total]."""
    count = offsets.numel() - 1
    return torch.repeat_interleave(torch.arange(count, device=offsets.device), offsets.diff(), output_size=total)


def segment_sum(values: Tensor, offsets: Tensor) -> Tensor:
    """Sum of each segment of `values [total]`: [s]; 0 for an empty one."""
    out = values.new_zeros(offsets.numel() - 1)
    return out.index_add(0, segment_ids(offsets, values.numel()), values)


def segment_log_sum_exp(values: Tensor, offsets: Tensor) -> Tensor:
    """log(sum(exp)) of each segment of `values [total]`, stable: [s]; -inf for an empty one."""
    ids = segment_ids(offsets, values.numel())
    top = values.new_full((offsets.numel() - 1,), -torch.inf)
    top = top.scatter_reduce(0, ids, values.detach(), "amax").clamp(min=torch.finfo(values.dtype).min)
    total = torch.zeros_like(top).index_add(0, ids, (values - top[ids]).exp())
    return total.log() + top


def padded(values: Tensor, offsets: Tensor) -> tuple[Tensor, Tensor]:
    """Segments of values [total, d] side by side: [s, longest, d], zeros behind each, and which places are real, bool
    [s, longest]."""
    lengths = offsets.diff()
    longest = int(lengths.max()) if len(lengths) else 0
    real = torch.arange(longest, device=values.device) < lengths[:, None]
    out = values.new_zeros(len(lengths), longest, values.shape[-1])
    return out.masked_scatter(real[..., None], values), real


def bag(rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(Weighted) sum of the rows that each segment names.

    rows [u, d], places int64 [total] into rows, offsets int64 [s+1], weights [total] -> [s, d]; zeros for
    an empty segment. One fused kernel that never makes the [total, d] tensor of gathered rows.

    On the CPU its gradient is one compiled pass too, which sums in the order of places; torch's takes several times as
    long. There is no second derivative then. `plain_bag` is torch's own.
    """
    if rows.device.type == "cpu" and rows.dtype in _COMPILED and torch.is_grad_enabled():
        out: Tensor = _Bag.apply(rows, places, offsets, weights)  # type: ignore[no-untyped-call]
        return out
    return plain_bag(rows, places, offsets, weights)


def pick(rows: Tensor, places: Tensor) -> Tensor:
    """The rows [u, d] at these places int64 [n]: [n, d]. A `bag` of one row each, for the sake of its gradient."""
    return bag(rows, places, torch.arange(len(places) + 1, device=places.device))


def plain_bag(rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """`bag` with torch's own gradient: on any device, and the oracle of the compiled one."""
    out: Tensor = functional.embedding_bag(
        places, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return out


class _Bag(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor | None) -> Tensor:
        out = plain_bag(rows, places, offsets, weights)  # which refuses places that are none of rows
        ctx.save_for_backward(rows, places, offsets, weights)
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        rows, places, offsets, weights = ctx.saved_tensors
        segments = (places.contiguous().numpy(), offsets.contiguous().numpy())
        slopes = gradient.contiguous().numpy()
        of_rows = of_weights = None
        if ctx.needs_input_grad[0]:
            of_rows = torch.zeros_like(rows, memory_format=torch.contiguous_format)
            factors = slopes.ravel()[:0] if weights is None else weights.detach().contiguous().numpy()
            _add_to_rows(*segments, factors, slopes, of_rows.numpy())
        if ctx.needs_input_grad[3]:
            of_weights = torch.zeros_like(weights, memory_format=torch.contiguous_format)
            _dot_with_rows(*segments, rows.detach().contiguous().numpy(), slopes, of_weights.numpy())
        return of_rows, None, None, of_weights


@compiled
def _add_to_rows(
    places: NDArray[np.int64],
    offsets: NDArray[np.int64],
    weights: NDArray[Any],
    gradients: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """out[place] += weight * the gradient of its segment, in the order of places; weights [total], or [0] for 1."""
    for segment in range(len(offsets) - 1):
        if offsets[segment] < 0 or offsets[segment + 1] > len(places):
            raise IndexError("offsets lie outside the places")
        for i in range(offsets[segment], offsets[segment + 1]):
            place = places[i]
            if len(weights):
                weight = weights[i]
                for column in range(out.shape[1]):
                    out[place, column] += weight * gradients[segment, column]
            else:
                for column in range(out.shape[1]):
                    out[place, column] += gradients[segment, column]


@compiled
def _dot_with_rows(
    places: NDArray[np.int64],
    offsets: NDArray[np.int64],
    rows: NDArray[Any],
    gradients: NDArray[Any],
    out: NDArray[Any],
) -> None:
    """out[i] = the row at place i times the gradient of its segment."""
    for segment in range(len(offsets) - 1):
        if offsets[segment] < 0 or offsets[segment + 1] > len(places):
            raise IndexError("offsets lie outside the places")
        for i in range(offsets[segment], offsets[segment + 1]):
            total = gradients.dtype.type(0)
            for column in range(rows.shape[1]):
                total += rows[places[i], column] * gradients[segment, column]
            out[i] = total
