"""Slates whose chances and values are known, for every type of head; what the network has to find out."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem.models import Head, Ranker, RankerConfig
from mainstem.schema.config import HeadConfig, TrainConfig
from mainstem.schema.examples import Examples, answered

COLUMNS = 4
LEVELS = [1.0, 2.0, 4.0]
SPREAD = 0.8
KEEP, KEEP_FRESH = 0.5, 0.15
QUICK = TrainConfig(ranking_epochs=6, ranking_batch=16, ranking_learning_rate=0.01)
HEADS = {
    "binary": HeadConfig(event="purchase"),
    "value": HeadConfig(event="watch", type="value"),
    "ordinal": HeadConfig(event="rating", type="ordinal", levels=LEVELS),
    "weighted_logistic": HeadConfig(event="watch", type="weighted_logistic", unit=20.0),
    "lifetime_value": HeadConfig(event="watch", type="lifetime_value", window="30d"),
}
Array = NDArray[np.float64]


def new_ranker(heads: list[HeadConfig], seed: int = 0, **options: Any) -> Ranker:
    torch.manual_seed(seed)
    named = tuple(Head(f"h{i}", head.type, tuple(head.levels), head.unit) for i, head in enumerate(heads))
    return Ranker(RankerConfig(features=COLUMNS, heads=named, hidden=(16,), **options))


def chance(x: Array) -> Array:
    """That something happens: by column 0 alone; column 1 says what is new to the user, 2 and 3 are sizes and noise."""
    return 1 / (1 + np.exp(-(1.5 * x[..., 0] - 3)))


def typical(x: Array) -> Array:
    """The median of what is spent where something is."""
    return np.exp(3 + 0.7 * x[..., 2])


def above(x: Array) -> Array:
    """That a grade is above the first, and above the second level: [..., 2]."""
    return 1 / (1 + np.exp(-(1.5 * x[..., :1] - np.array([-1.0, 1.0]))))


def expectation(kind: str, x: Array) -> Array:
    """What a head of this type should predict."""
    if kind == "binary":
        return chance(x)
    if kind == "value":
        return typical(x)
    if kind == "ordinal":
        return LEVELS[0] + above(x) @ np.diff(LEVELS)
    return chance(x) * typical(x) * np.exp(SPREAD**2 / 2)


def inputs(n: int, rng: np.random.Generator) -> NDArray[np.float32]:
    x = rng.normal(size=(n, COLUMNS))
    x[:, 1] = rng.random(n) < 0.5
    return x.astype(np.float32)


def slates(
    heads: list[HeadConfig],
    groups: int = 400,
    size: int = 60,
    keep: float = 0.5,
    keep_fresh: float = 0.15,
    seed: int = 0,
) -> Examples:
    """Of the rows that no event is about only some are kept, at another rate among what is new to the user."""
    rng = np.random.default_rng(seed)
    x = inputs(groups * size, rng)
    happened = rng.random(len(x)) < chance(x)
    spent = typical(x) * np.exp(SPREAD * rng.normal(size=len(x)))
    grade = np.array(LEVELS)[(rng.random((len(x), 1)) < above(x)).sum(axis=1)]
    rated = rng.random(len(x)) < 0.1
    of = {
        "binary": happened, "value": np.where(happened, typical(x), np.nan), "ordinal": np.where(rated, grade, np.nan),
        "weighted_logistic": np.where(happened, spent, 0.0), "lifetime_value": np.where(happened, spent, 0.0),
    }  # fmt: skip
    labels = np.column_stack([of[head.type] for head in heads]).astype(np.float32)
    fresh = x[:, 1] > 0
    rate = np.where(fresh, KEEP_FRESH, KEEP).astype(np.float32)
    kept = answered(labels, heads) | (rng.random(len(x)) < rate)
    n = int(kept.sum())
    return Examples(
        inputs=x[kept], labels=labels[kept], negative_rate=rate[kept], fresh=fresh[kept],
        weight=np.ones(n, np.float32), keys=np.arange(n, dtype=np.uint64),
        offsets=np.concatenate([[0], np.cumsum(kept.reshape(groups, size).sum(axis=1))]),
        time=np.arange(groups), user=np.zeros(groups, np.uint64),
    )  # fmt: skip


def with_(examples: Examples, **changes: Any) -> Examples:
    fields = {name: getattr(examples, name) for name in Examples.__slots__}
    return Examples(**fields | changes)


def predicted(ranker: Ranker, x: NDArray[np.float32]) -> Array:
    ranker.eval()
    with torch.no_grad():
        return ranker.scores(torch.from_numpy(x)).numpy().astype(np.float64)
