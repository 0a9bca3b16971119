"""The candidate as the last event of the history, inside a transformer."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.jagged import padded

__all__ = ["BehaviorTransformer", "BehaviorTransformerConfig", "gap_buckets"]


@dataclass(frozen=True, slots=True)
class BehaviorTransformerConfig:
    """dim: width of events and candidates, a multiple of heads. buckets: of time gaps, the first for the candidate."""

    dim: int
    heads: int = 4
    layers: int = 1
    buckets: int = 32
    dropout: float = 0.0


def gap_buckets(gaps: Tensor, buckets: int) -> Tensor:
    """Position of an event by its age: gaps >= 0 [total], seconds before the request -> int64 in 1 .. buckets - 1.

    One bucket a doubling: 1 below a second, 2 below 3 seconds, ..., 20 at about a week. 0 is the candidate's.
    """
    return (1 + (1 + gaps.clamp(min=0.0)).log2().long()).clamp(max=buckets - 1)


class BehaviorTransformer(nn.Module):
    """Behavior sequence transformer: Chen et al. 2019, "Behavior Sequence Transformer for E-commerce Recommendation in
    Alibaba", sections 2.1 (positions are time gaps to the request) and 2.2 (normalisation after each part, LeakyReLU).

        [event, event, ..., candidate] + position(gap)  ->  blocks  ->  what stands at the candidate's place

    Two departures: positions are added, not concatenated; and events do not look at the candidate. With one layer,
    which is what the paper deploys, nothing that is read here depends on the latter; with more it lets the events of a
    request be encoded once for all its candidates. Only padding, to the longest history and the most candidates of a
    request in the batch, is laid out beside them.
    """

    def __init__(self, config: BehaviorTransformerConfig) -> None:
        """Raises ValueError where dim is no multiple of heads."""
        super().__init__()
        if config.dim % config.heads:
            raise ValueError(f"dim {config.dim} is no multiple of {config.heads} heads")
        self.config = config
        self.positions = nn.Embedding(config.buckets, config.dim)
        nn.init.normal_(self.positions.weight, std=0.02)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.layers))

    def forward(
        self, candidates: Tensor, requests: Tensor, history: Tensor, gaps: Tensor, history_offsets: Tensor
    ) -> Tensor:
        """Candidates in the light of the history: [n, dim]. With an empty history each sees itself alone.

        candidates [n, dim]; requests int64 [n], in rising order: the request each candidate belongs to; history
        [total, dim] in any order, and gaps [total], seconds before the request; history_offsets int64 [r + 1].
        Raises ValueError where requests fall.
        """
        if bool((requests.diff() < 0).any()):
            raise ValueError("candidates must stand request by request: requests must not fall")
        count = len(history_offsets) - 1
        candidate_offsets = torch.searchsorted(requests, torch.arange(count + 1, device=requests.device))
        events = history + self.positions(gap_buckets(gaps, self.config.buckets))
        past, is_event = padded(events, history_offsets)
        asked, is_candidate = padded(candidates + self.positions.weight[0], candidate_offsets)
        for i, block in enumerate(self.blocks):
            asked = block(asked, past, is_event, itself=True)
            if i < len(self.blocks) - 1:  # what the events become after the last block nobody reads
                past = block(past, past, is_event, itself=False)
        return asked[is_candidate]


class Block(nn.Module):
    """S = norm(x + attention), F = norm(S + network(S)): section 2.2."""

    def __init__(self, config: BehaviorTransformerConfig) -> None:
        super().__init__()
        dim = config.dim
        self.heads, self.dropout = config.heads, config.dropout
        self.query, self.key, self.value = (nn.Linear(dim, dim, bias=False) for _ in range(3))
        self.joined = nn.Linear(dim, dim, bias=False)
        self.first, self.second = nn.LayerNorm(dim), nn.LayerNorm(dim)
        self.network = nn.Sequential(
            nn.Linear(dim, 4 * dim), nn.LeakyReLU(), nn.Dropout(config.dropout), nn.Linear(4 * dim, dim)
        )

    def forward(self, x: Tensor, past: Tensor, is_event: Tensor, itself: bool) -> Tensor:
        """x [r, m, dim] looks at past [r, l, dim] where is_event bool [r, l], and, if `itself`, each at its own place:
        [r, m, dim]."""
        query, key, value = self._split(self.query(x)), self._split(self.key(past)), self._split(self.value(past))
        scores = (query @ key.transpose(-1, -2)) * query.shape[-1] ** -0.5  # [r, heads, m, l]
        lowest = torch.finfo(scores.dtype).min  # not -inf: a row without any event must stay a number
        scores = scores.masked_fill(~is_event[:, None, None, :], lowest)
        if itself:
            own_key, own_value = self._split(self.key(x)), self._split(self.value(x))
            own = (query * own_key).sum(dim=-1, keepdim=True) * query.shape[-1] ** -0.5
            shares = torch.cat((scores, own), dim=-1).softmax(dim=-1)
            seen = shares[..., :-1] @ value + shares[..., -1:] * own_value
        else:
            seen = scores.softmax(dim=-1) @ value
        seen = self.joined(seen.transpose(1, 2).flatten(2))
        x = self.first(x + functional.dropout(seen, self.dropout, self.training))
        out: Tensor = self.second(x + functional.dropout(self.network(x), self.dropout, self.training))
        return out

    def _split(self, x: Tensor) -> Tensor:
        parts = x.view(*x.shape[:-1], self.heads, x.shape[-1] // self.heads)
        return parts.transpose(1, 2)  # [r, heads, m, dim / heads]
