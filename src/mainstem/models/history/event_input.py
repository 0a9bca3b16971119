"""What one event says, as the vector that enters an encoder."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mainstem.models.history.batch import Histories

__all__ = ["INIT", "EventConfig", "EventInput", "log_bucket"]

INIT = 0.02
"""Standard deviation of fresh embeddings and biases."""


@dataclass(frozen=True, slots=True)
class EventConfig:
    """dim: width of the entities' rows. actions, canvases: sizes of their vocabularies. time_buckets: of the gaps
    between events, see `log_bucket`; 0 makes the encoder blind to time. query_time: whether it knows when what
    follows was asked for; needs time_buckets."""

    dim: int
    actions: int = 1
    canvases: int = 1
    time_buckets: int = 32
    query_time: bool = False

    def __post_init__(self) -> None:
        if self.query_time and not self.time_buckets:
            raise ValueError("query_time needs time_buckets above 0")


def log_bucket(gaps: Tensor, buckets: int) -> Tensor:
    """floor(log2(1 + seconds)), at most buckets - 1, of gaps in ms of any shape: int32. A negative gap counts as 0.

    Bucket 0 is under a second, 11 about an hour, 17 about two days, 31 from 68 years on. The published code of HSTU
    (see `HSTU`) buckets the logarithm too, finer: by powers of 1.35.
    """
    # int32 halves the largest tensor of the time bias, [n, length, length]
    return torch.log2(1 + gaps.clamp(min=0).float() / 1000).clamp(max=buckets - 1).to(torch.int32)


class EventInput(nn.Module):
    """The entity's row + embeddings of action, canvas, value and time gaps: [t, width].

    The row is projected where dim is not width, and comes in as it is where they agree. The value enters as sign *
    log1p(|value|) times a learned vector. The gap since the user's event before has an embedding per log bucket,
    and one of its own for a first event; with query_time so has the gap to when what follows was asked for.

    Raises IndexError on an action or canvas outside its vocabulary.
    """

    def __init__(self, config: EventConfig, width: int, dropout: float = 0.0) -> None:
        super().__init__()
        self.config = config
        self.project = nn.Linear(config.dim, width, bias=False) if config.dim != width else nn.Identity()
        self.action = _embedding(config.actions, width)
        self.canvas = _embedding(config.canvases, width)
        self.value = nn.Parameter(torch.randn(width) * INIT)
        self.before = _embedding(config.time_buckets + 1, width) if config.time_buckets else None
        self.ahead = _embedding(config.time_buckets, width) if config.query_time else None
        self.dropout = nn.Dropout(dropout)

    def forward(self, histories: Histories) -> Tensor:
        """[t, width]."""
        h, buckets = histories, self.config.time_buckets
        x = self.project(h.rows) + self.action(h.action) + self.canvas(h.canvas)
        x = x + (h.value.sign() * h.value.abs().log1p())[:, None] * self.value
        if self.before is not None:
            gaps = log_bucket(h.since_previous(), buckets).index_fill(0, h.first(), buckets)
            x = x + self.before(gaps)
        if self.ahead is not None:
            x = x + self.ahead(log_bucket(h.asked_at() - h.time, buckets))
        out: Tensor = self.dropout(x)
        return out


def _embedding(count: int, width: int) -> nn.Embedding:
    table = nn.Embedding(count, width)
    nn.init.normal_(table.weight, std=INIT)
    return table
