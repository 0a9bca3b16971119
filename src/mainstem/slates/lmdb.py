"""Kept slates in an LMDB folder: one process writes, the slates survive it.

Two trees. `slates`: place [32 bytes] -> time [8, big endian] + slate (MessagePack). `ages`: time [8] + place
[32] -> nothing, the order in which slates leave. Times are shifted by 2^63, so that bytes sort as numbers do.

`keep` answers from memory and is written with the next commit, once `BATCH` slates wait or `PATIENCE`
seconds have passed, and at `close`: a commit waits for the disk, which no request should. A killed
process loses at most those, never the store. What is forgotten leaves the trees at once; LMDB writes
over its pages when it needs them.
"""

from __future__ import annotations

import threading
from pathlib import Path
from time import monotonic

import lmdb
import msgspec

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import DEFAULT_TENANT
from mainstem.schema.records import Slate
from mainstem.schema.time import now_ms
from mainstem.slates.place import HALF, place_of, user_half

__all__ = ["LmdbSlates"]

BATCH = 256
PATIENCE = 1.0
# Address space, not disk: the file grows as it is filled.
MAP_SIZE = 1 << 34

_SHIFT = 1 << 63
_encode = msgspec.msgpack.Encoder().encode
_decode = msgspec.msgpack.Decoder(Slate).decode


def _bytes(time: int) -> bytes:
    return (time + _SHIFT).to_bytes(8, "big")


def _time(data: bytes) -> int:
    return int.from_bytes(data[:8], "big") - _SHIFT


class LmdbSlates:
    """A SlateStore in `folder`, which is made if absent. Raises StoreError where it cannot be opened."""

    def __init__(self, folder: str, *, capacity: int, keep_for: int) -> None:
        self.capacity = capacity
        self.keep_for = keep_for
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            self._env = lmdb.open(folder, map_size=MAP_SIZE, max_dbs=2, metasync=False)
            self._slates = self._env.open_db(b"slates")
            self._ages = self._env.open_db(b"ages")
        except (lmdb.Error, OSError) as error:
            raise StoreError(f"kept slates in {folder}: {error}") from error
        self._waiting: dict[bytes, tuple[int, Slate]] = {}
        self._committed = monotonic()
        self._lock = threading.Lock()
        self._closed = False

    def keep(self, tenant: str, canvas: str, user: str | None, slate: Slate, time: int) -> None:
        place = place_of(tenant, canvas, user)
        with self._lock:
            kept = self._find(place)
            if kept is not None and kept[0] > time:
                return
            self._waiting[place] = (time, slate)
            if len(self._waiting) >= BATCH or monotonic() - self._committed >= PATIENCE:
                self._commit()

    def get(self, tenant: str, canvas: str, user: str | None, max_age: int, time: int | None = None) -> Slate | None:
        time = now_ms() if time is None else time
        with self._lock:
            kept = self._find(place_of(tenant, canvas, user))
        return kept[1] if kept is not None and 0 <= time - kept[0] <= max_age else None

    def _find(self, place: bytes) -> tuple[int, Slate] | None:
        if (waiting := self._waiting.get(place)) is not None:
            return waiting
        with self._env.begin() as reader:
            data = reader.get(place, db=self._slates)
        return None if data is None else (_time(data), _decode(data[8:]))

    def forget(self, user: str, tenant: str = DEFAULT_TENANT) -> int:
        half = user_half(tenant, user)
        with self._lock:
            self._commit()
            gone = 0
            with self._env.begin(write=True) as writer, writer.cursor(self._slates) as cursor:
                found = cursor.set_range(half)
                while found and cursor.key()[:HALF] == half:
                    writer.delete(cursor.value()[:8] + cursor.key(), db=self._ages)
                    found = cursor.delete() and bool(cursor.key())
                    gone += 1
            return gone

    def expire(self, time: int) -> int:
        with self._lock:
            self._commit()
            return self._commit(time - self.keep_for)

    def _commit(self, before: int = -_SHIFT) -> int:
        """Write what waits, then drop the oldest while there are too many, and all made before `before`."""
        gone = 0
        with self._env.begin(write=True) as writer:
            for place, (time, slate) in self._waiting.items():
                old = writer.get(place, db=self._slates)
                if old is not None:
                    writer.delete(old[:8] + place, db=self._ages)
                writer.put(place, _bytes(time) + _encode(slate), db=self._slates)
                writer.put(_bytes(time) + place, b"", db=self._ages)
            excess = writer.stat(self._slates)["entries"] - self.capacity
            with writer.cursor(self._ages) as cursor:
                found = cursor.first()
                while found and (gone < excess or _time(cursor.key()) < before):
                    writer.delete(cursor.key()[8:], db=self._slates)
                    found = cursor.delete() and bool(cursor.key())
                    gone += 1
        self._waiting.clear()
        self._committed = monotonic()
        return gone

    def __len__(self) -> int:
        with self._lock:
            self._commit()
            with self._env.begin() as reader:
                return int(reader.stat(self._slates)["entries"])

    def close(self) -> None:
        """Write what waits and let go of the folder. Closing twice is allowed."""
        with self._lock:
            if not self._closed:
                self._commit()
                self._env.close()
                self._closed = True
