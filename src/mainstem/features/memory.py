"""State in dicts: the plain default of tests and replays, and the oracle of the other backends.

A snapshot is the live tables: it is good until the next commit.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from mainstem.features.state import Changes

__all__ = ["MemoryBackend"]


class MemoryBackend:
    """Tables in memory, gone with the process."""

    readonly, form = False, "memory"

    def __init__(self) -> None:
        self._tables: dict[str, dict[int, bytes]] = {}
        self._lock = threading.Lock()

    def read(self) -> MemoryBackend:
        return self

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]:
        rows = self._tables.get(table, {})
        return [rows.get(key) for key in keys]

    def scan(self, table: str) -> Iterator[tuple[int, bytes]]:
        yield from sorted(self._tables.get(table, {}).items())

    def commit(self, changes: Changes, version: int) -> None:
        with self._lock:
            for table, rows in changes.items():
                stored = self._tables.setdefault(table, {})
                for key, value in rows.items():
                    if value is None:
                        stored.pop(key, None)
                    else:
                        stored[key] = value

    def nbytes(self) -> dict[str, int]:
        return {name: sum(8 + len(value) for value in rows.values()) for name, rows in self._tables.items()}

    def close(self) -> None:
        """Nothing to release: a snapshot is the tables themselves."""
