"""HSTU: attention that adds up instead of sharing out, with relative positions and times.

Zhai et al. 2024, "Actions Speak Louder than Words: Trillion-Parameter Sequential Transducers for Generative
Recommendations", section 3 and equations 1 to 3.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history.batch import Histories
from mainstem.models.history.encoder import HistoryEncoder
from mainstem.models.history.event_input import INIT, EventConfig, EventInput, log_bucket
from mainstem.models.history.packing import SPREAD, Packing

__all__ = ["HSTU", "HSTUConfig"]


@dataclass(frozen=True, slots=True)
class HSTUConfig:
    """width: of the states, a multiple of heads. positions: distances with a bias of their own; larger ones share the
    last. dropout: of the input and of each branch. spread: see `Packing.of`; math.inf is the plain padded path."""

    events: EventConfig
    width: int = 64
    layers: int = 2
    heads: int = 2
    positions: int = 200
    dropout: float = 0.0
    spread: float = SPREAD


@dataclass(frozen=True, slots=True)
class _Relations:
    """How the events of a padded group stand to each other; row i looks back at column j <= i.

    share float [length, length]: 1 / (i + 1) where j <= i, else 0; distance int64 [length, length]: i - j, within the
    table; elapsed int32 [n, length, length]: log bucket of the time from j to i (or to when what follows i
    was asked for), None without time.
    """

    share: Tensor
    distance: Tensor
    elapsed: Tensor | None


class HSTU(HistoryEncoder):
    """A stack of HSTU layers over packed events; attention over groups of like length.

    Without query_time the states of a history's beginning are those of the whole history.
    """

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__(config.width)
        if config.width % config.heads:
            raise ValueError(f"width {config.width} must be a multiple of heads {config.heads}")
        self.config = config
        self.input = EventInput(config.events, config.width, config.dropout)
        self.layers = nn.ModuleList(_Layer(config) for _ in range(config.layers))

    def forward(self, histories: Histories) -> Tensor:
        """States [t, width]."""
        states: Tensor = self.input(histories)
        if not len(states):
            return states
        packing = Packing.of(histories.offsets, self.config.spread)
        relations = self._relations(histories, packing, states.dtype)
        for layer in self.layers:
            states = layer(states, packing, relations)
        return states

    def _relations(self, histories: Histories, packing: Packing, dtype: torch.dtype) -> list[_Relations]:
        events, relations = self.config.events, []
        looked_from = histories.asked_at() if events.query_time else histories.time
        for query, key in zip(packing.split(looked_from), packing.split(histories.time), strict=True):
            place = torch.arange(query.shape[1], device=query.device)
            seen = torch.ones(len(place), len(place), dtype=dtype, device=query.device).tril()
            elapsed = None
            if events.time_buckets:
                elapsed = log_bucket(query[:, :, None] - key[:, None, :], events.time_buckets)
            distance = (place[:, None] - place).clamp(0, self.config.positions - 1)
            relations.append(_Relations(seen / (place[:, None] + 1), distance, elapsed))
        return relations


class _Layer(nn.Module):
    """Equations 1 to 3, before a norm and beside a residual connection. x [t, width] -> [t, width]."""

    def __init__(self, config: HSTUConfig) -> None:
        super().__init__()
        width, buckets = config.width, config.events.time_buckets
        self.heads = config.heads
        self.norm = nn.LayerNorm(width)
        # weights near 0 give small sums, which a larger epsilon would hold down
        self.attention_norm = nn.LayerNorm(width, eps=1e-6)
        self.gate_and_attention = nn.Linear(width, 4 * width)
        self.out = nn.Linear(width, width)
        self.dropout = nn.Dropout(config.dropout)
        self.distance_bias = nn.Parameter(torch.randn(config.positions) * INIT)
        self.time_bias = nn.Parameter(torch.randn(buckets) * INIT) if buckets else None

    def forward(self, x: Tensor, packing: Packing, relations: list[_Relations]) -> Tensor:
        width = x.shape[-1]
        both = functional.silu(self.gate_and_attention(self.norm(x)))  # equation 1
        pairs = zip(packing.split(both[:, width:]), relations, strict=True)
        mixed = packing.join([self._attend(group, relation) for group, relation in pairs])
        out: Tensor = x + self.dropout(self.out(self.attention_norm(mixed) * both[:, :width]))  # equation 3
        return out

    def _attend(self, group: Tensor, relation: _Relations) -> Tensor:
        """Equation 2, with one bias for all heads: group [n, length, 3 * width] -> [n, length, width].

        The weights are divided by the number of events seen (the paper: by the longest of the batch, on which a
        state must not depend). The norm that follows takes any such scale away again, but for its epsilon.
        """
        value, query, key = group.view(*group.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        bias = _taken(self.distance_bias, relation.distance)
        if self.time_bias is not None and relation.elapsed is not None:
            bias = (bias + _taken(self.time_bias, relation.elapsed))[:, None]
        weights = functional.silu(query @ key.transpose(-1, -2) + bias) * relation.share
        mixed: Tensor = weights @ value
        return mixed.transpose(1, 2).flatten(2)


def _taken(table: Tensor, places: Tensor) -> Tensor:
    """table[places], by index_select: its gradient is one pass over the places, that of indexing sorts them."""
    return table.index_select(0, places.reshape(-1)).view(places.shape)
