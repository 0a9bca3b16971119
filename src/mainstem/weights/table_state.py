"""Checks of what a table loads: a snapshot may be of another table, or damaged."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import NO_KEY
from mainstem.schema.protocols import Floats
from mainstem.weights.table import SERVED, Arrays

__all__ = ["checked_state", "finite"]

_CHUNK = 65_536


def checked_state(state: Arrays, dim: int, width: int, families: int, cells: int) -> dict[str, NDArray[Any]]:
    """All arrays of `SlabTable.state`, those that are missing beside keys and values as a new table has them.

    Raises StoreError where one does not fit a table of this shape, or some but not all of the others are there.
    """
    missing = [name for name in SERVED if name not in state]
    if missing:
        raise StoreError(f"the state of a table lacks {' and '.join(missing)}")
    n = len(np.atleast_1d(state["keys"]))
    wanted: dict[str, tuple[Any, tuple[int, ...]]] = {
        "keys": (np.uint64, (n,)),
        "values": (np.float32, (n, dim)),
        "optimizer": (np.float32, (n, width)),
        "family": (np.uint8, (n,)),
        "seen": (np.uint32, (n,)),
        "sights": (np.uint8, (4, cells)),
        "hands": (np.uint64, (1 + families,)),
        "counters": (np.uint64, (3,)),
    }
    present = [name for name in wanted if name in state]
    if len(present) not in (len(SERVED), len(wanted)):
        lacking = [name for name in wanted if name not in state]
        raise StoreError(f"the state of a table lacks {', '.join(lacking)}; keys and values alone would do")
    full = {}
    for name, (kind, shape) in wanted.items():
        array = np.asarray(state[name]) if name in state else np.zeros(shape, kind)
        if array.dtype != kind or array.shape != shape:
            raise StoreError(
                f"table of dim {dim}, {width} numbers of optimizer state, {families} families, {cells} cells: "
                f"{name} is {array.dtype} {list(array.shape)}, not {np.dtype(kind)} {list(shape)}"
            )
        full[name] = array
    if (full["keys"] == NO_KEY).any() or len(np.unique(full["keys"])) != n:
        raise StoreError("table: a key is 0 or is there twice")
    if n and int(full["family"].max()) >= families:
        raise StoreError(f"table of {families} families: a row is of family {int(full['family'].max())}")
    if not finite(full["values"]) or not finite(full["optimizer"]):
        raise StoreError("table: a value or a number of optimizer state is not finite")
    return full


def finite(values: Floats) -> bool:
    """Whether all of float32 [n, width] is finite, without as large an array beside it."""
    return all(bool(np.isfinite(values[start : start + _CHUNK]).all()) for start in range(0, len(values), _CHUNK))
