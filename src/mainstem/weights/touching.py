"""Compiled passes over the rows that a training step names: find and touch them, check them, mark them.

What a pass writes to a row is the same whoever writes it and however often, so rows are dealt to threads in stretches,
repeated ones too. Each row's byte of marks says whether the row is in use: a step that has to look at many rows finds
all of it in the caches, where their keys would not fit.
"""

from __future__ import annotations

import numba
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.weights.address import Int, prefetch
from mainstem.weights.changing import DIRTY, HIGH, NAMED, USED, Slab
from mainstem.weights.parts import compiled_in_parts, parts
from mainstem.weights.slots import AHEAD, home_of, row_of
from mainstem.weights.table import Rows

__all__ = ["find_touching", "first_fault"]

_LEAST = 4096  # rows a thread must get: below, waking it costs more than it saves

Counts = NDArray[np.int64]


def find_touching(slab: Slab, bits: int, keys: Keys, seen: int, name: bool) -> tuple[Rows, int]:
    """Row of each key [n], -1 where it has none, and how many such there are that are not 0. Rows that are found were
    seen then, or later; with `name` they are marked as named. For the thread that changes the table."""
    rows: Rows = np.empty(len(keys), np.int64)
    with parts(len(keys), _LEAST) as count:
        missing = np.zeros(count, np.int64)
        run = _find_part if count == 1 else _find_parts
        run(0, count, slab, bits, keys, rows, seen, name, missing)
    return rows, int(missing.sum())


def first_fault(slab: Slab, rows: Rows, *, write: bool = False) -> int:
    """Place of the first row that is out of range or not in use; -1 where all is well. -1 among rows is skipped.

    With `write` the rows are marked as written since changes were taken, in the same pass; where there is a fault, some
    of the others are too, which costs a delta some rows that it need not have and no more.
    """
    with parts(len(rows), _LEAST) as count:
        faults = np.empty(count, np.int64)
        run = _check_part if count == 1 else _check_parts
        run(0, count, slab, rows, write, faults)
    return int(faults.min()) if faults.min() < len(rows) else -1


@compiled
def _find_part(
    part: int, count: int, slab: Slab, bits: Int, keys: Keys, rows: Rows, seen: Int, name: bool, missing: Counts
) -> None:
    slots, clock = np.int64(slab.words.ctypes.data), np.int64(slab.seen.ctypes.data)
    start, stop = len(keys) * part // count, len(keys) * (part + 1) // count
    lacking = 0
    for i in range(start, min(stop, start + AHEAD)):
        prefetch(home_of(slots, bits, keys[i]))
    # two stages, each AHEAD of the next: a key's line of slots has come, then its row's time
    for i in range(start, stop + AHEAD):
        if i + AHEAD < stop:
            prefetch(home_of(slots, bits, keys[i + AHEAD]))
        row: Int = -1
        if i < stop:
            key = keys[i]
            if key != np.uint64(0):
                row = row_of(slots, bits, home_of(slots, bits, key), key)
                lacking += 1 if row < 0 else 0
            if row >= 0:
                prefetch(clock + 4 * row)
            rows[i] = row
        if i >= start + AHEAD and rows[i - AHEAD] >= 0:
            row = rows[i - AHEAD]
            if np.int64(slab.seen[row]) < seen:
                slab.seen[row] = np.uint32(seen)
            if name:
                slab.marks[row] |= np.uint8(NAMED)
    missing[part] = lacking


@compiled_in_parts
def _find_parts(
    _: int, count: int, slab: Slab, bits: Int, keys: Keys, rows: Rows, seen: Int, name: bool, missing: Counts
) -> None:
    for part in numba.prange(count):
        _find_part(part, count, slab, bits, keys, rows, seen, name, missing)


@compiled
def _check_part(part: int, count: int, slab: Slab, rows: Rows, write: bool, faults: Counts) -> None:
    """faults[part]: the first place in this part's stretch that is wrong, len(rows) where all is well."""
    marks = np.int64(slab.marks.ctypes.data)
    high = slab.tally[HIGH]
    start, stop = len(rows) * part // count, len(rows) * (part + 1) // count
    faults[part] = len(rows)
    for i in range(start, stop):
        if i + AHEAD < stop and rows[i + AHEAD] >= 0:
            prefetch(marks + rows[i + AHEAD])
        row = rows[i]
        if row != -1 and (row < -1 or row >= high or (slab.marks[row] & np.uint8(USED)) == 0):
            faults[part] = i
            return
        if write and row >= 0:
            slab.marks[row] |= np.uint8(DIRTY)


@compiled_in_parts
def _check_parts(_: int, count: int, slab: Slab, rows: Rows, write: bool, faults: Counts) -> None:
    for part in numba.prange(count):
        _check_part(part, count, slab, rows, write, faults)
