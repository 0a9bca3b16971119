"""Stage 1: ask every source of the canvas, within the stage's share of the deadline, and merge."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from concurrent.futures import Executor, Future, TimeoutError
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.rank.question import Question
from mainstem.rank.sources import Allowed, Source
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import FeatureView, Floats, Scored
from mainstem.schema.records import Degraded

__all__ = ["DEFAULT_MIX", "RETRIEVAL_SHARE", "Candidates", "retrieve"]

# Share of the deadline after which retrieval goes on with what it has.
RETRIEVAL_SHARE = 0.5

# Candidates asked of each source where the canvas names none.
DEFAULT_MIX = {
    "owned": 250,
    "popular": 150,
    "popular_here": 100,
    "popular_new": 100,
    "cooccurrence": 100,
    "two_tower": 100,
    "content": 50,
}


@dataclass(frozen=True, slots=True)
class Candidates:
    """The merged candidates.

    keys    uint64  [n]
    source  bool    [n, s]  which of `names` brought each
    fused   float32 [n]     reciprocal rank fusion over the sources, the order where no model is at hand
    """

    keys: Keys
    source: NDArray[np.bool_]
    fused: Floats
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    def take(self, rows: NDArray[np.bool_] | NDArray[np.int64]) -> Candidates:
        return Candidates(self.keys[rows], self.source[rows], self.fused[rows], self.names)

    def counts(self) -> dict[str, int]:
        """How many candidates each source brought."""
        return dict(zip(self.names, self.source.sum(axis=0).tolist(), strict=True))


def merge(found: Mapping[str, Scored], most: int) -> Candidates:
    """Union of the sources, the first of each before the second of any, cut at `most`.

    `fused` is reciprocal rank fusion (Cormack, Clarke, Buettcher 2009): sum of 1 / (60 + rank).
    """
    names = tuple(found)
    keys = np.concatenate([s.keys for s in found.values()]) if found else np.zeros(0, np.uint64)
    rank = np.concatenate([np.arange(len(s)) for s in found.values()]) if found else np.zeros(0, np.int64)
    origin = np.repeat(np.arange(len(names)), [len(s) for s in found.values()])
    unique, place = np.unique(keys, return_inverse=True)
    source = np.zeros((len(unique), len(names)), np.bool_)
    source[place, origin] = True
    fused = np.bincount(place, 1.0 / (60.0 + rank), len(unique)).astype(np.float32)
    best = np.full(len(unique), np.iinfo(np.int64).max)
    np.minimum.at(best, place, rank)
    chosen = np.lexsort((-fused, best))[:most]
    return Candidates(unique[chosen], source[chosen], fused[chosen], names)


def retrieve(
    question: Question,
    view: FeatureView,
    sources: Sequence[Source],
    allowed: Allowed,
    pool: Executor | None = None,
) -> tuple[Candidates, list[Degraded]]:
    """Candidates of all sources of the question's canvas.

    With a `pool`, index searches run beside the sources that read the view; one that is late or not
    ready is left out and reported.
    """
    limits: dict[str, int] = {name: source.limit for name, source in question.canvas.sources.items()} or DEFAULT_MIX
    found: dict[str, Scored] = {}
    running: dict[str, Future[Scored]] = {}
    degraded: list[Degraded] = []
    for source in sorted(sources, key=lambda source: not source.concurrent):
        limit = limits.get(source.name, 0)
        if not limit:
            continue
        try:
            search = source.prepare(question, view, limit, allowed)
        except NotReady as reason:
            degraded.append(Degraded(stage="retrieve", what=source.name, why=str(reason)))
            continue
        if pool is not None and source.concurrent:
            running[source.name] = pool.submit(search)
        else:
            found[source.name] = search()
    budget = question.left() - (1 - RETRIEVAL_SHARE) * question.deadline_s
    for name, future in running.items():
        try:
            found[name] = future.result(timeout=max(budget, 0.0))
        except TimeoutError:
            future.cancel()
            degraded.append(Degraded(stage="retrieve", what=name, why="too late for its share of the deadline"))
    return merge(found, question.canvas.candidates), degraded
