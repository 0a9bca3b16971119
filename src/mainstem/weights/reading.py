"""Find and copy rows while somebody may be writing them: what training's table and serving's readers share."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.schema.protocols import Floats
from mainstem.weights.address import (
    acquire32,
    copy_row,
    fence_acquire,
    fence_all,
    load32,
    prefetch,
    release32,
    stream16,
    zero_row,
)
from mainstem.weights.slots import AHEAD, home_of, row_of

__all__ = ["UNSEEN", "View", "as_keys", "as_out", "spread"]

UNSEEN = 0xFFFFFFFF
"""Time last seen of a row that was loaded or written without one."""

_ALONE = 1 << 14
"""Keys below which a second thread costs more than it helps."""

_SPINS = 200
"""Attempts at a row under change before the thread sleeps: a writer's change takes tens of nanoseconds."""

_STREAM = 8 << 20
"""Bytes of output from which on it is written past the cache, where it would not stay anyway."""


@compiled
def _copied(slots: int, bits: int, values: int, width: int, home: int, key: np.uint64, target: int) -> bool:
    """Copy the row of one key; whether nothing changed it meanwhile."""
    before = acquire32(home + 60) >> np.uint32(8)
    row = row_of(slots, bits, home, key)
    if row >= 0:
        copy_row(target, values + row * width, width)
    else:
        zero_row(target, width)
    fence_acquire()
    return (before & np.uint32(1)) == np.uint32(0) and before == acquire32(home + 60) >> np.uint32(8)


@compiled
def _read(
    slots: int, bits: int, values: int, width: int, keys: Keys, start: int, stop: int, out: int, stream: bool
) -> int:
    """Rows of keys[start:stop] to out[start:stop]. Returns `stop`, or the place of a key that stayed under change.

    A pipeline: the line of key t is asked for while key t - AHEAD is compared and its row asked for, while the row
    of key t - 2 AHEAD is copied.
    """
    ring = 4 * AHEAD - 1
    homes, sources = np.empty(ring + 1, np.int64), np.empty(ring + 1, np.int64)
    versions = np.empty(ring + 1, np.uint32)
    count = stop - start
    for step in range(count + 2 * AHEAD):
        if step < count:
            home = home_of(slots, bits, keys[start + step])
            homes[step & ring] = home
            prefetch(home)
        probed = step - AHEAD
        if 0 <= probed < count:
            home = homes[probed & ring]
            versions[probed & ring] = acquire32(home + 60) >> np.uint32(8)
            row = row_of(slots, bits, home, keys[start + probed])
            source = values + row * width if row >= 0 else np.int64(0)
            sources[probed & ring] = source
            if row >= 0:
                for at in range(0, width, 64):
                    prefetch(source + at)
                prefetch(source + width - 4)
        copied = step - 2 * AHEAD
        if copied >= 0:
            home, source, target = homes[copied & ring], sources[copied & ring], out + (start + copied) * width
            if source == 0:
                zero_row(target, width)
            elif stream:
                for at in range(0, width, 64):
                    stream16(target + at, source + at)
            else:
                copy_row(target, source, width)
            fence_acquire()
            version = versions[copied & ring]
            if (version & np.uint32(1)) != np.uint32(0) or version != acquire32(home + 60) >> np.uint32(8):
                tries = 0
                while not _copied(slots, bits, values, width, home, keys[start + copied], target):
                    tries += 1
                    if tries == _SPINS:
                        fence_all()
                        return start + copied
    fence_all()
    return stop


@compiled
def _find(
    slots: int, bits: int, keys: Keys, start: int, stop: int, rows: NDArray[np.int64], seen: int, now: int
) -> int:
    """Rows of keys[start:stop], -1 where absent. seen: address of the times last seen, brought up to `now`; 0: not.

    Returns `stop`, or the place of a key that stayed under change.
    """
    ring = 4 * AHEAD - 1
    homes = np.empty(ring + 1, np.int64)
    count = stop - start
    for step in range(count + 2 * AHEAD):
        if step < count:
            home = home_of(slots, bits, keys[start + step])
            homes[step & ring] = home
            prefetch(home)
        probed = step - AHEAD
        if 0 <= probed < count:
            home, key = homes[probed & ring], keys[start + probed]
            tries = 0
            while True:
                before = acquire32(home + 60) >> np.uint32(8)
                row = row_of(slots, bits, home, key) if key != np.uint64(0) else np.int64(-1)
                fence_acquire()
                if (before & np.uint32(1)) == np.uint32(0) and before == acquire32(home + 60) >> np.uint32(8):
                    break
                tries += 1
                if tries == _SPINS:
                    return start + probed
            rows[start + probed] = row
            if seen != 0 and row >= 0:
                prefetch(seen + 4 * row)
        marked = step - 2 * AHEAD
        if seen != 0 and marked >= 0 and rows[start + marked] >= 0:
            at = seen + 4 * rows[start + marked]
            last = load32(at)
            if last < now or last == np.uint32(UNSEEN):
                release32(at, now)
    return stop


_pool: ThreadPoolExecutor | None = None


def _forget_pool() -> None:
    global _pool
    _pool = None


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_pool)  # a child has none of its parent's threads


def spread(work: Callable[[int, int], None], count: int, threads: int) -> None:
    """`work(start, stop)` over 0 .. count, on several threads where it is long enough.

    Threads of our own rather than numba's parallel loops: those either refuse calls from two threads at once or
    end processes that fork.
    """
    global _pool
    parts = min(threads, max(1, count // (_ALONE // 2)))
    if parts < 2:
        work(0, count)
        return
    pool = _pool
    if pool is None:
        pool = _pool = ThreadPoolExecutor(max(2, os.cpu_count() or 1), "mainstem-rows")
    borders = [count * part // parts for part in range(parts + 1)]
    started = [pool.submit(work, borders[part], borders[part + 1]) for part in range(1, parts)]
    work(borders[0], borders[1])
    for future in started:
        future.result()


class View:
    """One version of the slots and values, in this process's memory or another's files; never changed once made.

    patience: seconds that a read waits for a row under change. A writer changes a row within microseconds, unless it
    was stopped or killed in the middle; then reading that key raises StoreError, while all others stay readable.
    `held` keeps the memory mapped.
    """

    __slots__ = ("_held", "_values", "bits", "dim", "patience", "slots", "threads")

    def __init__(
        self, slots: int, bits: int, values: int, dim: int, held: Any, *, threads: int = 2, patience: float = 1.0
    ) -> None:
        self.slots, self.bits, self.dim, self.threads, self.patience = slots, bits, dim, threads, patience
        self._values, self._held = values, held

    def read(self, keys: Keys, out: Floats) -> None:
        """Rows of keys [n] into out float32 [n, dim]; zeros where there is none."""
        address, width = out.ctypes.data, 4 * self.dim
        stream = width % 64 == 0 and address % 64 == 0 and len(keys) * width >= _STREAM

        def part(start: int, stop: int) -> None:
            self._insist(
                lambda at: _read(self.slots, self.bits, self._values, width, keys, at, stop, address, stream),
                keys,
                start,
                stop,
            )

        spread(part, len(keys), self.threads)

    def find(self, keys: Keys, seen: int = 0, now: int = 0) -> NDArray[np.int64]:
        """Row of each key [n], -1 where it has none; marks them as seen where an address of times is given."""
        rows = np.empty(len(keys), np.int64)

        def part(start: int, stop: int) -> None:
            self._insist(lambda at: _find(self.slots, self.bits, keys, at, stop, rows, seen, now), keys, start, stop)

        spread(part, len(keys), self.threads)
        return rows

    def _insist(self, run: Callable[[int], int], keys: Keys, start: int, stop: int) -> None:
        deadline, stuck = 0.0, -1
        while (place := run(start)) < stop:
            now = time.monotonic()
            if place != stuck:
                deadline, stuck = now + self.patience, place
            elif now > deadline:
                raise StoreError(
                    f"the row of key {int(keys[place])} has been under change for {self.patience:g} s: "
                    "its writer was stopped in the middle; start the writer again"
                )
            start = place
            time.sleep(0.0005)


def as_keys(keys: Keys) -> Keys:
    """Keys [n] as compiled code takes them. A silent cast from float or a signed type would find other keys' rows."""
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.ndim != 1:
        raise TypeError("keys must be a uint64 array [n]")
    return np.ascontiguousarray(keys)


def as_out(out: Floats | None, count: int, dim: int) -> Floats:
    """`out` where it can take float32 [count, dim] as it is, a new array without."""
    if out is None:
        # on the border of a cache line, which long reads write past the cache
        room = np.empty(count * dim + 16, np.float32)
        start = -room.ctypes.data % 64 // 4
        return room[start : start + count * dim].reshape(count, dim)
    if out.dtype != np.float32 or out.shape != (count, dim) or not (out.flags.c_contiguous and out.flags.writeable):
        raise ValueError(f"out must be a writeable contiguous float32 array [{count}, {dim}]")
    return out
