"""The ranking network: features of (request, candidate) pairs to one logit per head.

A low-rank deep & cross network beside an MLP (Wang et al. 2021, "DCN V2", equations 1 and 2, the
parallel structure of figure 1b), and a wide linear skip (Cheng et al. 2016, "Wide & Deep").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from mainstem.models.interest import InterestBlock, InterestConfig

__all__ = ["CLIP", "VALUE_CAP", "Head", "Ranker", "RankerConfig"]

CLIP = 6.0
"""Standardised features are clipped to this many standard deviations."""
VALUE_CAP = 20.0
"""Value heads predict log1p(value); beyond this it is cut, so that expm1 stays finite in float32."""


@dataclass(frozen=True, slots=True)
class Head:
    """One prediction: `binary` gives a probability, `value` the expected size on the log1p scale."""

    name: str
    kind: Literal["binary", "value"] = "binary"


@dataclass(frozen=True, slots=True)
class RankerConfig:
    """features: width of the feature matrix. embeddings: width of the optional embedding block, 0 for none.
    dot: whether the retrieval dot product comes in as one more feature. rank: of the cross matrices. interest: of the
    part that makes the embedding block from candidates and histories, None where nothing does."""

    features: int
    heads: tuple[Head, ...] = (Head("purchase"),)
    hidden: tuple[int, ...] = (128, 64)
    cross_layers: int = 2
    rank: int = 16
    embeddings: int = 0
    dot: bool = False
    dropout: float = 0.0
    interest: InterestConfig | None = None

    @property
    def width(self) -> int:
        """Columns that enter the network."""
        return self.features + int(self.dot) + self.embeddings


class LowRankCross(nn.Module):
    """x_next = x0 * (U (V x) + b) + x: DCN V2, equation 2. x0, x [n, width] -> [n, width]."""

    def __init__(self, width: int, rank: int) -> None:
        super().__init__()
        self.inner = nn.Linear(width, min(rank, width), bias=False)
        self.outer = nn.Linear(min(rank, width), width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        out: Tensor = x0 * self.outer(self.inner(x)) + x
        return out


class Ranker(nn.Module):
    """One network, one output per head. `fit_normaliser` must see data before training.

    The normaliser's mean and standard deviation are buffers: they travel in `state_dict` with the weights. So do
    `slope` and `shift` [heads], which calibrate: the probability of a binary head is sigmoid(slope * logit + shift)
    (Platt 1999). `interest`, where there is one, makes `embeddings` for whoever calls.
    """

    mean: Tensor
    scale: Tensor
    slope: Tensor
    shift: Tensor
    value_heads: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        width, numeric = config.width, config.features + int(config.dot)
        self.register_buffer("mean", torch.zeros(numeric))
        self.register_buffer("scale", torch.ones(numeric))
        self.register_buffer("slope", torch.ones(len(config.heads)))
        self.register_buffer("shift", torch.zeros(len(config.heads)))
        kinds = torch.tensor([head.kind == "value" for head in config.heads])
        self.register_buffer("value_heads", kinds, persistent=False)
        self.cross = nn.ModuleList(LowRankCross(width, config.rank) for _ in range(config.cross_layers))
        deep: list[nn.Module] = []
        sizes = (width, *config.hidden)
        for i in range(len(config.hidden)):
            deep += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
            if config.dropout:
                deep.append(nn.Dropout(config.dropout))
        self.deep = nn.Sequential(*deep)
        joint = (width if config.cross_layers else 0) + (sizes[-1] if config.hidden else 0)
        self.heads = nn.Linear(joint, len(config.heads), bias=False) if joint else None
        self.wide = nn.Linear(width, len(config.heads))
        self.interest = None if config.interest is None else InterestBlock(config.interest)
        if config.interest is not None and config.embeddings != config.interest.width:
            raise ValueError(f"the interest gives {config.interest.width} columns, embeddings are {config.embeddings}")

    @torch.no_grad()
    def fit_normaliser(self, x: Tensor, dot: Tensor | None = None) -> None:
        """Take mean and standard deviation per column from x [n, features] and dot [n]; constant columns keep scale 1.

        Raises ValueError on values that are not finite: a feature is finite everywhere.
        """
        columns = self._numeric(x, dot).double()
        if not bool(columns.isfinite().all()):
            raise ValueError("features must be finite")
        deviation = columns.std(dim=0, correction=0)
        self.mean.copy_(columns.mean(dim=0))
        self.scale.copy_(torch.where(deviation > 1e-6, deviation, torch.ones_like(deviation)))

    def forward(self, x: Tensor, dot: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        """Logits [n, heads], not calibrated (value heads: predicted log1p(value)).

        x float32 [n, features], raw; dot float32 [n]: retrieval dot products, where the config has them;
        embeddings float32 [n, config.embeddings], likewise.
        """
        x0 = ((self._numeric(x, dot) - self.mean) / self.scale).clamp(-CLIP, CLIP)
        if self.config.embeddings:
            if embeddings is None:
                raise ValueError("this model was built with an embedding block: pass embeddings [n, config.embeddings]")
            x0 = torch.cat((x0, embeddings), dim=-1)
        out: Tensor = self.wide(x0)
        if self.heads is not None:
            out = out + self.heads(torch.cat(self._paths(x0), dim=-1))
        return out

    def scores(self, x: Tensor, dot: Tensor | None = None, embeddings: Tensor | None = None) -> Tensor:
        """[n, heads]: probabilities of binary heads, sizes (>= 0, in the event's own unit) of value heads."""
        logits = self(x, dot, embeddings)
        chance = (logits * self.slope + self.shift).sigmoid()
        return torch.where(self.value_heads, logits.clamp(0.0, VALUE_CAP).expm1(), chance)

    def _paths(self, x0: Tensor) -> list[Tensor]:
        paths: list[Tensor] = []
        if len(self.cross):
            crossed = x0
            for layer in self.cross:
                crossed = layer(x0, crossed)
            paths.append(crossed)
        if len(self.deep):
            paths.append(self.deep(x0))
        return paths

    def _numeric(self, x: Tensor, dot: Tensor | None) -> Tensor:
        if not self.config.dot:
            return x
        if dot is None:
            raise ValueError("this model was built with the retrieval dot product: pass dot [n]")
        return torch.cat((x, dot[:, None]), dim=-1)
