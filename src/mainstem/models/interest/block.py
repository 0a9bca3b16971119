"""How a candidate goes with the history, as a few columns of the ranking network's input."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn

from mainstem.models.interest.behavior_transformer import (
    BehaviorTransformer,
    BehaviorTransformerConfig,
    gap_buckets,
)
from mainstem.models.interest.target_attention import TargetAttention, TargetAttentionConfig

__all__ = ["InterestBlock", "InterestConfig", "Meeting"]


class Meeting(NamedTuple):
    """Candidates of r requests and the histories that they meet; vectors as the retrieval model has them (of norm 1, 0
    for what it does not know), which nothing here moves.

    candidates [n, dim]; requests int64 [n], in rising order: whose each is; events [t, dim]; actions int64 [t]: what
    each event was; gaps [t]: seconds from it to the request; offsets int64 [r + 1]: the events of each request.
    """

    candidates: Tensor
    requests: Tensor
    events: Tensor
    actions: Tensor
    gaps: Tensor
    offsets: Tensor


@dataclass(frozen=True, slots=True)
class InterestConfig:
    """dim: of the vectors. actions: kinds of events. width: columns that come out. hidden: of the activation unit of
    target attention. heads: of the transformer's one layer, which divide dim. buckets: of ages."""

    kind: Literal["target_attention", "transformer"]
    dim: int
    actions: int
    width: int = 16
    hidden: int = 16
    heads: int = 1
    buckets: int = 32


class InterestBlock(nn.Module):
    """Meeting -> [n, width]: `TargetAttention` or `BehaviorTransformer` over events that know what and when they were.

        event      vector + a row of its action + a row of its age
        interest   of the candidate in these events, [n, dim]
        out        W [interest, candidate, interest * candidate], from zeros: training begins at a network without it

    The age of an event is a bucket that doubles (`gap_buckets`). Zhou et al. 2018 (DIN) leave ages out; here they come
    in as in Chen et al. 2019 (BST), added, for both. The three parts of `out` are what DIN's authors' code gives to
    the layers above. Vectors of norm 1 are scaled to numbers of about 1, on which the layers' first weights are set.
    """

    def __init__(self, config: InterestConfig) -> None:
        """Raises ValueError where heads do not divide dim."""
        super().__init__()
        self.config = config
        dim = config.dim
        self.actions = nn.Embedding(config.actions, dim)
        nn.init.normal_(self.actions.weight, std=0.02)
        self.attention: TargetAttention | BehaviorTransformer
        self.ages: nn.Embedding | None = None
        if config.kind == "target_attention":
            self.attention = TargetAttention(TargetAttentionConfig(dim, config.hidden))
            self.ages = nn.Embedding(config.buckets, dim)
            nn.init.normal_(self.ages.weight, std=0.02)
        else:  # which has rows of ages itself
            self.attention = BehaviorTransformer(BehaviorTransformerConfig(dim, config.heads, buckets=config.buckets))
        self.out = nn.Linear(3 * dim, config.width, bias=False)
        nn.init.zeros_(self.out.weight)

    def forward(self, meeting: Meeting) -> Tensor:
        """[n, width]"""
        scale = math.sqrt(self.config.dim)
        candidates, events = meeting.candidates * scale, meeting.events * scale + self.actions(meeting.actions)
        requests, gaps, offsets = meeting.requests, meeting.gaps, meeting.offsets
        if isinstance(self.attention, TargetAttention):
            assert self.ages is not None
            events = events + self.ages(gap_buckets(gaps, self.config.buckets))
            interest = self.attention(candidates, requests, events, offsets)
        else:
            interest = self.attention(candidates, requests, events, gaps, offsets)
        out: Tensor = self.out(torch.cat((interest, candidates, interest * candidates), dim=1))
        return out
