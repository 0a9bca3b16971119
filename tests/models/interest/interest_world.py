"""Requests with jagged histories, an empty one among them, and candidates of several requests."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

LENGTHS, CANDIDATES, DIM = [3, 0, 5, 1, 4], [2, 2, 0, 3, 4], 8


def jagged_world(dtype: torch.dtype = torch.float64) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """candidates [n, DIM], requests [n], history [total, DIM], gaps [total], history_offsets [r + 1]."""
    generator = torch.Generator().manual_seed(0)
    requests = torch.repeat_interleave(torch.arange(len(LENGTHS)), torch.tensor(CANDIDATES))
    candidates = torch.randn(len(requests), DIM, dtype=dtype, generator=generator).requires_grad_()
    history = torch.randn(sum(LENGTHS), DIM, dtype=dtype, generator=generator).requires_grad_()
    gaps = 10 ** (8 * torch.rand(sum(LENGTHS), dtype=dtype, generator=generator))
    return candidates, requests, history, gaps, torch.tensor([0, *LENGTHS]).cumsum(0)


def histories_of(requests: Tensor, history_offsets: Tensor) -> list[slice]:
    """The events of each candidate, as a slice of the history."""
    spans = [slice(int(a), int(b)) for a, b in pairwise(history_offsets)]
    return [spans[int(request)] for request in requests]


def assert_same_gradients(got: Tensor, want: Tensor, leaves: list[Tensor]) -> None:
    torch.testing.assert_close(got, want)
    slopes = torch.randn(got.shape, dtype=got.dtype, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(torch.autograd.grad(got, leaves, slopes), torch.autograd.grad(want, leaves, slopes))
