"""Who is erased, without saying so: keyed hashes of names, with the time of the erasure and how far it reaches.

A *tombstone* holds the 128-bit BLAKE2b digest of (tenant, family, id) under a secret key, so nobody without the key
can try out names. A record of that name is erased where it lies before the offset `upto` in the log; a record that
arrives later is refused where its time is not after `time`. What happens after that is a new start of the name.

The folder lies beside the log, not in it, so that an old copy of the log does not bring the erased back:

    key              32 random bytes, readable by the owner alone
    tombstones.bin   16 bytes: magic, then the first 8 of the digest of "mainstem" under the key; then entries
    entry, 40 bytes  digest [16], int64 time (ms), uint64 upto, uint32 1 for a user else 0, uint32 CRC-32 of the 36

Entries are only ever added, little-endian; of one digest the last `upto` and the greatest `time` count. A torn entry
at the end, as a crash leaves it, is cut off.
"""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from threading import Lock
from typing import NamedTuple

from mainstem.eventlog.dedup import durably, sync_folder
from mainstem.eventlog.forgetting import USER, Name, forgotten, guest_in
from mainstem.schema.errors import StoreError
from mainstem.schema.records import Erase, Event, LogRecord

__all__ = ["Entry", "TombstoneFile", "Tombstones"]

_MAGIC = b"MSERASE\x01"
_HEADER = 16
_ENTRY = struct.Struct("<16sqQI")
_SIZE = _ENTRY.size + 4
_NEVER = -(2**63)
_CACHED = 1 << 18  # names whose digest is remembered, in memory


class Entry(NamedTuple):
    """One step of erasing: of the name with this digest, everything before the offset `upto`."""

    digest: bytes
    time: int
    upto: int
    user: bool


class Tombstones:
    """Those of one log, in memory. Looking up is safe beside one thread that adds."""

    def __init__(self, key: bytes) -> None:
        self.key = key
        self.entries: list[Entry] = []
        self._known: dict[bytes, Entry] = {}
        self._cache: dict[Name, Entry | None] = {}
        self.reach = 0
        """No record from this offset on is erased."""
        self.latest = _NEVER
        """No record of a later time than this is refused."""
        self.of_entities = False
        """Is any of them not of a user?"""

    def __len__(self) -> int:
        return len(self._known)

    def digest(self, name: Name) -> bytes:
        text = "\x1f".join(name).encode()
        return hashlib.blake2b(text, key=self.key, digest_size=16).digest()

    def add(self, entry: Entry) -> None:
        before = self._known.get(entry.digest)
        self._known[entry.digest] = entry._replace(time=max(entry.time, before.time)) if before else entry
        self._cache = {}
        self.latest = max(self.latest, entry.time)
        self.of_entities = self.of_entities or not entry.user
        self.entries.append(entry)
        self.reach = max(self.reach, entry.upto)

    @property
    def key_number(self) -> int:
        """Tells this key from others, and says nothing of it."""
        return int.from_bytes(_check(self.key)[:7], "little")

    def cut_to(self, end: int) -> None:
        """The log ends at `end`: what is said to reach further was said of a log that has been replaced by an older
        copy, in which everything lies before the erasure."""
        for entry in list(self._known.values()):
            if entry.upto > end:
                self.add(entry._replace(upto=end))

    def entry_of(self, name: Name, upto: int, time: int) -> Entry:
        """A step that erases `name`; it is not added yet."""
        return Entry(self.digest(name), time, upto, name[1] == USER)

    def find(self, name: Name) -> Entry | None:
        """The tombstone of `name`."""
        cache = self._cache
        try:
            return cache[name]
        except KeyError:
            found = self._known.get(self.digest(name))
            if len(cache) >= _CACHED:
                cache.clear()
            cache[name] = found
            return found

    def read(self, record: LogRecord, offset: int) -> LogRecord:
        """What is left of the record at `offset` for those who read the log."""
        if offset >= self.reach:
            return record
        if type(record) is Event and not self._concerns(record, offset):  # most of a log
            return record
        return forgotten(record, lambda name: self.reaches(name, offset))

    def _concerns(self, event: Event, offset: int) -> bool:
        """As `forgotten` decides, for an event: its entity is looked up only where one of its kind may be erased."""
        if self.reaches((event.tenant, USER, event.user), offset):
            return True
        if event.entity is None or not (self.of_entities or event.entity_type == USER):
            return False
        return self.reaches((event.tenant, event.entity_type, event.entity), offset)

    def reaches(self, name: Name, offset: int) -> bool:
        """Is a record of `name` at `offset` erased?"""
        found = self.find(name)
        return found is not None and offset < found.upto

    def guest(self, record: LogRecord, offset: int) -> Erase | None:
        """The erasure of the guest that the record at `offset` joins to an erased user, unless one reaches it."""
        name = guest_in(record)
        if name is None or not isinstance(record, Event):
            return None
        user, guest = self.find((record.tenant, USER, record.user)), (record.tenant, USER, name)
        if user is None or offset >= user.upto or self.reaches(guest, offset):
            return None
        record_id = f"erase-{self.digest(guest).hex()}-{offset}"
        return Erase(record_id=record_id, time=user.time, user=name, tenant=record.tenant)

    def admitted(self, record: LogRecord, before: Mapping[Name, int]) -> LogRecord:
        """What is left of `record`, which arrives now; `before`: erasures of the same commit, with their times."""
        if isinstance(record, Erase):
            return record

        def gone(name: Name) -> bool:
            found = self.find(name)
            return record.time <= max(_NEVER if found is None else found.time, before.get(name, _NEVER))

        return forgotten(record, gone)


class TombstoneFile:
    """The folder on disk. One process writes it, the one that writes the log; any reads."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path, self._key_path = folder / "tombstones.bin", folder / "key"
        self._seen: tuple[int, int] | None = None
        self._lock = Lock()
        self._held = Tombstones(b"")

    def current(self) -> Tombstones:
        """What is on disk now; read again only where it changed. Empty where nothing was ever erased."""
        try:
            stat = self._path.stat()
        except FileNotFoundError:
            return self._held
        with self._lock:
            if self._seen != (stat.st_ino, stat.st_size):
                self._held = self._load()
                self._seen = (stat.st_ino, stat.st_size)
            return self._held

    def open(self) -> Tombstones:
        """For the writer: as `current`, with a key to hash by, which is on the disk once there are entries. Raises
        StoreError where the key does not fit the tombstones."""
        if not self._path.exists():
            return Tombstones(self._key_path.read_bytes() if self._key_path.exists() else os.urandom(32))
        held = self._load()
        whole = _HEADER + _SIZE * len(held.entries)
        if self._path.stat().st_size != whole:
            os.truncate(self._path, whole)
        return held

    def append(self, key: bytes, entries: Sequence[Entry]) -> None:
        """Durable on return; where the disk refuses, nothing of them stays."""
        if not self._path.exists():
            self._folder.mkdir(parents=True, exist_ok=True)
            sync_folder(self._folder.parent)
            self._write_key(key)
            durably(self._path, [_MAGIC, _check(key)])
        packed = [_ENTRY.pack(entry.digest, entry.time, entry.upto, entry.user) for entry in entries]
        with self._path.open("ab") as file:
            before = file.tell()
            try:
                file.write(b"".join(one + zlib.crc32(one).to_bytes(4, "little") for one in packed))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                os.truncate(self._path, before)
                raise

    def _write_key(self, key: bytes) -> None:
        temp = self._key_path.with_name("key.tmp")
        temp.unlink(missing_ok=True)
        made = os.open(temp, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        try:
            os.write(made, key)
            os.fsync(made)
        finally:
            os.close(made)
        temp.replace(self._key_path)
        sync_folder(self._folder)

    def _load(self) -> Tombstones:
        try:
            key = self._key_path.read_bytes()
        except FileNotFoundError:
            key = b""
        data = self._path.read_bytes()
        if not key or data[:_HEADER] != _MAGIC + _check(key):
            raise StoreError(
                f"{self._folder}: key and tombstones.bin do not belong together: put back the ones that do. Without "
                "them, remove the folder; it is made anew from the erasures that the log still names"
            )
        found = Tombstones(key)
        for at in range(_HEADER, len(data) - _SIZE + 1, _SIZE):
            packed, crc = data[at : at + _ENTRY.size], data[at + _ENTRY.size : at + _SIZE]
            if zlib.crc32(packed).to_bytes(4, "little") != crc:
                if at + 2 * _SIZE <= len(data):
                    raise StoreError(f"{self._path} is damaged at byte {at}: put back a whole copy")
                break
            digest, time, upto, user = _ENTRY.unpack(packed)
            found.add(Entry(digest, time, upto, bool(user)))
        return found


def _check(key: bytes) -> bytes:
    return hashlib.blake2b(b"mainstem", key=key, digest_size=8).digest()
