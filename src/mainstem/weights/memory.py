"""The plain table: numpy arrays in this process. The default, and the oracle of later tables."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import NO_KEY, Keys
from mainstem.schema.keyrows import compiled, find, insert, mix, remove, slots_for, unique_places
from mainstem.schema.protocols import Floats
from mainstem.weights.table import Arrays, Rows

__all__ = ["MemoryTable"]

_CHUNK = 65_536
_EPSILON = 1e-8


@compiled
def _initialise(out: Floats, keys: Keys, seed: np.uint64, scale: float) -> None:
    """Fill out [n, dim] with uniform values in (-scale, scale) made from each key alone: splitmix64 seeded by it."""
    golden = np.uint64(0x9E3779B97F4A7C15)
    for i in range(len(keys)):
        state = mix(keys[i] ^ mix(seed + golden))
        for c in range(out.shape[1]):
            state = state + golden
            unit = np.float64(mix(state) >> np.uint64(40)) / 16777216.0
            out[i, c] = np.float32((2.0 * unit - 1.0) * scale)


@compiled
def _rowwise_adagrad(
    values: Floats, accumulators: Floats, rows: Rows, gradients: Floats, squares: Floats, learning_rate: float
) -> None:
    """values[r] -= rate * g / (sqrt(a) + epsilon) after a += squares[r], the mean of g^2: one accumulator a row.

    Duchi et al. 2011, section 1.1, with the row's mean in place of each coordinate's own square, as DLRM
    (Naumov et al. 2019) and TorchRec's EXACT_ROWWISE_ADAGRAD do.
    """
    dim = values.shape[1]
    for i in range(len(rows)):
        row = rows[i]
        if row < 0:
            continue
        accumulators[row] += squares[i]
        step = np.float32(learning_rate / (np.sqrt(np.float64(accumulators[row])) + _EPSILON))
        for c in range(dim):
            values[row, c] -= step * gradients[i, c]


@compiled
def _first_fault(row_keys: Keys, rows: Rows) -> int:
    """Place of the first row that is out of range, not in use or named before; -1 where all is well."""
    seen = np.zeros(len(row_keys), np.uint8)
    for i in range(len(rows)):
        row = rows[i]
        if row == -1:
            continue
        if row < 0 or row >= len(row_keys) or row_keys[row] == np.uint64(0) or seen[row]:
            return i
        seen[row] = 1
    return -1


class MemoryTable:
    """A `Table` in memory. `scale`: new rows are uniform in (-scale, scale); `seed` picks which.

    Reads from several threads are safe while nothing changes; changes need a lock of the caller's.
    """

    def __init__(self, dim: int, *, seed: int = 0, scale: float = 0.05) -> None:
        if dim < 1:
            raise ValueError(f"dim must be at least 1, not {dim}")
        self.dim, self.seed, self.scale = dim, seed, scale
        self._clear(0)

    def _clear(self, capacity: int) -> None:
        capacity = max(16, capacity)
        self._count = 0  # rows handed out ever; those below it that hold no key are in _free
        self._free: list[int] = []
        self._row_keys: Keys = np.zeros(capacity, np.uint64)
        self._values: Floats = np.zeros((capacity, self.dim), np.float32)
        self._accumulators: Floats = np.zeros(capacity, np.float32)
        self._resize_slots(slots_for(capacity))

    def __len__(self) -> int:
        return self._count - len(self._free)

    def find(self, keys: Keys) -> Rows:
        return find(self._slot_keys, self._slot_rows, _as_keys(keys))

    def find_or_create(self, keys: Keys) -> Rows:
        keys = _as_keys(keys)
        rows = self.find(keys)
        missing = np.flatnonzero((rows < 0) & (keys != NO_KEY))
        if len(missing):
            fresh, places = unique_places(keys[missing])
            rows[missing] = self._create(fresh[1:])[places - 1]
        return rows

    def gather(self, rows: Rows) -> Floats:
        rows = np.asarray(rows, np.int64)
        if len(rows) and (rows.max() >= self._count or rows.min() < -1):
            raise ValueError(f"rows must lie in -1 .. {self._count - 1}")
        out: Floats = self._values[rows]
        out[rows < 0] = 0.0
        return out

    def update(self, rows: Rows, gradients: Floats, learning_rate: float) -> None:
        rows = np.ascontiguousarray(rows, np.int64)
        gradients = np.ascontiguousarray(gradients, np.float32)
        if gradients.shape != (len(rows), self.dim):
            raise ValueError(f"gradients must be [{len(rows)}, {self.dim}], not {list(gradients.shape)}")
        fault = _first_fault(self._row_keys, rows)
        if fault >= 0:
            raise ValueError(f"rows[{fault}] = {rows[fault]} is not in use or is named twice")
        squares: Floats = np.einsum("ij,ij->i", gradients, gradients) / np.float32(self.dim)
        if not np.isfinite(squares).all():
            raise ValueError("gradients must be finite: one bad step would spoil the rows for good")
        _rowwise_adagrad(self._values, self._accumulators, rows, gradients, squares, learning_rate)

    def delete(self, keys: Keys) -> int:
        rows = remove(self._slot_keys, self._slot_rows, _as_keys(keys))
        rows = rows[rows >= 0]
        self._row_keys[rows] = NO_KEY
        self._values[rows] = 0.0
        self._accumulators[rows] = 0.0
        self._free.extend(rows.tolist())
        return len(rows)

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        for start in range(0, self._count, _CHUNK):
            stop = min(start + _CHUNK, self._count)
            rows = start + np.flatnonzero(self._row_keys[start:stop])
            if len(rows):
                yield self._row_keys[rows], self._values[rows]

    def state(self) -> dict[str, NDArray[Any]]:
        """keys uint64 [n] ascending, values float32 [n, dim], accumulators float32 [n], and the initialiser's
        seed uint64 [1] and scale float64 [1]."""
        rows = np.flatnonzero(self._row_keys)
        rows = rows[np.argsort(self._row_keys[rows])]
        return {
            "keys": self._row_keys[rows],
            "values": self._values[rows],
            "accumulators": self._accumulators[rows],
            "seed": np.array([self.seed], np.uint64),
            "scale": np.array([self.scale], np.float64),
        }

    def load(self, state: Arrays) -> None:
        try:
            keys, values = np.asarray(state["keys"]), np.asarray(state["values"])
            accumulators, seed, scale = np.asarray(state["accumulators"]), int(state["seed"][0]), state["scale"][0]
        except (KeyError, IndexError) as error:
            raise StoreError(f"the state of a table lacks {error}") from error
        n = len(keys)
        if keys.shape != (n,) or values.shape != (n, self.dim) or accumulators.shape != (n,):
            raise StoreError(
                f"table of dim {self.dim}: keys {keys.shape}, values {values.shape}, state {accumulators.shape}"
            )
        if keys.dtype != np.uint64 or values.dtype != np.float32 or accumulators.dtype != np.float32:
            raise StoreError(f"table: keys {keys.dtype}, values {values.dtype}, state {accumulators.dtype}")
        if (keys == NO_KEY).any() or len(np.unique(keys)) != n:
            raise StoreError("table: a key is 0 or is there twice")
        self.seed, self.scale = seed, float(scale)
        self._clear(n)
        self._count = n
        self._row_keys[:n], self._values[:n], self._accumulators[:n] = keys, values, accumulators
        insert(self._slot_keys, self._slot_rows, self._row_keys[:n], np.arange(n))

    @classmethod
    def from_state(cls, state: Arrays) -> MemoryTable:
        """A table with the contents that `state` returned. Raises StoreError where they do not fit."""
        values = state.get("values")
        if values is None or values.ndim != 2 or values.shape[1] < 1:
            raise StoreError("the state of a table lacks values [n, dim]")
        table = cls(values.shape[1])
        table.load(state)
        return table

    def _create(self, keys: Keys) -> Rows:
        """Rows for keys [n], which are distinct, not 0 and not known."""
        n = len(keys)
        reused = [self._free.pop() for _ in range(min(n, len(self._free)))]
        fresh = n - len(reused)
        rows = np.concatenate((np.asarray(reused, np.int64), np.arange(self._count, self._count + fresh)))
        self._reserve(self._count + fresh)
        self._count += fresh
        self._row_keys[rows] = keys
        values = np.empty((n, self.dim), np.float32)
        _initialise(values, keys, np.uint64(self.seed), self.scale)
        self._values[rows] = values
        self._accumulators[rows] = 0.0
        insert(self._slot_keys, self._slot_rows, keys, rows)
        return rows

    def _reserve(self, count: int) -> None:
        capacity = len(self._row_keys)
        if count <= capacity:
            return
        # a quarter more than asked for, or half more than there was: creation costs O(1) a row on average
        grown = max(count + count // 4, capacity + capacity // 2)
        self._row_keys = _grown(self._row_keys, grown)
        self._values = _grown(self._values, grown)
        self._accumulators = _grown(self._accumulators, grown)
        if slots_for(grown) > len(self._slot_keys):
            self._resize_slots(slots_for(grown))

    def _resize_slots(self, slots: int) -> None:
        self._slot_keys: Keys = np.zeros(slots, np.uint64)
        self._slot_rows: Rows = np.zeros(slots, np.int64)
        rows = np.flatnonzero(self._row_keys)
        insert(self._slot_keys, self._slot_rows, self._row_keys[rows], rows)


def _as_keys(keys: Keys) -> Keys:
    # a silent cast from float or a signed type would find other keys' rows
    if not isinstance(keys, np.ndarray) or keys.dtype != np.uint64 or keys.ndim != 1:
        raise TypeError("keys must be a uint64 array [n]")
    return np.ascontiguousarray(keys)


def _grown(array: NDArray[Any], length: int) -> NDArray[Any]:
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
