"""The connections to the log's SQLite file, and the lock that makes one process its writer."""

from __future__ import annotations

import fcntl
import os
import sqlite3
import time
from collections import deque
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from mainstem.schema.errors import LogError, StoreError

__all__ = ["Connections", "lock_writer"]

_SCHEMA = """
CREATE TABLE IF NOT EXISTS records (offset INTEGER PRIMARY KEY, digest BLOB NOT NULL, body BLOB NOT NULL);
CREATE TABLE IF NOT EXISTS meta (name TEXT PRIMARY KEY, value INTEGER NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arrivals (offset INTEGER PRIMARY KEY, time INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS followers (name TEXT PRIMARY KEY, position TEXT NOT NULL) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS erasures (offset INTEGER PRIMARY KEY, arrived INTEGER NOT NULL, state INTEGER NOT NULL);
CREATE TABLE IF NOT EXISTS swept (file TEXT PRIMARY KEY, stamp TEXT NOT NULL, mark INTEGER NOT NULL) WITHOUT ROWID;
"""
_FORMAT = 3  # 2 added the table of arrivals, 3 those of erasing
_BUSY_MS = 10_000


def lock_writer(path: Path) -> int:
    """Take the writer's lock of the log at `path`: a descriptor, to be closed to give it back.

    The lock (flock) goes with the process, also with one that is killed. Raises StoreError where it is held.
    """
    held = os.open(path.with_name(path.name + ".lock"), os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        owner = os.pread(held, 20, 0).decode(errors="replace").strip() or "unknown"
        os.close(held)
        raise StoreError(
            f"{path} is being written by another process ({owner}); a log has one: stop it, or post to it"
        ) from None
    os.ftruncate(held, 0)
    os.pwrite(held, str(os.getpid()).encode(), 0)
    return held


class Connections:
    """Connections to one log file: one that writes with a sync per commit, and a pool for everything else."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._idle: deque[sqlite3.Connection] = deque()
        self._writer: sqlite3.Connection | None = None
        self._closed = False
        path.parent.mkdir(parents=True, exist_ok=True)
        self._prepare()

    @contextmanager
    def shared(self) -> Iterator[sqlite3.Connection]:
        """A connection that nobody else uses meanwhile, for reads and small writes that need no sync.

        Raises StoreError for what SQLite cannot do, LogError once closed.
        """
        self.check_open()
        try:
            connection = self._idle.pop()
        except IndexError:
            connection = self._connect(synchronous="NORMAL")
        try:
            yield connection
        except BaseException as error:
            connection.close()
            if isinstance(error, sqlite3.Error):
                raise StoreError(f"{self._path}: {error}") from error
            raise
        self._idle.append(connection)
        if self._closed:
            self.close()

    @contextmanager
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """One durable transaction of the writer, whose lock the caller holds; rolled back on any error."""
        self.check_open()
        if self._writer is None:
            self._writer = self._connect(synchronous="FULL")
            # A checkpoint syncs the main file too: fewer, larger ones cost less. 8192 pages of 4 KiB = 32 MiB.
            self._writer.execute("PRAGMA wal_autocheckpoint=8192")
        self._writer.execute("BEGIN IMMEDIATE")
        try:
            yield self._writer
            self._writer.execute("COMMIT")
        except BaseException:
            if self._writer.in_transaction:
                self._writer.execute("ROLLBACK")
            raise

    def empty_wal(self, writing: AbstractContextManager[object]) -> bool:
        """Carry the write-ahead log over into the main file and cut it to nothing, so that no earlier version of a
        page is left in it; False where somebody else reads or writes at this moment. `writing`: the writer's lock."""
        self.check_open()
        connection = self._connect(synchronous="FULL")
        try:
            connection.execute("PRAGMA busy_timeout=0")
            connection.execute("PRAGMA wal_checkpoint(PASSIVE)")  # most of it, without being in anybody's way
            with writing:
                return not connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()[0]
        except sqlite3.OperationalError as error:
            if "locked" in str(error):
                return False
            raise StoreError(f"{self._path}: {error}") from error
        finally:
            connection.close()

    def check_open(self) -> None:
        if self._closed:
            raise LogError("the log is closed")

    def close(self) -> None:
        """Idempotent. Connections that are in use close when they come back."""
        self._closed = True
        if self._writer:
            self._writer.close()
        while self._idle:
            self._idle.pop().close()

    def _connect(self, synchronous: str) -> sqlite3.Connection:
        try:
            connection = sqlite3.connect(self._path, isolation_level=None, check_same_thread=False)
            connection.execute(f"PRAGMA busy_timeout={_BUSY_MS}")
            connection.execute(f"PRAGMA synchronous={synchronous}")
            connection.execute("PRAGMA secure_delete=ON")  # what is deleted or replaced is overwritten with zeros
        except sqlite3.Error as error:
            raise StoreError(f"{self._path}: {error}") from error
        return connection

    def _prepare(self) -> None:
        """Make the tables, if they are not there. Several processes may try at once."""
        deadline = time.monotonic() + _BUSY_MS / 1000
        while True:
            try:
                with self.shared() as connection:
                    found = connection.execute("PRAGMA user_version").fetchone()[0]
                    if found > _FORMAT:
                        raise StoreError(f"{self._path} has format {found}; this version reads up to {_FORMAT}")
                    if found < _FORMAT:
                        connection.execute("PRAGMA journal_mode=WAL")
                        connection.executescript(f"BEGIN IMMEDIATE; {_SCHEMA} PRAGMA user_version={_FORMAT}; COMMIT;")
                return
            except StoreError as error:
                # Switching to WAL does not wait for the lock as statements do.
                if "locked" not in str(error) or time.monotonic() > deadline:
                    raise
                time.sleep(0.02)
