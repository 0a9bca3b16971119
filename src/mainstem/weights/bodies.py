"""The memory of one table: arrays by row and the slots that lead to them, private or where other processes map it."""

from __future__ import annotations

import fcntl
import os
import re
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.weights.blocks import Block, Column
from mainstem.weights.changing import FAMILIES, FREE, HIGH, LIVE, USED, Slab
from mainstem.weights.reader import View
from mainstem.weights.slots import PER_BUCKET, Slots, bits_for

__all__ = ["CLOSED", "DIM", "EPOCH", "FORMAT", "GENERATION", "HEADER", "MAGIC", "MOST", "VERSION", "Body", "Folder"]

MAGIC, VERSION, GENERATION, DIM, MOST, EPOCH = range(6)
"""Places in the header, uint64 [6], of a table in a folder (see `shared`)."""

HEADER = "table"
FORMAT = (int.from_bytes(b"mainstem", "little"), 1)
CLOSED = 2**64 - 1
_FILES = re.compile(r"(\.table|values|keys|slots)-[0-9a-f]{16}(-\d+)?")
_LEAST_STEP = 4096


class Folder:
    """A folder that holds the files of one table for its one writer. Raises StoreError where another has it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.mkdir(parents=True, exist_ok=True)
        self._lock = os.open(path / ".writer", os.O_RDWR | os.O_CREAT, 0o644)
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.close()
            raise StoreError(f"{path}: another process or table writes here; give each table its own folder") from None
        # a killed writer's table stays until this one's is announced: readers go on with it meanwhile
        self._epoch = time.time_ns()

    def next_epoch(self) -> int:
        self._epoch = max(self._epoch + 1, time.time_ns())
        return self._epoch

    def announce(self, epoch: int) -> None:
        """Make this epoch's table the one that readers find, and remove the files of others."""
        before = _writable_header(self.path / HEADER)
        os.replace(self.path / f".table-{epoch:016x}", self.path / HEADER)
        if before is not None:
            before[GENERATION] = CLOSED
        for entry in self.path.iterdir():
            if _FILES.fullmatch(entry.name) and f"-{epoch:016x}" not in entry.name:
                entry.unlink(missing_ok=True)

    def close(self) -> None:
        """Let another writer have it."""
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def __del__(self) -> None:
        if hasattr(self, "_lock"):
            self.close()


class Body:
    """Rows and slots with room for `count` keys at first. `view` is what readers look at."""

    def __init__(self, dim: int, width: int, most: int, checked: bool, folder: Folder | None, count: int) -> None:
        self.most, self._dim, self._checked, self._folder = most, dim, checked, folder
        self._epoch = folder.next_epoch() if folder else 0
        self._columns = {
            "values": Column(most, (dim,), np.float32, self._path("values")),
            "keys": Column(most, (), np.uint64, self._path("keys")),
            "state": Column(most, (width,), np.float32),
            "seen": Column(most, (), np.uint32),
            "family": Column(most, (), np.uint8),
            "marks": Column(most, (), np.uint8),
        }
        self._free = Column(most, (), np.int64)
        self._header = self._first_header()
        self._nothing = np.zeros(dim, np.float32)
        self.bound = 0
        bits = bits_for(count)
        self._slots = Slots(self._block(bits), bits)
        self._header[GENERATION] = self._slots.bits
        arrays = {name: column.array for name, column in self._columns.items()}
        self.slab = Slab(
            words=self._slots.words,
            halves=self._slots.halves,
            row_keys=arrays["keys"],
            values=arrays["values"],
            state=arrays["state"],
            seen=arrays["seen"],
            family=arrays["family"],
            marks=arrays["marks"],
            free=self._free.array,
            tally=np.zeros(FAMILIES + 256, np.int64),
        )
        self.view = self._look()
        self.extend(count)

    @property
    def bits(self) -> int:
        return self._slots.bits

    @property
    def limit(self) -> int:
        """Keys that the slots hold before they must grow."""
        return (PER_BUCKET - 1) << self._slots.bits

    @property
    def high(self) -> int:
        return int(self.slab.tally[HIGH])

    def extend(self, rows: int) -> None:
        """Take memory for `rows` rows and some more. Raises StoreError where it cannot be had."""
        if rows > self.most:
            raise StoreError(
                f"the table is full: {self.most} rows; give it a larger most_rows, or families that expire or have a "
                "capacity"
            )
        if rows <= self.bound:
            return
        bound = min(self.most, max(rows, self.bound + max(_LEAST_STEP, self.bound // 16)))
        for column in self._columns.values():
            column.use(bound)
        self._free.use(bound)
        self.bound = bound

    def grow_slots(self) -> None:
        """Twice the buckets; readers that are in the old ones find out and look again."""
        old = self._slots
        self._slots = old.regrown(self._block(old.bits + 1), old.bits + 1)
        self.slab = self.slab._replace(words=self._slots.words, halves=self._slots.halves)
        self.view = self._look()
        self._header[GENERATION] = self._slots.bits
        if old.block.path is not None:
            old.block.path.unlink()

    def fill(self, keys: Keys) -> None:
        """Rows 0 to n - 1 for keys [n] of an empty table; distinct, not 0."""
        self.slab.tally[LIVE] = self.slab.tally[HIGH] = len(keys)
        self.slab.row_keys[: len(keys)] = keys
        self.slab.marks[: len(keys)] = USED
        self._slots.fill(self.slab.row_keys[: len(keys)])

    def announce(self) -> None:
        """From now on other processes find this one."""
        if self._folder is not None:
            self._folder.announce(self._epoch)

    def retire(self) -> None:
        """Readers that are in it shall look again."""
        self._header[GENERATION] = CLOSED

    def bytes_by_part(self) -> dict[str, int]:
        """Bytes written so far."""
        parts = {name: self.high * column.row_bytes for name, column in self._columns.items()}
        return {**parts, "free": 8 * int(self.slab.tally[FREE]), "slots": 64 << self.bits}

    def _look(self) -> View:
        slab = self.slab
        return View(
            slots=self._slots.address,
            bits=self._slots.bits,
            values=self._columns["values"].block.address,
            row_keys=self._columns["keys"].block.address,
            nothing=self._nothing.ctypes.data,
            width=4 * self._dim,
            checked=self._checked,
            generation=self._header[GENERATION : GENERATION + 1],
            held=(slab.words, slab.values, slab.row_keys, self._nothing),
        )

    def _path(self, name: str) -> Path | None:
        return None if self._folder is None else self._folder.path / f"{name}-{self._epoch:016x}"

    def _block(self, bits: int) -> Block:
        path = self._path("slots")
        return Block(64 << bits, path and path.with_name(f"{path.name}-{bits}"))

    def _first_header(self) -> NDArray[np.uint64]:
        path = self._path(".table")
        block = Block(8 * 6, path)
        block.use(8 * 6)
        header: NDArray[np.uint64] = block.bytes.view(np.uint64)
        header[:] = (*FORMAT, 0, self._dim, self.most, self._epoch)
        return header


def _writable_header(path: Path) -> NDArray[np.uint64] | None:
    """The header that a folder has now, None where there is none that could have readers."""
    try:
        header = np.memmap(path, np.uint64, "r+", shape=(6,))
    except (FileNotFoundError, ValueError):
        return None
    return header if int(header[MAGIC]) == FORMAT[0] else None
