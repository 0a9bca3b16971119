"""Minimises a loss to its optimum, so that a test compares answers and not learning rates."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor


def minimise(loss: Callable[[], Tensor], *parameters: Tensor, steps: int = 100) -> None:
    """L-BFGS from where the parameters stand."""
    optimizer = torch.optim.LBFGS(parameters, max_iter=steps, line_search_fn="strong_wolfe", tolerance_grad=1e-9)

    def closure() -> Tensor:
        optimizer.zero_grad()
        value = loss()
        value.backward()
        return value

    optimizer.step(closure)


def steps_of_adam(loss: Callable[[int], Tensor], parameters: Sequence[Tensor], steps: int, rate: float) -> float:
    """`steps` steps of Adam on loss(step), the rate falling to 0 as a cosine; the last loss."""
    optimizer = torch.optim.Adam(parameters, lr=rate)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    value = torch.zeros(())
    for step in range(steps):
        value = loss(step)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        schedule.step()
    return float(value.detach())
