"""What a table on a device does with tensors: find, read, create, learn, forget. `table` adds numpy's forms.

Slots lead from keys to rows (`slots`, `kernels`); what belongs to a row lies in tensors by its number (`slab`).
"""

from __future__ import annotations

from collections.abc import Sequence
from importlib import import_module
from types import ModuleType

import numpy as np
import torch
from torch import Tensor

from mainstem.schema.ids import NO_KEY, Keys
from mainstem.weights.asked import check_settings, seconds
from mainstem.weights.changing import DIRTY, NAMED, USED
from mainstem.weights.device.optimizers import step, summed
from mainstem.weights.device.rounds import victims
from mainstem.weights.device.slab import DeviceSlab, clock, memory_for
from mainstem.weights.device.slots import DeviceSlots, gather, limit_of
from mainstem.weights.device.words import first_values, keys_of, signed
from mainstem.weights.family import Family, Ftrl, Optimizer
from mainstem.weights.sights import Sights, admitted
from mainstem.weights.slots import bits_for

__all__ = ["TensorTable", "kernels_for"]

_MOST = 2**31 - 1


def kernels_for(device: torch.device) -> ModuleType | None:
    """The Triton kernels where the device is a GPU and Triton is there; else None, for torch alone."""
    if device.type != "cuda":
        return None
    try:
        return import_module("mainstem.weights.device.kernels")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "triton":
            raise
        return None


class TensorTable:
    """The half of `DeviceTable` that takes and gives tensors on its device."""

    def __init__(
        self,
        dim: int,
        families: Sequence[Family] = (Family(),),
        *,
        device: str | torch.device = "cuda",
        seed: int = 0,
        most_rows: int = 1 << 26,
        sight_cells: int = 1 << 20,
    ) -> None:
        check_settings(dim, families, seed, most_rows, _MOST)
        self.dim, self.families, self.seed, self.most_rows = dim, tuple(families), seed, most_rows
        self.device = _device(device)
        self.width = max(family.optimizer.state_width(dim) for family in families)
        self._counted = any(family.admit_after > 1 for family in families)
        self._sight_cells = sight_cells if self._counted else 0
        self._kernels = kernels_for(self.device)
        self._optimizers = list(dict.fromkeys(family.optimizer for family in self.families))
        self._of_family = torch.tensor(
            [self._optimizers.index(family.optimizer) for family in self.families], device=self.device
        )
        self._reset(self._new_slab(0), self._new_slots(bits_for(0)))

    def _new_slab(self, rows: int) -> DeviceSlab:
        return DeviceSlab(self.dim, self.width, self.most_rows, len(self.families), self.device, rows)

    def _new_slots(self, bits: int) -> DeviceSlots:
        return DeviceSlots(bits, self.device, self._kernels)

    def _reset(self, slab: DeviceSlab, slots: DeviceSlots) -> None:
        self._slab, self._slots = slab, slots
        self._sights = Sights(self._sight_cells) if self._counted else None
        # hands over the keys' order: [0] the sweep's, [1 + f] that of evictions in family f
        self._hands = np.zeros(1 + len(self.families), np.uint64)
        self._draws = 0
        self._gone: list[Keys] = []

    def __len__(self) -> int:
        return len(self._slab)

    def counts(self) -> dict[str, int]:
        return {family.name: count for family, count in zip(self.families, self._slab.counts, strict=True)}

    @property
    def compiled(self) -> bool:
        """Whether reads are Triton kernels."""
        return self._kernels is not None

    def find_tensor(self, keys: Tensor) -> Tensor:
        """Row of each key int64 [n]: int64 [n], -1 where it has none. Waits for nothing on a GPU."""
        return self._slots.find(self._words(keys))

    def read_tensor(self, keys: Tensor, out: Tensor | None = None) -> Tensor:
        """The rows of keys int64 [n] in one pass: float32 [n, dim], into `out` (contiguous) where given; zeros where a
        key has none. Waits for nothing on a GPU."""
        keys = self._words(keys)
        out = self._output(len(keys), out)
        self._slots.read(keys, self._slab.values, out)
        return out

    def gather_tensor(self, rows: Tensor, out: Tensor | None = None) -> Tensor:
        """Copies of rows int64 [n]: float32 [n, dim], into `out` where given; -1 gives zeros. Raises ValueError for row
        numbers that there are not, which it has to wait for."""
        rows = self._row_numbers(rows)
        if len(rows) and bool(((rows < -1) | (rows >= self._slab.high)).any()):
            raise ValueError(f"rows must lie in -1 .. {self._slab.high - 1}")
        out = self._output(len(rows), out)
        gather(self._slab.values, rows, out)
        return out

    def find_or_create_tensor(
        self, keys: Tensor, family: int = 0, time: int = 0, sights: Tensor | None = None
    ) -> Tensor:
        """`find_or_create` for keys int64 [n] and sights int64 [n]: rows int64 [n]. It waits to know whether a key has
        no row; such keys go to the host where the family does not admit all."""
        keys = self._words(keys)
        if sights is not None and (
            sights.dtype != torch.int64 or sights.shape != keys.shape or bool((sights < 1).any())
        ):
            raise ValueError(f"sights must be [{len(keys)}], each 1 or more")
        return self._find_or_create(keys, family, time, sights)

    def _find_or_create(self, keys: Tensor, family: int, time: int, times: Tensor | None) -> Tensor:
        rule, now, slab = self._family(family), seconds(time), self._slab
        rows = self._slots.touch(keys, slab.seen, clock(now))
        missing = torch.nonzero((rows < 0) & (keys != NO_KEY))[:, 0]
        if not len(missing):
            return rows
        named = rows[rows >= 0] if rule.capacity is not None else rows[:0]
        slab.marks[named] |= NAMED
        try:
            fresh, fresh_times = _distinct(keys[missing], None if times is None else times[missing])
            fresh = self._with_room(self._admitted(fresh, fresh_times, rule), family)
            self._create(fresh, family, rule.scale, now)
        finally:
            slab.marks[named] &= 0xFF ^ NAMED
        rows[missing] = self._slots.find(keys[missing])
        return rows

    def _admitted(self, keys: Tensor, times: Tensor, rule: Family) -> Tensor:
        """Those of these distinct keys, seen so many times now, that earn a row. The counts are the host's."""
        if rule.admit_after == 1 and rule.admit_probability == 1:
            return keys
        self._draws += rule.admit_probability < 1
        earns = admitted(keys_of(keys), times.cpu().numpy(), rule, self._sights, self.seed, self._draws)
        return keys[torch.from_numpy(earns).to(self.device)]

    def _with_room(self, keys: Tensor, family: int) -> Tensor:
        """As many of these keys as the family's capacity has room for, after evictions."""
        capacity, slab = self.families[family].capacity, self._slab
        if capacity is None or not len(keys):
            return keys
        excess = slab.counts[family] + len(keys) - capacity
        if excess <= 0:
            return keys
        high = slab.high
        wanted = slab.used() & (slab.family[:high] == family) & ((slab.marks[:high] & NAMED) == 0)
        gone, hand = victims(slab.keys[:high], wanted, slab.seen, self._hand(1 + family), excess)
        self._hands[1 + family] = hand % 2**64
        self._drop(gone)
        return keys[: len(keys) - (excess - len(gone))]

    def _create(self, keys: Tensor, family: int, scale: float, second: int) -> None:
        """Rows for keys, distinct, not 0 and without one."""
        slab, asked = self._slab, len(keys)
        keys = keys[: slab.room()]
        if len(keys):
            self._room_in_slots(len(slab) + len(keys))
            rows = slab.take(keys, family, second)
            first_values(keys, self.dim, self.seed, scale, slab.values, rows)
            self._slots.put(keys, rows)
        if len(keys) < asked:
            raise slab.full()

    def _room_in_slots(self, count: int) -> None:
        if count > limit_of(self._slots.bits):
            with memory_for(self.device, count):
                grown = self._new_slots(bits_for(count))
                held = torch.nonzero(self._slab.used())[:, 0]
                grown.put(self._slab.keys[held], held)
            self._slots = grown

    def update_tensor(self, rows: Tensor, gradients: Tensor, learning_rate: float, *, distinct: bool = False) -> None:
        """`update` for rows int64 [n] and gradients float32 [n, dim]; it waits once, to know that both are good."""
        rows, slab = self._row_numbers(rows), self._slab
        gradients = gradients.detach()
        if gradients.dtype != torch.float32 or gradients.device != self.device:
            raise TypeError(f"gradients must be float32 on {self.device}, not {gradients.dtype} on {gradients.device}")
        if gradients.shape != (len(rows), self.dim):
            raise ValueError(f"gradients must be [{len(rows)}, {self.dim}], not {list(gradients.shape)}")
        if not np.isfinite(learning_rate) or (
            learning_rate <= 0 and any(isinstance(optimizer, Ftrl) for optimizer in self._optimizers)
        ):
            raise ValueError(f"learning rate {learning_rate} must be finite, and above 0 for Ftrl")
        if not len(rows):
            return
        skipped = rows == -1
        lacking = ~skipped & ((slab.marks[rows.clamp(0, slab.capacity - 1)] & USED) == 0)
        lacking |= (rows < -1) | (rows >= slab.capacity)
        # the largest size of each, one pass without a matrix beside it; what is not a number is the largest
        spoilt = ~skipped & ~torch.linalg.vector_norm(gradients, float("inf"), dim=1).isfinite()
        bad_row, bad_gradient, some = torch.stack((lacking.any(), spoilt.any(), skipped.any())).tolist()
        if bad_gradient:
            raise ValueError("gradients must be finite: one bad step would spoil the rows for good")
        if bad_row:
            place = int(torch.nonzero(lacking)[0, 0])
            raise ValueError(f"rows[{place}] = {int(rows[place])} is not in use")
        if some:
            kept = torch.nonzero(~skipped)[:, 0]
            rows, gradients = rows[kept], gradients[kept]
        if not distinct:
            rows, gradients = summed(rows, gradients)
        slab.marks[rows] = DIRTY | USED
        for optimizer, mine in self._steps(rows):
            chosen, theirs = (rows, gradients) if mine is None else (rows[mine], gradients[mine])
            step(optimizer, slab.values, slab.state, chosen, theirs, learning_rate)

    def _steps(self, rows: Tensor) -> list[tuple[Optimizer, Tensor | None]]:
        """The optimizers of the rows' families, each with the places of its own rows; None: all of them."""
        if len(self._optimizers) == 1:
            return [(self._optimizers[0], None)]
        which = self._of_family[self._slab.family[rows].to(torch.int64)]
        places = [torch.nonzero(which == number)[:, 0] for number in range(len(self._optimizers))]
        return [(optimizer, mine) for optimizer, mine in zip(self._optimizers, places, strict=True) if len(mine)]

    def _drop(self, rows: Tensor) -> int:
        """Take these rows, distinct and in use, from their keys; how many."""
        if len(rows):
            keys = self._slab.keys[rows]
            self._slots.take_out(keys)
            self._slab.give_back(rows)
            self._forget(keys_of(keys))
        return len(rows)

    def _forget(self, gone: Keys) -> None:
        self._gone.append(gone)
        if len(self._gone) > 1000:
            self._gone = [np.unique(np.concatenate(self._gone))]

    def _hand(self, place: int) -> int:
        return signed(int(self._hands[place]))

    def _family(self, family: int) -> Family:
        if not 0 <= family < len(self.families):
            raise ValueError(f"family {family} is not one of the table's {len(self.families)}")
        return self.families[family]

    def _words(self, keys: Tensor) -> Tensor:
        if keys.dtype != torch.int64 or keys.ndim != 1 or keys.device != self.device:
            raise TypeError(f"keys must be an int64 tensor [n] on {self.device}: the bits of uint64")
        return keys.contiguous()

    def _row_numbers(self, rows: Tensor) -> Tensor:
        if rows.dtype != torch.int64 or rows.ndim != 1 or rows.device != self.device:
            raise TypeError(f"rows must be an int64 tensor [n] on {self.device}")
        return rows

    def _output(self, n: int, out: Tensor | None) -> Tensor:
        if out is None:
            return torch.empty((n, self.dim), dtype=torch.float32, device=self.device)
        fits = out.dtype == torch.float32 and out.shape == (n, self.dim) and out.device == self.device
        if not fits or not out.is_contiguous():
            raise ValueError(f"out must be a contiguous float32 tensor [{n}, {self.dim}] on {self.device}")
        return out


def _device(device: str | torch.device) -> torch.device:
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"a table is on cuda or cpu, not on {device}")
    if device.type == "cpu":
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ValueError(f"torch finds no GPU here for {device}; device='cpu' works everywhere, slowly")
    return torch.device("cuda", torch.cuda.current_device() if device.index is None else device.index)


def _distinct(keys: Tensor, times: Tensor | None) -> tuple[Tensor, Tensor]:
    """These keys once each, in order of first appearance, and how often they were seen in all."""
    ordered, order = torch.sort(keys, stable=True)
    _, lengths = torch.unique_consecutive(ordered, return_counts=True)
    starts = lengths.cumsum(0) - lengths
    if times is None:
        summed_times = lengths
    else:
        up_to = times[order].cumsum(0)
        summed_times = up_to[starts + lengths - 1] - up_to[starts] + times[order][starts]
    first, place = torch.sort(order[starts])
    return keys[first], summed_times[place]
