"""Who reads a table's rows: over the newest view of it, in as many parts as pay, again where a writer was faster.

The loops are in `reading`. They say how far they came; a reader waits for a writer in the middle of a row, and looks
anew where the table has grown meanwhile.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.weights import reading
from mainstem.weights.parts import parts
from mainstem.weights.table import Rows

__all__ = ["Reader", "View", "as_keys", "as_rows"]

_LEAST = 4096  # keys a thread must get: below, waking it costs more than it saves
_STREAM = 4 << 20  # bytes of output from which stores go past the caches, which could not hold it
_WAIT = 0.0002

_Loop = Callable[..., Any]


class View(NamedTuple):
    """What a reader looks at. Addresses stay good while `held` lives.

    bits: of the slots, and their number: they only grow, and `generation[0]` says which are the newest.
    checked: whether a writer may be at work.
    """

    slots: int
    bits: int
    values: int
    row_keys: int
    nothing: int
    width: int
    checked: bool
    generation: NDArray[np.uint64]
    held: tuple[Any, ...]


class Reader:
    """find, gather and read over whatever `look` says is the newest view. Any number of threads may use it.

    patience: seconds that a read waits for a writer that is in the middle of a row; then it raises StoreError, as only
    a writer that was killed there takes so long.
    """

    def __init__(self, dim: int, look: Callable[[], View], patience: float = 1.0) -> None:
        self._dim, self._look, self._patience = dim, look, patience

    def find(self, keys: Keys) -> Rows:
        keys = as_keys(keys)
        rows: Rows = np.empty(len(keys), np.int64)
        self._run(len(keys), reading.find, reading.find_parts, lambda v: (v.slots, v.bits, v.checked, keys, rows))
        return rows

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        keys = as_keys(keys)
        out, stream = self._output(len(keys), out)

        def given(view: View) -> tuple[Any, ...]:
            return (view.slots, view.bits, view.values, view.width, view.nothing, view.checked, stream, keys, out)

        self._run(len(keys), reading.read, reading.read_parts, given)
        return out

    def gather(self, rows: Rows, out: Floats | None, bound: int) -> Floats:
        rows = as_rows(rows)
        if len(rows) and (rows.max() >= bound or rows.min() < -1):
            raise ValueError(f"rows must lie in -1 .. {bound - 1}")
        out, stream = self._output(len(rows), out)

        def given(view: View) -> tuple[Any, ...]:
            places = (view.slots, view.bits, view.values, view.row_keys, view.width, view.nothing)
            return (*places, view.checked, stream, rows, out)

        self._run(len(rows), reading.gather, reading.gather_parts, given)
        return out

    def _output(self, n: int, out: Floats | None) -> tuple[Floats, bool]:
        """The array to fill, and whether to fill it past the caches."""
        if out is None:
            out = np.empty((n, self._dim), np.float32)
        elif out.dtype != np.float32 or out.shape != (n, self._dim) or not out.flags.carray:
            raise ValueError(f"out must be a writable C-contiguous float32 array [{n}, {self._dim}]")
        stream = out.nbytes >= _STREAM and self._dim % 16 == 0 and out.ctypes.data % 16 == 0
        return out, stream

    def _run(self, n: int, serial: _Loop, parallel: _Loop, given: Callable[[View], tuple[Any, ...]]) -> None:
        """Run a loop over n places, again until it has done all of them over one view that is the newest afterwards."""
        give_up = 0.0
        while True:
            view = self._look()
            done = _ran(n, serial, parallel, given(view))
            if not view.checked or (done and int(view.generation[0]) == view.bits):
                return
            now = time.monotonic()
            give_up = give_up or now + self._patience
            if now > give_up:
                raise StoreError("a table's writer stopped in the middle of a row: start it again, from a snapshot")
            time.sleep(_WAIT)


def _ran(n: int, serial: _Loop, parallel: _Loop, given: tuple[Any, ...]) -> bool:
    """Run a loop over n places, in parts where that pays; whether it came to the end."""
    if n < 2 * _LEAST:
        return bool(serial(*given, 0, n) == n)
    with parts(n, _LEAST) as count:
        if count > 1:
            reached = np.zeros(count, np.int64)
            parallel(*given, count, reached)
            return all(reached[part] == n * (part + 1) // count for part in range(count))
    return bool(serial(*given, 0, n) == n)


def as_keys(keys: Keys) -> Keys:
    """The same keys as compiled code takes them. Raises TypeError unless they are uint64 [n]."""
    # a silent cast from float or a signed type would find other keys' rows
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.ndim != 1:
        raise TypeError("keys must be a uint64 array [n]")
    # read-only arrays are another type to numba, which would compile a second variant in the middle of a request
    return keys if keys.flags.carray else np.array(keys)


def as_rows(rows: Rows) -> Rows:
    """The same rows, int64 [n], as compiled code takes them."""
    rows = np.asarray(rows)
    if rows.ndim != 1 or (rows.dtype.kind not in "iu" and len(rows)):
        raise TypeError("rows must be an integer array [n]")
    return rows if rows.dtype == np.int64 and rows.flags.carray else np.array(rows, np.int64)
