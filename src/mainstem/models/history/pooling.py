"""Decayed pooling: the plain baseline of the history encoders.

Covington et al. 2016, "Deep Neural Networks for YouTube Recommendations" (a user as the mean of what was watched),
with weights that halve as events age.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history.batch import Histories
from mainstem.models.history.encoder import HistoryEncoder
from mainstem.schema.keyrows import compiled
from mainstem.schema.time import DAY

__all__ = ["Pooling", "PoolingConfig", "decayed_sums", "plain_decayed_sums"]

_COMPILED = (torch.float32, torch.float64)
LEAST_INTEREST = 1e-3


@dataclass(frozen=True, slots=True)
class PoolingConfig:
    """dim: width of rows and states. interest: how much an event of each action says at first, learned on; one that
    says 0 stays almost silent. half_lives: ms, one channel each. hidden: width of the correction's one hidden layer."""

    dim: int = 64
    interest: tuple[float, ...] = (1.0,)
    half_lives: tuple[int, ...] = (90 * DAY, 7 * DAY)
    hidden: int = 128


class Pooling(HistoryEncoder):
    """Weighted means of the rows so far, one per half-life, blended, plus a residual MLP: as in `TwoTower.user`.

    In channel c an event of age a counts interest[action] * 2^(-a / half_lives[c]), interest learned. Ages are
    relative: a mean is the same at whatever later time it is asked for, so query_time is not read; nor are canvas
    and value. Events at the same time have no order.
    """

    def __init__(self, config: PoolingConfig) -> None:
        super().__init__(config.dim)
        self.config = config
        channels = len(config.half_lives)
        self.log_interest = nn.Parameter(torch.tensor(config.interest).clamp(min=LEAST_INTEREST).log())
        self.blend = nn.Parameter(torch.full((channels,), 1.0 / channels))
        last = nn.Linear(config.hidden, config.dim)
        nn.init.zeros_(last.weight)  # training begins at plain means
        nn.init.zeros_(last.bias)
        self.correction = nn.Sequential(nn.Linear(channels * config.dim, config.hidden), nn.ReLU(), last)

    def forward(self, histories: Histories) -> Tensor:
        """States [t, dim]."""
        interest = self.log_interest.index_select(0, histories.action).exp()[:, None]
        weighted = torch.cat((interest * histories.rows, interest), dim=-1)
        gaps, first = histories.since_previous().to(weighted.dtype), histories.first()
        means = []
        for half_life in self.config.half_lives:
            decay = torch.exp2(-gaps / half_life).index_fill(0, first, 0.0)
            sums = decayed_sums(weighted, decay)
            means.append(sums[:, :-1] / sums[:, -1:])
        blended = torch.stack(means, dim=-1) @ self.blend
        out: Tensor = blended + self.correction(torch.cat(means, dim=-1))
        return out


def decayed_sums(values: Tensor, decay: Tensor) -> Tensor:
    """sums[i] = values[i] + decay[i] * sums[i - 1]: [t, d]. A decay of 0 begins a new history.

    values [t, d]; decay [t], constant: it gets no gradient. On the CPU one compiled pass, and one back, without a
    second derivative; elsewhere `plain_decayed_sums`.

    Raises ValueError where decay is not [t].
    """
    if decay.shape != values.shape[:1]:  # compiled code would read past its end
        raise ValueError(f"decay must be [{len(values)}], not {[*decay.shape]}")
    if values.device.type == "cpu" and values.dtype in _COMPILED:
        out: Tensor = _DecayedSums.apply(values, decay)  # type: ignore[no-untyped-call]
        return out
    return plain_decayed_sums(values, decay)


def plain_decayed_sums(values: Tensor, decay: Tensor) -> Tensor:
    """`decayed_sums` by doubling (Hillis & Steele 1986), log2(t) passes: on any device, and the oracle."""
    reach = 1
    while reach < len(values):
        values = values + decay[:, None] * functional.pad(values[:-reach], (0, 0, reach, 0))
        decay = decay * functional.pad(decay[:-reach], (reach, 0))
        reach *= 2
    return values


class _DecayedSums(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, values: Tensor, decay: Tensor) -> Tensor:
        ctx.save_for_backward(decay)
        out = values.detach().clone(memory_format=torch.contiguous_format)
        _add_before(out.numpy(), decay.detach().contiguous().numpy())
        return out

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (decay,) = ctx.saved_tensors
        out = gradient.clone(memory_format=torch.contiguous_format)
        _add_after(out.numpy(), decay.contiguous().numpy())
        return out, None


@compiled
def _add_before(sums: NDArray[Any], decay: NDArray[Any]) -> None:
    for i in range(1, len(sums)):
        for column in range(sums.shape[1]):
            sums[i, column] += decay[i] * sums[i - 1, column]


@compiled
def _add_after(sums: NDArray[Any], decay: NDArray[Any]) -> None:
    for i in range(len(sums) - 1, 0, -1):
        for column in range(sums.shape[1]):
            sums[i - 1, column] += decay[i] * sums[i, column]
