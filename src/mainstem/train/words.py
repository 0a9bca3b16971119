"""Words as keys: what entities say of themselves, and what is searched for, in rows that they share.

A word's row learns from everything that has it in its text and from every query that it stands in, so a query finds
what it names, and an entity that nobody has touched yet is known by its words from its first second.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.protocols import Catalog
from mainstem.schema.records import Entity
from mainstem.text import tokenize
from mainstem.train.interactions import ranges

__all__ = ["Words", "keys_of", "word_keys"]

Ints = NDArray[np.int64]

UNREAD = -1


def word_keys(text: str, most: int) -> Keys:
    """Keys of the first `most` different words: uint64 [w]."""
    return keys64("word", list(dict.fromkeys(tokenize(text)))[:most])


class Words:
    """The words of the entities of a catalogue, read once each and kept as keys: 8 bytes a word and 12 an entity.

    most: words of a text that count; 0 for none. `forget` says whose text has changed. Safe for several threads.
    """

    def __init__(self, catalog: Catalog, most: int) -> None:
        self.catalog, self.most = catalog, most
        self._lock = threading.Lock()
        self._start, self._length = np.full(1024, UNREAD), np.zeros(1024, np.int32)  # by the catalogue's row
        self._arena: Keys = np.zeros(1024, np.uint64)
        self._used = 0

    def of(self, entities: Keys) -> tuple[Keys, Ints]:
        """The words of each: uint64 [w], and offsets int64 [n + 1]; none of what the catalogue does not know."""
        if not self.most:
            return np.zeros(0, np.uint64), np.zeros(len(entities) + 1, np.int64)
        rows = self.catalog.rows(entities)
        known = rows >= 0
        with self._lock:
            self._reserve(int(rows.max(initial=0)) + 1)
            for at in np.flatnonzero(known & (self._start[rows] == UNREAD)).tolist():
                if self._start[rows[at]] == UNREAD:  # else it stands twice here
                    self._read(int(rows[at]), int(entities[at]))
            start = np.where(known, self._start[rows], 0)
            places, offsets = ranges(start, start + np.where(known, self._length[rows], 0))
            return self._arena[places], offsets

    def _read(self, row: int, key: int) -> None:
        found = word_keys(self.catalog.text(key), self.most)
        if self._used + len(found) > len(self._arena):
            self._arena = np.concatenate([self._arena, np.zeros(len(self._arena) + len(found), np.uint64)])
        self._arena[self._used : self._used + len(found)] = found
        self._start[row], self._length[row] = self._used, len(found)
        self._used += len(found)

    def _reserve(self, rows: int) -> None:
        more = max(rows, 2 * len(self._start)) - len(self._start) if rows > len(self._start) else 0
        if more:
            self._start = np.concatenate([self._start, np.full(more, UNREAD)])
            self._length = np.concatenate([self._length, np.zeros(more, np.int32)])

    def forget(self, entities: Keys) -> None:
        """Read these anew when they are next asked for."""
        rows = self.catalog.rows(entities)
        with self._lock:
            self._start[rows[(rows >= 0) & (rows < len(self._start))]] = UNREAD

    def of_queries(self, queries: Keys, texts: Mapping[int, str]) -> tuple[Keys, Ints]:
        """The words of each query: uint64 [w], and offsets int64 [n + 1]; none of key 0."""
        distinct, place = np.unique(queries, return_inverse=True)
        nothing = np.zeros(0, np.uint64)
        known = [word_keys(texts[key], self.most) if key and self.most else nothing for key in distinct.tolist()]
        return jagged([known[at] for at in place.tolist()])


def keys_of(entities: Sequence[Entity]) -> Keys:
    """uint64 [n]"""
    return np.array([key64(each.entity_type, each.entity, each.tenant) for each in entities], np.uint64)


def jagged(parts: list[Keys]) -> tuple[Keys, Ints]:
    """One after the other: uint64 [t], and offsets int64 [n + 1]."""
    offsets = np.zeros(len(parts) + 1, np.int64)
    np.cumsum([len(part) for part in parts], out=offsets[1:])
    return np.concatenate([np.zeros(0, np.uint64), *parts]), offsets
