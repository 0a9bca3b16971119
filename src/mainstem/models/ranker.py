"""The ranking network: features of (request, candidate) pairs to the raw outputs of each head.

A low-rank deep & cross network beside an MLP (Wang et al. 2021, "DCN V2", equations 1 and 2, the
parallel structure of figure 1b), and a wide linear skip (Cheng et al. 2016, "Wide & Deep"). The heads read the joint
layer of both directly, or through one of the ways of `sharing`.

    features --+-- cross --+                                  +-- head
               +-- deep  --+-- joint layer -- (sharing) ------+-- head
               +-- wide ------------------------------------- + to each
    crosses of categorical fields (`wide.crossed`) ---------- + to each
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mainstem.models.heads import BinaryHead, Head, LifetimeValueHead, TaskModule, task_of
from mainstem.models.interest import InterestBlock, InterestConfig
from mainstem.models.sharing import sharing_of
from mainstem.schema.ranking_config import OrderLoss, SharingKind

__all__ = ["CLIP", "Head", "Ranker", "RankerConfig"]

CLIP = 6.0
"""Standardised features are clipped to this many standard deviations."""


@dataclass(frozen=True, slots=True)
class RankerConfig:
    """features: width of the feature matrix. embeddings: width of the optional embedding block, 0 for none.
    dot: whether the retrieval dot product comes in as one more feature. rank: of the cross matrices. loss: what binary
    heads learn the order by. sharing, experts, expert_width: see `sharing.sharing_of`. interest: of the part that makes
    the embedding block from candidates and histories, None where nothing does. crossed: whether what `wide.crossed`
    says of each candidate is added."""

    features: int
    heads: tuple[Head, ...] = (Head("purchase"),)
    hidden: tuple[int, ...] = (128, 64)
    cross_layers: int = 2
    rank: int = 16
    embeddings: int = 0
    dot: bool = False
    dropout: float = 0.0
    loss: OrderLoss = "listwise"
    sharing: SharingKind = "none"
    experts: int = 4
    expert_width: int = 32
    interest: InterestConfig | None = None
    crossed: bool = False

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
    """One network; for each head the raw outputs that its task asks for. `fit_normaliser` must see data first.

    The normaliser's mean and standard deviation are buffers: they travel in `state_dict` with the weights. So do
    `slope` and `shift` [heads], which calibrate: the probability of a binary head is sigmoid(slope * logit + shift)
    (Platt 1999). `sizes`: raw outputs of each head. `interest`, where there is one, makes `embeddings` for whoever
    calls.
    """

    mean: Tensor
    scale: Tensor
    slope: Tensor
    shift: Tensor

    def __init__(self, config: RankerConfig) -> None:
        super().__init__()
        self.config = config
        width, numeric = config.width, config.features + int(config.dot)
        self.register_buffer("mean", torch.zeros(numeric))
        self.register_buffer("scale", torch.ones(numeric))
        self.register_buffer("slope", torch.ones(len(config.heads)))
        self.register_buffer("shift", torch.zeros(len(config.heads)))
        self.tasks = nn.ModuleList(task_of(head) for head in config.heads)
        self.sizes = [task.outputs for task in self.task_list()]
        self.cross = nn.ModuleList(LowRankCross(width, config.rank) for _ in range(config.cross_layers))
        deep: list[nn.Module] = []
        sizes = (width, *config.hidden)
        for i in range(len(config.hidden)):
            deep += [nn.Linear(sizes[i], sizes[i + 1]), nn.ReLU()]
            if config.dropout:
                deep.append(nn.Dropout(config.dropout))
        self.deep = nn.Sequential(*deep)
        joint = (width if config.cross_layers else 0) + (sizes[-1] if config.hidden else 0)
        self.heads = nn.Linear(joint, sum(self.sizes), bias=False) if joint and config.sharing == "none" else None
        self.wide = nn.Linear(width, sum(self.sizes))
        self._share(joint)
        self.interest = None if config.interest is None else InterestBlock(config.interest)
        if config.interest is not None and config.embeddings != config.interest.width:
            raise ValueError(f"the interest gives {config.interest.width} columns, embeddings are {config.embeddings}")

    def _share(self, joint: int) -> None:
        """What stands between the joint layer and the heads, and the heads' own weights on what it gives each."""
        config = self.config
        if config.sharing != "none" and not joint:
            raise ValueError("sharing needs a cross or deep layer below it")
        self.sharing = sharing_of(config.sharing, joint, len(config.heads), config.experts, config.expert_width)
        apart = self.sizes if self.sharing is not None else ()
        self.own = nn.ModuleList(nn.Linear(config.expert_width, size, bias=False) for size in apart)

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

    def forward(
        self, x: Tensor, dot: Tensor | None = None, embeddings: Tensor | None = None, crossed: Tensor | None = None
    ) -> Tensor:
        """Raw outputs [n, outputs], head after head, as `split` parts them; not calibrated.

        x float32 [n, features], raw; dot float32 [n]: retrieval dot products, where the config has them;
        embeddings float32 [n, config.embeddings] and crossed float32 [n, outputs], likewise.
        """
        if (crossed is not None) != self.config.crossed:
            raise ValueError(f"this model was built {'with' if self.config.crossed else 'without'} crosses")
        x0 = ((self._numeric(x, dot) - self.mean) / self.scale).clamp(-CLIP, CLIP)
        if self.config.embeddings:
            if embeddings is None:
                raise ValueError("this model was built with an embedding block: pass embeddings [n, config.embeddings]")
            x0 = torch.cat((x0, embeddings), dim=-1)
        out: Tensor = self.wide(x0)
        if crossed is not None:
            out = out + crossed
        if self.heads is not None:
            out = out + self.heads(torch.cat(self._paths(x0), dim=-1))
        elif self.sharing is not None:
            shared = self.sharing(torch.cat(self._paths(x0), dim=-1)).unbind(1)
            out = out + torch.cat([own(part) for own, part in zip(self.own, shared, strict=True)], dim=-1)
        return out

    def split(self, raw: Tensor) -> tuple[Tensor, ...]:
        """raw [n, outputs], from `forward` -> one [n, size] a head."""
        return torch.split(raw, self.sizes, dim=-1)

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, outputs] -> [n, heads], each in its own unit: chances of binary heads, expected values of others."""
        columns = []
        for i, (task, part) in enumerate(zip(self.task_list(), self.split(raw), strict=True)):
            binary = isinstance(task, BinaryHead)
            columns.append(task.predict(part * self.slope[i] + self.shift[i] if binary else part))
        return torch.stack(columns, dim=-1)

    def order(self, raw: Tensor) -> Tensor:
        """raw [n, outputs] -> [n, heads]: in the order of `predict`, and apart also where chances come out equal."""
        parts = zip(self.task_list(), self.split(raw), strict=True)
        columns = [t.log_expectation(part) if isinstance(t, LifetimeValueHead) else part[:, 0] for t, part in parts]
        return torch.stack(columns, dim=-1)

    def scores(
        self, x: Tensor, dot: Tensor | None = None, embeddings: Tensor | None = None, crossed: Tensor | None = None
    ) -> Tensor:
        """`predict` of `forward`: [n, heads]."""
        return self.predict(self(x, dot, embeddings, crossed))

    @torch.no_grad()
    def start(self, labels: Tensor, weights: Tensor) -> None:
        """Begin at the level of these labels: labels [n, heads], NaN where not known; weights float >= 0 [n].

        Binary heads that learn an order alone have no level to begin at, and stay.
        """
        levels = self.split(self.wide.bias)
        for i, (task, level) in enumerate(zip(self.task_list(), levels, strict=True)):
            if not isinstance(task, BinaryHead) or self.config.loss == "pointwise":
                level.copy_(task.start(labels[:, i], weights))

    def task_list(self) -> list[TaskModule]:
        """`tasks`, typed."""
        return list(self.tasks)  # type: ignore[arg-type]

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
