"""The rows of the log's SQLite file: records, as they arrive and as they are read, and how far followers have come."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from pathlib import Path

from mainstem.eventlog.admission import Admitted
from mainstem.eventlog.connections import Connections
from mainstem.eventlog.forgetting import Name, target
from mainstem.eventlog.tombstones import Tombstones
from mainstem.schema.errors import StoreError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Erase, Erased, LogRecord, encode_record
from mainstem.schema.time import now_ms

__all__ = ["Arrival", "Followers", "Rows"]


class Rows:
    """The table of records, read. Offsets have no gaps, from the first that is still here to the end of the log."""

    def __init__(self, store: Connections, path: Path) -> None:
        self._store, self._path = store, path

    def some(self, start: int, limit: int) -> list[tuple[int, bytes]]:
        """(offset, body) of the records at `start` to `start + limit` (exclusive), as far as they are here."""
        with self._store.shared() as reader:
            return reader.execute(
                "SELECT offset, body FROM records WHERE offset >= ? AND offset < ? ORDER BY offset",
                (start, start + limit),
            ).fetchall()

    def kept(self, start: int, limit: int) -> list[bytes]:
        """Up to `limit` bodies from offset `start`, if that one is here."""
        rows = self.some(start, limit)
        return [body for _, body in rows] if rows and rows[0][0] == start else []

    def whole(self, first: int, last: int) -> tuple[list[bytes], list[bytes]]:
        """Bodies and digests of the records at offsets `first` to `last`, which are here. Raises StoreError."""
        with self._store.shared() as reader:
            rows = reader.execute(
                "SELECT body, digest FROM records WHERE offset >= ? AND offset < ? ORDER BY offset", (first, last)
            ).fetchall()
        if len(rows) != last - first:
            raise StoreError(f"{self._path} lacks records between {first} and {last}: it is damaged")
        return [body for body, _ in rows], [digest for _, digest in rows]

    def end(self) -> int:
        """The offset after the newest record of the log."""
        with self._store.shared() as reader:
            newest = reader.execute("SELECT max(offset) FROM records").fetchone()[0]
            if newest is None:  # all of it is sealed and gone
                newest = reader.execute("SELECT coalesce(max(value), 0) - 1 FROM meta WHERE name = 'first'").fetchone()[
                    0
                ]
        return int(newest) + 1

    def meta(self) -> dict[str, int]:
        """The numbers that the log has noted of itself, by name."""
        with self._store.shared() as reader:
            return dict(reader.execute("SELECT name, value FROM meta").fetchall())


class Arrival:
    """The rows of one commit, from offset `first` on, as far as nobody has erased what they are about."""

    def __init__(self, held: Tombstones, first: int) -> None:
        self._held, self._first = held, first
        self.rows: list[tuple[int, bytes, bytes]] = []
        self.erasures: list[tuple[int, Erase]] = []
        self._erased: dict[Name, int] = {}

    @property
    def end(self) -> int:
        return self._first + len(self.rows)

    def add(self, given: Admitted, known: Iterator[bool], new: dict[bytes, None]) -> Appended:
        """What of `given` is to be written: no id that is `known` (one flag a record) or among the `new` ones of this
        commit, to which it is added; nothing of an erased name that is not later than the erasure."""
        rows, end = self.rows, self.end
        before, duplicates, latest = len(rows), 0, self._latest()
        for record, digest, body in zip(given.records, given.digests, given.bodies, strict=True):
            if next(known) or digest in new:
                duplicates += 1
                continue
            if record.time <= latest or type(record) is Erase:
                kept = self._look(record, body, end)
                if kept is None:
                    continue
                body, latest = kept, self._latest()
            new[digest] = None
            rows.append((end, digest, body))
            end += 1
        accepted = len(rows) - before
        return Appended(Position.at(end), accepted, duplicates, len(given.records) - accepted - duplicates)

    def _latest(self) -> int:
        """Records of a later time need no look."""
        return max(self._held.latest, *self._erased.values()) if self._erased else self._held.latest

    def _look(self, record: LogRecord, body: bytes, offset: int) -> bytes | None:
        """What is to be written of `record`; None: nothing."""
        left = self._held.admitted(record, self._erased)
        if isinstance(left, Erased):
            return None
        if isinstance(record, Erase):
            self.erasures.append((offset, record))
            name = target(record)
            self._erased[name] = max(record.time, self._erased.get(name, record.time))
        return body if left is record else encode_record(left)

    def insert(self, writer: sqlite3.Connection) -> None:
        """Into the open transaction of `writer`."""
        writer.executemany("INSERT INTO records VALUES (?, ?, ?)", self.rows)
        if self.erasures:
            now = now_ms()
            writer.executemany("INSERT INTO erasures VALUES (?, ?, 0)", [(at, now) for at, _ in self.erasures])


class Followers:
    """Who follows the log, and how far each has come. They may live in any process."""

    def __init__(self, store: Connections) -> None:
        self._store = store

    def follow(self, name: str) -> Position:
        with self._store.shared() as connection:
            connection.execute("INSERT OR IGNORE INTO followers VALUES (?, ?)", (name, str(START)))
            found = connection.execute("SELECT position FROM followers WHERE name = ?", (name,)).fetchone()
        return Position.parse(found[0])

    def note(self, name: str, position: Position) -> None:
        with self._store.shared() as connection:
            connection.execute("INSERT OR REPLACE INTO followers VALUES (?, ?)", (name, str(position)))

    def unfollow(self, name: str) -> None:
        with self._store.shared() as connection:
            connection.execute("DELETE FROM followers WHERE name = ?", (name,))

    def all(self) -> dict[str, Position]:
        with self._store.shared() as connection:
            rows = connection.execute("SELECT name, position FROM followers").fetchall()
        return {name: Position.parse(text) for name, text in rows}

    def slowest(self, end: int) -> int:
        """The offset that all have passed, at most `end`."""
        return min([end, *(position.offset() for position in self.all().values())])
