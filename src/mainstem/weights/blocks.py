"""Memory that grows in place: address space is reserved once, pages are taken as rows come."""

from __future__ import annotations

import errno
import mmap
import os
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError

__all__ = ["Block", "Column", "map_file"]

_HUGE = 1 << 21
_STEP = 1 << 24
"""Bytes of a file that are allocated at once: a full file system is met here, as an error, not as a signal later."""

_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if os.uname().sysname == "Linux" else 0)


class Block:
    """`size` bytes of zeros, private to the process, or in `path` where other processes can map them.

    Address space is reserved at once, memory is not: it is taken where it is written. `use(n)` must come before the
    first n bytes are; it asks for huge pages where that pays and allocates the file's part.
    Raises StoreError where the system refuses, saying what to set.
    """

    def __init__(self, size: int, path: Path | None = None) -> None:
        self.size, self.path = size, path
        self._used = 0
        self._file = -1
        length = -(-max(size, 1) // _HUGE) * _HUGE
        try:
            if path is None:
                flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE
                # one huge page more than needed, so that the start can lie on the border of one
                self._map = mmap.mmap(-1, length + _HUGE, flags=flags)
            else:
                self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)
                os.ftruncate(self._file, length)
                self._map = mmap.mmap(self._file, length, flags=mmap.MAP_SHARED)
        except (OSError, ValueError, OverflowError) as error:
            where = f" for {path}" if path else ""
            raise StoreError(
                f"the system refuses {length / 2**30:.2f} GiB of address space{where} ({error}): "
                "lower most_rows, raise `ulimit -v`, or set vm.overcommit_memory to 0 or 1"
            ) from error
        whole: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self._offset = -whole.ctypes.data % _HUGE if path is None else 0
        self.bytes = whole[self._offset : self._offset + size]
        self.address = int(whole.ctypes.data) + self._offset

    def __del__(self) -> None:
        if getattr(self, "_file", -1) >= 0:
            os.close(self._file)

    def use(self, size: int) -> None:
        """The first `size` bytes will be written."""
        if size <= self._used:
            return
        if size > self.size:
            raise StoreError(f"{size} bytes asked of a block of {self.size}")
        step = _STEP if self.path is not None else max(_STEP, self._used)
        end = min(-(-size // step) * step, -(-self.size // _HUGE) * _HUGE)
        if self.path is not None:
            self._allocate(end)
        elif end > 2 * _HUGE and hasattr(mmap, "MADV_HUGEPAGE"):
            # small tables stay on small pages: a dozen blocks of one huge page each would cost more than they hold
            start = max(self._used, 2 * _HUGE)
            self._map.madvise(mmap.MADV_HUGEPAGE, self._offset + start, end - start)
        self._used = end if end > 2 * _HUGE or self.path is not None else size

    def _allocate(self, end: int) -> None:
        try:
            os.posix_fallocate(self._file, self._used, end - self._used)
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise StoreError(
                f"{self.path}: no space for {end >> 20} MiB; free some, or give the table another folder"
            ) from error


class Column:
    """An array [rows, *shape] over a block, for at most `most` rows."""

    def __init__(self, most: int, shape: tuple[int, ...], dtype: Any, path: Path | None = None) -> None:
        kind = np.dtype(dtype)
        self.row_bytes = kind.itemsize * int(np.prod(shape, dtype=np.int64))
        self.block = Block(most * self.row_bytes, path)
        self.array: NDArray[Any] = self.block.bytes.view(kind).reshape(most, *shape)

    def use(self, rows: int) -> None:
        self.block.use(rows * self.row_bytes)


def map_file(path: Path) -> NDArray[np.uint8]:
    """The bytes of a file that another process writes, to read. Raises FileNotFoundError where there is none,
    StoreError where it cannot be mapped."""
    with path.open("rb") as file:
        try:
            memory = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_SHARED, prot=mmap.PROT_READ)
        except (OSError, ValueError) as error:
            raise StoreError(f"{path} cannot be mapped: {error}") from error
        return np.frombuffer(memory, np.uint8)
