"""Row by key: open addressing with linear probing; one writer, many lock-free readers.

Keys are hashes already (`schema/ids.py`), so the low bits are the slot. At most half of the slots are
used. A slot's row is written before its key, so a reader that finds the key finds the row; growing
publishes a new pair of arrays and leaves the old ones to the readers that still hold them.
"""

from __future__ import annotations

import numpy as np
from numba import njit
from numpy.typing import NDArray

from mainstem.schema.ids import Keys

__all__ = ["RowTable"]

Rows = NDArray[np.int32]


@njit(cache=True, nogil=True)
def _find(slots: Keys, rows: Rows, live: Keys, keys: Keys, out: Rows) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        key = keys[i]
        out[i] = -1
        slot = key & mask
        while key != 0 and slots[slot] != 0:
            if slots[slot] == key:
                row = rows[slot]
                if row < len(live) and live[row] == key:
                    out[i] = row
                break
            slot = (slot + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def _find_any(slots: Keys, rows: Rows, keys: Keys, out: Rows) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        out[i] = -1
        slot = keys[i] & mask
        while slots[slot] != 0:
            if slots[slot] == keys[i]:
                out[i] = rows[slot]
                break
            slot = (slot + np.uint64(1)) & mask


@njit(cache=True, nogil=True)
def _insert(slots: Keys, table: Rows, keys: Keys, rows: Rows) -> None:
    mask = np.uint64(len(slots) - 1)
    for i in range(len(keys)):
        slot = keys[i] & mask
        while slots[slot] != 0:
            slot = (slot + np.uint64(1)) & mask
        table[slot] = rows[i]
        slots[slot] = keys[i]


class RowTable:
    """Rows by key; keys are never removed (a deleted entity's row is told by the `live` column)."""

    def __init__(self, slots: int = 2048) -> None:
        self._arrays = (np.zeros(slots, np.uint64), np.zeros(slots, np.int32))
        self._used = 0

    def find(self, keys: Keys, live: Keys) -> Rows:
        """Row [n] of each key [n] for which `live[row] == key`, else -1."""
        keys = np.ascontiguousarray(keys, np.uint64)
        if not keys.flags.writeable:  # else numba would compile a second variant, in the middle of a request
            keys = keys.copy()
        out = np.empty(len(keys), np.int32)
        slots, rows = self._arrays
        _find(slots, rows, live, keys, out)
        return out

    def find_any(self, keys: Keys) -> Rows:
        """Row [n] of each key [n] that was ever inserted, else -1. For the writer."""
        out = np.empty(len(keys), np.int32)
        _find_any(*self._arrays, keys, out)
        return out

    def insert(self, keys: Keys, rows: Rows) -> None:
        """Add keys [n], none of which is in the table yet, none twice."""
        self._used += len(keys)
        slots, table = self._arrays
        if 2 * self._used > len(slots):
            size = 1 << (4 * self._used - 1).bit_length()
            grown = (np.zeros(size, np.uint64), np.zeros(size, np.int32))
            filled = slots != 0
            _insert(*grown, slots[filled], table[filled])
            _insert(*grown, keys, rows)
            self._arrays = grown
        else:
            _insert(slots, table, keys, rows)
