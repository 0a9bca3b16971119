"""Vectors by key in one file: appended to, never changed, mapped by every process that reads it.

    header  64 bytes   "mainstem text 1\\0", then the BLAKE2b digest (16 bytes) of the encoder's version, dim as
                       uint32, zeros
    record  12 + 2 dim key uint64, CRC-32 of the vector's bytes xor the key's lower half uint32, vector float16 [dim];
                       all little-endian

A record is written whole, under the file's lock, over what a killed writer left of one. A record whose check does not
fit is passed over. Nothing is synced: what is lost is made again.
"""

from __future__ import annotations

import fcntl
import hashlib
import logging
import mmap
import os
import struct
import tempfile
import threading
import weakref
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows
from mainstem.schema.protocols import Floats

__all__ = ["VectorFile"]

_log = logging.getLogger(__name__)

Ints = NDArray[np.int64]

MAGIC = b"mainstem text 1\0"
HEADER = 64
# Records taken in at once.
CHUNK = 4096


class VectorFile:
    """The vectors of one encoder at `path`, or in a nameless file of this process. Safe to use from several threads.

    A file that was made by another version, or whose header is damaged, is replaced: others that hold it keep it.
    """

    def __init__(self, path: Path | None, dim: int, version: str) -> None:
        self.dim = dim
        self._header = MAGIC + hashlib.blake2b(version.encode(), digest_size=16).digest() + struct.pack("<I", dim)
        self._header = self._header.ljust(HEADER, b"\0")
        self._record = np.dtype([("key", "<u8"), ("check", "<u4"), ("vector", "<f2", (dim,))])
        self._lock = threading.Lock()
        self._rows, self._seen = KeyRows(), 0
        self._file = self._nameless() if path is None else self._opened(path)
        weakref.finalize(self, os.close, self._file)
        self._records = np.zeros(0, self._record)
        self.refresh()

    def __len__(self) -> int:
        """Keys that have a vector."""
        return len(self._rows)

    def find(self, keys: Keys) -> Ints:
        """The place of each key's vector: int64 [n], -1 where it has none."""
        with self._lock:
            return self._rows.find(keys)

    def take(self, places: Ints) -> Floats:
        """The vectors at these places: float32 [n, dim]; zeros at -1."""
        out = np.zeros((len(places), self.dim), np.float32)
        known = places >= 0
        out[known] = self._records["vector"][places[known]]
        return out

    def put(self, keys: Keys, vectors: Floats) -> Ints:
        """Append vectors [n, dim] of keys that are none of them 0 or twice; their places: int64 [n]."""
        records = np.zeros(len(keys), self._record)
        records["key"], records["vector"] = keys, vectors
        records["check"] = [_check(record) for record in records]
        with self._lock, _alone(self._file):
            self._take_in()
            _write(self._file, records.tobytes(), HEADER + self._seen * self._record.itemsize)
            self._take_in()
            return self._rows.find(keys)

    def refresh(self) -> None:
        """Take in what others have appended."""
        with self._lock:
            self._take_in()

    # ---- the file ------------------------------------------------------------------------------------

    def _nameless(self) -> int:
        descriptor, name = tempfile.mkstemp()
        os.unlink(name)
        _write(descriptor, self._header, 0)
        return descriptor

    def _opened(self, path: Path) -> int:
        path.parent.mkdir(parents=True, exist_ok=True)
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            with _alone(folder):  # two that come at once must not each make a file
                if not path.exists() or not self._fits(path):
                    new = path.with_name(f"{path.name}.new")
                    new.write_bytes(self._header)
                    new.replace(path)
                return os.open(path, os.O_RDWR)
        finally:
            os.close(folder)

    def _fits(self, path: Path) -> bool:
        with path.open("rb") as file:
            found = file.read(HEADER) == self._header
        if not found:
            _log.warning("%s is damaged, or of another encoder: it is made anew", path)
        return found

    def _take_in(self) -> None:
        """Read the whole records after those seen."""
        size = os.fstat(self._file).st_size
        count = (size - HEADER) // self._record.itemsize
        if count <= self._seen:
            return
        grown = self._mapped(count)
        for start in range(self._seen, count, CHUNK):
            records = np.array(grown[start : min(start + CHUNK, count)])
            good = [record["key"] != 0 and record["check"] == _check(record) for record in records]
            keys, places = records["key"][good], start + np.flatnonzero(good)
            keys, last = np.unique(keys[::-1], return_index=True)  # of a key that comes twice the later vector
            self._rows.put(keys, places[::-1][last])
        self._records, self._seen = grown, count

    def _mapped(self, count: int) -> NDArray[np.void]:
        """The first `count` > 0 records."""
        held = mmap.mmap(self._file, HEADER + count * self._record.itemsize, access=mmap.ACCESS_READ)
        return np.frombuffer(held, self._record, count, HEADER)


def _write(descriptor: int, data: bytes, at: int) -> None:
    left = memoryview(data)
    while left:
        written = os.pwrite(descriptor, left, at)
        left, at = left[written:], at + written


@contextmanager
def _alone(descriptor: int) -> Iterator[None]:
    """Hold a file against other processes, and other openings in this one."""
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    try:
        yield
    finally:
        fcntl.flock(descriptor, fcntl.LOCK_UN)


def _check(record: np.void) -> int:
    return zlib.crc32(record["vector"].tobytes()) ^ (int(record["key"]) & 0xFFFFFFFF)
