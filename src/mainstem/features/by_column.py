"""Lists of records by column: what repeats from row to row stands side by side, for a codec to find it.

Keys (fields of 8 bytes without sign) stay whole, for the codec to find them again in the next list. All other fields
are cut into bytes; a byte of the first row is as it is, of a later row XORed with the row before, which makes what
stays the same zero.

    [key0 key1 .. | time0 of row 0, time1 of row 0, .. | time0 of rows 1, 2 .. | time1 of rows 1, 2 .. | ..]
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.keyrows import compiled

__all__ = ["ByColumn"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]


@compiled
def _lay_out(rows: Bytes, out: Bytes, count: Ints, width: Ints, keys: Ints, key_ends: Ints, others: Ints,
             other_ends: Ints) -> None:  # fmt: skip
    """All lists by column. count [n, tables], width [tables]; offsets in a record of its keys and of all other bytes,
    table after table, and where each table's end."""
    at = 0
    for i in range(len(count)):
        key = other = 0
        for t in range(len(width)):
            n, w = count[i, t], width[t]
            end = at + n * w
            table, columns = rows[at:end].reshape((n, w)), out[at:end]
            at, to = end, 0
            for offset in keys[key : key_ends[t]]:
                for k in range(n):
                    for b in range(8):
                        columns[to + 8 * k + b] = table[k, offset + b]
                to += 8 * n
            if n:
                for offset in others[other : other_ends[t]]:
                    columns[to] = table[0, offset]
                    to += 1
                for offset in others[other : other_ends[t]]:
                    for k in range(1, n):
                        columns[to + k - 1] = table[k, offset] ^ table[k - 1, offset]
                    to += n - 1
            key, other = key_ends[t], other_ends[t]


@compiled
def _restore(by_column: Bytes, out: Bytes, count: Ints, width: Ints, keys: Ints, key_ends: Ints, others: Ints,
             other_ends: Ints) -> None:  # fmt: skip
    """Inverse of `_lay_out`."""
    at = 0
    for i in range(len(count)):
        key = other = 0
        for t in range(len(width)):
            n, w = count[i, t], width[t]
            end = at + n * w
            table, columns = out[at:end].reshape((n, w)), by_column[at:end]
            at, to = end, 0
            for offset in keys[key : key_ends[t]]:
                for k in range(n):
                    for b in range(8):
                        table[k, offset + b] = columns[to + 8 * k + b]
                to += 8 * n
            if n:
                for offset in others[other : other_ends[t]]:
                    table[0, offset] = columns[to]
                    to += 1
                for offset in others[other : other_ends[t]]:
                    for k in range(1, n):
                        table[k, offset] = columns[to + k - 1] ^ table[k - 1, offset]
                    to += n - 1
            key, other = key_ends[t], other_ends[t]


class ByColumn:
    """Of records of these types, one list of each after the other. Exact for any bytes."""

    def __init__(self, records: Sequence[np.dtype[Any]]) -> None:
        self.widths = [dtype.itemsize for dtype in records]
        keys = [_keys(dtype) for dtype in records]
        whole = [{at + b for at in some for b in range(8)} for some in keys]
        others = [[b for b in range(w) if b not in some] for w, some in zip(self.widths, whole, strict=True)]
        self._columns = [
            np.array(array, np.int64)
            for some in (keys, others)
            for array in (list(chain(*some)), np.cumsum([len(one) for one in some]))
        ]
        self._width = np.array(self.widths, np.int64)

    def lay_out(self, rows: bytes, count: Ints) -> bytes:
        """`rows`: the lists of n users side by side; count [n, types]: the records of each."""
        return self._moved(_lay_out, rows, count)

    def restore(self, by_column: bytes, count: Ints) -> bytes:
        """Inverse of `lay_out`."""
        return self._moved(_restore, by_column, count)

    def _moved(self, move: Any, data: bytes, count: Ints) -> bytes:
        out = np.empty(len(data), np.uint8)
        move(np.frombuffer(data, np.uint8), out, count, self._width, *self._columns)
        return out.tobytes()


def _keys(dtype: np.dtype[Any]) -> list[int]:
    """Offsets of the keys in a record."""
    return [offset for kind, offset, *_ in (dtype.fields or {}).values() if kind == np.uint64]
