"""Several experts that all tasks read, each task through a gate of its own."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mainstem.models.sharing.experts import Experts

__all__ = ["MultiGate", "MultiGateConfig"]


@dataclass(frozen=True, slots=True)
class MultiGateConfig:
    """width: of the input. experts: how many, of layers `hidden` each. out: width of each task's own layer."""

    width: int
    tasks: int
    experts: int = 4
    hidden: tuple[int, ...] = (32,)
    out: int = 32

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        sizes = (self.width, *self.hidden)
        experts = Experts.parameters_of(self.experts, sizes)
        gates = self.tasks * self.width * self.experts
        return experts + gates + Experts.parameters_of(self.tasks, (sizes[-1], self.out))


class MultiGate(nn.Module):
    """Multi-gate mixture of experts: Ma et al. 2018, "Modeling Task Relationships in Multi-task Learning with
    Multi-gate Mixture-of-Experts", equations 6 and 7.

        y_k = tower_k(sum over experts i of g_k(x)_i f_i(x)),  g_k(x) = softmax(W_k x)

    A task that conflicts with another can leave the other's experts alone, input by input.
    """

    def __init__(self, config: MultiGateConfig) -> None:
        super().__init__()
        self.config = config
        sizes = (config.width, *config.hidden)
        self.experts = Experts(config.experts, sizes)
        self.gates = nn.Linear(config.width, config.tasks * config.experts, bias=False)
        self.towers = Experts(config.tasks, (sizes[-1], config.out))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width] -> [n, tasks, out]."""
        mixed = torch.einsum("nte,end->tnd", self.shares(x), self.experts(x))
        out: Tensor = self.towers(mixed)
        return out.transpose(0, 1)

    def shares(self, x: Tensor) -> Tensor:
        """How much each task reads of each expert: [n, tasks, experts], 1 in sum over experts."""
        logits: Tensor = self.gates(x)
        return logits.view(len(x), self.config.tasks, self.config.experts).softmax(dim=-1)
