"""A user's latest events as a string of bits: times as steps, every other column as the values that differ.

    time      each one's step from the event before (the first from 0): 4 bits for its length in bytes, then these
    column    8 bits: how many values differ; 4 bits: the bytes of each; the first value;
              where more than one differs, of each later event: 1 as in the event before, or 0 and what it is:
                  1 and the next new value, or 0 and the place of an earlier one (that bit is left out where only one of
                  the two can be)

A place among k values takes the bits that tell k apart. Bits fill bytes from the lowest one; an end is padded to a
whole byte. The columns are those of ROW in its order, the last one kind and canvas together. Exact for 1 to `MOST`
rows of any contents.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.features.history import ROW
from mainstem.features.state import Records
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled

__all__ = ["MOST", "decode", "encode"]

Bytes = NDArray[np.uint8]
Ints = NDArray[np.int64]
Words = NDArray[np.unsignedinteger[Any]]

WORDS = 3
"""Fields of ROW of 64 bits: they come first, the time before all others."""
_WIDTH = ROW.itemsize
HALVES = 9
"""Half words of ROW that hold something."""
MOST = 255
"""Events of a user: beyond it looking each value up among the others would take too long."""
_WIDEST = 12
"""Bytes of an event's step or value with what stands before it, at most."""


@compiled
def _put(out: Bytes, at: int, value: np.uint64, bits: int) -> int:
    """Write the low `bits` of `value` at bit `at` of zeros; where they end."""
    end = at + bits
    while at < end:
        shift = at & 7
        taken = min(8 - shift, end - at)
        part = value & ((np.uint64(1) << np.uint64(taken)) - np.uint64(1))
        out[at >> 3] |= np.uint8(part << np.uint64(shift))
        value >>= np.uint64(taken)
        at += taken
    return at


@compiled
def _get(data: Bytes, at: int, bits: int, stop: int) -> np.uint64:
    """The value of `bits` at bit `at`; 0 where they would reach beyond `stop`."""
    value, done = np.uint64(0), 0
    if at + bits > stop:
        return value
    while done < bits:
        shift = at & 7
        taken = min(8 - shift, bits - done)
        part = (np.uint64(data[at >> 3]) >> np.uint64(shift)) & ((np.uint64(1) << np.uint64(taken)) - np.uint64(1))
        value |= part << np.uint64(done)
        done += taken
        at += taken
    return value


@compiled
def _bytes_of(value: np.uint64) -> int:
    count = 0
    while value != np.uint64(0):
        value >>= np.uint64(8)
        count += 1
    return count


@compiled
def _bits_for(places: int) -> int:
    bits = 0
    while (1 << bits) < places:
        bits += 1
    return bits


@compiled
def _place_of(value: np.uint64, known: Keys, count: int) -> int:
    """Where it stands among the first `count`; `count` where it does not."""
    for place in range(count):
        if known[place] == value:
            return place
    return count


@compiled
def _put_column(values: Words, known: Keys, out: Bytes, at: int) -> int:
    differ, width = 0, 0
    for value in values:
        word = np.uint64(value)
        if _place_of(word, known, differ) == differ:
            known[differ] = word
            differ += 1
            width = max(width, _bytes_of(word))
    at = _put(out, at, np.uint64(differ), 8)
    at = _put(out, at, np.uint64(width), 4)
    at = _put(out, at, np.uint64(values[0]), 8 * width)
    seen = 1
    for k in range(1, len(values) if differ > 1 else 1):
        same = values[k] == values[k - 1]
        at = _put(out, at, np.uint64(same), 1)
        if same:
            continue
        word = np.uint64(values[k])
        place = _place_of(word, known, seen)
        if 1 < seen < differ:
            at = _put(out, at, np.uint64(place == seen), 1)
        if place == seen:
            at = _put(out, at, word, 8 * width)
            seen += 1
        else:
            at = _put(out, at, np.uint64(place), _bits_for(seen))
    return at


@compiled
def _get_column(values: Words, known: Keys, data: Bytes, at: int, stop: int) -> int:
    """Inverse of `_put_column`; a place beyond `stop` where this is not what it made."""
    differ = int(_get(data, at, 8, stop))
    width = int(_get(data, at + 8, 4, stop))
    if width > values.itemsize:
        return stop + 1
    known[0] = _get(data, at + 12, 8 * width, stop)
    values[:] = known[0]
    at += 12 + 8 * width
    seen = 1
    for k in range(1, len(values) if differ > 1 else 1):
        values[k] = values[k - 1]
        same = _get(data, at, 1, stop) == np.uint64(1)
        at += 1
        if same:
            continue
        new = seen == 1
        if 1 < seen < differ:
            new = _get(data, at, 1, stop) == np.uint64(1)
            at += 1
        if new:
            known[seen] = _get(data, at, 8 * width, stop)
            values[k] = known[seen]
            seen += 1
            at += 8 * width
        else:
            bits = _bits_for(seen)
            place = int(_get(data, at, bits, stop))
            if place >= seen:
                return stop + 1
            values[k] = known[place]
            at += bits
    return at


@compiled
def _encode(words: Keys, halves: NDArray[np.uint32], count: Ints, out: Bytes, ends: Ints) -> None:
    at, first, known = 0, 0, np.empty(MOST, np.uint64)
    for i in range(len(count)):
        last, before = first + count[i], np.uint64(0)
        for k in range(first, last):
            step = words[k, 0] - before
            before = words[k, 0]
            width = _bytes_of(step)
            at = _put(out, at, np.uint64(width), 4)
            at = _put(out, at, step, 8 * width)
        for c in range(1, WORDS):
            at = _put_column(words[first:last, c], known, out, at)
        for c in range(2 * WORDS, HALVES):
            at = _put_column(halves[first:last, c], known, out, at)
        at = (at + 7) & ~7
        ends[i] = at >> 3
        first = last


@compiled
def _decode(data: Bytes, ends: Ints, count: Ints, words: Keys, halves: NDArray[np.uint32]) -> int:
    at, first, known = 0, 0, np.empty(MOST, np.uint64)
    for i in range(len(count)):
        last, stop, before = first + count[i], 8 * ends[i], np.uint64(0)
        for k in range(first, last):
            width = int(_get(data, at, 4, stop))
            if width > 8:
                return i
            before += _get(data, at + 4, 8 * width, stop)
            words[k, 0] = before
            at += 4 + 8 * width
        for c in range(1, WORDS):
            at = _get_column(words[first:last, c], known, data, at, stop)
        for c in range(2 * WORDS, HALVES):
            at = _get_column(halves[first:last, c], known, data, at, stop)
        if not stop - 8 < at <= stop:
            return i
        at, first = stop, last
    return -1


def encode(rows: Records, count: Ints) -> tuple[bytes, list[int]]:
    """The strings of u users one after the other, and where each ends.

    rows: ROW [n], their events side by side; count [u]: of each, 1 to `MOST`.
    """
    columns = HALVES - WORDS
    out = np.zeros(len(rows) * (_WIDEST * columns) + len(count) * (2 * columns + 1), np.uint8)
    ends = np.empty(len(count), np.int64)
    _encode(*_words(rows), count, out, ends)
    return out[: int(ends[-1]) if len(ends) else 0].tobytes(), ends.tolist()


def decode(data: bytes, ends: Ints, count: Ints) -> Records:
    """Inverse of `encode`. Raises ValueError where it is not what `encode` made."""
    rows = np.zeros(int(count.sum()), ROW)
    bad = _decode(np.frombuffer(data, np.uint8), ends, count, *_words(rows))
    if bad >= 0:
        raise ValueError(f"string {bad} is not one of {count[bad]} events")
    return rows


def _words(rows: Records) -> tuple[Keys, NDArray[np.uint32]]:
    """The very rows as words of 64 bits [n, 5] and of 32 [n, 10], of which the last one is void."""
    return rows.view(np.uint64).reshape(-1, _WIDTH // 8), rows.view(np.uint32).reshape(-1, _WIDTH // 4)
