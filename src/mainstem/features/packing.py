"""How what is kept of a user rests: the user's records of several tables in one value.

A user's counts are what folding the user's events gives. Where the history still holds all of them, in the order in
which they were folded, a value holds the history alone, as bits (`event_bits.py`), and reading folds it again: the same
code on the same events gives the same bytes. Packing tries that, and compares; a user whose counts do not come out of
the history (more events than it holds, a late event, a guest's events beside the user's own) rests by column
(`by_column.py`), compressed.

A value is, little-endian:

    u8      bit t: the t-th table has a record; bit 5: the body is a history that the counts follow from;
            bit 6: counts of 32 bits; bit 7: the body is compressed
    u32     CRC-32 of the first byte and of all that follows this one
    u8      with bit 5: events of the history; else u16 (or u32) records of each table
    body    with bit 5: the history's bits; else the lists by column, as an LZ4 block where that is shorter
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from itertools import accumulate
from operator import mul
from zlib import crc32

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from mainstem.features.by_column import ByColumn
from mainstem.features.event_bits import MOST, decode, encode
from mainstem.features.history import ROW
from mainstem.features.state import Records
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config
from mainstem.schema.errors import StoreError

__all__ = ["Column", "Packing"]

Column = Sequence[bytes | None]
"""Of one table, the records of each of n users; None where a user has none there."""
User = tuple[bytes | None, ...]
"""Of one user, the records of each table."""

Ints = NDArray[np.int64]

_FOLDED, _WIDE, _COMPRESSED = 1 << 5, 1 << 6, 1 << 7
_head = struct.Struct("<BI")


class Packing:
    """Of all that grows with a user's events. Exact for any records."""

    form = "users v2"
    """Of the values; another one is another definition of the state (law 11)."""
    tables = ("history", "user_item", "user")

    def __init__(self, config: Config) -> None:
        self._counts_of = UserItem(config)
        self._lists = ByColumn((ROW, self._counts_of.row, self._counts_of.user))
        self._sizes = {0: struct.Struct("<3H"), _WIDE: struct.Struct("<3I")}
        self._codec = pa.Codec("lz4_raw")

    def pack(self, tables: Sequence[Column]) -> list[bytes]:
        """One value for each of n users, from a column for each table."""
        users = list(zip(*tables, strict=True))
        size = np.array([[len(part or b"") for part in user] for user in users], np.int64).reshape(-1, 3)
        if (size % self._lists.widths).any():
            raise ValueError(f"records of {self._lists.widths} bytes, found {size.tolist()}")
        count = size // self._lists.widths
        values: list[bytes | None] = [None] * len(users)
        self._pack_folded(users, count, values)
        others = [place for place, value in enumerate(values) if value is None]
        if others:
            self._pack_lists(others, users, count[others], values)
        return [value for value in values if value is not None]

    def unpack(self, values: Sequence[bytes]) -> list[list[bytes | None]]:
        """Inverse of `pack`: a column for each table. Raises StoreError where a value is not one that `pack` made."""
        tails = [_opened(value) for value in values]
        users: list[User] = [()] * len(values)
        folded = [place for place, value in enumerate(values) if value[0] & _FOLDED]
        others = [place for place, value in enumerate(values) if not value[0] & _FOLDED]
        if folded:
            self._unpack_folded(folded, tails, users)
        if others:
            self._unpack_lists(others, values, tails, users)
        return [[user[t] for user in users] for t in range(len(self.tables))]

    # ---- the history alone -------------------------------------------------------------------------

    def _pack_folded(self, users: Sequence[User], count: Ints, values: list[bytes | None]) -> None:
        """Set the values of those users whose counts follow from the history."""
        asked = np.flatnonzero((count[:, 0] > 0) & (count[:, 0] <= MOST) & (count[:, 1] > 0) & (count[:, 2] == 1))
        totals = np.frombuffer(b"".join([users[place][2] or b"" for place in asked.tolist()]), self._counts_of.user)
        places = asked[totals["count"] == count[asked, 0]].tolist()
        if not places:
            return
        try:
            folded = self._folded(_histories(users, places), count[places, 0])
        except ValueError:  # no state has such events; they rest as they are
            return
        same = [place for place, found in zip(places, folded, strict=True) if users[place][1:] == found]
        counts = count[same, 0]
        bits, ends = encode(_histories(users, same), counts)
        flag, start = _FOLDED | 0b111, 0
        for place, events, end in zip(same, counts.tolist(), ends, strict=True):
            tail, start = events.to_bytes(1, "little") + bits[start:end], end
            values[place] = _head.pack(flag, crc32(tail, flag)) + tail

    def _unpack_folded(self, places: Sequence[int], tails: Sequence[bytes], users: list[User]) -> None:
        bodies = [tails[place][1:] for place in places]
        counts = [tails[place][0] for place in places]
        count = np.array(counts, np.int64)
        try:
            rows = decode(b"".join(bodies), np.array([*accumulate(map(len, bodies))], np.int64), count)
            folded = self._folded(rows, count)
        except ValueError as error:
            raise StoreError(_unreadable(error)) from error
        data, start = rows.tobytes(), 0
        for place, events, found in zip(places, counts, folded, strict=True):
            end = start + ROW.itemsize * events
            users[place] = data[start:end], *found
            start = end

    def _folded(self, rows: Records, count: Ints) -> list[User]:
        """The counts and totals that follow from histories side by side, `count` events each."""
        items, start, length, totals = self._counts_of.folded(rows, count)
        width, whole = self._counts_of.row.itemsize, self._counts_of.user.itemsize
        data, sums, at = items.tobytes(), totals.tobytes(), 0
        found = list[User]()
        for first, held in zip(start.tolist(), length.tolist(), strict=True):
            found.append((data[width * first : width * (first + held)], sums[at : at + whole]))
            at += whole
        return found

    # ---- lists by column ---------------------------------------------------------------------------

    def _pack_lists(
        self, places: Sequence[int], users: Sequence[User], count: Ints, values: list[bytes | None]
    ) -> None:
        bodies = self._lists.lay_out(b"".join([part or b"" for place in places for part in users[place]]), count)
        ends = (count @ self._lists.widths).cumsum().tolist()
        wide, start = np.any(count >> 16, axis=1).tolist(), 0
        for place, counts, large, end in zip(places, count.tolist(), wide, ends, strict=True):
            body, start = bodies[start:end], end
            flag = sum(1 << t for t, part in enumerate(users[place]) if part is not None) | (_WIDE if large else 0)
            block = self._codec.compress(body, asbytes=True)
            if len(block) < len(body):
                flag, body = flag | _COMPRESSED, block
            tail = self._sizes[flag & _WIDE].pack(*counts) + body
            values[place] = _head.pack(flag, crc32(tail, flag)) + tail

    def _unpack_lists(
        self, places: Sequence[int], values: Sequence[bytes], tails: Sequence[bytes], users: list[User]
    ) -> None:
        found = [self._lists_of(values[place][0], tails[place]) for place in places]
        count = np.array([counts for counts, _ in found], np.int64)
        data = self._lists.restore(b"".join([body for _, body in found]), count)
        ends = [0, *accumulate((count * self._lists.widths).ravel().tolist())]
        for i, place in enumerate(places):
            flags, at = values[place][0], ends[3 * i : 3 * i + 4]
            users[place] = tuple(data[at[t] : at[t + 1]] if flags >> t & 1 else None for t in range(3))

    def _lists_of(self, flags: int, tail: bytes) -> tuple[tuple[int, ...], bytes]:
        """Records of each table, and the lists by column, of what follows a value's head."""
        try:
            sizes = self._sizes[flags & _WIDE]
            counts, body = sizes.unpack_from(tail), tail[sizes.size :]
            size = sum(map(mul, counts, self._lists.widths))
            if flags & _COMPRESSED:
                body = self._codec.decompress(body, decompressed_size=size, asbytes=True)
        except (struct.error, OSError) as error:
            raise StoreError(_unreadable(error)) from error
        if len(body) != size:
            raise StoreError("a user's record in the feature state is of another length than it says")
        return counts, body


def _opened(value: bytes) -> bytes:
    """What follows the head. Raises StoreError where the value is damaged."""
    tail = value[_head.size :]
    if not tail:
        raise StoreError(_unreadable("it is cut off"))
    flags, check = _head.unpack_from(value)
    if crc32(tail, flags) != check:
        raise StoreError("a user's record in the feature state is damaged: run `mainstem backfill`")
    return tail


def _unreadable(why: object) -> str:
    return f"a user's record in the feature state cannot be read ({why}): run `mainstem backfill`"


def _histories(users: Sequence[User], places: Sequence[int]) -> Records:
    """ROWs of some of the users, side by side."""
    return np.frombuffer(b"".join([users[place][0] or b"" for place in places]), ROW)
