"""Many small networks of one shape at once: the experts, and the towers of tasks."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

__all__ = ["Experts"]


class Experts(nn.Module):
    """`count` networks of layers sizes[0] -> ... -> sizes[-1], a LeakyReLU after each: one batched product a layer.

    Leaky, because experts and towers are narrow: where all ReLUs of a tower die, its task is silent for good.

    Initialised as nn.Linear would, each expert by its own draws: equal experts would stay equal.
    """

    def __init__(self, count: int, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.count, self.sizes = count, sizes
        self.weights, self.biases = nn.ParameterList(), nn.ParameterList()
        for fan_in, fan_out in pairwise(sizes):
            bound = 1 / math.sqrt(fan_in)
            self.weights.append(nn.Parameter(torch.empty(count, fan_in, fan_out).uniform_(-bound, bound)))
            self.biases.append(nn.Parameter(torch.empty(count, 1, fan_out).uniform_(-bound, bound)))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, sizes[0]], read by all, or [count, n, sizes[0]], one for each -> [count, n, sizes[-1]]."""
        h = x.expand(self.count, *x.shape) if x.dim() == 2 else x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = functional.leaky_relu(torch.baddbmm(bias, h, weight))
        return h

    @staticmethod
    def parameters_of(count: int, sizes: tuple[int, ...]) -> int:
        """Trainable numbers of `count` such networks."""
        return count * sum((fan_in + 1) * fan_out for fan_in, fan_out in pairwise(sizes))
