"""Tables of categorical fields and numbers, learned by the ranking network on rows of a collisionless table.

Every value of a field is a 64-bit key with a row of its own; the rows of an example's fields, side by side, are the
embedding block of a `Ranker`, whose heads are binary and learn the chance itself (pointwise). A field of several values
is the mean of their rows. Rows and network learn in one pass: the network by AdamW, the rows by the table's lazy Adam.
"""

from __future__ import annotations

import copy
import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from mainstem.evaluate.metrics import auc, logloss
from mainstem.models import Head, Ranker, RankerConfig
from mainstem.models.jagged import bag
from mainstem.models.sharing import parameter_count
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.ranking_config import SharingKind
from mainstem.train.ranking import one_cycle
from mainstem.weights import Adam, Family, Lookup, SlabTable

__all__ = ["Columns", "Fit", "Settings", "Tabular", "fit", "keys_of", "parts_of", "sampling_error", "scores_of"]

READ = 16_384  # examples scored at once
WARM_UP = 0.05  # share of the steps in which the learning rates rise

Ints = NDArray[np.int64]
Floats = NDArray[np.float32]


def keys_of(name: str, values: Sequence[object]) -> Keys:
    """The key of each value of the field `name`: uint64 [n]. Equal texts have equal keys."""
    texts, place = np.unique(np.array([str(value) for value in values]), return_inverse=True)
    return keys64(name, texts.tolist())[place]


def parts_of(count: int, shares: Sequence[float], seed: int) -> list[Ints]:
    """Places 0 .. count - 1, shuffled by the seed and cut by these shares of 1: disjoint, and nothing is left out."""
    order = np.random.default_rng(seed).permutation(count)
    return np.split(order, np.round(np.cumsum(shares)[:-1] * count).astype(np.int64))


@dataclass(frozen=True, slots=True)
class Columns:
    """n examples. keys uint64 [n, c]: one value each of c - `several` fields, then up to `several` values of one more
    field, 0 where there are fewer. numbers float32 [n, f]; labels float32 [n, tasks] of 0 and 1."""

    keys: Keys
    numbers: Floats
    labels: Floats
    several: int = 0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def fields(self) -> int:
        return int(self.keys.shape[1]) - self.several + (self.several > 0)

    def take(self, rows: Ints) -> Columns:
        return replace(self, keys=self.keys[rows], numbers=self.numbers[rows], labels=self.labels[rows])

    def task(self, column: int) -> Columns:
        """The same with the labels of one task."""
        return replace(self, labels=self.labels[:, [column]])


@dataclass(frozen=True, slots=True)
class Settings:
    """The network's shape and how it is trained. dim: of a field's rows. penalty: of the squares of an example's rows
    in its loss. dropout: behind each hidden layer; input_dropout: of the embedding block. dense_rate, row_rate: peaks
    of the learning rates of network and rows, which then fall to nothing over `epochs`."""

    dim: int = 30
    hidden: tuple[int, ...] = (256, 128)
    cross_layers: int = 2
    rank: int = 64
    sharing: SharingKind = "none"
    experts: int = 4
    expert_width: int = 32
    dropout: float = 0.0
    input_dropout: float = 0.0
    penalty: float = 0.0
    decay: float = 1e-5
    dense_rate: float = 1e-3
    row_rate: float = 1e-3
    batch: int = 4096
    epochs: int = 5


class Tabular:
    """A ranking network and the table of the rows that it reads."""

    def __init__(self, shape: Columns, settings: Settings, seed: int) -> None:
        """shape: any examples, for their columns."""
        torch.manual_seed(seed)
        self.settings = settings
        config = RankerConfig(
            features=shape.numbers.shape[1],
            heads=tuple(Head(str(task)) for task in range(shape.labels.shape[1])),
            hidden=settings.hidden,
            cross_layers=settings.cross_layers,
            rank=settings.rank,
            embeddings=shape.fields * settings.dim,
            dropout=settings.dropout,
            loss="pointwise",
            sharing=settings.sharing,
            experts=settings.experts,
            expert_width=settings.expert_width,
        )
        self.ranker = Ranker(config)
        self.table = SlabTable(settings.dim, (Family(optimizer=Adam()),), seed=seed)
        self.lookup = Lookup(self.table)

    @property
    def parameters(self) -> int:
        """Trainable numbers of the network and of the rows that there are."""
        return parameter_count(self.ranker) + len(self.table) * self.table.dim

    def embedded(self, some: Columns, *, learning: bool) -> Tensor:
        """The embedding block of these examples: [n, fields * dim]."""
        n, single = len(some), some.keys.shape[1] - some.several
        roles = {"single": some.keys[:, :single].ravel(), "several": some.keys[:, single:].ravel()}
        gathered = self.lookup.gather(roles, create=learning, gradient=learning)
        block = gathered.take("single").view(n, -1)
        if not some.several:
            return block
        offsets = torch.arange(n + 1) * some.several
        total = bag(gathered.rows, gathered.places["several"], offsets)
        count = torch.from_numpy((some.keys[:, single:] != 0).sum(axis=1))
        return torch.cat((block, total / count.clamp(min=1)[:, None]), dim=1)

    def loss(self, some: Columns) -> Tensor:
        """Of a training step: the mean cross-entropy of the tasks, summed, and the penalty."""
        block, settings = self.embedded(some, learning=True), self.settings
        dropped = functional.dropout(block, settings.input_dropout)
        raw = self.ranker(torch.from_numpy(some.numbers), embeddings=dropped)
        labels = torch.from_numpy(some.labels)
        tasks = zip(self.ranker.task_list(), self.ranker.split(raw), labels.unbind(1), strict=True)
        loss = torch.stack([task.loss(part, label) for task, part, label in tasks]).sum()
        return loss + settings.penalty * block.square().sum(dim=1).mean()

    @torch.no_grad()
    def chances(self, examples: Columns) -> NDArray[np.float64]:
        """[n, tasks]"""
        self.ranker.eval()
        found = []
        for rows in np.array_split(np.arange(len(examples)), -(-len(examples) // READ)):
            some = examples.take(rows)
            block = self.embedded(some, learning=False)
            found.append(self.ranker.scores(torch.from_numpy(some.numbers), embeddings=block))
        return torch.cat(found).double().numpy()


@dataclass(slots=True)
class Fit:
    """validation: the summed logloss after each epoch; the weights are those of `best`, counted from 1."""

    model: Tabular
    validation: list[float] = field(default_factory=list)
    best: int = 0
    seconds: float = 0.0


def fit(train: Columns, valid: Columns, settings: Settings, seed: int) -> Fit:
    """A model trained anew for `settings.epochs`, with the weights of the epoch of the least validation logloss."""
    began = time.monotonic()
    model = Tabular(train, settings, seed)
    ranker = model.ranker
    if train.numbers.shape[1]:
        ranker.fit_normaliser(torch.from_numpy(train.numbers))
    ranker.start(torch.from_numpy(train.labels), torch.ones(len(train)))
    adam = torch.optim.AdamW(ranker.parameters(), lr=settings.dense_rate, weight_decay=settings.decay, fused=True)
    rng, found, kept = np.random.default_rng(seed), Fit(model), _weights(model)
    steps, step = settings.epochs * -(-len(train) // settings.batch), 0
    for _ in range(settings.epochs):
        ranker.train()
        order = rng.permutation(len(train))
        for start in range(0, len(train), settings.batch):
            share = one_cycle(step, steps, WARM_UP)
            adam.param_groups[0]["lr"] = settings.dense_rate * share
            adam.zero_grad(set_to_none=True)
            model.loss(train.take(order[start : start + settings.batch])).backward()  # type: ignore[no-untyped-call]
            adam.step()
            model.lookup.apply_gradients(settings.row_rate * share)
            step += 1
        found.validation.append(sum(row["logloss"] for row in scores_of(model, valid)))
        if found.validation[-1] == min(found.validation):
            kept, found.best = _weights(model), len(found.validation)
    ranker.load_state_dict(kept[0])
    model.table.load(kept[1])
    found.seconds = time.monotonic() - began
    return found


def scores_of(model: Tabular, examples: Columns) -> list[dict[str, float]]:
    """logloss and AUC of each task."""
    return _scores(examples.labels, model.chances(examples))


def sampling_error(model: Tabular, examples: Columns, draws: int = 100) -> list[dict[str, float]]:
    """The standard deviation of `scores_of` over draws of as many examples with replacement."""
    chances, rng = model.chances(examples), np.random.default_rng(0)
    drawn = [rng.integers(0, len(examples), len(examples)) for _ in range(draws)]
    scores = [_scores(examples.labels[rows], chances[rows]) for rows in drawn]
    return [
        {metric: float(np.std([each[task][metric] for each in scores], ddof=1)) for metric in scores[0][task]}
        for task in range(examples.labels.shape[1])
    ]


def _scores(labels: Floats, chances: NDArray[np.float64]) -> list[dict[str, float]]:
    pairs = zip(labels.T, chances.T, strict=True)
    return [{"logloss": logloss(label, chance), "auc": auc(label, chance)} for label, chance in pairs]


def _weights(model: Tabular) -> tuple[dict[str, Tensor], dict[str, Any]]:
    return copy.deepcopy(model.ranker.state_dict()), model.table.state()
