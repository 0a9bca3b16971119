"""What every way of sharing is: one input in, one representation a task out."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

from torch import Tensor, nn

__all__ = ["Sharing", "SharingConfig", "at_budget", "parameter_count"]


class Sharing(Protocol):
    """A torch module whose forward is the whole of it: what a task's head reads."""

    def __call__(self, x: Tensor) -> Tensor:
        """x [n, width] -> [n, tasks, out]."""
        ...


class SharingConfig(Protocol):
    """A typed configuration that knows its size before anything is built."""

    @property
    def parameters(self) -> int:
        """Trainable numbers of the module it configures."""
        ...


Config = TypeVar("Config", bound=SharingConfig)


def parameter_count(module: nn.Module) -> int:
    """Trainable numbers of a module."""
    return sum(parameter.numel() for parameter in module.parameters() if parameter.requires_grad)


def at_budget(make: Callable[[int], Config], budget: int, largest: int = 4096) -> Config:
    """The largest make(hidden) of at most `budget` parameters, hidden from 1 to `largest`: how variants are compared.

    make gives a config whose `parameters` rise with hidden. Raises ValueError where make(1) is over the budget already.
    """
    if make(1).parameters > budget:
        raise ValueError(f"even a hidden width of 1 takes {make(1).parameters} parameters, more than {budget}")
    low, high = 1, largest
    while low < high:
        middle = (low + high + 1) // 2
        if make(middle).parameters <= budget:
            low = middle
        else:
            high = middle - 1
    return make(low)
