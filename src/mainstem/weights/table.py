"""What every embedding table offers: its own row for every 64-bit key, and that row's optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["Arrays", "Rows", "Table"]

Rows = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]


class Table(Protocol):
    """A collisionless table: no two keys share a row. Key 0 (`NO_KEY`) never has one.

    A key without a row reads the default row, zeros, in training and in serving alike. Row numbers stay put
    until their key is deleted or the table is loaded anew. One thread at a time may change it.
    """

    dim: int

    def __len__(self) -> int:
        """Keys that have a row."""
        ...

    def find(self, keys: Keys) -> Rows:
        """Row of each key [n]; -1 where it has none."""
        ...

    def find_or_create(self, keys: Keys) -> Rows:
        """Row of each key [n], made where missing; -1 for key 0. A new row depends on the key alone."""
        ...

    def gather(self, rows: Rows) -> Floats:
        """Copies of rows [n] -> float32 [n, dim]; -1 gives the default row."""
        ...

    def update(self, rows: Rows, gradients: Floats, learning_rate: float) -> None:
        """One optimizer step for rows [n] with gradients [n, dim]; -1 is skipped.

        Raises ValueError, changing nothing, where a row is named twice or is not in use.
        """
        ...

    def delete(self, keys: Keys) -> int:
        """Forget these keys with their optimizer state; how many had a row."""
        ...

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        """Every key and its row, in chunks, in no stated order."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays in an order that depends on the keys alone: equal contents, equal arrays."""
        ...

    def load(self, state: Arrays) -> None:
        """Replace everything by what `state` returned. Raises StoreError where it does not fit."""
        ...
