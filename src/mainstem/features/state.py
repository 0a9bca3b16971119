"""State: named tables of uint64 key -> bytes, read in one snapshot and changed in one transaction.

A backend knows two verbs: `read` (a snapshot) and `commit` (all of some changes, or none). Whatever is
between lives in `Overlay`, a copy-on-write layer over a snapshot: a write folds into an overlay that is then
committed, a view folds the pending events into one that never is. So both run the same code.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys

__all__ = [
    "Backend",
    "Changes",
    "Overlay",
    "Records",
    "Snapshot",
    "State",
    "arena",
    "expire_records",
    "records_of",
    "store_arena",
]

Changes = Mapping[str, Mapping[int, bytes | None]]
"""table -> key -> new bytes, or None where the key goes."""

Records = NDArray[Any]
"""A structured array: one record per key."""


class Snapshot(Protocol):
    """What was committed last when it was opened."""

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]: ...

    def scan(self, table: str) -> Iterator[tuple[int, bytes]]: ...

    def close(self) -> None: ...


class State(Protocol):
    """What a feature reads and writes."""

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]: ...

    def put(self, table: str, keys: Sequence[int], values: Sequence[bytes]) -> None: ...

    def delete(self, table: str, keys: Sequence[int]) -> None: ...

    def records(self, table: str, keys: Keys, dtype: np.dtype[Any]) -> Records:
        """Fixed-width records of `keys` [n], all zero where there is none. A copy."""
        ...


class Backend(Protocol):
    """Where the tables rest."""

    readonly: bool
    form: str
    """How the records rest; part of the state's definition (law 11)."""

    def read(self) -> Snapshot: ...

    def commit(self, changes: Changes, version: int) -> None:
        """Apply `changes` in one transaction, if the stored version is still `version`.

        Raises StoreError where another process has written in between, or the backend is read-only.
        """
        ...

    def nbytes(self) -> dict[str, int]:
        """Bytes per table."""
        ...

    def close(self) -> None: ...


def records_of(parts: Sequence[bytes | None], dtype: np.dtype[Any]) -> Records:
    """Join the bytes of fixed-width records into one array; None becomes zeros."""
    blank = bytes(dtype.itemsize)
    return np.frombuffer(bytearray(b"".join([part or blank for part in parts])), dtype)


class Overlay:
    """Changes over a snapshot, kept in dicts. `changes` is what a commit takes."""

    def __init__(self, base: Snapshot) -> None:
        self.base = base
        self.changes: dict[str, dict[int, bytes | None]] = {}
        self._sorted: dict[str, tuple[Keys, Records]] = {}

    def over(self, base: Snapshot) -> Overlay:
        """The same changes over another snapshot (of the same version)."""
        other = Overlay(base)
        other.changes, other._sorted = self.changes, self._sorted
        return other

    def copied(self, base: Snapshot) -> Overlay:
        """The same changes over another snapshot with the same records, to be added to: those who read this one go on
        with what it holds."""
        other = Overlay(base)
        other.changes = {table: dict(changes) for table, changes in self.changes.items()}
        return other

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]:
        changed = self.changes.get(table)
        if not changed:
            return self.base.get(table, keys)
        missing = [key for key in keys if key not in changed]
        found = iter(self.base.get(table, missing))
        return [changed[key] if key in changed else next(found) for key in keys]

    def put(self, table: str, keys: Sequence[int], values: Sequence[bytes]) -> None:
        self.changes.setdefault(table, {}).update(zip(keys, values, strict=True))

    def delete(self, table: str, keys: Sequence[int]) -> None:
        self.changes.setdefault(table, {}).update(dict.fromkeys(keys))

    def records(self, table: str, keys: Keys, dtype: np.dtype[Any]) -> Records:
        return records_of(self.get(table, keys.tolist()), dtype)

    def put_records(self, table: str, keys: Keys, records: Records) -> None:
        """Store fixed-width `records` [n] under `keys` [n]."""
        width, data = records.dtype.itemsize, records.tobytes()
        self.put(table, keys.tolist(), [data[i : i + width] for i in range(0, len(data), width)])

    def changed(self, table: str, dtype: np.dtype[Any]) -> tuple[Keys, Records]:
        """The changed records of a fixed-width table, by ascending key; deleted ones are zeros. Call only
        once nothing is written any more."""
        if table not in self._sorted:
            changed = sorted(self.changes.get(table, {}).items())
            keys = np.array([key for key, _ in changed], np.uint64)
            self._sorted[table] = keys, records_of([value for _, value in changed], dtype)
        return self._sorted[table]


def arena(
    state: Overlay, table: str, keys: Keys, room: NDArray[np.int64], dtype: np.dtype[Any]
) -> tuple[Records, NDArray[np.int64], NDArray[np.int64]]:
    """The variable-length lists of `keys` [u] side by side, each with free room behind it.

        rows    [a a a . . | b . | c c . . .]     start [0 5 7]   length [3 1 2]

    `room` [u] is how many rows may be added to each.
    """
    blobs = state.get(table, keys.tolist())
    width = dtype.itemsize
    length = np.array([len(blob) // width if blob else 0 for blob in blobs], np.int64)
    start = np.zeros(len(keys), np.int64)
    np.cumsum((length + room)[:-1], out=start[1:])
    rows = np.zeros(int((length + room).sum()), dtype)
    for blob, place, count in zip(blobs, start.tolist(), length.tolist(), strict=True):
        if blob:
            rows[place : place + count] = np.frombuffer(blob, dtype)
    return rows, start, length


def store_arena(
    state: Overlay, table: str, keys: Keys, rows: Records, start: NDArray[np.int64], length: NDArray[np.int64]
) -> None:
    """Inverse of `arena`."""
    ends = (start + length).tolist()
    state.put(table, keys.tolist(), [rows[a:b].tobytes() for a, b in zip(start.tolist(), ends, strict=True)])


def expire_records(table: str, dtype: np.dtype[Any], limit: int, snapshot: Snapshot, state: Overlay) -> list[int]:
    """Delete the fixed-width records whose field `last` lies before `limit`; their keys."""
    rows = list(snapshot.scan(table))
    last = records_of([value for _, value in rows], dtype)["last"]
    old = [key for (key, _), gone in zip(rows, (last < limit).tolist(), strict=True) if gone]
    state.delete(table, old)
    return old
