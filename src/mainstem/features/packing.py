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
import zlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mainstem.features.history import ROW
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config
from mainstem.schema.errors import StoreError
from mainstem.schema.keyrows import compiled

__all__ = ["Packing", "Parts", "packing_of"]

Parts = Sequence[bytes | None]
"""Of one user, the bytes of each table; None where it has none there."""

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]

_WIDE, _COMPRESSED = 1 << 6, 1 << 7
_head = struct.Struct("<BI")


@compiled
def _lay_out(rows: Bytes, by_column: Bytes, count: Ints, width: Ints, begin: Ints, offset: Ints, size: Ints) -> None:
    """All lists by column. count [n, tables], width [tables]; the columns of table t are begin[t] to begin[t + 1]."""
    at = to = 0
    for i in range(len(count)):
        for t in range(len(width)):
            w, end = width[t], at + count[i, t] * width[t]
            for c in range(begin[t], begin[t + 1]):
                if size[c] > 1:
                    for row in range(at + offset[c], end, w):
                        for b in range(row, row + size[c]):
                            by_column[to] = rows[b]
                            to += 1
            if at < end:
                for c in range(begin[t], begin[t + 1]):
                    if size[c] == 1:
                        by_column[to] = rows[at + offset[c]]
                        to += 1
            for c in range(begin[t], begin[t + 1]):
                if size[c] == 1:
                    for b in range(at + w + offset[c], end, w):
                        by_column[to] = rows[b] ^ rows[b - w]
                        to += 1
            at = end


@compiled
def _restore(by_column: Bytes, rows: Bytes, count: Ints, width: Ints, begin: Ints, offset: Ints, size: Ints) -> None:
    """Inverse of `_lay_out`."""
    at = to = 0
    for i in range(len(count)):
        for t in range(len(width)):
            w, end = width[t], at + count[i, t] * width[t]
            for c in range(begin[t], begin[t + 1]):
                if size[c] > 1:
                    for row in range(at + offset[c], end, w):
                        for b in range(row, row + size[c]):
                            rows[b] = by_column[to]
                            to += 1
            if at < end:
                for c in range(begin[t], begin[t + 1]):
                    if size[c] == 1:
                        rows[at + offset[c]] = by_column[to]
                        to += 1
            for c in range(begin[t], begin[t + 1]):
                if size[c] == 1:
                    for b in range(at + w + offset[c], end, w):
                        rows[b] = by_column[to] ^ rows[b - w]
                        to += 1
            at = end


class Packing:
    """Of `records`: table -> the type of its records, six tables at most. Exact for any bytes."""

    form = "users v1"
    """Of the values; another one is another definition of the state (law 11)."""

    def __init__(self, records: Mapping[str, np.dtype[Any]]) -> None:
        self.tables = tuple(records)
        self._width = np.array([dtype.itemsize for dtype in records.values()], np.int64)
        columns = [_columns(dtype) for dtype in records.values()]
        self._begin = np.cumsum([0, *map(len, columns)])
        places = np.array([place for some in columns for place in some], np.int64).reshape(-1, 2)
        self._offset, self._size = np.ascontiguousarray(places.T)
        self._counts = {0: struct.Struct(f"<{len(records)}H"), _WIDE: struct.Struct(f"<{len(records)}I")}
        self._codec = pa.Codec("lz4_raw")

    def pack(self, users: Sequence[Parts]) -> list[bytes]:
        """One value for each of `users`."""
        count = np.array([[len(part or b"") for part in parts] for parts in users], np.int64)
        count = count.reshape(len(users), len(self.tables))
        if (count % self._width).any():
            raise ValueError(f"records of {self._width.tolist()} bytes, found {count.tolist()}")
        ends = np.cumsum(count.sum(1)).tolist()
        count //= self._width
        rows = np.frombuffer(b"".join([part or b"" for parts in users for part in parts]), np.uint8)
        by_column = np.empty(len(rows), np.uint8)
        _lay_out(rows, by_column, count, self._width, self._begin, self._offset, self._size)
        bodies, start, values = by_column.tobytes(), 0, []
        for parts, counts, end in zip(users, count.tolist(), ends, strict=True):
            flags = sum([1 << t for t, part in enumerate(parts) if part is not None])
            flags |= _WIDE if max(counts) >> 16 else 0
            body = bodies[start:end]
            start = end
            block = self._codec.compress(body, asbytes=True)
            if len(block) < len(body):
                flags, body = flags | _COMPRESSED, block
            tail = self._counts[flags & _WIDE].pack(*counts) + body
            values.append(_head.pack(flags, zlib.crc32(tail, flags)) + tail)
        return values

    def unpack(self, values: Sequence[bytes]) -> list[Parts]:
        """Inverse of `pack`. Raises StoreError where a value is not one that `pack` made."""
        opened = [self._open(value) for value in values]
        count = np.array([counts for _, counts, _ in opened], np.int64).reshape(len(values), len(self.tables))
        by_column = np.frombuffer(b"".join([body for _, _, body in opened]), np.uint8)
        rows = np.empty(len(by_column), np.uint8)
        _restore(by_column, rows, count, self._width, self._begin, self._offset, self._size)
        ends, data, start = iter(np.cumsum(count * self._width).tolist()), rows.tobytes(), 0
        users = []
        for flags, counts, _ in opened:
            parts: list[bytes | None] = []
            for t in range(len(counts)):
                end = next(ends)
                parts.append(data[start:end] if flags >> t & 1 else None)
                start = end
            users.append(parts)
        return users

    def _open(self, value: bytes) -> tuple[int, tuple[int, ...], bytes]:
        """(flags, records of each table, lists by column) of a value."""
        try:
            flags, check = _head.unpack_from(value)
            tail = memoryview(value)[_head.size :]
            if zlib.crc32(tail, flags) != check:
                raise StoreError("a user's record in the feature state is damaged: run `mainstem backfill`")
            counts = self._counts[flags & _WIDE]
            each, body = counts.unpack_from(tail), tail[counts.size :]
            size = sum(n * width for n, width in zip(each, self._width.tolist(), strict=True))
            if flags & _COMPRESSED:
                return flags, each, self._codec.decompress(body, decompressed_size=size, asbytes=True)
        except (struct.error, OSError) as error:
            raise StoreError(
                f"a user's record in the feature state cannot be read ({error}): run `mainstem backfill`"
            ) from error
        if len(body) != size:
            raise StoreError("a user's record in the feature state is of another length than it says")
        return flags, each, bytes(body)


def packing_of(config: Config) -> Packing:
    """Of all that grows with a user's events."""
    lists = UserItem(config)
    return Packing({"history": ROW, "user_item": lists.row, "user": lists.user})


def _columns(dtype: np.dtype[Any]) -> list[tuple[int, int]]:
    """(offset, size) of the columns of a record: keys whole, all else by single bytes, what pads it included."""
    keys = [dtype.fields[name][1] for name in dtype.names or () if dtype.fields and dtype.fields[name][0] == np.uint64]
    whole = {byte for offset in keys for byte in range(offset, offset + 8)}
    return [*((offset, 8) for offset in keys), *((byte, 1) for byte in range(dtype.itemsize) if byte not in whole)]
