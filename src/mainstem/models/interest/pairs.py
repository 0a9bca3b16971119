"""Which events each candidate meets: those of its own request, by place, never copied."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Pairs", "pairs_of"]


class Pairs(NamedTuple):
    """(candidate, event) pairs, candidate by candidate: candidate, event int64 [p]; offsets int64 [n + 1] into them."""

    candidate: Tensor
    event: Tensor
    offsets: Tensor


def pairs_of(requests: Tensor, history_offsets: Tensor) -> Pairs:
    """requests int64 [n]: whose candidate each is; history_offsets int64 [r + 1]: the events of each request.

    requests   0 0 2     history_offsets  0 2 2 3
    pairs      (0,0) (0,1) | (1,0) (1,1) | (2,2)     offsets 0 2 4 5
    """
    lengths = history_offsets.diff()[requests]
    offsets = torch.cat((lengths.new_zeros(1), lengths.cumsum(0)))
    candidate = torch.repeat_interleave(torch.arange(len(requests), device=requests.device), lengths)
    within = torch.arange(candidate.numel(), device=requests.device) - offsets[candidate]
    return Pairs(candidate, history_offsets[requests[candidate]] + within, offsets)
