"""The collisionless table on a GPU: each key its own row, found by Triton kernels where the rows lie.

Slots lead from keys to rows (`slots`, `kernels`); what belongs to a row lies in tensors by its number (`slab`). The
rules of admission, expiry and capacity are those of `SlabTable`, and so are new rows and what is saved: either loads
what the other saved and goes on as it would have, but for the last bits of its sums (`optimizers`).
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.weights.asked import LATEST, seconds, sights_of, values_of
from mainstem.weights.changing import DIRTY, USED
from mainstem.weights.device.rounds import next_rows
from mainstem.weights.device.slab import UNKNOWN, clock
from mainstem.weights.device.tensors import TensorTable
from mainstem.weights.device.words import keys_of, words_of
from mainstem.weights.reader import as_keys, as_rows
from mainstem.weights.slots import bits_for
from mainstem.weights.table import Arrays, Changes, Memory, Rows
from mainstem.weights.table_state import checked_state

__all__ = ["DeviceTable", "device_bytes"]

_CHUNK = 65_536


def device_bytes(rows: int, dim: int, width: int, sight_cells: int = 0) -> int:
    """The memory formula: that of `slabs.predicted_bytes` and 4 bytes a row for the stack of free rows. Arrays double,
    so up to twice as much may be taken. Sights are counted on the host."""
    return rows * (4 * dim + 4 * width + 18) + (64 << bits_for(rows)) + 4 * sight_cells


class DeviceTable(TensorTable):
    """A `Table` whose rows, slots and optimizer state are tensors on `device`: a GPU, or "cpu" to try it anywhere.

    Beside the protocol, with numpy arrays, it has forms that take and give tensors on the device, for a training step
    that is there: `find_tensor`, `read_tensor`, `gather_tensor`, `find_or_create_tensor`, `update_tensor`. Keys are
    int64 tensors there that hold the bits of the uint64.

    families, seed, most_rows, sight_cells: as for `SlabTable`; most_rows is 2^31 - 1 at most, and nothing is reserved.

    One thread at a time uses it, readers too: work is queued on the current stream, and who reads on another stream has
    to wait for this one. Raises ValueError for settings that cannot be, StoreError where the device has no memory.
    """

    def find(self, keys: Keys) -> Rows:
        return _rows_of(self.find_tensor(self._given(keys)))

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        words = self._given(keys)
        self._check_out(len(words), out)
        return self._handed(self.read_tensor(words), out)

    def gather(self, rows: Rows, out: Floats | None = None) -> Floats:
        rows = as_rows(rows)
        self._check_out(len(rows), out)
        return self._handed(self.gather_tensor(torch.from_numpy(rows).to(self.device)), out)

    def find_or_create(
        self, keys: Keys, family: int = 0, time: int = 0, sights: NDArray[np.int64] | None = None
    ) -> Rows:
        """As `Table` says. Raises StoreError where most_rows are in use; keys before that one have their rows then.

        Where the family has a capacity that all rows which this call does not name cannot make room for, the keys
        that come last stay without a row.
        """
        words = self._given(keys)
        times = sights_of(sights, len(words))
        told = None if times is None else torch.from_numpy(times).to(self.device)
        return _rows_of(self._find_or_create(words, family, time, told))

    def update(self, rows: Rows, gradients: Floats, learning_rate: float, *, distinct: bool = False) -> None:
        told = torch.from_numpy(np.require(gradients, np.float32, ["C", "A", "W"])).to(self.device)
        rows_ = torch.from_numpy(as_rows(rows)).to(self.device)
        self.update_tensor(rows_, told, learning_rate, distinct=distinct)

    def write(self, keys: Keys, values: Floats, family: int = 0) -> None:
        """As `Table` says. It asks no capacity either: a copy follows its source, which says what to delete.

        Known keys keep optimizer state, family and time; new ones have none: the first sweep that meets them sets their
        time. Raises ValueError, changing nothing, where a key is 0 or named twice or a value is not finite.
        """
        keys = as_keys(keys)
        self._family(family)
        values = values_of(keys, values, self.dim)
        words = words_of(keys, self.device)
        self._create(words[self._slots.find(words) < 0], family, 0.0, 0)
        rows = self._slots.find(words)
        self._slab.values[rows] = torch.from_numpy(values).to(self.device)
        self._slab.marks[rows] = DIRTY | USED

    def delete(self, keys: Keys) -> int:
        rows = self._slots.find(self._given(keys))
        return self._drop(torch.unique(rows[rows >= 0]))

    def sweep(self, time: int, most: int) -> int:
        """As `Table` says. Keys are met in the order of their mixed bits, which takes a look at all rows a call; a row
        whose time is not known gets this one. The clock of rows has seconds: a row stays up to two longer than its
        family's `expire`."""
        slab, now = self._slab, seconds(time)
        rows, hand = next_rows(slab.keys[: slab.high], slab.used(), self._hand(0), min(most, len(self)))
        self._hands[0] = hand % 2**64
        slab.seen[rows[slab.seen[rows] == UNKNOWN]] = clock(now)
        never = LATEST + 1
        expire = [never if family.expire is None else -(-family.expire // 1000) for family in self.families]
        age = clock(now) - slab.seen[rows].to(torch.int64)
        limit = torch.tensor(expire, dtype=torch.int64, device=self.device)[slab.family[rows].to(torch.int64)]
        return self._drop(rows[age > limit])

    def take_changes(self) -> Changes:
        """As `Table` says. What was deleted is remembered until then, on the host, 8 bytes a key."""
        slab = self._slab
        rows = torch.nonzero(slab.marks[: slab.high] & DIRTY)[:, 0]
        touched = np.sort(keys_of(slab.keys[rows]))
        slab.marks[rows] = USED
        deleted = np.unique(np.concatenate([np.empty(0, np.uint64), *self._gone]))
        self._gone = []
        return Changes(touched, deleted[self.find(deleted) < 0])

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        slab = self._slab
        for start in range(0, slab.high, _CHUNK):
            rows = start + torch.nonzero(slab.keys[start : min(start + _CHUNK, slab.high)])[:, 0]
            if len(rows):
                yield keys_of(slab.keys[rows]), np.array(slab.values[rows].cpu().numpy())

    def state(self) -> dict[str, NDArray[Any]]:
        """As `SlabTable.state`, which loads it."""
        slab = self._slab
        rows = torch.nonzero(slab.used())[:, 0]
        keys = keys_of(slab.keys[rows])
        order = np.argsort(keys)
        rows = rows[torch.from_numpy(order).to(self.device)]
        cells, counted = (self._sights.cells, self._sights.counted) if self._sights else (np.zeros((4, 0), np.uint8), 0)
        return {
            "keys": keys[order],
            "values": _to_host(slab.values, rows),
            "optimizer": _to_host(slab.state, rows),
            "family": _to_host(slab.family, rows),
            "seen": (_to_host(slab.seen, rows).astype(np.int64) - UNKNOWN).astype(np.uint32),
            "sights": cells.copy(),
            "hands": self._hands.copy(),
            "counters": np.array([self.seed, self._draws, counted], np.uint64),
        }

    def load(self, state: Arrays) -> None:
        """As `Table` says. What was there is let go only when the new rows are in place, so both are there once."""
        full = checked_state(state, self.dim, self.width, len(self.families), self._sight_cells)
        n = len(full["keys"])
        slab, slots = self._new_slab(n), self._new_slots(bits_for(n))
        for start in range(0, n, _CHUNK):
            part = slice(start, min(start + _CHUNK, n))
            slab.keys[part] = words_of(np.array(full["keys"][part]), self.device)
            slab.seen[part] = _on_device(full["seen"][part].astype(np.int64) + UNKNOWN, self.device).to(torch.int32)
            for target, name in ((slab.values, "values"), (slab.state, "optimizer"), (slab.family, "family")):
                target[part] = _on_device(full[name][part], self.device)
        slab.marks[:n] = USED
        slab.high = n
        slab.counts = np.bincount(full["family"], minlength=len(self.families)).tolist()
        slots.put(slab.keys[:n], torch.arange(n, device=self.device))
        self._reset(slab, slots)
        self._hands[:] = full["hands"]
        if "counters" in state:
            self.seed, self._draws = int(full["counters"][0]), int(full["counters"][1])
        if self._sights is not None:
            self._sights.cells[:] = full["sights"]
            self._sights.counted = int(full["counters"][2])

    def explain(self) -> Memory:
        """parts: bytes taken on the device, for rows that may come too, and on the host for sights; predicted: by
        `device_bytes` for the rows there are now."""
        slab = self._slab
        held = {name: getattr(slab, name) for name in ("keys", "values", "state", "seen", "family", "marks", "free")}
        parts = {name: tensor.nbytes for name, tensor in {**held, "slots": self._slots.words}.items()}
        if self._sights is not None:
            parts["sights"] = self._sights.cells.nbytes
        return Memory(len(self), parts, device_bytes(len(self), self.dim, self.width, self._sight_cells))

    def _given(self, keys: Keys) -> Tensor:
        return words_of(as_keys(keys), self.device)

    def _check_out(self, n: int, out: Floats | None) -> None:
        if out is not None and (out.dtype != np.float32 or out.shape != (n, self.dim) or not out.flags.carray):
            raise ValueError(f"out must be a writable C-contiguous float32 array [{n}, {self.dim}]")

    def _handed(self, made: Tensor, out: Floats | None) -> Floats:
        """What was made, on the host, in `out` where given."""
        if out is None:
            copy: Floats = made.cpu().numpy()
            return copy
        torch.from_numpy(out).copy_(made)
        return out


def _rows_of(rows: Tensor) -> Rows:
    found: Rows = rows.cpu().numpy()
    return found


def _on_device(array: NDArray[Any], device: torch.device) -> Tensor:
    """A copy: what is loaded may be read-only, which torch does not take."""
    return torch.from_numpy(np.array(array)).to(device)


def _to_host(tensor: Tensor, rows: Tensor) -> NDArray[Any]:
    """tensor[rows], without as much again on the device."""
    out = torch.empty((len(rows), *tensor.shape[1:]), dtype=tensor.dtype)
    for start in range(0, len(rows), _CHUNK):
        out[start : start + _CHUNK] = tensor[rows[start : start + _CHUNK]].cpu()
    found: NDArray[Any] = out.numpy()
    return found
