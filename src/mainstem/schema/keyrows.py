"""Compiled open addressing: 64-bit keys to row numbers, with linear probing (Knuth, TAOCP 3, section 6.4, algorithm L).

Slots are two arrays of one power-of-two length, `keys` (0: empty, as key 0 never has a row) and `rows`.
Deletion shifts later keys back (algorithm R), so there are no tombstones and probes stay short.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys

__all__ = ["KeyRows", "compiled", "find", "insert", "mix", "remove", "slots_for", "unique_places"]

Function = TypeVar("Function", bound=Callable[..., Any])


def compiled(function: Function) -> Function:
    """`function` as machine code that runs without the interpreter lock, kept on disk between processes.

    Where no folder for it can be written (a read-only container), each process compiles anew: seconds, once.
    """
    try:
        return cast(Function, numba.njit(cache=True, nogil=True)(function))
    except RuntimeError:
        return cast(Function, numba.njit(nogil=True)(function))


def slots_for(count: int) -> int:
    """Slots for `count` keys: the power of two that fills them half at most."""
    return 1 << max(4, (2 * count - 1).bit_length())


@compiled
def mix(x: np.uint64) -> np.uint64:
    """The finaliser of splitmix64 (Steele et al. 2014, figure 16): every bit in moves every bit out."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


@compiled
def find(slot_keys: Keys, slot_rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """Row of each key [n]; -1 where absent."""
    mask = np.uint64(len(slot_keys) - 1)
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        key = keys[i]
        out[i] = -1
        if key == np.uint64(0):
            continue
        slot = mix(key) & mask
        while slot_keys[slot] != np.uint64(0):
            if slot_keys[slot] == key:
                out[i] = slot_rows[slot]
                break
            slot = (slot + np.uint64(1)) & mask
    return out


@compiled
def insert(slot_keys: Keys, slot_rows: NDArray[np.int64], keys: Keys, rows: NDArray[np.int64]) -> int:
    """Put keys [n] (not 0, not there yet) with their rows; how many were there already, whose rows stay."""
    mask = np.uint64(len(slot_keys) - 1)
    known = 0
    for i in range(len(keys)):
        key = keys[i]
        slot = mix(key) & mask
        while slot_keys[slot] != np.uint64(0) and slot_keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if slot_keys[slot] == key:
            known += 1
        else:
            slot_keys[slot] = key
            slot_rows[slot] = rows[i]
    return known


@compiled
def remove(slot_keys: Keys, slot_rows: NDArray[np.int64], keys: Keys) -> NDArray[np.int64]:
    """Take keys [n] out; the row each had, -1 where absent."""
    mask = np.uint64(len(slot_keys) - 1)
    out = np.empty(len(keys), np.int64)
    for i in range(len(keys)):
        key = keys[i]
        out[i] = -1
        if key == np.uint64(0):
            continue
        hole = mix(key) & mask
        while slot_keys[hole] != np.uint64(0) and slot_keys[hole] != key:
            hole = (hole + np.uint64(1)) & mask
        if slot_keys[hole] == np.uint64(0):
            continue
        out[i] = slot_rows[hole]
        probe = hole
        while True:
            probe = (probe + np.uint64(1)) & mask
            if slot_keys[probe] == np.uint64(0):
                break
            home = mix(slot_keys[probe]) & mask
            # a key may move back to the hole unless its home lies (cyclically) after the hole
            if ((probe - home) & mask) >= ((probe - hole) & mask):
                slot_keys[hole] = slot_keys[probe]
                slot_rows[hole] = slot_rows[probe]
                hole = probe
        slot_keys[hole] = np.uint64(0)
    return out


@compiled
def _unique_places(slot_keys: Keys, slot_rows: NDArray[np.int64], keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    mask = np.uint64(len(slot_keys) - 1)
    unique = np.empty(len(keys) + 1, np.uint64)
    unique[0] = np.uint64(0)
    count = 1
    places = np.zeros(len(keys), np.int64)
    for i in range(len(keys)):
        key = keys[i]
        if key == np.uint64(0):
            continue
        slot = mix(key) & mask
        while slot_keys[slot] != np.uint64(0) and slot_keys[slot] != key:
            slot = (slot + np.uint64(1)) & mask
        if slot_keys[slot] == np.uint64(0):
            slot_keys[slot] = key
            slot_rows[slot] = count
            unique[count] = key
            count += 1
        places[i] = slot_rows[slot]
    return unique[:count].copy(), places


def unique_places(keys: Keys) -> tuple[Keys, NDArray[np.int64]]:
    """De-duplicate keys [n]: (unique [u], places [n]) with unique[places] == keys.

    unique[0] is always key 0; the others follow in order of first appearance. Linear time, where
    `np.unique` sorts.
    """
    slots = slots_for(len(keys))
    return _unique_places(np.zeros(slots, np.uint64), np.empty(slots, np.int64), keys)


class KeyRows:
    """A map from keys (never 0) to rows, for callers that bring their own lock. Memory: 32 to 64 bytes a key."""

    def __init__(self) -> None:
        self._count = 0
        self._resize(0)

    def __len__(self) -> int:
        return self._count

    def _resize(self, count: int) -> None:
        size = slots_for(count)
        self._keys, self._rows = np.zeros(size, np.uint64), np.zeros(size, np.int64)

    def nbytes(self) -> int:
        return self._keys.nbytes + self._rows.nbytes

    def items(self) -> tuple[Keys, NDArray[np.int64]]:
        """All keys, in no order, and the row of each."""
        used = self._keys != 0
        return self._keys[used], self._rows[used]

    def find(self, keys: Keys) -> NDArray[np.int64]:
        """Row of each key [n]; -1 where absent."""
        return find(self._keys, self._rows, np.array(keys, np.uint64))

    def put(self, keys: Keys, rows: NDArray[np.int64]) -> None:
        """Set the rows of keys [n], none of them twice, known or not."""
        keys, rows = np.array(keys, np.uint64), np.array(rows, np.int64)
        self.remove(keys)
        self._count += len(keys)
        if slots_for(self._count) > len(self._keys):
            kept, places = self.items()
            self._resize(self._count)
            insert(self._keys, self._rows, kept, places)
        insert(self._keys, self._rows, keys, rows)

    def remove(self, keys: Keys) -> NDArray[np.int64]:
        """Take keys [n] out; the row each had, -1 where absent."""
        rows = remove(self._keys, self._rows, np.array(keys, np.uint64))
        self._count -= int((rows >= 0).sum())
        return rows
