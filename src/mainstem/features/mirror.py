"""Mirrors: fixed-width tables held in memory by column, a replica of the state that can be rebuilt (law 6).

A dense row per key, found through an open-addressing hash. Row 0 stands for every unknown key and is all
zeros. Rows stay put until `load` or a deletion rebuilds the mirror.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.features.state import Records, records_of
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix

__all__ = ["Mirror", "distinct"]


@compiled
def _find(slots: NDArray[np.int32], stored: Keys, keys: Keys, rows: NDArray[np.int32]) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        slot = mix(keys[i]) & mask
        while slots[slot] != 0 and stored[slots[slot]] != keys[i]:
            slot = (slot + np.uint64(1)) & mask
        rows[i] = slots[slot]


@compiled
def _insert(slots: NDArray[np.int32], stored: Keys, first: int, last: int) -> None:
    mask = np.uint64(len(slots) - 1)
    for row in range(first, last):
        slot = mix(stored[row]) & mask
        while slots[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        slots[slot] = row


@compiled
def _distinct(keys: Keys, slots: NDArray[np.int32], found: Keys, place: NDArray[np.int64]) -> int:
    mask, count = np.uint64(len(slots) - 1), 0
    for i in range(len(keys)):
        slot = mix(keys[i]) & mask
        while slots[slot] != 0 and found[slots[slot] - 1] != keys[i]:
            slot = (slot + np.uint64(1)) & mask
        if slots[slot] == 0:
            found[count] = keys[i]
            count += 1
            slots[slot] = count
        place[i] = slots[slot] - 1
    return count


def distinct(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """(the distinct ones of `keys` [n] in order of appearance, the place of each key among them [n]): what
    `np.unique` with its inverse gives, without the sorting."""
    slots = np.zeros(1 << max(4, (2 * len(keys)).bit_length()), np.int32)
    found, place = np.empty(len(keys), np.uint64), np.empty(len(keys), np.int64)
    count = _distinct(keys, slots, found, place)
    return found[:count].copy(), place


class Mirror:
    """The records of one table. Not safe between threads by itself: its owner holds a lock."""

    def __init__(self, dtype: np.dtype[Any]) -> None:
        self.dtype = dtype
        self.generation = 0
        """Grows when rows move: what is derived from rows is stale then."""
        self.touched: list[NDArray[np.int32]] = []
        """Rows changed since the owner of derived columns last cleared it."""
        self._clear(1 << 10)

    def _clear(self, capacity: int) -> None:
        self.size = 1  # row 0 is the blank one
        self.keys = np.zeros(capacity, np.uint64)
        self.records: Records = np.zeros(capacity, self.dtype)
        self._slots = np.zeros(2 * capacity, np.int32)
        self.generation += 1
        self.touched = []

    def load(self, rows: Iterable[tuple[int, bytes]]) -> None:
        """Forget everything, then take over `rows`."""
        found = list(rows)
        capacity = 1 << max(10, int(len(found) + 1).bit_length())
        self._clear(capacity)
        self._add(np.array([key for key, _ in found], np.uint64), records_of([row for _, row in found], self.dtype))

    def apply(self, changes: Mapping[int, bytes | None]) -> None:
        """Put the changed records; None removes."""
        if any(value is None for value in changes.values()):
            gone = np.array([key for key, value in changes.items() if value is None], np.uint64)
            stay = np.ones(self.size, np.bool_)
            stay[self.rows(gone)] = False
            stay[0] = False
            keys, records = self.keys[: self.size][stay], self.records[: self.size][stay]
            self._clear(len(self.keys))
            self._add(keys, records)
        keys = np.array([key for key, value in changes.items() if value is not None], np.uint64)
        records = records_of([value for value in changes.values() if value is not None], self.dtype)
        rows = self.rows(keys)
        known = rows > 0
        self.records[rows[known]] = records[known]
        self.touched.append(rows[known])
        self._add(keys[~known], records[~known])
        if len(self.touched) > 256:
            self.touched = [np.unique(np.concatenate(self.touched))]

    def _add(self, keys: Keys, records: Records) -> None:
        need = self.size + len(keys)
        if need > len(self.keys):
            capacity = 1 << need.bit_length()
            self.keys = np.concatenate([self.keys, np.zeros(capacity - len(self.keys), np.uint64)])
            self.records = np.concatenate([self.records, np.zeros(capacity - len(self.records), self.dtype)])
            self._slots = np.zeros(2 * capacity, np.int32)
            _insert(self._slots, self.keys, 1, self.size)
        self.keys[self.size : need] = keys
        self.records[self.size : need] = records
        _insert(self._slots, self.keys, self.size, need)
        self.touched.append(np.arange(self.size, need, dtype=np.int32))
        self.size = need

    def rows(self, keys: Keys) -> NDArray[np.int32]:
        """Row of each key [n]; 0 where unknown."""
        rows = np.empty(len(keys), np.int32)
        _find(self._slots, self.keys, keys, rows)
        return rows

    def nbytes(self) -> int:
        return self.keys.nbytes + self.records.nbytes + self._slots.nbytes
