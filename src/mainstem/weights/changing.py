"""Compiled loops that change a table's rows: create, drop, write, walk in a fixed order, evict.

One thread at a time runs them; readers may be at work beside it (see `reading`). What a reader can see is written in an
order that it can check: a new row's numbers before its key, a dropped row's key before its numbers.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.schema.protocols import Floats
from mainstem.weights.address import Int, copy_row, fence_release, prefetch
from mainstem.weights.slots import AHEAD, home_of, lock, place, row_of, take_out, unlock
from mainstem.weights.table import Rows

__all__ = [
    "DIRTY",
    "FAMILIES",
    "FREE",
    "HIGH",
    "LIVE",
    "LOOKS",
    "NAMED",
    "USED",
    "Slab",
    "create",
    "drop",
    "evict",
    "overwrite",
    "walk",
]

LIVE, HIGH, FREE, FAMILIES = 0, 1, 2, 8
"""Places in the tally: rows in use, row numbers handed out ever, those of them that are free, rows by family."""

DIRTY, NAMED, USED = 1, 2, 4
"""Bits of a row's mark: written since changes were taken; named by the call that is going on; it has a key."""

LOOKS = 8
"""Rows of its family that are looked at for each one that is evicted."""


class Slab(NamedTuple):
    """The arrays of a table, indexed by row, and the slots that lead to them (see `slots`).

    row_keys uint64 (0: free), values float32 [dim], state float32 [width], seen uint32 (seconds of event time, 0: not
    known), family uint8, marks uint8, free int64 (a stack of free rows), tally int64.
    """

    words: NDArray[np.uint64]
    halves: NDArray[np.uint32]
    row_keys: Keys
    values: Floats
    state: Floats
    seen: NDArray[np.uint32]
    family: NDArray[np.uint8]
    marks: NDArray[np.uint8]
    free: NDArray[np.int64]
    tally: NDArray[np.int64]


@compiled
def _initialise(values: Floats, row: Int, key: np.uint64, seed: np.uint64, scale: float) -> None:
    """Uniform in (-scale, scale), made from seed and key alone: splitmix64 seeded by them."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    state = mix(key ^ mix(seed + golden))
    for c in range(values.shape[1]):
        unit = np.float64(mix(state + np.uint64(c + 1) * golden) >> np.uint64(40)) / 16777216.0
        values[row, c] = np.float32((2.0 * unit - 1.0) * scale)


@compiled
def create(
    slab: Slab,
    bits: Int,
    limit: Int,
    bound: Int,
    keys: Keys,
    rows: Rows,
    start: Int,
    family: Int,
    scale: float,
    seed: np.uint64,
    seen: Int,
) -> Int:
    """Give rows to keys[start:] that have rows[i] < 0 and are not 0; how far it came.

    It stops before the slots hold more than `limit` keys and before row `bound`, for the caller to make room.
    """
    slots = slab.words.ctypes.data
    n = len(keys)
    for i in range(start, n):
        if i + AHEAD < n:
            prefetch(home_of(slots, bits, keys[i + AHEAD]))
        key = keys[i]
        if key == np.uint64(0) or rows[i] >= 0:
            continue
        row = row_of(slots, bits, home_of(slots, bits, key), key)
        if row < 0:
            if slab.tally[LIVE] >= limit:
                return i
            if slab.tally[FREE] > 0:
                slab.tally[FREE] -= 1
                row = slab.free[slab.tally[FREE]]
            elif slab.tally[HIGH] < bound:
                row = slab.tally[HIGH]
                slab.tally[HIGH] += 1
            else:
                return i
            _initialise(slab.values, row, key, seed, scale)
            slab.seen[row] = np.uint32(seen)
            slab.family[row] = np.uint8(family)
            slab.marks[row] = np.uint8(DIRTY | USED)
            slab.tally[LIVE] += 1
            slab.tally[FAMILIES + family] += 1
            place(slab.words, slab.halves, bits, key, row)
            fence_release()
            slab.row_keys[row] = key
        rows[i] = row
    return n


@compiled
def drop(slab: Slab, bits: Int, keys: Keys, gone: Keys) -> Int:
    """Take these keys' rows from them; those that had one go to the front of `gone`, uint64 [n]; how many."""
    slots = slab.words.ctypes.data
    n = len(keys)
    count = 0
    for i in range(n):
        if i + AHEAD < n:
            prefetch(home_of(slots, bits, keys[i + AHEAD]))
        key = keys[i]
        row = take_out(slab.words, slab.halves, bits, key) if key != np.uint64(0) else np.int64(-1)
        if row < 0:
            continue
        slab.row_keys[row] = np.uint64(0)
        fence_release()
        slab.values[row, :] = np.float32(0.0)
        slab.state[row, :] = np.float32(0.0)
        slab.seen[row] = np.uint32(0)
        slab.marks[row] = np.uint8(0)
        slab.free[slab.tally[FREE]] = row
        slab.tally[FREE] += 1
        slab.tally[LIVE] -= 1
        slab.tally[FAMILIES + np.int64(slab.family[row])] -= 1
        gone[count] = key
        count += 1
    return count


@compiled
def overwrite(slab: Slab, bits: Int, rows: Rows, values: Floats) -> None:
    """values [n, dim] into rows [n], in use and distinct (-1 is skipped), each under its key's version."""
    slots = slab.words.ctypes.data
    width = 4 * values.shape[1]
    source = np.int64(values.ctypes.data)
    target = np.int64(slab.values.ctypes.data)
    for i in range(len(rows)):
        if rows[i] < 0:
            continue
        home = home_of(slots, bits, slab.row_keys[rows[i]])
        lock(home)
        copy_row(target + rows[i] * width, source + i * width, width)
        unlock(home)
        slab.marks[rows[i]] |= np.uint8(DIRTY)


@compiled
def _at_home(slab: Slab, bits: Int, bucket: Int, mixed: Keys, rows: Rows) -> Any:
    """(n, mixed, rows): the keys at home in this bucket, mixed, ascending, and their rows; arrays grow as needed."""
    last = (np.int64(1) << bits) - 1
    count = 0
    at = bucket
    passed = 0
    while True:
        for j in range(5):
            key = slab.words[at, j]
            if key == np.uint64(0):
                continue
            value = mix(key)
            if np.int64(value >> np.uint64(64 - bits)) != bucket:
                continue
            if count == len(mixed):
                mixed = np.append(mixed, mixed)
                rows = np.append(rows, rows)
            slot = count
            while slot > 0 and mixed[slot - 1] > value:
                mixed[slot] = mixed[slot - 1]
                rows[slot] = rows[slot - 1]
                slot -= 1
            mixed[slot] = value
            rows[slot] = np.int64(slab.halves[at, 10 + j])
            count += 1
        if (slab.halves[at, 15] & np.uint32(255)) == np.uint32(0) or passed >= last:
            return count, mixed, rows
        at = (at + 1) & last
        passed += 1


@compiled
def walk(slab: Slab, bits: Int, hands: Keys, hand: Int, found: Rows, family: Int, without: Int) -> Int:
    """Rows of the next keys, into `found`, at most as many as it holds and at most one round; how many.

    Keys come in ascending order of mix(key), from hands[hand] on and round; the hand ends after the last one that was
    found. family: only its rows, or -1; without: marks of rows to pass over. The order depends on the keys alone.
    """
    mixed, rows = np.empty(16, np.uint64), np.empty(16, np.int64)
    buckets = np.int64(1) << bits
    first = hands[hand]
    bucket = np.int64(first >> np.uint64(64 - bits))
    count = 0
    for turn in range(buckets + 1):
        held, mixed, rows = _at_home(slab, bits, bucket, mixed, rows)
        for k in range(held):
            # the bucket where the round starts is met again at its end, for what lies before the hand
            if (turn == 0 and mixed[k] < first) or (turn == buckets and mixed[k] >= first):
                continue
            row = rows[k]
            if (slab.marks[row] & np.uint8(without)) != 0 or (family >= 0 and np.int64(slab.family[row]) != family):
                continue
            if count == len(found):
                return count
            found[count] = row
            count += 1
            hands[hand] = mixed[k] + np.uint64(1)
        if count == len(found):
            return count
        bucket = (bucket + 1) & (buckets - 1)
    return count


@compiled
def evict(slab: Slab, bits: Int, hands: Keys, hand: Int, family: Int, gone: Keys) -> Int:
    """Drop a row of the family for each place in `gone`, where the keys go; how many could be dropped.

    Each is the least recently seen of the next `LOOKS` that the call going on does not name; of equals the first.
    """
    found = np.empty(LOOKS, np.int64)
    one = np.empty(1, np.uint64)
    for victim in range(len(gone)):
        count = walk(slab, bits, hands, hand, found, family, NAMED)
        if count == 0:
            return victim
        oldest = found[0]
        for k in range(1, count):
            if slab.seen[found[k]] < slab.seen[oldest]:
                oldest = found[k]
        one[0] = slab.row_keys[oldest]
        drop(slab, bits, one, gone[victim : victim + 1])
    return len(gone)
