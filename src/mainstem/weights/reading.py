"""Reading rows by key: compiled pipelines that keep memory busy, with or without a writer beside them (see `reader`).

For each key there is one cache line of slots to fetch, then the row. Reads work on blocks of keys in three stages, so
that memory is always asked for many lines at once, and what is worked on has come.

With a writer beside them, readers take the version of a key's home bucket before they look it up and after they copied
its row, and copy anew where it was odd or has changed (a sequence lock; see `slots`). So a row is never torn and never
another key's.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.schema.protocols import Floats
from mainstem.weights.address import (
    Int,
    acquire32,
    copy_row,
    fence_acquire,
    fence_all,
    load64,
    prefetch,
    stream16,
    stream_row,
)
from mainstem.weights.parts import compiled_in_parts
from mainstem.weights.slots import AHEAD, home_of, row_of
from mainstem.weights.table import Rows

__all__ = ["find", "find_parts", "gather", "gather_parts", "read", "read_parts"]

_BLOCK = 128  # keys between two stages of a read
_SPINS = 20_000

Places = NDArray[np.int64]


@compiled
def _version(home: Int) -> Int:
    """Of the keys at home in this bucket; negative while one of them is written."""
    version = np.int64(acquire32(home + 60)) >> 8
    return -version if version & 1 else version


@compiled
def _find_steady(slots: Int, bits: Int, home: Int, key: np.uint64) -> Int:
    """Row of a key beside a writer, -1 where it has none, -2 where the writer did not come to an end."""
    for _ in range(_SPINS):
        before = _version(home)
        if before < 0:
            continue
        row = row_of(slots, bits, home, key)
        fence_acquire()
        if _version(home) == before:
            return row
    return -2


@compiled
def find(slots: Int, bits: Int, checked: bool, keys: Keys, rows: Rows, start: Int, stop: Int) -> Int:
    """rows[start:stop] of these keys; how far it came."""
    for i in range(start, min(stop, start + AHEAD)):
        prefetch(home_of(slots, bits, keys[i]))
    for i in range(start, stop):
        if i + AHEAD < stop:
            prefetch(home_of(slots, bits, keys[i + AHEAD]))
        key = keys[i]
        row: Int = -1
        if key != np.uint64(0):
            home = home_of(slots, bits, key)
            row = _find_steady(slots, bits, home, key) if checked else row_of(slots, bits, home, key)
            if row == -2:
                return i
        rows[i] = row
    return stop


@compiled
def _copy(target: Int, source: Int, width: Int, stream: bool) -> None:
    if stream:
        stream_row(target, source, width)
    else:
        copy_row(target, source, width)


@compiled
def _read_steady(
    slots: Int, bits: Int, values: Int, width: Int, nothing: Int, home: Int, key: np.uint64, target: Int
) -> bool:
    """Copy the row of a key beside a writer; whether it worked out."""
    for _ in range(_SPINS):
        before = _version(home)
        if before < 0:
            continue
        row = row_of(slots, bits, home, key)
        copy_row(target, values + row * width if row >= 0 else nothing, width)
        fence_acquire()
        if _version(home) == before:
            return True
    return False


@compiled
def _copy_block(target: Int, sources: Places, count: Int, width: Int, stream: bool) -> None:
    """Copy from these addresses to one place after another."""
    if stream and target & 63 == 0:
        for i in range(count):
            for line in range(0, width, 64):
                stream16(target + line, sources[i] + line)
            target += width
    else:
        for i in range(count):
            _copy(target, sources[i], width, stream)
            target += width


@compiled
def read(
    slots: Int,
    bits: Int,
    values: Int,
    width: Int,
    nothing: Int,
    checked: bool,
    stream: bool,
    keys: Keys,
    out: Floats,
    start: Int,
    stop: Int,
) -> Int:
    """out[start:stop] = the rows of these keys; how far it came.

    Block by block: while one block's keys are looked up, the next one's lines are asked for; then its rows, which the
    look-ups asked for, are copied.
    """
    homes = np.empty(2 * _BLOCK, np.int64)  # two sides: of this block and of the next
    sources, versions = np.empty(_BLOCK, np.int64), np.empty(_BLOCK, np.int64)
    target = np.int64(out.ctypes.data) + start * width
    side, other = 0, _BLOCK
    for i in range(min(_BLOCK, stop - start)):
        homes[i] = home_of(slots, bits, keys[start + i])
        prefetch(homes[i])
    for first in range(start, stop, _BLOCK):
        count = min(_BLOCK, stop - first)
        ahead = min(_BLOCK, max(0, stop - first - _BLOCK))
        for i in range(ahead):
            homes[other + i] = home_of(slots, bits, keys[first + _BLOCK + i])
        for i in range(count):
            if i < ahead:
                prefetch(homes[other + i])
            key, home = keys[first + i], homes[side + i]
            if checked:
                versions[i] = _version(home)
            row = row_of(slots, bits, home, key) if key != np.uint64(0) else -1
            source = values + row * width if row >= 0 else nothing
            for line in range(0, width, 64):
                prefetch(source + line)
            sources[i] = source
        _copy_block(target, sources, count, width, stream)
        if checked:
            fence_all()  # the stores that went past the caches too: a row may be copied there once more
            for i in range(count):
                key, home, place = keys[first + i], homes[side + i], target + i * width
                if key == np.uint64(0) or (versions[i] >= 0 and _version(home) == versions[i]):
                    continue
                if not _read_steady(slots, bits, values, width, nothing, home, key, place):
                    return first + i
        target += count * width
        side, other = other, side
    if stream:
        fence_all()
    return stop


@compiled_in_parts
def read_parts(
    slots: Int,
    bits: Int,
    values: Int,
    width: Int,
    nothing: Int,
    checked: bool,
    stream: bool,
    keys: Keys,
    out: Floats,
    count: Int,
    reached: Places,
) -> None:
    n = len(keys)
    for part in numba.prange(count):
        start, stop = n * part // count, n * (part + 1) // count
        reached[part] = read(slots, bits, values, width, nothing, checked, stream, keys, out, start, stop)


@compiled_in_parts
def find_parts(slots: Int, bits: Int, checked: bool, keys: Keys, rows: Rows, count: Int, reached: Places) -> None:
    n = len(keys)
    for part in numba.prange(count):
        start, stop = n * part // count, n * (part + 1) // count
        reached[part] = find(slots, bits, checked, keys, rows, start, stop)


@compiled
def _gather_steady(
    slots: Int, bits: Int, values: Int, row_keys: Int, width: Int, nothing: Int, row: Int, target: Int
) -> bool:
    """Copy a row by its number beside a writer: its key says which bucket has its version."""
    for _ in range(_SPINS):
        key = load64(row_keys + 8 * row)
        if key == np.uint64(0):
            copy_row(target, nothing, width)
            return True
        fence_acquire()
        home = home_of(slots, bits, key)
        before = _version(home)
        if before < 0:
            continue
        copy_row(target, values + row * width, width)
        fence_acquire()
        # the key first: whoever made the row anew wrote the version before the key
        if load64(row_keys + 8 * row) == key:
            fence_acquire()
            if _version(home) == before:
                return True
    return False


@compiled
def gather(
    slots: Int,
    bits: Int,
    values: Int,
    row_keys: Int,
    width: Int,
    nothing: Int,
    checked: bool,
    stream: bool,
    rows: Rows,
    out: Floats,
    start: Int,
    stop: Int,
) -> Int:
    """out[start:stop] = these rows; how far it came."""
    target = np.int64(out.ctypes.data) + start * width
    for i in range(start, stop):
        if i + AHEAD < stop and rows[i + AHEAD] >= 0:
            for line in range(0, width, 64):
                prefetch(values + rows[i + AHEAD] * width + line)
        row = rows[i]
        if checked and row >= 0:
            if not _gather_steady(slots, bits, values, row_keys, width, nothing, row, target):
                return i
        else:
            _copy(target, values + row * width if row >= 0 else nothing, width, stream)
        target += width
    if stream:
        fence_all()
    return stop


@compiled_in_parts
def gather_parts(
    slots: Int,
    bits: Int,
    values: Int,
    row_keys: Int,
    width: Int,
    nothing: Int,
    checked: bool,
    stream: bool,
    rows: Rows,
    out: Floats,
    count: Int,
    reached: Places,
) -> None:
    n = len(rows)
    for part in numba.prange(count):
        start, stop = n * part // count, n * (part + 1) // count
        reached[part] = gather(slots, bits, values, row_keys, width, nothing, checked, stream, rows, out, start, stop)
