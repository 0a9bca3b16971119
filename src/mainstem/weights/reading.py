"""Reading rows by key: compiled pipelines that keep memory busy, with or without a writer beside them.

For each key there is one cache line of slots to fetch, then the row. Reads work on blocks of keys in three stages, so
that memory is always asked for many lines at once, and what is worked on has come.

With a writer beside them, readers take the version of a key's home bucket before they look it up and after they copied
its row, and copy anew where it was odd or has changed (a sequence lock; see `slots`). So a row is never torn and never
another key's.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numba
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
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
from mainstem.weights.parts import compiled_in_parts, parts
from mainstem.weights.slots import AHEAD, home_of, row_of
from mainstem.weights.table import Rows

__all__ = ["Reader", "View", "as_keys", "as_rows"]

_BLOCK = 128  # keys between two stages of a read
_LEAST = 4096  # keys a thread must get: below, waking it costs more than it saves
_STREAM = 4 << 20  # bytes of output from which stores go past the caches, which could not hold it
_SPINS = 20_000
_WAIT = 0.0002

Places = NDArray[np.int64]
_Loop = Callable[..., Any]


class View(NamedTuple):
    """What a reader looks at. Addresses stay good while `held` lives.

    bits: of the slots, and their number: they only grow, and `generation[0]` says which are the newest.
    checked: whether a writer may be at work.
    """

    slots: int
    bits: int
    values: int
    row_keys: int
    nothing: int
    width: int
    checked: bool
    generation: NDArray[np.uint64]
    held: tuple[Any, ...]


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
def _find(slots: Int, bits: Int, checked: bool, keys: Keys, rows: Rows, start: Int, stop: Int) -> Int:
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
def _read(
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
def _read_parts(
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
        reached[part] = _read(slots, bits, values, width, nothing, checked, stream, keys, out, start, stop)


@compiled_in_parts
def _find_parts(slots: Int, bits: Int, checked: bool, keys: Keys, rows: Rows, count: Int, reached: Places) -> None:
    n = len(keys)
    for part in numba.prange(count):
        start, stop = n * part // count, n * (part + 1) // count
        reached[part] = _find(slots, bits, checked, keys, rows, start, stop)


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
def _gather(
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
def _gather_parts(
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
        reached[part] = _gather(slots, bits, values, row_keys, width, nothing, checked, stream, rows, out, start, stop)


class Reader:
    """find, gather and read over whatever `look` says is the newest view. Any number of threads may use it.

    patience: seconds that a read waits for a writer that is in the middle of a row; then it raises StoreError, as only
    a writer that was killed there takes so long.
    """

    def __init__(self, dim: int, look: Callable[[], View], patience: float = 1.0) -> None:
        self._dim, self._look, self._patience = dim, look, patience

    def find(self, keys: Keys) -> Rows:
        keys = as_keys(keys)
        rows: Rows = np.empty(len(keys), np.int64)
        self._run(len(keys), _find, _find_parts, lambda v: (v.slots, v.bits, v.checked, keys, rows))
        return rows

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        keys = as_keys(keys)
        out, stream = self._output(len(keys), out)

        def given(view: View) -> tuple[Any, ...]:
            return (view.slots, view.bits, view.values, view.width, view.nothing, view.checked, stream, keys, out)

        self._run(len(keys), _read, _read_parts, given)
        return out

    def gather(self, rows: Rows, out: Floats | None, bound: int) -> Floats:
        rows = as_rows(rows)
        if len(rows) and (rows.max() >= bound or rows.min() < -1):
            raise ValueError(f"rows must lie in -1 .. {bound - 1}")
        out, stream = self._output(len(rows), out)

        def given(view: View) -> tuple[Any, ...]:
            places = (view.slots, view.bits, view.values, view.row_keys, view.width, view.nothing)
            return (*places, view.checked, stream, rows, out)

        self._run(len(rows), _gather, _gather_parts, given)
        return out

    def _output(self, n: int, out: Floats | None) -> tuple[Floats, bool]:
        """The array to fill, and whether to fill it past the caches."""
        if out is None:
            out = np.empty((n, self._dim), np.float32)
        elif out.dtype != np.float32 or out.shape != (n, self._dim) or not out.flags.carray:
            raise ValueError(f"out must be a writable C-contiguous float32 array [{n}, {self._dim}]")
        stream = out.nbytes >= _STREAM and self._dim % 16 == 0 and out.ctypes.data % 16 == 0
        return out, stream

    def _run(self, n: int, serial: _Loop, parallel: _Loop, given: Callable[[View], tuple[Any, ...]]) -> None:
        """Run a loop over n places, again until it has done all of them over one view that is the newest afterwards."""
        give_up = 0.0
        while True:
            view = self._look()
            done = _ran(n, serial, parallel, given(view))
            if not view.checked or (done and int(view.generation[0]) == view.bits):
                return
            now = time.monotonic()
            give_up = give_up or now + self._patience
            if now > give_up:
                raise StoreError("a table's writer stopped in the middle of a row: start it again, from a snapshot")
            time.sleep(_WAIT)


def _ran(n: int, serial: _Loop, parallel: _Loop, given: tuple[Any, ...]) -> bool:
    """Run a loop over n places, in parts where that pays; whether it came to the end."""
    if n < 2 * _LEAST:
        return bool(serial(*given, 0, n) == n)
    with parts(n, _LEAST) as count:
        if count > 1:
            reached = np.zeros(count, np.int64)
            parallel(*given, count, reached)
            return all(reached[part] == n * (part + 1) // count for part in range(count))
    return bool(serial(*given, 0, n) == n)


def as_keys(keys: Keys) -> Keys:
    """The same keys as compiled code takes them. Raises TypeError unless they are uint64 [n]."""
    # a silent cast from float or a signed type would find other keys' rows
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.ndim != 1:
        raise TypeError("keys must be a uint64 array [n]")
    # read-only arrays are another type to numba, which would compile a second variant in the middle of a request
    return keys if keys.flags.carray else np.array(keys)


def as_rows(rows: Rows) -> Rows:
    """The same rows, int64 [n], as compiled code takes them."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
        raise TypeError("rows must be an integer array [n]")
    return rows if rows.dtype == np.int64 and rows.flags.carray else np.array(rows, np.int64)
