"""Exact search: every vector is scored. The oracle of the other indexes and the default below their size.

The live vectors fill the first rows of one matrix: a search is one pass over memory. A new key takes the
next spare row; the last rows move into the holes that a delete leaves. Readers share a lock that a
writer holds for the copy of a few rows only, so no search sees half a vector or half a batch of at most
`CHUNK` rows.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from mainstem.index.lock import ReadWriteLock
from mainstem.index.topk import Allowed, best, checked_batch, checked_query, inner_products
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows
from mainstem.schema.protocols import Floats, Scored

__all__ = ["ExactIndex"]

CHUNK = 16_384


class ExactIndex:
    """A VectorIndex that scans. Memory: 4 * dim + 8 bytes a row (up to half again as spare) and its map entry."""

    def __init__(self, dim: int, *, version: str) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.dim = dim
        self.version = version
        self._matrix: Floats = np.zeros((0, dim), np.float32)
        self._keys: Keys = np.zeros(0, np.uint64)
        self._row = KeyRows()
        self._writer = threading.Lock()
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self._row)

    def upsert(self, keys: Keys, vectors: Floats) -> None:
        """Add or replace, visible to the next search. keys [n], vectors [n, dim]; raises ValueError."""
        keys, vectors = checked_batch(keys, vectors, self.dim)
        with self._writer:
            for at in range(0, len(keys), CHUNK):
                self._put(keys[at : at + CHUNK], vectors[at : at + CHUNK])

    def _put(self, keys: Keys, vectors: Floats) -> None:
        rows = self._rows(keys)
        count, new = len(self._row), rows < 0
        rows[new] = np.arange(count, count + int(new.sum()))
        self._reserve(count + int(new.sum()))
        with self._lock.write():
            self._matrix[rows] = vectors
            # Rows at `count` and after lie outside of what any reader holds: no copy is needed.
            self._keys[rows[new]] = keys[new]
            self._row.put(keys[new], rows[new])

    def _reserve(self, rows: int) -> None:
        """Room for `rows`. The old matrix stays valid for those who still scan it."""
        if rows <= len(self._keys):
            return
        room, count = rows + rows // 2 + 64, len(self._row)
        matrix, keys = np.zeros((room, self.dim), np.float32), np.zeros(room, np.uint64)
        matrix[:count], keys[:count] = self._matrix[:count], self._keys[:count]
        with self._lock.write():
            self._matrix, self._keys = matrix, keys

    def delete(self, keys: Keys) -> None:
        """Remove; keys that are not in it are passed over. Nothing of the vectors stays in memory (law 10)."""
        with self._writer:
            holes = np.unique(self._rows(keys))
            holes = holes[holes >= 0]
            if not len(holes):
                return
            count, left = len(self._row), len(self._row) - len(holes)
            moving = np.setdiff1d(np.arange(left, count), holes)
            filled = holes[holes < left]
            changed = self._keys.copy()  # readers keep looking at the old one
            changed[filled] = self._keys[moving]
            changed[left:count] = 0
            with self._lock.write():
                self._row.remove(self._keys[holes])
                self._row.put(changed[filled], filled)
                self._matrix[filled] = self._matrix[moving]
                self._matrix[left:count] = 0.0
                self._keys = changed

    def search(self, query: Floats, limit: int, allowed: Allowed | None = None) -> Scored:
        """The true best `limit` for query [dim]; equal scores by ascending key. Raises ValueError.

        `allowed` is called outside of any lock, best keys first, on as many as are needed to fill `limit`.
        """
        query = checked_query(query, self.dim)
        if limit <= 0:
            return Scored.none()
        with self._lock.read():
            keys = self._keys[: len(self._row)]
            scores = inner_products(self._matrix[: len(keys)], query)
        return best(keys, scores, limit, allowed)

    def vectors(self, keys: Keys) -> Floats:
        """The stored vectors [n, dim]; zeros where a key is not in it."""
        return self.find(keys)[1]

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], Floats]:
        """Which keys [n] are in it, and their vectors [n, dim], zeros for the others."""
        found = np.zeros((len(keys), self.dim), np.float32)
        with self._lock.read():
            rows = self._rows(keys)
            known = rows >= 0
            found[known] = self._matrix[rows[known]]
        return known, found

    def keys(self) -> Keys:
        """Every key, in no order: a copy."""
        with self._lock.read():
            return self._keys[: len(self._row)].copy()

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        """The keys of now in chunks, each with its vectors as of when the chunk is read; deleted ones left out."""
        keys = self.keys()
        for at in range(0, len(keys), CHUNK):
            chunk = keys[at : at + CHUNK]
            known, vectors = self.find(chunk)
            yield chunk[known], vectors[known]

    def _rows(self, keys: Keys) -> NDArray[np.int64]:
        return self._row.find(keys)
