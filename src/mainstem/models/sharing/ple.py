"""Experts of each task's own beside shared ones, in layers that extract step by step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mainstem.models.sharing.experts import Experts

__all__ = ["ProgressiveExtraction", "ProgressiveExtractionConfig"]


@dataclass(frozen=True, slots=True)
class ProgressiveExtractionConfig:
    """width: of the input. own, shared: experts of each task, and of all, in every layer. hidden: the width of the
    experts of each extraction layer; one layer is customized gate control (CGC). out: of each task's own layer."""

    width: int
    tasks: int
    own: int = 1
    shared: int = 2
    hidden: tuple[int, ...] = (32, 32)
    out: int = 32

    @property
    def parameters(self) -> int:
        """Trainable numbers."""
        sizes = (self.width, *self.hidden)
        count, layers = self.tasks * self.own + self.shared, len(self.hidden)
        total = Experts.parameters_of(self.tasks, (sizes[-1], self.out))
        for i in range(layers):
            total += Experts.parameters_of(count, sizes[i : i + 2]) + self.tasks * sizes[i] * (self.own + self.shared)
            total += 0 if i == layers - 1 else sizes[i] * count
        return total


class ProgressiveExtraction(nn.Module):
    """Progressive layered extraction: Tang et al. 2020, "Progressive Layered Extraction (PLE): A Novel Multi-Task
    Learning (MTL) Model for Personalized Recommendations", sections 4.1 (one layer, CGC) and 4.2 (stacked).

        y_k = tower_k(g_k of the last layer)

    A task reads its own experts and the shared ones, never another's. With one layer no other task can then undo what
    a task learns in its own experts, which is what sets it apart from `MultiGate`. Where layers are stacked, the shared
    path between them reads all experts, and lets the tasks' gradients meet there again.
    """

    def __init__(self, config: ProgressiveExtractionConfig) -> None:
        super().__init__()
        self.config = config
        sizes, last = (config.width, *config.hidden), len(config.hidden) - 1
        self.layers = nn.ModuleList(
            Extraction(config, sizes[i], sizes[i + 1], shares_on=i < last) for i in range(len(config.hidden))
        )
        self.towers = Experts(config.tasks, (sizes[-1], config.out))

    def forward(self, x: Tensor) -> Tensor:
        """x [n, width] -> [n, tasks, out]."""
        inputs = x.expand(self.config.tasks + 1, *x.shape)
        for layer in self.layers:
            inputs = layer(inputs)
        out: Tensor = self.towers(inputs[: self.config.tasks])
        return out.transpose(0, 1)


class Extraction(nn.Module):
    """One layer: for each task a mixture of its own and the shared experts, for the shared path one of all experts.

    g_k = softmax(W_k x_k) [E_k1(x_k) ... E_s1(x_s) ...],  x_k, x_s: what the layer before gave task k, and shared
    """

    def __init__(self, config: ProgressiveExtractionConfig, width: int, out: int, shares_on: bool) -> None:
        """shares_on: whether the shared path goes on; after the last layer nothing reads it."""
        super().__init__()
        self.tasks, self.own = config.tasks, config.own
        self.own_experts = Experts(config.tasks * config.own, (width, out))
        self.shared_experts = Experts(config.shared, (width, out))
        self.gates = nn.ModuleList(
            nn.Linear(width, config.own + config.shared, bias=False) for _ in range(config.tasks)
        )
        everything = config.tasks * config.own + config.shared
        self.shared_gate = nn.Linear(width, everything, bias=False) if shares_on else None

    def forward(self, inputs: Tensor) -> Tensor:
        """inputs [tasks + 1, n, width], the shared one last -> likewise of width out; [tasks, n, out] in the last."""
        own = self.own_experts(inputs[: self.tasks].repeat_interleave(self.own, dim=0))
        shared = self.shared_experts(inputs[-1])
        mixed = []
        for k, gate in enumerate(self.gates):
            read = torch.cat((own[k * self.own : (k + 1) * self.own], shared))
            mixed.append(_mixed(gate(inputs[k]), read))
        if self.shared_gate is not None:
            mixed.append(_mixed(self.shared_gate(inputs[-1]), torch.cat((own, shared))))
        return torch.stack(mixed)


def _mixed(logits: Tensor, experts: Tensor) -> Tensor:
    """logits [n, e], experts [e, n, d] -> sum of experts by softmax of logits [n, d]."""
    return torch.einsum("ne,end->nd", logits.softmax(dim=-1), experts)
