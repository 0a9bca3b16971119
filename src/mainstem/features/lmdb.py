"""State in LMDB: one writing process, any number of reading ones, each read a snapshot.

Commits are not flushed to the disk one by one (`sync=False`): killing the process at any moment loses
nothing, since what is committed rests in the system's page cache. Losing power may damage the file; state is
a view of the log (law 1), so it is then rebuilt with `mainstem backfill`.
"""

from __future__ import annotations

import contextlib
import json
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import lmdb
import numpy as np

from mainstem.features.state import Changes
from mainstem.schema.errors import StoreError

__all__ = ["META", "TABLES", "LmdbBackend", "LmdbSnapshot"]

TABLES = ("meta", "journal", "user", "user_item", "history", "hidden", "item", "value", "place", "neighbours")
META = 0
_MAP_SIZE = 1 << 38  # address space, not disk: the file grows as it is used
_key = struct.Struct(">Q")


class LmdbSnapshot:
    """One read transaction; bytes are copied out of it."""

    def __init__(self, env: lmdb.Environment, tables: dict[str, Any]) -> None:
        self._txn = env.begin()
        self._tables = tables

    def get(self, table: str, keys: Sequence[int]) -> list[bytes | None]:
        get, db = self._txn.get, self._tables.get(table)
        if db is None or not len(keys):
            return [None] * len(keys)
        packed = np.asarray(keys, np.uint64).astype(">u8").tobytes()
        return [get(packed[i : i + 8], db=db) for i in range(0, len(packed), 8)]

    def scan(self, table: str) -> Iterator[tuple[int, bytes]]:
        db = self._tables.get(table)
        if db is not None:
            with self._txn.cursor(db=db) as cursor:
                for key, value in cursor:
                    yield _key.unpack(key)[0], value

    def close(self) -> None:
        self._txn.abort()


class LmdbBackend:
    """A directory with one LMDB environment, a named database per table."""

    def __init__(self, folder: Path, *, readonly: bool = False) -> None:
        self.readonly = readonly
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
        return LmdbSnapshot(self._env, self._tables)

    def commit(self, changes: Changes, version: int) -> None:
        if self.readonly:
            raise StoreError("the feature state was opened for reading only")
        try:
            with self._env.begin(write=True) as txn:
                stored = txn.get(_key.pack(META), db=self._tables["meta"])
                if stored is not None and json.loads(stored)["version"] != version:
                    raise StoreError("another process writes this feature state; it takes one writer")
                for table, rows in changes.items():
                    with txn.cursor(db=self._tables[table]) as cursor:
                        puts = [(_key.pack(key), value) for key, value in rows.items() if value is not None]
                        puts.sort()
                        cursor.putmulti(puts)
                    for key, value in rows.items():
                        if value is None:
                            txn.delete(_key.pack(key), db=self._tables[table])
        except lmdb.Error as error:
            raise StoreError(f"feature state cannot be written: {error}") from error

    def nbytes(self) -> dict[str, int]:
        with self._env.begin() as txn:
            stats = {name: txn.stat(db) for name, db in self._tables.items()}
        return {
            name: stat["psize"] * (stat["branch_pages"] + stat["leaf_pages"] + stat["overflow_pages"])
            for name, stat in stats.items()
        }

    def close(self) -> None:
        self._env.close()
