"""The texts of entities and queries as vectors of a pretrained encoder, beside their words."""

from __future__ import annotations

import threading
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats
from mainstem.text.kept import KeptTexts

__all__ = ["Texts"]

Ints = NDArray[np.int64]

UNREAD, NONE = -2, -1
# Texts read between two looks at whether they have changed meanwhile.
CHUNK = 1024


class Texts:
    """Where the vector of each entity's text is: 8 bytes an entity. `width`: of the vectors, 0 without an encoder.

    `forget` says whose text has changed. Safe for several threads: while one encodes, others read.
    """

    def __init__(self, catalog: Catalog, kept: KeptTexts | None) -> None:
        self.catalog, self.kept = catalog, kept
        self.width = 0 if kept is None else kept.dim
        self._lock = threading.Lock()
        self._place = np.full(1024, UNREAD)  # by the catalogue's row
        self._changes = 0

    def of(self, entities: Keys, *, encode: bool = True) -> Floats:
        """The vector of each one's text: float32 [n, width]; zeros of an entity without one, and of one that is not
        known. Without `encode` also of those whose text was not read yet: a request does not wait for that."""
        if self.kept is None:
            return np.zeros((len(entities), 0), np.float32)
        rows = self.catalog.rows(entities)
        places = self._places(rows)
        unread = np.flatnonzero(places == UNREAD)
        if encode and len(unread):
            _, first = np.unique(rows[unread], return_index=True)
            for start in range(0, len(first), CHUNK):
                some = unread[first[start : start + CHUNK]]
                self._read(self.kept, rows[some], entities[some])
            places = self._places(rows)
        return self.kept.take(np.maximum(places, NONE))

    def _places(self, rows: NDArray[np.int32]) -> Ints:
        with self._lock:
            missing = int(rows.max(initial=0)) + 1 - len(self._place)
            if missing > 0:
                self._place = np.concatenate([self._place, np.full(missing + len(self._place), UNREAD)])
            found: Ints = np.where(rows >= 0, self._place[np.maximum(rows, 0)], NONE)
            return found

    def _read(self, kept: KeptTexts, rows: NDArray[np.int32], entities: Keys) -> None:
        """Note where the texts of these are; again, where a text changed while it was encoded."""
        while True:
            changes = self._changes
            places = kept.places([self.catalog.text(key) for key in entities.tolist()])
            with self._lock:
                if changes == self._changes:
                    self._place[rows] = places
                    return

    def forget(self, entities: Keys) -> None:
        """Read these anew when they are next asked for."""
        rows = self.catalog.rows(entities)
        with self._lock:
            self._changes += 1
            self._place[rows[(rows >= 0) & (rows < len(self._place))]] = UNREAD

    def of_queries(self, queries: Keys, texts: Mapping[int, str]) -> Floats:
        """The vector of each query: float32 [n, width]; zeros of key 0."""
        out = np.zeros((len(queries), self.width), np.float32)
        known = np.flatnonzero(queries)
        if self.kept is not None and len(known):
            distinct, place = np.unique(queries[known], return_inverse=True)
            out[known] = self.kept.queries([texts[key] for key in distinct.tolist()])[place]
        return out

    def of_query(self, query: str | None) -> Floats:
        """float32 [width]; zeros without one."""
        if self.kept is None or not query:
            return np.zeros(self.width, np.float32)
        found: Floats = self.kept.queries([query])[0]
        return found
