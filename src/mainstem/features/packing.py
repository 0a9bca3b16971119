"""How what is kept of a user rests: the user's records of several tables in one value, by column, compressed.

The lists of a user say the same things more than once: the keys that the user met, the times of it, and in each column
of a list the same high bytes in every row. So a list is laid out by column. Keys (fields of 8 bytes without sign) stay
whole, for LZ4 to find them again in the next list. All other fields are cut into bytes; a byte of the first row is as
it is, of a later row XORed with the row before, which makes what stays the same zero.

    [key0 key1 .. | time0 of row 0, time1 of row 0, .. | time0 of rows 1, 2 .. | time1 of rows 1, 2 .. | ..]

A value is, little-endian:

    u8      bit t: the t-th table has a record; bit 6: counts of 32 bits; bit 7: the body is compressed
    u32     CRC-32 of the first byte and of all that follows this one
    u16     (or u32) records of each table
    body    the lists one after the other; as an LZ4 block where that is shorter
"""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from itertools import accumulate, chain, cycle
from operator import mul
from typing import Any
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mainstem.features.history import ROW
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config
from mainstem.schema.errors import StoreError
from mainstem.schema.keyrows import compiled

__all__ = ["Column", "Packing", "packing_of"]

Column = Sequence[bytes | None]
"""Of one table, the records of each of n users; None where a user has none there."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_WIDE, _COMPRESSED = 1 << 6, 1 << 7
_head = struct.Struct("<BI")


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


class Packing:
    """Of `records`: table -> the type of its records, six tables at most. Exact for any bytes."""

    form = "users v1"
    """Of the values; another one is another definition of the state (law 11)."""

    def __init__(self, records: Mapping[str, np.dtype[Any]]) -> None:
        self.tables = tuple(records)
        self._widths = [dtype.itemsize for dtype in records.values()]
        self._width = np.array(self._widths, np.int64)
        keys = [_keys(dtype) for dtype in records.values()]
        whole = [{at + b for at in some for b in range(8)} for some in keys]
        others = [[b for b in range(w) if b not in some] for w, some in zip(self._widths, whole, strict=True)]
        self._columns = [
            np.array(array, np.int64)
            for some in (keys, others)
            for array in (list(chain(*some)), np.cumsum([len(one) for one in some]))
        ]
        self._counts = {0: struct.Struct(f"<{len(records)}H"), _WIDE: struct.Struct(f"<{len(records)}I")}
        self._bits = 1 << np.arange(len(records))
        self._codec = pa.Codec("lz4_raw")

    def pack(self, tables: Sequence[Column]) -> list[bytes]:
        """One value for each of n users, from a column for each table."""
        parts = [part or b"" for user in zip(*tables, strict=True) for part in user]
        count = np.array([len(part) for part in parts], np.int64).reshape(-1, len(self.tables))
        if (count % self._width).any():
            raise ValueError(f"records of {self._width.tolist()} bytes, found {count.tolist()}")
        ends = count.sum(1).cumsum().tolist()
        count //= self._width
        there = np.array([[part is not None for part in column] for column in tables], np.int64)
        flags = self._bits @ there + np.where((count >> 16).any(1), _WIDE, 0)
        rows = np.frombuffer(b"".join(parts), np.uint8)
        by_column = np.empty(len(rows), np.uint8)
        _lay_out(rows, by_column, count, self._width, *self._columns)
        bodies, start, compress, values = by_column.tobytes(), 0, self._codec.compress, list[bytes]()
        for flag, counts, end in zip(flags.tolist(), count.tolist(), ends, strict=True):
            body = bodies[start:end]
            start = end
            block = compress(body, asbytes=True)
            if len(block) < len(body):
                flag, body = flag | _COMPRESSED, block
            tail = self._counts[flag & _WIDE].pack(*counts) + body
            values.append(_head.pack(flag, crc32(tail, flag)) + tail)
        return values

    def unpack(self, values: Sequence[bytes]) -> list[list[bytes | None]]:
        """Inverse of `pack`: a column for each table. Raises StoreError where a value is not one that `pack` made."""
        flags, counts, bodies, tables = list[int](), list[int](), list[bytes](), len(self.tables)
        for value in values:
            flag, each, body = self._open(value)
            flags.append(flag)
            counts += each
            bodies.append(body)
        count = np.array(counts, np.int64).reshape(-1, tables)
        by_column = np.frombuffer(b"".join(bodies), np.uint8)
        rows = np.empty(len(by_column), np.uint8)
        _restore(by_column, rows, count, self._width, *self._columns)
        data, ends = rows.tobytes(), [0, *accumulate(map(mul, counts, cycle(self._widths)))]
        return [
            [
                data[a:b] if flag >> t & 1 else None
                for flag, a, b in zip(flags, ends[t:-1:tables], ends[t + 1 :: tables], strict=True)
            ]
            for t in range(tables)
        ]

    def _open(self, value: bytes) -> tuple[int, tuple[int, ...], bytes]:
        """(flags, records of each table, lists by column) of a value."""
        try:
            flags, check = _head.unpack_from(value)
            tail = value[_head.size :]
            if crc32(tail, flags) != check:
                raise StoreError("a user's record in the feature state is damaged: run `mainstem backfill`")
            counts = self._counts[flags & _WIDE]
            each, body = counts.unpack_from(tail), tail[counts.size :]
            size = sum(map(mul, each, self._widths))
            if flags & _COMPRESSED:
                body = self._codec.decompress(body, decompressed_size=size, asbytes=True)
        except (struct.error, OSError) as error:
            raise StoreError(
                f"a user's record in the feature state cannot be read ({error}): run `mainstem backfill`"
            ) from error
        if len(body) != size:
            raise StoreError("a user's record in the feature state is of another length than it says")
        return flags, each, body


def packing_of(config: Config) -> Packing:
    """Of all that grows with a user's events."""
    lists = UserItem(config)
    return Packing({"history": ROW, "user_item": lists.row, "user": lists.user})


def _keys(dtype: np.dtype[Any]) -> list[int]:
    """Offsets of the keys in a record."""
    return [offset for kind, offset, *_ in (dtype.fields or {}).values() if kind == np.uint64]
