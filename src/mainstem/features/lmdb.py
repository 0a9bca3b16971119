"""State in LMDB: one writing process, any number of reading ones, each read a snapshot.

Commits are not flushed to the disk one by one (`sync=False`): killing the process at any moment loses
nothing, since what is committed rests in the system's page cache. Losing power may damage the file; state is
a view of the log (law 1), so it is then rebuilt with `mainstem backfill`.

What is kept of a user in several tables rests in one value of table `users` (`packing.py`): a sixth of the bytes, and
one read where there would be one a table.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lmdb

from mainstem.features.packing import Column, Packing
from mainstem.features.state import Changes
from mainstem.schema.errors import StoreError

__all__ = ["META", "TABLES", "USERS", "LmdbBackend", "LmdbSnapshot"]

USERS = "users"
TABLES = ("meta", "journal", USERS, "hidden", "item", "value", "place", "neighbours")
META = 0
_SCANNED = 1024  # values unpacked together
_MAP_SIZE = 1 << 38  # address space, not disk: the file grows as it is used
_key = struct.Struct(">Q")


class LmdbSnapshot:
    """One read transaction; bytes are copied out of it. Users that were read stay unpacked until it is closed: who
    reads one of their tables reads the others."""

    def __init__(self, env: lmdb.Environment, tables: dict[str, Any], packing: Packing) -> None:
        self._txn = env.begin()
        self._tables, self._packing = tables, packing
        self._users: dict[str, dict[int, bytes | None]] = {table: {} for table in packing.tables}

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]:
        users = self._users.get(table)
        if users is None:
            return self._values(table, keys)
        new = [key for key in keys if key not in users]
        if new:
            columns = _unpacked(self._packing, self._values(USERS, new))
            for rows, column in zip(self._users.values(), columns, strict=True):
                rows.update(zip(new, column, strict=True))
        return [users[key] for key in keys]

    def _values(self, table: str, keys: Sequence[int]) -> list[bytes | None]:
        get, db = self._txn.get, self._tables.get(table)
        if db is None:
            return [None] * len(keys)
        return [get(_key.pack(key), db=db) for key in keys]

    def scan(self, table: str) -> Iterator[tuple[int, bytes]]:
        if table not in self._packing.tables:
            yield from self._scan(table)
            return
        part, rows = self._packing.tables.index(table), self._scan(USERS)
        while some := list(islice(rows, _SCANNED)):
            column = self._packing.unpack([value for _, value in some])[part]
            yield from ((key, value) for (key, _), value in zip(some, column, strict=True) if value is not None)

    def _scan(self, table: str) -> Iterator[tuple[int, bytes]]:
        db = self._tables.get(table)
        if db is not None:
            with self._txn.cursor(db=db) as cursor:
                for key, value in cursor:
                    yield _key.unpack(key)[0], value

    def close(self) -> None:
        self._txn.abort()


class LmdbBackend:
    """A directory with one LMDB environment, a named database per table; those of `packing` share one."""

    def __init__(self, folder: Path, packing: Packing, *, readonly: bool = False) -> None:
        self.readonly, self.form, self._packing = readonly, packing.form, packing
        if not readonly:
            folder.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(
                str(folder),
                map_size=_MAP_SIZE,
                max_dbs=32,
                max_readers=512,
                readonly=readonly,
                sync=False,
                metasync=False,
                create=not readonly,
            )
            self._tables: dict[str, Any] = {}
            for name in TABLES:
                with contextlib.suppress(lmdb.NotFoundError):
                    self._tables[name] = self._env.open_db(name.encode(), create=not readonly)
        except lmdb.Error as error:
            raise StoreError(f"feature state in {folder} cannot be opened: {error}") from error

    def read(self) -> LmdbSnapshot:
        return LmdbSnapshot(self._env, self._tables, self._packing)

    def commit(self, changes: Changes, version: int) -> None:
        if self.readonly:
            raise StoreError("the feature state was opened for reading only")
        try:
            with self._env.begin(write=True) as txn:
                stored = txn.get(_key.pack(META), db=self._tables["meta"])
                if stored is not None and json.loads(stored)["version"] != version:
                    raise StoreError("another process writes this feature state; it takes one writer")
                for table, rows in self._packed(changes, txn).items():
                    with txn.cursor(db=self._tables[table]) as cursor:
                        puts = [(_key.pack(key), value) for key, value in rows.items() if value is not None]
                        puts.sort()
                        cursor.putmulti(puts)
                    for key, value in rows.items():
                        if value is None:
                            txn.delete(_key.pack(key), db=self._tables[table])
        except lmdb.Error as error:
            raise StoreError(f"feature state cannot be written: {error}") from error

    def _packed(self, changes: Changes, txn: lmdb.Transaction) -> Changes:
        """The same, the tables of users as changes of the one table. What does not change of a user stays."""
        tables = self._packing.tables
        ours = [changes.get(table, {}) for table in tables]
        keys = sorted(set().union(*ours))
        columns = [[rows.get(key) for key in keys] for rows in ours]
        partly = [place for place, key in enumerate(keys) if not all(key in rows for rows in ours)]
        stored: list[Any] = [txn.get(_key.pack(keys[place]), db=self._tables[USERS]) for place in partly]
        for rows, column, held in zip(ours, columns, _unpacked(self._packing, stored), strict=True):
            for place, value in zip(partly, held, strict=True):
                if keys[place] not in rows:
                    column[place] = value
        left = [place for place, parts in enumerate(zip(*columns, strict=True)) if parts.count(None) < len(parts)]
        packed = self._packing.pack([[column[place] for place in left] for column in columns])
        values: dict[int, bytes | None] = dict.fromkeys(keys)
        values.update(zip([keys[place] for place in left], packed, strict=True))
        return {table: rows for table, rows in changes.items() if table not in tables} | {USERS: values}

    def nbytes(self) -> dict[str, int]:
        with self._env.begin() as txn:
            stats = {name: txn.stat(db) for name, db in self._tables.items()}
        return {
            name: stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for name, stat in stats.items()
        }

    def close(self) -> None:
        self._env.close()


def _unpacked(packing: Packing, values: Column) -> list[list[bytes | None]]:
    """A column for each table; None where there is no value."""
    held = [place for place, value in enumerate(values) if value is not None]
    columns = packing.unpack([value for value in values if value is not None])
    if len(held) == len(values):
        return columns
    spread: list[list[bytes | None]] = [[None] * len(values) for _ in columns]
    for column, found in zip(spread, columns, strict=True):
        for place, part in zip(held, found, strict=True):
            column[place] = part
    return spread
