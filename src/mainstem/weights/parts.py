"""Work of compiled loops cut into parts, one a thread.

One setting rules all threads of the process: `torch.set_num_threads(k)`. A compiled loop takes as many, while torch's
own wait. numba makes its threads on first use, at most `NUMBA_NUM_THREADS` (default: the cores); where it finds no
OpenMP or TBB library it has a plain pool that two callers at once would break, so one caller at a time may cut its
work, and whoever comes meanwhile does its own in one piece. A forked child must not use them, nor torch's.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar, cast

import numba
import numpy as np
import torch

from mainstem.schema.keyrows import compiled

__all__ = ["compiled_in_parts", "owner", "parts"]

Function = TypeVar("Function", bound=Callable[..., Any])

_held = threading.Lock()


def compiled_in_parts(function: Function) -> Function:
    """`schema.keyrows.compiled` for a function that loops over its parts by `numba.prange`."""
    try:
        return cast(Function, numba.njit(cache=True, nogil=True, parallel=True)(function))
    except RuntimeError:  # no folder to keep it in
        return cast(Function, numba.njit(nogil=True, parallel=True)(function))


@compiled
def owner(mixed: np.uint64, count: int) -> np.int64:
    """Which of `count` parts a well mixed number falls to, by its upper half: even shares, without a division."""
    return np.int64(((mixed >> np.uint64(32)) * np.uint64(count)) >> np.uint64(32))


@contextmanager
def parts(pieces: int, least: int) -> Iterator[int]:
    """How many parts to cut `pieces` into, while the threads are this caller's: 1 unless each gets `least`.

    With 1 the caller calls its loop directly, without `prange`.
    """
    most: int = numba.config.NUMBA_NUM_THREADS  # type: ignore[attr-defined]
    count = min(torch.get_num_threads(), most, pieces // least)
    if count < 2 or not _held.acquire(blocking=False):
        yield 1
        return
    of_torch = torch.get_num_threads()  # before numba is asked: its first answer starts its threads
    before = numba.get_num_threads()
    try:
        numba.set_num_threads(count)
        yield count
    finally:
        numba.set_num_threads(before)
        # where both use the same OpenMP library, numba's first use of its threads changes torch's number too
        if torch.get_num_threads() != of_torch:
            torch.set_num_threads(of_torch)
        _held.release()
