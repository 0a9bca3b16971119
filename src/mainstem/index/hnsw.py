"""Approximate search in a hierarchical navigable small world graph (Malkov and Yashunin, 2018, TPAMI), faiss's.

The graph only grows: a delete marks its row dead, an update is a delete and an add. Dead rows are still
walked through but not returned; `switching.py` builds a fresh graph beside this one when there are too many.
Vectors are stored once, in the graph's own storage, and a scan of it answers where the graph cannot:
few vectors, a `limit` near all of them, a filter that lets little through, a walk that came back short.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.index.lock import ReadWriteLock
from mainstem.index.topk import Allowed, best, checked_batch, checked_query, engine, inner_products
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats, Scored

__all__ = ["HnswIndex"]

# Rows added in one critical section. An add costs faiss one pass over a lock per row of the graph, so
# single rows are dear, and a search waits for the whole of it, so thousands would be felt.
CHUNK = 256
# Keys by which a filter's share is estimated.
SAMPLE = 256
# Rows copied out in one critical section.
READ_CHUNK = 16_384


class HnswIndex:
    """A VectorIndex that walks a graph, recall >= .99 at its defaults on learned-like vectors (tests/agreement).

    `links` per row and layer (M), `construction`: candidates kept while a row is linked (efConstruction),
    `breadth`: candidates kept in a search, in multiples of its limit and at least 128 (efSearch).
    Memory: 4 * dim + 8 * links + 8 bytes a row and its map entry. Works best on vectors of similar length.
    """

    def __init__(
        self, dim: int, *, version: str, links: float = 32, construction: float = 40, breadth: float = 2.5
    ) -> None:
        if dim < 1 or links < 2 or construction < 1 or breadth < 1:
            raise ValueError("dim, construction and breadth must be at least 1, links at least 2")
        self.dim = dim
        self.version = version
        self.breadth = breadth
        self._graph: Any = engine.IndexHNSWFlat(dim, int(links), engine.METRIC_INNER_PRODUCT)
        self._graph.hnsw.efConstruction = int(construction)
        self._keys: Keys = np.zeros(0, np.uint64)  # of every row; never changes once written
        self._live: NDArray[np.uint8] = np.zeros(0, np.uint8)  # one bit a row, the lowest first
        self._row: dict[int, int] = {}
        self._writer = threading.Lock()
        self._lock = ReadWriteLock()

    def __len__(self) -> int:
        return len(self._row)

    @property
    def stale(self) -> float:
        """The share of rows that are dead, in [0, 1)."""
        rows = int(self._graph.ntotal)
        return 1 - len(self._row) / rows if rows else 0.0

    def upsert(self, keys: Keys, vectors: Floats) -> None:
        """Add or replace, visible to the next search; vectors that are as they were cost nothing.

        keys [n], vectors [n, dim]; raises ValueError.
        """
        keys, vectors = checked_batch(keys, vectors, self.dim)
        with self._writer:
            known, present = self.find(keys)
            changed = ~(known & (present == vectors).all(axis=1))
            keys, vectors = keys[changed], vectors[changed]
            step = CHUNK if self._row else max(1, len(keys))
            for at in range(0, len(keys), step):
                self._put(keys[at : at + step], vectors[at : at + step])

    def _put(self, keys: Keys, vectors: Floats) -> None:
        start = int(self._graph.ntotal)
        rows = np.arange(start, start + len(keys))
        self._reserve(start + len(keys))
        with self._lock.write():
            self._bury(self._rows(keys))
            self._graph.add(np.ascontiguousarray(vectors))
            self._keys[rows] = keys
            np.bitwise_or.at(self._live, rows >> 3, (1 << (rows & 7)).astype(np.uint8))
            self._row.update(zip(keys.tolist(), rows.tolist(), strict=True))

    def _bury(self, rows: NDArray[np.int64]) -> None:
        rows = rows[rows >= 0]
        np.bitwise_and.at(self._live, rows >> 3, ~(1 << (rows & 7)).astype(np.uint8))

    def _reserve(self, rows: int) -> None:
        if rows <= len(self._keys):
            return
        room, start = (rows + rows // 2 + 64) & ~7, len(self._keys)
        keys, live = np.zeros(room, np.uint64), np.zeros(room // 8, np.uint8)
        keys[:start], live[: start // 8] = self._keys, self._live
        with self._lock.write():
            self._keys, self._live = keys, live

    def delete(self, keys: Keys) -> None:
        """Remove from every later answer; keys that are not in it are passed over.

        The vector stays in the graph, marked dead, until the graph is built anew.
        """
        with self._writer, self._lock.write():
            rows = self._rows(np.unique(keys))
            self._bury(rows)
            for key in self._keys[rows[rows >= 0]].tolist():
                del self._row[key]

    def search(self, query: Floats, limit: int, allowed: Allowed | None = None) -> Scored:
        """About the best `limit` for query [dim]; never fewer than there are. Raises ValueError.

        With `allowed` the walk is as wide as the share that passes, of a sample, asks for; a filter too
        selective for that is answered exactly, by a scan. `allowed` is called outside of any lock.
        """
        query = checked_query(query, self.dim)
        if limit <= 0:
            return Scored.none()
        found = self._walk(query, limit if allowed is None else self._widened(limit, allowed))
        if found is not None and allowed is not None:
            passed = allowed(found.keys)
            found = Scored(found.keys[passed], found.scores[passed])
        if found is None or len(found) < limit:
            return self._scan(query, limit, allowed)
        order = np.lexsort((found.keys, -found.scores))[:limit]
        return Scored(found.keys[order], found.scores[order])

    def _widened(self, limit: int, allowed: Allowed) -> int:
        """How many neighbours to ask for so that `limit` of them pass: a quarter more than the share says."""
        with self._lock.read():
            keys = self._keys[: int(self._graph.ntotal)]
        sample = keys[:: len(keys) // SAMPLE + 1]
        passed = int(allowed(sample).sum())
        return 5 * limit * len(sample) // (4 * passed) + 16 if passed else max(limit, len(keys))

    def _walk(self, query: Floats, limit: int) -> Scored | None:
        """`limit` near neighbours by the graph; None where a scan is as cheap, or the walk came back short."""
        with self._lock.read():
            if limit * 32 > len(self._row):
                return None
            settings: dict[str, Any] = {"efSearch": max(128, int(self.breadth * limit))}
            if len(self._row) < self._graph.ntotal:
                settings["sel"] = engine.IDSelectorBitmap(self._live)
            parameters = engine.SearchParametersHNSW(**settings)
            scores, rows = self._graph.search(query[None], limit, params=parameters)
            if rows[0, -1] < 0:
                return None
            return Scored(self._keys[rows[0]], scores[0])

    def _scan(self, query: Floats, limit: int, allowed: Allowed | None) -> Scored:
        with self._lock.read():
            count = int(self._graph.ntotal)
            keys = self._keys[:count]
            live = np.unpackbits(self._live, count=count, bitorder="little").view(np.bool_)
            scores = inner_products(self._matrix(), query)
        if not live.all():
            keys, scores = keys[live], scores[live]
        return best(keys, scores, limit, allowed)

    def _matrix(self) -> Floats:
        """The graph's own vectors [rows, dim]; valid only while the lock is held."""
        count = int(self._graph.ntotal)
        if not count:
            return np.zeros((0, self.dim), np.float32)
        storage = engine.downcast_index(self._graph.storage)
        return np.asarray(engine.rev_swig_ptr(storage.get_xb(), count * self.dim)).reshape(count, self.dim)

    def vectors(self, keys: Keys) -> Floats:
        """The stored vectors [n, dim]; zeros where a key is not in it."""
        return self.find(keys)[1]

    def find(self, keys: Keys) -> tuple[NDArray[np.bool_], Floats]:
        """Which keys [n] are in it, and their vectors [n, dim], zeros for the others."""
        found = np.zeros((len(keys), self.dim), np.float32)
        with self._lock.read():
            rows = self._rows(keys)
            known = rows >= 0
            found[known] = self._matrix()[rows[known]]
        return known, found

    def keys(self) -> Keys:
        """Every key, in no order: a copy."""
        with self._lock.read():
            return np.fromiter(self._row, np.uint64, len(self._row))

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        """The keys of now in chunks, each with its vectors as of when the chunk is read; deleted ones left out."""
        keys = self.keys()
        for at in range(0, len(keys), READ_CHUNK):
            chunk = keys[at : at + READ_CHUNK]
            known, vectors = self.find(chunk)
            yield chunk[known], vectors[known]

    def _rows(self, keys: Keys) -> NDArray[np.int64]:
        row = self._row.get
        return np.fromiter((row(key, -1) for key in np.asarray(keys, np.uint64).tolist()), np.int64, len(keys))
