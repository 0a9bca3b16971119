"""Checks of what callers ask of a table, the same for every implementation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import NO_KEY, Keys
from mainstem.schema.protocols import Floats
from mainstem.weights.family import Family
from mainstem.weights.table_state import finite

__all__ = ["LATEST", "check_settings", "seconds", "sights_of", "values_of"]

LATEST = 2**32 - 1
"""The last second of the clock of rows."""


def check_settings(dim: int, families: Sequence[Family], seed: int, most_rows: int, most: int) -> None:
    """Raises ValueError for settings that cannot be. most: rows that the implementation can number."""
    if dim < 1:
        raise ValueError(f"dim must be at least 1, not {dim}")
    if not 1 <= len(families) <= 256 or len({family.name for family in families}) < len(families):
        raise ValueError("a table needs 1 to 256 families, each with a name of its own")
    if not 1 <= most_rows <= most:
        raise ValueError(f"most_rows must be 1 to {most}, not {most_rows}")
    if not 0 <= seed < 1 << 64:
        raise ValueError(f"seed must be 0 to 2^64 - 1, not {seed}")


def seconds(time: int) -> int:
    """Event time in ms by the clock of rows. Raises ValueError where that cannot say it."""
    if not 0 <= time // 1000 <= LATEST:
        raise ValueError(f"time {time} ms lies outside 1970 to 2106")
    return time // 1000


def sights_of(sights: NDArray[np.int64] | None, n: int) -> NDArray[np.int64] | None:
    """The same sights, int64 [n]. Raises ValueError where they do not fit n keys or one is below 1."""
    if sights is None:
        return None
    sights = np.ascontiguousarray(sights, np.int64)
    if sights.shape != (n,) or (n and sights.min() < 1):
        raise ValueError(f"sights must be [{n}], each 1 or more")
    return sights


def values_of(keys: Keys, values: Floats, dim: int) -> Floats:
    """The same values to write, C-contiguous float32 [n, dim]. Raises ValueError where they do not fit keys [n], one is
    not finite, or a key is 0 or named twice."""
    values = np.require(values, np.float32, ["C", "A", "W"])
    if values.shape != (len(keys), dim):
        raise ValueError(f"values must be [{len(keys)}, {dim}], not {list(values.shape)}")
    if (keys == NO_KEY).any() or len(np.unique(keys)) < len(keys):
        raise ValueError("keys to write must be distinct and not 0")
    if not finite(values):
        raise ValueError("values to write must be finite")
    return values
