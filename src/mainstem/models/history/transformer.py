"""A causal transformer over the history: SASRec with the blocks of LiGR.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation" (SASRec); Borisyuk et al. 2025, "From Features to
Transformers: Redefining Ranking for Scalable Impact" (LiGR: learned gates on the residual branches); Tikhonovich et
al. 2025, "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion" (SASRec with these blocks, SwiGLU
in them).
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history.batch import Histories
from mainstem.models.history.encoder import HistoryEncoder
from mainstem.models.history.event_input import INIT, EventConfig, EventInput
from mainstem.models.history.packing import SPREAD, Packing

__all__ = ["Block", "Transformer", "TransformerConfig"]


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """width: of the states, a multiple of heads. hidden: of each feed-forward layer. positions: places from the newest
    that have an embedding of their own; older events share the last. dropout: of the input and of each branch.
    spread: see `Packing.of`; math.inf is the plain padded path."""

    events: EventConfig
    width: int = 64
    layers: int = 2
    heads: int = 2
    hidden: int = 256
    positions: int = 200
    dropout: float = 0.0
    spread: float = SPREAD


class Transformer(HistoryEncoder):
    """Pre-norm blocks over packed events; attention over groups of like length.

    Positions count from the newest event of the batch's history, which serving always asks at position 0. So a state
    in the middle of a history knows how many events follow it, as in SASRec, though nothing of what they are.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.width)
        if config.width % config.heads:
            raise ValueError(f"width {config.width} must be a multiple of heads {config.heads}")
        self.config = config
        self.input = EventInput(config.events, config.width, config.dropout)
        self.position = nn.Parameter(torch.randn(config.positions, config.width) * INIT)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, histories: Histories) -> Tensor:
        """States [t, width]."""
        states: Tensor = self.input(histories)
        if not len(states):
            return states
        states = states + self.position.index_select(0, self._from_newest(histories.offsets))
        packing = Packing.of(histories.offsets, self.config.spread)
        for block in self.blocks:
            states = block(states, packing)
        return states

    def _from_newest(self, offsets: Tensor) -> Tensor:
        """How many events of its own history follow each event: int64 [t], at most positions - 1."""
        lengths = offsets.diff()
        ends = torch.repeat_interleave(offsets[1:], lengths)
        return (ends - 1 - torch.arange(len(ends), device=offsets.device)).clamp(max=self.config.positions - 1)


class Block(nn.Module):
    """x + sigmoid(W x) * branch(norm(x)), for attention and then for SwiGLU. x [t, width] -> [t, width]."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()
        width = config.width
        self.heads = config.heads
        self.attention_norm, self.attention_gate = nn.LayerNorm(width), nn.Linear(width, width)
        self.query_key_value, self.attention_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.forward_norm, self.forward_gate = nn.LayerNorm(width), nn.Linear(width, width)
        self.forward_in = nn.Linear(width, 2 * config.hidden, bias=False)
        self.forward_out = nn.Linear(config.hidden, width, bias=False)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, x: Tensor, packing: Packing) -> Tensor:
        branch = self._attend(self.attention_norm(x), packing)
        x = x + self.attention_gate(x).sigmoid() * self.dropout(branch)
        # SwiGLU, Shazeer 2020, "GLU Variants Improve Transformer", equation 6
        gate, content = self.forward_in(self.forward_norm(x)).chunk(2, dim=-1)
        branch = self.forward_out(functional.silu(gate) * content)
        out: Tensor = x + self.forward_gate(x).sigmoid() * self.dropout(branch)
        return out

    def _attend(self, x: Tensor, packing: Packing) -> Tensor:
        groups = []
        for group in packing.split(self.query_key_value(x)):  # [n, length, 3 * width]
            query, key, value = group.view(*group.shape[:2], 3, self.heads, -1).permute(2, 0, 3, 1, 4)
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            groups.append(mixed.transpose(1, 2).flatten(2))  # [n, heads, length, d] -> [n, length, width]
        out: Tensor = self.attention_out(packing.join(groups))
        return out
