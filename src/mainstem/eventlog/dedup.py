"""Which ids the log holds: sorted 128-bit digests, looked up a batch at a time.

**The window is the whole log.** An id is refused for as long as the log is kept, however many records came
between. Two different ids meet in a digest with probability n^2 / 2^129: below 1e-22 at 10^8 records.

Digests of the newest records, not yet sealed, are in memory (16 bytes each, at most about `seal_rows` of
them) and are read back from SQLite on opening. Those of sealed ranges are files beside the history,
mapped, so that they cost page cache and no start-up time. Both are merged as they grow, as a log-structured
merge tree does (O'Neil et al., 1996), so a look-up visits a few runs, whatever the log's length.

File `ids-FIRST-LAST.bin`: 8 bytes magic, then little-endian uint64 count, FIRST, LAST (offsets, LAST
exclusive), then uint64 high[count] ascending, then uint64 low[count].
"""

from __future__ import annotations

import itertools
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError

__all__ = ["IdRun", "Ids", "durably", "publish", "sync_folder"]

_MAGIC = b"MSIDS\x01\0\0"
_HEADER = 32
_NAME = re.compile(r"^ids-(\d{20})-(\d{20})\.bin$")
# This many files of one size class become one of the next, up to _LARGEST digests (128 MB, twice that while merging).
_FAN, _LARGEST = 8, 8_000_000
_FRESH = 4096

U64 = NDArray[np.uint64]


def durably(path: Path, parts: Sequence[bytes]) -> None:
    """Write `path` so that it is whole or absent after a crash: temp name, fsync, rename, fsync of the folder."""
    temp = path.with_name(path.name + ".tmp")
    with temp.open("wb") as file:
        file.writelines(parts)
        file.flush()
        os.fsync(file.fileno())
    publish(temp, path)


def publish(temp: Path, path: Path) -> None:
    """Rename the synced `temp` to `path`, durably."""
    temp.replace(path)
    sync_folder(path.parent)


def sync_folder(path: Path) -> None:
    """Make what was created or renamed in the folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@dataclass(frozen=True, slots=True, eq=False)
class IdRun:
    """The digests of offsets `first` to `last` (exclusive): high uint64 [n] ascending, low uint64 [n]."""

    first: int
    last: int
    high: U64
    low: U64

    def __len__(self) -> int:
        return len(self.high)

    @classmethod
    def of(cls, first: int, last: int, digests: bytes) -> IdRun:
        """From n digests of 16 bytes, back to back, in any order."""
        pairs = np.frombuffer(digests, "<u8").reshape(-1, 2)
        order = np.argsort(pairs[:, 0])
        return cls(first, last, pairs[order, 0], pairs[order, 1])

    @classmethod
    def merged(cls, runs: Sequence[IdRun]) -> IdRun:
        """One run of all; the offsets they cover must touch."""
        high = np.concatenate([run.high for run in runs])
        order = np.argsort(high, kind="stable")  # timsort: linear merging of what is sorted already
        return cls(runs[0].first, runs[-1].last, high[order], np.concatenate([run.low for run in runs])[order])

    def contains(self, high: U64, low: U64) -> NDArray[np.bool_]:
        """Mask [m] of the digests (high [m], low [m]) that are in the run; ascending `high` is fastest."""
        found = np.zeros(len(high), np.bool_)
        if not len(self):
            return found
        at = np.searchsorted(self.high, high)
        pending = np.arange(len(high))
        while len(pending):  # once, but for digests whose high halves are equal
            pending = pending[at[pending] < len(self.high)]
            pending = pending[self.high[at[pending]] == high[pending]]
            found[pending] = self.low[at[pending]] == low[pending]
            pending = pending[~found[pending]]
            at[pending] += 1
        return found

    def save(self, folder: Path) -> IdRun:
        """Write the file durably and return the run that maps it."""
        path = folder / f"ids-{self.first:020d}-{self.last:020d}.bin"
        head = _MAGIC + b"".join(n.to_bytes(8, "little") for n in (len(self), self.first, self.last))
        durably(path, [head, self.high.astype("<u8").tobytes(), self.low.astype("<u8").tobytes()])
        return IdRun.load(path)

    @classmethod
    def load(cls, path: Path) -> IdRun:
        """Map the file at `path`. Raises StoreError where it is damaged."""
        with path.open("rb") as file:
            head = file.read(_HEADER)
        count, first, last = (int.from_bytes(head[i : i + 8], "little") for i in (8, 16, 24))
        if head[:8] != _MAGIC or path.stat().st_size != _HEADER + 16 * count:
            raise StoreError(f"{path} is damaged; remove it, and it is made anew from the history")
        halves = np.memmap(path, "<u8", "r", offset=_HEADER, shape=(2, count)) if count else np.zeros((2, 0), "<u8")
        return cls(first, last, halves[0].view(np.ndarray), halves[1].view(np.ndarray))

    def remove(self, folder: Path) -> None:
        (folder / f"ids-{self.first:020d}-{self.last:020d}.bin").unlink(missing_ok=True)


class Ids:
    """All ids of one log. Not thread-safe: the log's writer lock guards it."""

    def __init__(self, folder: Path, align: int) -> None:
        """`folder` holds the files; runs in memory do not cross multiples of `align` offsets, where ranges end."""
        self._folder = folder
        self._align = align
        self._sealed: list[IdRun] = []
        self._open: list[IdRun] = []
        self._fresh: dict[bytes, None] = {}
        self._fresh_first = 0

    def load(self, sealed: int) -> int:
        """Map the files below offset `sealed`; up to which offset they reach without a gap (make the rest anew).

        Leftovers of a crash go: temporary names, files past `sealed`, files that a merged one covers.
        """
        self._folder.mkdir(parents=True, exist_ok=True)
        self._sealed, self._open, self._fresh = [], [], {}
        spans: list[tuple[int, int, Path]] = []
        for path in self._folder.iterdir():
            if match := _NAME.match(path.name):
                spans.append((int(match[1]), int(match[2]), path))
            else:
                path.unlink(missing_ok=True)
        reach = 0
        for first, last, path in sorted(spans, key=lambda span: (span[0], -span[1])):
            if last > sealed or first < reach:
                path.unlink(missing_ok=True)
            elif first == reach:
                self._sealed.append(IdRun.load(path))
                reach = last
        return reach

    def known(self, digests: Sequence[bytes]) -> NDArray[np.bool_]:
        """Mask [n] of the digests that the log holds."""
        found = np.zeros(len(digests), np.bool_)
        if not digests:
            return found
        if self._fresh:
            found[:] = [digest in self._fresh for digest in digests]
        if not self._sealed and not self._open:
            return found
        pairs = np.frombuffer(b"".join(digests), "<u8").reshape(-1, 2)
        order = np.argsort(pairs[:, 0])
        high, low = pairs[order, 0], pairs[order, 1]
        hit = np.zeros(len(digests), np.bool_)
        for run in (*self._sealed, *self._open):
            hit |= run.contains(high, low)
        found[order] |= hit
        return found

    def add(self, first: int, digests: Sequence[bytes]) -> None:
        """Remember the digests of the records at offsets `first`, `first + 1` ..."""
        while digests:
            room = self._align - first % self._align
            part, digests = digests[:room], digests[room:]
            if not self._fresh:
                self._fresh_first = first
            self._fresh.update(dict.fromkeys(part))
            first += len(part)
            if len(self._fresh) >= _FRESH or first % self._align == 0:
                self._settle(first)

    def seal(self, run: IdRun) -> None:
        """The range of `run`, which is saved, is sealed: its digests leave memory."""
        self._sealed.append(run)
        self._open = [kept for kept in self._open if kept.last > run.last]

    def mergeable(self) -> list[IdRun]:
        """Sealed runs, the newest, that should become one; empty where none should."""
        for tier in range(1, 10):
            size = 1000 * _FAN**tier
            tail = list(itertools.takewhile(lambda run: len(run) < size, reversed(self._sealed)))[::-1]  # noqa: B023
            if len(tail) >= _FAN:
                return tail if sum(map(len, tail)) <= _LARGEST else []
        return []

    def replace(self, parts: Sequence[IdRun], merged: IdRun) -> None:
        """`merged`, which is saved, stands for `parts` from now on; their files go."""
        at = self._sealed.index(parts[0])
        self._sealed[at : at + len(parts)] = [merged]
        for part in parts:
            part.remove(self._folder)

    def _settle(self, last: int) -> None:
        """Turn the fresh digests into a run, and merge runs of like size within a range."""
        self._open.append(IdRun.of(self._fresh_first, last, b"".join(self._fresh)))
        self._fresh = {}
        group = last - 1 - (last - 1) % self._align
        # Sizes at least halve from run to run, so a range has at most log2 of its length runs.
        while len(self._open) > 1 and self._open[-2].first >= group and len(self._open[-2]) < 2 * len(self._open[-1]):
            self._open[-2:] = [IdRun.merged(self._open[-2:])]
