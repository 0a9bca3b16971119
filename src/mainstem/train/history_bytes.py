"""How `Histories` keeps events: as bytes in chains of blocks, one chain a user, oldest first.

An event is two or three varints (LEB128: seven bits a byte, the lowest first; the high bit says that more follow):

    number << 1 | changed   the number of its entity; whether its note differs from that of the event before
    zigzag(time - latest)   ms since the latest time of all events before it: 0, -1, 1, -2 ... are 0, 1, 2, 3 ...
    note ^ note before      only where changed

So a user's next purchase in a session takes some five bytes. Each event says only how it differs from those before it:
a chain is read from its head, and of what lies before the head the user's record holds latest time and note. Times are
subtracted modulo 2^64, so that all of int64 come back as they were.

A block is 32 bytes: 28 of events, then the number of the next block, int32. An event may lie across two.

    head, first                          tail, filled
    [. . a a b] --> [b b b c d d] --> [d e e . .]
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.keyrows import compiled

__all__ = [
    "BLOCK",
    "ROOM",
    "USER",
    "Blocks",
    "Place",
    "append",
    "blank",
    "drop",
    "drop_all",
    "first_of",
    "grown",
    "read",
]

BLOCK = 32
"""Bytes of a block."""
ROOM = 28
"""Bytes of events in it; the longest event has 20 (5 + 10 + 5)."""
LINE = 64
"""Bytes of a line of the cache."""
USER = np.dtype(
    [
        ("session", "u8"), ("last", "i8"), ("since", "i8"),
        ("note", "u4"), ("noted", "u4"), ("latest", "u4"), ("before", "u4"),
        ("head", "i4"), ("tail", "i4"), ("waiting", "i4"), ("past", "i2"), ("first", "u1"), ("filled", "u1"),
    ],
    align=True,
)  # fmt: skip
"""A user's record. head, tail: blocks, -1 where there is none; first: the byte of `head` at which the oldest event
begins; filled: bytes used of `tail`; past, waiting: events before the open session, and the others, which follow them.

last, note: the latest time of all events, and the note of the newest; since, noted: the same of those that lay before
the oldest. latest: the number of the entity that was taken last, before: of the latest other one."""


class Blocks(NamedTuple):
    """data uint8 [b, 32]; next int32 [b], of the same memory; free int64 [3]: the first of the list of free blocks, how
    many it has, and the first block that was never used."""

    data: NDArray[np.uint8]
    next: NDArray[np.int32]
    free: NDArray[np.int64]


class Place(NamedTuple):
    """Between two events of a chain: a byte of a block, and the latest time and the note before it."""

    block: np.int64
    byte: np.int64
    latest: np.int64
    note: np.uint32


def blank(count: int) -> Blocks:
    """Blocks that were never used, two to a line of the cache."""
    room = np.zeros(count * BLOCK + LINE, np.uint8)
    start = -room.ctypes.data % LINE
    data = room[start : start + count * BLOCK].reshape(count, BLOCK)
    return Blocks(data, data.view(np.int32)[:, ROOM // 4], np.array([-1, 0, 0], np.int64))


def grown(blocks: Blocks, count: int) -> Blocks:
    """The same blocks with room for `count` in all."""
    wider, used = blank(count), blocks.free[2]
    wider.data[:used] = blocks.data[:used]
    return wider._replace(free=blocks.free)


@compiled
def _take(blocks: Blocks) -> np.int64:
    """A blank block that ends a chain."""
    free = blocks.free
    if free[1] > 0:
        taken = free[0]
        free[0] = blocks.next[taken]
        free[1] -= 1
    else:
        taken = free[2]
        free[2] += 1
    blocks.next[taken] = -1
    return np.int64(taken)


@compiled
def _give_back(blocks: Blocks, block: np.int64) -> np.int64:
    """Blank a block and put it on the list of free ones; the one that followed it."""
    after = blocks.next[block]
    blocks.data[block, :] = 0
    blocks.next[block] = blocks.free[0]
    blocks.free[0] = block
    blocks.free[1] += 1
    return np.int64(after)


@compiled
def _put(blocks: Blocks, user: Any, byte: np.uint64) -> None:
    """Put a byte at the end of the user's chain."""
    if user.filled == ROOM:
        taken = _take(blocks)
        blocks.next[user.tail] = taken
        user.tail, user.filled = taken, 0
    blocks.data[user.tail, user.filled] = byte
    user.filled += 1


@compiled
def _write(blocks: Blocks, user: Any, value: np.uint64) -> None:
    """Put a varint there."""
    while value > np.uint64(0x7F):
        _put(blocks, user, (value & np.uint64(0x7F)) | np.uint64(0x80))
        value >>= np.uint64(7)
    _put(blocks, user, value)


@compiled
def _read(blocks: Blocks, block: np.int64, byte: np.int64) -> tuple[np.uint64, np.int64, np.int64]:
    """The varint that begins there; where it ends, block and byte."""
    value, shift = np.uint64(0), np.uint64(0)
    while True:
        if byte == ROOM:
            block, byte = np.int64(blocks.next[block]), np.int64(0)
        found = np.uint64(blocks.data[block, byte])
        byte += np.int64(1)
        value |= (found & np.uint64(0x7F)) << shift
        shift += np.uint64(7)
        if found <= np.uint64(0x7F):
            return value, block, byte


@compiled
def append(blocks: Blocks, user: Any, number: np.int64, time: np.int64, note: np.uint32) -> None:
    """Add an event to the end of the user's chain; takes one block at most."""
    if user.head < 0:
        block = _take(blocks)
        user.head, user.tail, user.first, user.filled = block, block, 0, 0
        user.last = user.since = max(user.last, time)
        user.note = user.noted = note
    changed = np.uint64(note ^ user.note)
    _write(blocks, user, np.uint64(number) << np.uint64(1) | np.uint64(changed != 0))
    gap = np.int64(time - user.last)
    _write(blocks, user, np.uint64((gap << 1) ^ (gap >> 63)))
    if changed != 0:
        _write(blocks, user, changed)
    user.last, user.note = max(user.last, time), note


@compiled
def first_of(user: Any) -> Place:
    """Before the oldest event."""
    return Place(np.int64(user.head), np.int64(user.first), user.since, user.noted)


@compiled
def read(blocks: Blocks, at: Place) -> tuple[np.int64, np.int64, Place]:
    """Number and time of the event at a place; the place after it, whose note is the event's."""
    head, block, byte = _read(blocks, at.block, at.byte)
    zigzag, block, byte = _read(blocks, block, byte)
    time = at.latest + (np.int64(zigzag >> np.uint64(1)) ^ -np.int64(zigzag & np.uint64(1)))
    note = at.note
    if head & np.uint64(1):
        changed, block, byte = _read(blocks, block, byte)
        note = np.uint32(note ^ changed)
    return np.int64(head >> np.uint64(1)), time, Place(block, byte, max(at.latest, time), note)


@compiled
def drop(blocks: Blocks, user: Any, count: int) -> None:
    """Take the oldest `count` events from the head of the user's chain."""
    at = first_of(user)
    for _ in range(count):
        _, _, at = read(blocks, at)
    while user.head != at.block:
        user.head = _give_back(blocks, user.head)
    user.first, user.since, user.noted = at.byte, at.latest, at.note


@compiled
def drop_all(blocks: Blocks, users: NDArray[Any], rows: NDArray[np.int64]) -> None:
    """Give back the whole chains of these users."""
    for row in rows:
        block = users[row].head
        while block >= 0:
            block = _give_back(blocks, block)
