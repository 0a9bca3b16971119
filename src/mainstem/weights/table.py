"""What every embedding table offers: its own row for every 64-bit key, and that row's optimizer state."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.weights.family import Family

__all__ = ["SERVED", "Arrays", "Changes", "Memory", "Rows", "Table"]

Rows = NDArray[np.int64]
Arrays = Mapping[str, NDArray[Any]]

SERVED = ("keys", "values")
"""The arrays of `Table.state` that serving needs; the others are for training to go on."""


@dataclass(frozen=True, slots=True)
class Changes:
    """What happened since changes were last taken: keys whose rows were written (and are there), keys that lost
    theirs (and have none now). uint64 [n] and [m], ascending, disjoint."""

    touched: Keys
    deleted: Keys

    @classmethod
    def merged(cls, parts: Sequence[Changes]) -> Changes:
        """Those of stretches one after the other: what happened to a key last counts."""
        runs = [keys for part in parts for keys in (part.deleted, part.touched)]
        keys: Keys = np.concatenate([np.zeros(0, np.uint64), *runs])
        written = np.repeat(np.arange(len(runs)) % 2 == 1, np.array([len(run) for run in runs], np.int64))
        unique, last = np.unique(keys[::-1], return_index=True)
        there = written[::-1][last]
        return cls(unique[there], unique[~there])


@dataclass(frozen=True, slots=True)
class Memory:
    """Bytes that a table takes, by what for; `predicted` is the documented formula for so many rows."""

    rows: int
    parts: dict[str, int]
    predicted: int

    @property
    def total(self) -> int:
        return sum(self.parts.values())


class Table(Protocol):
    """A collisionless table: no two keys share a row. Key 0 (`NO_KEY`) never has one.

    A key without a row reads the default row, zeros, in training and in serving alike. Row numbers stay put
    until their key is deleted, evicted or expires, or the table is loaded anew. One thread at a time may change it.
    Times are event time in ms.
    """

    dim: int
    families: tuple[Family, ...]

    def __len__(self) -> int:
        """Keys that have a row."""
        ...

    def counts(self) -> dict[str, int]:
        """Rows by family."""
        ...

    def find(self, keys: Keys) -> Rows:
        """Row of each key [n]; -1 where it has none. Changes nothing."""
        ...

    def find_or_create(
        self, keys: Keys, family: int = 0, time: int = 0, sights: NDArray[np.int64] | None = None
    ) -> Rows:
        """Row of each key [n], which may repeat; -1 for key 0 and for what is not admitted yet.

        A key that has a row keeps it, and its family, and is marked as seen at `time` (never backwards); others are
        admitted by the rule of `families[family]`. sights int64 [n]: how often each key was seen, 1 each without. A new
        row depends on the table's seed and the key alone.
        """
        ...

    def gather(self, rows: Rows, out: Floats | None = None) -> Floats:
        """Copies of rows [n] -> float32 [n, dim], into `out` where given; -1 gives the default row."""
        ...

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        """`gather(find(keys))` in one pass: float32 [n, dim], into `out` where given."""
        ...

    def update(self, rows: Rows, gradients: Floats, learning_rate: float, *, distinct: bool = False) -> None:
        """One step of each row's family's optimizer for rows [n] with gradients [n, dim]; -1 is skipped; the gradients
        of a row that is named several times are summed first. distinct: the caller's word that none is (-1 may be),
        which saves looking for them; where it is wrong, the row's numbers are anything.

        Raises ValueError, changing nothing, where a row is not in use or a gradient is not finite.
        """
        ...

    def write(self, keys: Keys, values: Floats, family: int = 0) -> None:
        """Set the rows of keys [n] (distinct, not 0), made where missing without asking for admission."""
        ...

    def delete(self, keys: Keys) -> int:
        """Forget these keys with their optimizer state; how many had a row."""
        ...

    def sweep(self, time: int, most: int) -> int:
        """Look at `most` rows on from where the last sweep stopped and drop what has expired by `time`; how many."""
        ...

    def take_changes(self) -> Changes:
        """What was written and deleted since the last call."""
        ...

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        """Every key and its row, in chunks, in no stated order."""
        ...

    def state(self) -> dict[str, NDArray[Any]]:
        """All of it as arrays in an order that depends on the contents alone: equal contents, equal arrays.

        `keys` uint64 [n] ascending and `values` float32 [n, dim] are what serving needs; the others hold optimizer
        state, family, time last seen, admission counts, the sweep's place and the seed.
        """
        ...

    def load(self, state: Arrays) -> None:
        """Replace everything by what `state` returned; with `keys` and `values` alone rows start without optimizer
        state. Nothing counts as changed afterwards. Raises StoreError where it does not fit."""
        ...

    def explain(self) -> Memory:
        """What it takes of memory."""
        ...
