"""A causal transformer over the history: SASRec with the blocks of LiGR.

Kang & McAuley 2018, "Self-Attentive Sequential Recommendation" (SASRec); Borisyuk et al. 2025, "From Features to
Transformers: Redefining Ranking for Scalable Impact" (LiGR: learned gates on the residual branches); Tikhonovich et
al. 2025, "eSASRec: Enhancing Transformer-based Recommendations in a Modular Fashion" (SASRec with these blocks, SwiGLU
in them). Positions are rotary (`rotary`), where SASRec adds an embedding of each place.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history.batch import Histories
from mainstem.models.history.encoder import HistoryEncoder
from mainstem.models.history.event_input import EventConfig, EventInput
from mainstem.models.history.packing import SPREAD, Packing
from mainstem.models.history.rotary import turned, turns

__all__ = ["Block", "Transformer", "TransformerConfig"]


@dataclass(frozen=True, slots=True)
class TransformerConfig:
    """width: of the states, an even multiple of heads. hidden: of each feed-forward layer. dropout: of the input and of
    each branch. spread: see `Packing.of`; math.inf is the plain padded path."""

    events: EventConfig
    width: int = 64
    layers: int = 2
    heads: int = 2
    hidden: int = 256
    dropout: float = 0.0
    spread: float = SPREAD


class Transformer(HistoryEncoder):
    """Pre-norm blocks over packed events; attention over groups of like length.

    The states of a history's beginning are those of the whole history: what is learned in the middle of one, where
    others follow, is what serving asks at its end.
    """

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__(config.width)
        if config.width % (2 * config.heads):
            raise ValueError(f"width {config.width} must be an even multiple of heads {config.heads}")
        self.config = config
        self.input = EventInput(config.events, config.width, config.dropout)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(self, histories: Histories) -> Tensor:
        """States [t, width]."""
        states: Tensor = self.input(histories)
        if not len(states):
            return states
        packing = Packing.of(histories.offsets, self.config.spread)
        table = turns(int(histories.offsets.diff().max()), self.config.width // self.config.heads)
        by = torch.from_numpy(table).to(states.device, states.dtype.to_complex())
        for block in self.blocks:
            states = block(states, packing, by)
        return states


class Block(nn.Module):
    """x + sigmoid(W x) * branch(norm(x)), for attention and then for SwiGLU. x [t, width] -> [t, width]; by: what
    `turns` says of the places of a history."""

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

    def forward(self, x: Tensor, packing: Packing, by: Tensor) -> Tensor:
        branch = self._attend(self.attention_norm(x), packing, by)
        x = x + self.attention_gate(x).sigmoid() * self.dropout(branch)
        # SwiGLU, Shazeer 2020, "GLU Variants Improve Transformer", equation 6
        gate, content = self.forward_in(self.forward_norm(x)).chunk(2, dim=-1)
        branch = self.forward_out(functional.silu(gate) * content)
        out: Tensor = x + self.forward_gate(x).sigmoid() * self.dropout(branch)
        return out

    def _attend(self, x: Tensor, packing: Packing, by: Tensor) -> Tensor:
        groups = []
        for group in packing.split(self.query_key_value(x)):  # [n, length, 3 * width]
            query_key, value = torch.split(group.view(*group.shape[:2], 3, self.heads, -1), [2, 1], dim=2)
            query_key = turned(query_key, by[: group.shape[1], None, None])
            query, key, value = (part.transpose(1, 2) for part in (*query_key.unbind(2), value.squeeze(2)))
            mixed = functional.scaled_dot_product_attention(query, key, value, is_causal=True)
            groups.append(mixed.transpose(1, 2).flatten(2))  # [n, heads, length, d] -> [n, length, width]
        out: Tensor = self.attention_out(packing.join(groups))
        return out
