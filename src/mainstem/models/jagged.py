"""Segments of a flat tensor. `offsets [s+1]` starts at 0, never falls and ends at the length of the values.

values   a b c d e f        offsets 0 2 2 6
segment  [a b] [] [c d e f]
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["bag", "segment_ids", "segment_log_sum_exp", "segment_sum"]


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


def bag(rows: Tensor, places: Tensor, offsets: Tensor, weights: Tensor | None = None) -> Tensor:
    """(Weighted) sum of the rows that each segment names.

    rows [u, d], places int64 [total] into rows, offsets int64 [s+1], weights [total] -> [s, d]; zeros for
    an empty segment. One fused kernel that never makes the [total, d] tensor of gathered rows.
    """
    out: Tensor = functional.embedding_bag(
        places, rows, offsets, mode="sum", per_sample_weights=weights, include_last_offset=True
    )
    return out
