"""A world in which neither candidate nor history says the answer, only both: entities of six kinds, three events of one
kind that were `CHOSEN` and three of another that were not; what is taken next is of the chosen kind. A sum over the
history is as near to either kind."""

from __future__ import annotations

import numpy as np

from mainstem.models import Head, InterestConfig, Ranker, RankerConfig
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys
from mainstem.schema.pasts import Pasts
from mainstem.schema.protocols import Floats

KINDS, ENTITIES, DIM = 6, 60, 16
CHOSEN, LEFT = 0, 1
COLUMNS = 2

_rng = np.random.default_rng(0)
_centres = _rng.normal(size=(KINDS, DIM))
_all = _centres[np.arange(ENTITIES) % KINDS] + 0.3 * _rng.normal(size=(ENTITIES, DIM))
VECTORS: Floats = (_all / np.linalg.norm(_all, axis=1, keepdims=True)).astype(np.float32)


def vectors(keys: Keys) -> Floats:
    """Entities are numbered from 1."""
    return VECTORS[keys.astype(np.int64) - 1]


def group(number: int) -> Examples:
    """Four candidates of each kind of the history and four of a third; the inputs are noise."""
    rng = np.random.default_rng((3, number))
    chosen, left, other = rng.choice(KINDS, 3, replace=False)

    def some(kind: int, count: int) -> np.ndarray:
        return rng.choice(ENTITIES // KINDS, count, replace=False) * KINDS + kind + 1

    candidates = np.concatenate([some(kind, 4) for kind in (chosen, left, other)]).astype(np.uint64)
    order = rng.permutation(6)
    events = np.concatenate([some(chosen, 3), some(left, 3)]).astype(np.uint64)[order]
    actions = np.repeat([CHOSEN, LEFT], 3).astype(np.uint8)[order]
    n = len(candidates)
    time = 10**9 * (number + 1)
    return Examples(
        inputs=rng.normal(size=(n, COLUMNS)).astype(np.float32),
        labels=(np.arange(n) < 4).astype(np.float32)[:, None], negative_rate=np.ones(n, np.float32),
        fresh=np.ones(n, np.bool_), weight=np.ones(n, np.float32), keys=candidates, offsets=np.array([0, n]),
        time=np.array([time]), user=np.array([1], np.uint64),
        pasts=Pasts(events, actions, time - np.arange(6, 0, -1) * 1_000, np.array([0, 6])),
    )  # fmt: skip


def ranker_of(interest: str) -> Ranker:
    """interest: as in `RankingConfig`."""
    if interest == "none":
        return Ranker(RankerConfig(COLUMNS, (Head("buy"),), hidden=(16,)))
    block = InterestConfig(interest, DIM, actions=2, heads=4)  # type: ignore[arg-type]
    return Ranker(RankerConfig(COLUMNS, (Head("buy"),), hidden=(16,), embeddings=block.width, interest=block))


def share_right(logits: Floats, examples: Examples) -> float:
    """Share of the groups of twelve whose first candidate is a right one; a third by chance."""
    first = logits[:, 0].reshape(len(examples), 12).argmax(axis=1)
    return float((first < 4).mean())
