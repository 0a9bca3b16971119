"""The arrays of a table on a device, by row number: they grow by doubling, and rows that are given back are used again.

torch cannot let a tensor grow in place, so growing copies: each array in turn, and its rows in use only.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor

from mainstem.schema.errors import StoreError
from mainstem.weights.changing import DIRTY, USED

__all__ = ["UNKNOWN", "DeviceSlab", "clock", "memory_for"]

_LEAST = 1024
UNKNOWN = -(2**31)
"""What `seen` holds for a time that is not known: second 0."""


def clock(second: int) -> int:
    """A second, 0 to 2^32 - 1, as `seen` holds it: int32 in the same order."""
    return second + UNKNOWN


@contextmanager
def memory_for(device: torch.device, rows: int) -> Iterator[None]:
    """Raises StoreError where the device turns out to have no memory for so many rows."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        raise StoreError(
            f"{device} has no memory for {rows} rows: give the table a smaller most_rows, or families that expire or "
            "have a capacity"
        ) from error


class DeviceSlab:
    """keys int64 (0: free), values float32 [dim], state float32 [width], seen int32 (see `clock`), family uint8, marks
    uint8 (as in `weights.changing`), free int32 (a stack of free rows); `capacity` of each.

    high: row numbers handed out ever; spare: those of them that are free; counts: rows in use by family.
    """

    def __init__(self, dim: int, width: int, most: int, families: int, device: torch.device, rows: int = 0) -> None:
        self.most, self.device = most, device
        self.capacity = self.high = self.spare = 0
        self.counts = [0] * families
        self.values, self.state = self._empty(torch.float32, dim), self._empty(torch.float32, width)
        self.keys, self.free = self._empty(torch.int64), self._empty(torch.int32)
        self.seen, self.family, self.marks = (self._empty(kind) for kind in (torch.int32, torch.uint8, torch.uint8))
        self.reserve(max(rows, min(most, _LEAST)))

    def _empty(self, kind: torch.dtype, *width: int) -> Tensor:
        return torch.zeros((0, *width), dtype=kind, device=self.device)

    def __len__(self) -> int:
        return self.high - self.spare

    def full(self) -> StoreError:
        return StoreError(
            f"the table is full: {self.most} rows; give it a larger most_rows, or families that expire or have a "
            "capacity"
        )

    def reserve(self, rows: int) -> None:
        """Memory for row numbers below `rows`, and for as many again as there were. Raises StoreError where there may
        not be so many or the device has not as much; rows in use stay as they are then."""
        if rows > self.most:
            raise self.full()
        if rows <= self.capacity:
            return
        capacity = min(self.most, max(rows, 2 * self.capacity))
        with memory_for(self.device, capacity):
            for name in ("values", "state", "keys", "free", "seen", "family", "marks"):
                setattr(self, name, self._grown(getattr(self, name), capacity, UNKNOWN if name == "seen" else 0))
        self.capacity = capacity

    def _grown(self, old: Tensor, capacity: int, rest: int) -> Tensor:
        new = torch.empty((capacity, *old.shape[1:]), dtype=old.dtype, device=self.device)
        kept = min(self.high, len(old))
        new[:kept] = old[:kept]
        new[kept:] = rest
        return new

    def room(self) -> int:
        """Rows that can still come."""
        return self.most - len(self)

    def take(self, keys: Tensor, family: int, second: int) -> Tensor:
        """Rows int64 [n] for keys int64 [n], distinct and without one; `values` are the caller's to fill, the state is
        zero. Raises StoreError, changing nothing, where there is no room."""
        again = min(len(keys), self.spare)
        fresh = len(keys) - again
        self.reserve(self.high + fresh)
        reused = self.free[self.spare - again : self.spare].flip(0).to(torch.int64)
        rows = torch.cat((reused, torch.arange(self.high, self.high + fresh, device=self.device)))
        self.spare -= again
        self.high += fresh
        self.keys[rows] = keys
        self.seen[rows], self.family[rows], self.marks[rows] = clock(second), family, DIRTY | USED
        self.counts[family] += len(keys)
        return rows

    def give_back(self, rows: Tensor) -> None:
        """Rows int64 [n], distinct and in use, are free again, and zero."""
        for family, count in enumerate(torch.bincount(self.family[rows], minlength=len(self.counts)).tolist()):
            self.counts[family] -= count
        self.values[rows], self.state[rows] = 0.0, 0.0
        self.keys[rows], self.seen[rows], self.marks[rows] = 0, UNKNOWN, 0
        self.free[self.spare : self.spare + len(rows)] = rows.to(torch.int32)
        self.spare += len(rows)

    def used(self) -> Tensor:
        """bool [high]: the rows in use."""
        return self.keys[: self.high] != 0
