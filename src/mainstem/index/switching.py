"""An index that replaces itself while it answers: another kind at another size, a fresh graph for a stale one.

The next index is built in a thread beside the one in use, from a copy of its content. Keys that are written
meanwhile are noted, not their values: catching up reads the values from the index in use, so a key
written twice is carried over once, and one deleted is deleted. The last few are carried over with
writers held, then one assignment switches; searches never wait.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from typing import Protocol

import faiss
import numpy as np
from numpy.typing import NDArray

from mainstem.index.exact import ExactIndex
from mainstem.index.hnsw import HnswIndex
from mainstem.index.topk import Allowed
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats, Scored, VectorIndex

__all__ = ["Stage", "SwitchingIndex", "by_size", "compacting"]

# With at most so many keys behind, writers are held and the switch is made.
FEW = 256
# Rounds of catching up before writers are held however many keys are behind: a flood cannot put it off for ever.
ROUNDS = 8
# A graph with a larger share of dead rows, and more rows than this, is built anew.
STALE, STALE_FROM = 0.25, 1_000


class Stage(VectorIndex, Protocol):
    """An index that can be carried over into the next."""

    dim: int

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], Floats]:
        """Which keys [n] are in it, and their vectors [n, dim]."""
        ...


Choose = Callable[[Stage], Callable[[], Stage] | None]


def compacting(graph: Callable[[], HnswIndex]) -> Choose:
    """A fresh graph once too many rows of the present one are dead."""

    def choose(now: Stage) -> Callable[[], Stage] | None:
        stale = isinstance(now, HnswIndex) and now.stale > STALE and len(now) >= STALE_FROM
        return graph if stale else None

    return choose


def by_size(exact: Callable[[], ExactIndex], graph: Callable[[], HnswIndex], exact_below: int) -> Choose:
    """Exact up to `exact_below`, the graph above, exact again below half of that; stale graphs are compacted."""
    compact = compacting(graph)

    def choose(now: Stage) -> Callable[[], Stage] | None:
        if isinstance(now, ExactIndex):
            return graph if len(now) > exact_below else None
        return exact if len(now) < exact_below // 2 else compact(now)

    return choose


class SwitchingIndex:
    """A VectorIndex over the index in use. `choose(in use)` says after each write what to build next, if anything."""

    def __init__(self, first: Stage, choose: Choose) -> None:
        self.version = first.version
        self._now = first
        self._choose = choose
        self._writer = threading.Lock()
        self._behind: set[int] | None = None  # keys written since the next index began; None: none is being built
        self._builder: threading.Thread | None = None

    @property
    def in_use(self) -> Stage:
        """The index that answers at this moment."""
        return self._now

    def __len__(self) -> int:
        return len(self._now)

    def upsert(self, keys: Keys, vectors: Floats) -> None:
        with self._writer:
            self._now.upsert(keys, vectors)
            self._written(keys)

    def delete(self, keys: Keys) -> None:
        with self._writer:
            self._now.delete(keys)
            self._written(keys)

    def _written(self, keys: Keys) -> None:
        if self._behind is not None:
            self._behind.update(np.asarray(keys, np.uint64).tolist())
        elif make := self._choose(self._now):
            self._behind = set()
            self._builder = threading.Thread(target=self._build, args=(self._now, make), name="index", daemon=True)
            self._builder.start()

    def _build(self, now: Stage, make: Callable[[], Stage]) -> None:
        try:
            # The setting is of this thread alone. Half of the machine stays with those who answer.
            faiss.omp_set_num_threads(max(1, (os.cpu_count() or 1) // 2))
            following = make()
            chunks = list(now.items())
            if chunks:
                following.upsert(np.concatenate([k for k, _ in chunks]), np.concatenate([v for _, v in chunks]))
            del chunks
            for _ in range(ROUNDS):
                with self._writer:
                    if self._behind is not None and len(self._behind) <= FEW:
                        break
                    behind, self._behind = self._behind, set()
                _carry(behind or set(), now, following)
            with self._writer:
                _carry(self._behind or set(), now, following)
                self._now, self._behind = following, None
        finally:
            # On an error the index in use stays, and the next write tries again; the error goes to threading's hook.
            with self._writer:
                if self._now is now:
                    self._behind = None

    def settle(self, timeout: float | None = None) -> bool:
        """Wait for the index that is being built, if one is; False where it is not done after `timeout` seconds."""
        builder = self._builder
        if builder is not None:
            builder.join(timeout)
        return builder is None or not builder.is_alive()

    def search(self, query: Floats, limit: int, allowed: Allowed | None = None) -> Scored:
        return self._now.search(query, limit, allowed)

    def vectors(self, keys: Keys) -> Floats:
        return self._now.vectors(keys)

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        return self._now.items()


def _carry(behind: set[int], now: Stage, following: Stage) -> None:
    """Make `following` as `now` is on the keys `behind`."""
    keys = np.fromiter(behind, np.uint64, len(behind))
    known, vectors = now.find(keys)
    following.delete(keys[~known])
    following.upsert(keys[known], vectors[known])
