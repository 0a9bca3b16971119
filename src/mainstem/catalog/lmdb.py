"""The catalogue on disk: one LMDB environment, read whole into columns at opening.

Databases: `entities` key (8 bytes, little-endian) -> revision (MessagePack, `revisions.py`);
`changes` version (8 bytes, big-endian) -> the keys which that write touched, 8 bytes each;
`meta` `format`, `position`, `version`. A reader in another process compares versions and reads the
keys of the writes it missed; the last `_CHANGES` writes are kept, before them it reads everything.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from itertools import islice
from pathlib import Path

import lmdb
import numpy as np

from mainstem.catalog.kept import State
from mainstem.catalog.memory import MemoryCatalog
from mainstem.catalog.revisions import Revision, decode_revision, encode_revision
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.errors import Incompatible, StoreError
from mainstem.schema.position import START, Position

__all__ = ["LmdbCatalog"]

_FORMAT = b"1"
_CHANGES = 4096
_MAP_SIZE = 1 << 36  # address space; the file grows as it is filled
_CHUNK = 50_000
_KEY = struct.Struct("<Q")
_VERSION = struct.Struct(">Q")


class LmdbCatalog(MemoryCatalog):
    """A durable `Catalog`: entities and position survive a crash together. One writing process, others read only."""

    def __init__(self, folder: Path, entities: Mapping[str, EntityTypeConfig], *, readonly: bool = False) -> None:
        super().__init__(entities)
        self.readonly = readonly
        if readonly and not (folder / "data.mdb").exists():
            raise StoreError(f"{folder} holds no catalogue to read; the writing process makes it")
        folder.mkdir(parents=True, exist_ok=True)
        try:
            self._env = lmdb.open(
                str(folder), map_size=_MAP_SIZE, max_dbs=3, max_readers=512, readonly=readonly, metasync=False
            )
            self._open_databases()
        except lmdb.Error as error:
            raise StoreError(f"the catalogue at {folder} cannot be opened: {error}") from error
        self._version = -1
        self.refresh()

    def _open_databases(self) -> None:
        create = not self.readonly
        self._entities = self._env.open_db(b"entities", create=create)
        self._changes = self._env.open_db(b"changes", create=create)
        self._meta = self._env.open_db(b"meta", create=create)
        with self._env.begin(write=create) as txn:
            found = txn.get(b"format", db=self._meta)
            if found is None and create:
                txn.put(b"format", _FORMAT, db=self._meta)
            elif found != _FORMAT:
                self._env.close()
                raise Incompatible(
                    f"the catalogue has format {found!r}, this version reads {_FORMAT!r}; rebuild it from the log"
                )

    def _revision(self, key: int) -> Revision | None:
        with self._env.begin(buffers=True) as txn:
            blob = txn.get(_KEY.pack(key), db=self._entities)
            return None if blob is None else decode_revision(blob)

    def _revisions(self) -> dict[int, bytes]:
        with self._env.begin() as txn:
            return {_KEY.unpack(packed)[0]: blob for packed, blob in txn.cursor(self._entities)}

    def load(self, state: State) -> None:
        raise StoreError("a catalogue on disk keeps its own entities: they cannot be replaced")

    def _commit(self, changed: Mapping[int, Revision], position: Position) -> None:
        if self.readonly:
            raise StoreError("this catalogue was opened for reading only")
        version = self._version + 1
        try:
            with self._env.begin(write=True) as txn:
                with txn.cursor(self._entities) as cursor:
                    cursor.putmulti([(_KEY.pack(k), encode_revision(r)) for k, r in sorted(changed.items())])
                touched = np.fromiter(changed, np.uint64, len(changed))
                txn.put(_VERSION.pack(version), touched.astype("<u8").tobytes(), db=self._changes)
                if version >= _CHANGES:
                    txn.delete(_VERSION.pack(version - _CHANGES), db=self._changes)
                txn.put(b"version", _VERSION.pack(version), db=self._meta)
                txn.put(b"position", str(position).encode(), db=self._meta)
        except lmdb.Error as error:
            raise StoreError(f"the catalogue could not be written: {error}") from error
        self._version = version

    def refresh(self) -> int:
        """Catch up with what was written to the folder since; how many entities were read again."""
        with self._writing, self._env.begin(buffers=True) as txn:
            stored = txn.get(b"version", db=self._meta)
            version = -1 if stored is None else _VERSION.unpack(stored)[0]
            if version == self._version:
                return 0
            count = 0
            revisions = self._missed(txn, version)
            while chunk := dict(islice(revisions, _CHUNK)):
                self._publish(chunk)
                count += len(chunk)
            position = txn.get(b"position", db=self._meta)
            self._position = START if position is None else Position.parse(bytes(position).decode())
            self._version = version
            return count

    def _missed(self, txn: lmdb.Transaction, version: int) -> Iterator[tuple[int, Revision]]:
        """Revisions written after `self._version`, of the touched keys alone where these are still listed."""
        if self._version < 0 or version - self._version >= _CHANGES:
            for packed, blob in txn.cursor(self._entities):
                yield _KEY.unpack(packed)[0], decode_revision(blob)
            return
        touched: set[int] = set()
        for missed in range(self._version + 1, version + 1):
            listed = txn.get(_VERSION.pack(missed), db=self._changes)
            touched.update(np.frombuffer(_present(listed), "<u8").tolist())
        for key in touched:
            yield key, decode_revision(_present(txn.get(_KEY.pack(key), db=self._entities)))

    def close(self) -> None:
        self._env.close()


def _present(value: bytes | memoryview | None) -> bytes | memoryview:
    if value is None:
        raise StoreError("the catalogue's list of changes names what is not there; rebuild it from the log")
    return value
