"""The collisionless table: each key its own row, at the speed of a plain gather.

Slots lead from keys to rows in one cache line (`slots`); what belongs to a row lies in arrays by its number, in memory
that grows in place (`changing`, `bodies`, `blocks`); `reader` fetches rows by the batch, beside a writer too. Rules of
admission, expiry and capacity follow event time, the seed and the keys alone, never row numbers or the order of
memory: a table that was saved and loaded goes on exactly as it would have.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import NO_KEY, Keys
from mainstem.schema.keyrows import unique_places
from mainstem.schema.protocols import Floats
from mainstem.weights import changing
from mainstem.weights.asked import LATEST, check_settings, seconds, sights_of, values_of
from mainstem.weights.bodies import Body, Folder
from mainstem.weights.changing import DIRTY, FAMILIES, LIVE, NAMED
from mainstem.weights.family import Family, Optimizer
from mainstem.weights.optimizers import all_finite, apply
from mainstem.weights.reader import Reader, as_keys, as_rows
from mainstem.weights.sights import Sights, admitted
from mainstem.weights.slots import bits_for
from mainstem.weights.table import Arrays, Changes, Memory, Rows
from mainstem.weights.table_state import checked_state
from mainstem.weights.touching import find_touching, first_fault

__all__ = ["SlabTable", "predicted_bytes"]

_CHUNK = 65_536


def predicted_bytes(rows: int, dim: int, width: int, sight_cells: int = 0) -> int:
    """The memory formula: bytes for so many rows with `width` numbers of optimizer state each.

    Beside values and state a row has its key (8), the time it was last seen (4), family and mark (1 each); slots take
    64 bytes for each 2 to 4 keys; counting sights takes 4 bytes a cell, where a family asks for it.
    """
    return rows * (4 * dim + 4 * width + 14) + (64 << bits_for(rows)) + 4 * sight_cells


class SlabTable:
    """A `Table` in memory, or in files that other processes map.

    families: what `family` in calls refers to, by place. seed: picks the new rows and the draws of admission.
    concurrent: threads may read while one thread changes it; never a torn row, never another key's.
    folder: keep what readers need in files there; `shared.SharedReader` reads them (implies concurrent).
    most_rows: rows at most; address space for all is reserved at once, memory is taken as they come.
    sight_cells: memory for counting sights, 4 bytes each, where a family has admit_after above 1 (see `sights`).
    patience: seconds that reads wait for a writer in the middle of a row (see `reader.Reader`).

    Raises ValueError for settings that cannot be, StoreError where the system refuses the space.
    """

    def __init__(
        self,
        dim: int,
        families: Sequence[Family] = (Family(),),
        *,
        seed: int = 0,
        concurrent: bool = False,
        folder: Path | None = None,
        most_rows: int = 1 << 26,
        sight_cells: int = 1 << 20,
        patience: float = 1.0,
    ) -> None:
        check_settings(dim, families, seed, most_rows, 2**32 - 1)
        self.dim, self.families, self.seed = dim, tuple(families), seed
        self.most_rows, self.concurrent = most_rows, concurrent or folder is not None
        self.width = max(family.optimizer.state_width(dim) for family in families)
        self._counted = any(family.admit_after > 1 for family in families)
        self._sight_cells = sight_cells if self._counted else 0
        self._folder = None if folder is None else Folder(folder)
        self._announced = folder is None
        self._reset(self._new_body(0))
        self._reader = Reader(dim, lambda: self._body.view, patience)

    def _new_body(self, count: int) -> Body:
        return Body(self.dim, self.width, self.most_rows, self.concurrent, self._folder, count)

    def _reset(self, body: Body) -> None:
        self._body = body
        self._sights = Sights(self._sight_cells) if self._counted else None
        # hands over the keys' order: [0] the sweep's, [1 + f] that of evictions in family f
        self._hands = np.zeros(1 + len(self.families), np.uint64)
        self._draws = 0
        self._gone: list[Keys] = []

    def __len__(self) -> int:
        return int(self._body.slab.tally[LIVE])

    def counts(self) -> dict[str, int]:
        tally = self._body.slab.tally
        return {family.name: int(tally[FAMILIES + place]) for place, family in enumerate(self.families)}

    def find(self, keys: Keys) -> Rows:
        return self._reader.find(keys)

    def gather(self, rows: Rows, out: Floats | None = None) -> Floats:
        return self._reader.gather(rows, out, self._body.high)

    def read(self, keys: Keys, out: Floats | None = None) -> Floats:
        return self._reader.read(keys, out)

    def find_or_create(
        self, keys: Keys, family: int = 0, time: int = 0, sights: NDArray[np.int64] | None = None
    ) -> Rows:
        """As `Table` says. Raises StoreError where most_rows are in use; keys before that one have their rows then.

        Where the family has a capacity that all rows which this call does not name cannot make room for, the keys
        that come last stay without a row.
        """
        keys = as_keys(keys)
        rule, seen = self._family(family), seconds(time)
        times = sights_of(sights, len(keys))
        bounded = rule.capacity is not None
        rows, lacking = find_touching(self._body.slab, self._body.bits, keys, seen, bounded)
        try:
            if lacking:
                missing = np.flatnonzero((rows < 0) & (keys != NO_KEY))
                if bounded or rule.admit_after > 1 or rule.admit_probability < 1:
                    fresh, fresh_times = _distinct(keys[missing], None if times is None else times[missing])
                    admitted = self._with_room(self._admitted(fresh, fresh_times, rule), family)
                    self._create(admitted, np.full(len(admitted), -1, np.int64), family, rule.scale, seen)
                    rows[missing] = self.find(keys[missing])
                else:
                    self._create(keys, rows, family, rule.scale, seen)
        finally:
            if bounded:
                marks = self._body.slab.marks
                marks[rows[rows >= 0]] &= np.uint8(0xFF ^ NAMED)
        return rows

    def _admitted(self, keys: Keys, times: NDArray[np.int64], rule: Family) -> Keys:
        """Those of these distinct keys, seen so many times now, that earn a row."""
        self._draws += rule.admit_probability < 1
        return keys[admitted(keys, times, rule, self._sights, self.seed, self._draws)]

    def _with_room(self, keys: Keys, family: int) -> Keys:
        """As many of these keys as the family's capacity has room for, after evictions."""
        capacity = self.families[family].capacity
        body = self._body
        if capacity is None or not len(keys):
            return keys
        excess = int(body.slab.tally[FAMILIES + family]) + len(keys) - capacity
        if excess <= 0:
            return keys
        gone = np.empty(excess, np.uint64)
        evicted = int(changing.evict(body.slab, body.bits, self._hands, 1 + family, family, gone))
        self._forget(gone[:evicted])
        return keys[: len(keys) - (excess - evicted)]

    def _create(self, keys: Keys, rows: Rows, family: int, scale: float, seen: int) -> None:
        """Rows for those of `keys` whose entry in `rows` is -1, into `rows`."""
        body = self._body
        seed, done = np.uint64(self.seed), 0
        try:
            while done < len(keys):
                room = (body.bits, body.limit, body.bound)
                done = int(changing.create(body.slab, *room, keys, rows, done, family, scale, seed, seen))
                if done == len(keys):
                    break
                if len(self) >= body.limit:
                    body.grow_slots()
                else:
                    body.extend(body.bound + 1)
        finally:
            self._announce()

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            self._body.announce()

    def update(self, rows: Rows, gradients: Floats, learning_rate: float, *, distinct: bool = False) -> None:
        rows = as_rows(rows)
        gradients = np.require(gradients, np.float32, ["C", "A", "W"])
        if gradients.shape != (len(rows), self.dim):
            raise ValueError(f"gradients must be [{len(rows)}, {self.dim}], not {list(gradients.shape)}")
        slab = self._body.slab
        # a row that is skipped may have any gradient
        if not all_finite(gradients) and not np.isfinite(gradients[rows != -1]).all():
            raise ValueError("gradients must be finite: one bad step would spoil the rows for good")
        fault = first_fault(slab, rows, write=not self.concurrent)
        if fault >= 0:
            raise ValueError(f"rows[{fault}] = {rows[fault]} is not in use")
        steps = self._steps(rows)
        if self.concurrent:
            self._update_beside_readers(rows, steps, gradients, learning_rate, distinct)
            return
        high = self._body.high
        for optimizer, chosen in steps:
            apply(optimizer, slab.values[:high], slab.state[:high], chosen, gradients, learning_rate, distinct=distinct)

    def _steps(self, rows: Rows) -> list[tuple[Optimizer, Rows]]:
        """The optimizers of the rows' families, each with its own rows, others' as -1."""
        optimizers = list(dict.fromkeys(family.optimizer for family in self.families))
        if len(optimizers) == 1:
            return [(optimizers[0], rows)]
        of_family = np.array([optimizers.index(family.optimizer) for family in self.families])
        place = np.where(rows < 0, -1, of_family[self._body.slab.family[rows]])
        return [
            (optimizer, np.where(place == number, rows, -1))
            for number, optimizer in enumerate(optimizers)
            if (place == number).any()
        ]

    def _update_beside_readers(
        self, rows: Rows, steps: list[tuple[Optimizer, Rows]], gradients: Floats, learning_rate: float, distinct: bool
    ) -> None:
        """The step is made on copies; then each row is written in one go, so that readers wait for no step."""
        body = self._body
        if distinct:
            used = rows >= 0
            held, places = np.concatenate([[-1], rows[used]]), np.cumsum(used, dtype=np.int64)
        else:
            named, places = unique_places((rows + 1).astype(np.uint64))
            held = named.astype(np.int64) - 1
        # held[0] is -1, for what is skipped
        values, state = body.slab.values[held], body.slab.state[held]
        for optimizer, chosen in steps:
            mine = np.where(chosen < 0, -1, places)
            apply(optimizer, values, state, mine, gradients, learning_rate, distinct=distinct)
        body.slab.state[held[1:]] = state[1:]
        changing.overwrite(body.slab, body.bits, held, values)

    def write(self, keys: Keys, values: Floats, family: int = 0) -> None:
        """As `Table` says. It asks no capacity either: a copy follows its source, which says what to delete.

        Known keys keep optimizer state, family and time; new ones have none: the first sweep that meets them sets their
        time. Raises ValueError, changing nothing, where a key is 0 or named twice or a value is not finite.
        """
        keys = as_keys(keys)
        self._family(family)
        values = values_of(keys, values, self.dim)
        rows = self.find(keys)
        self._create(keys, rows, family, 0.0, 0)
        changing.overwrite(self._body.slab, self._body.bits, rows, values)

    def delete(self, keys: Keys) -> int:
        keys = as_keys(keys)
        gone = np.empty(len(keys), np.uint64)
        count = int(changing.drop(self._body.slab, self._body.bits, keys, gone))
        self._forget(gone[:count])
        return count

    def sweep(self, time: int, most: int) -> int:
        """As `Table` says. Keys are met in the order of their mixed bits; a row whose time is not known gets this one.
        The clock of rows has seconds: a row stays up to two longer than its family's `expire`."""
        slab, now = self._body.slab, seconds(time)
        found = np.empty(max(0, min(most, len(self))), np.int64)
        rows = found[: int(changing.walk(slab, self._body.bits, self._hands, 0, found, -1, 0))]
        unknown = rows[slab.seen[rows] == 0]
        slab.seen[unknown] = now
        never = LATEST + 1
        expire = np.array([never if f.expire is None else -(-f.expire // 1000) for f in self.families])
        age = now - slab.seen[rows].astype(np.int64)
        return self.delete(slab.row_keys[rows[age > expire[slab.family[rows]]]])

    def _forget(self, gone: Keys) -> None:
        if len(gone):
            self._gone.append(gone.copy())
            if len(self._gone) > 1000:
                self._gone = [np.unique(np.concatenate(self._gone))]

    def take_changes(self) -> Changes:
        """As `Table` says. What was deleted is remembered until then, 8 bytes a key."""
        slab, high = self._body.slab, self._body.high
        rows = np.flatnonzero(slab.marks[:high] & DIRTY)
        touched = np.sort(slab.row_keys[rows])
        slab.marks[rows] &= np.uint8(0xFF ^ DIRTY)
        deleted = np.unique(np.concatenate([np.empty(0, np.uint64), *self._gone]))
        self._gone = []
        return Changes(touched, deleted[self.find(deleted) < 0])

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        slab, high = self._body.slab, self._body.high
        for start in range(0, high, _CHUNK):
            rows = start + np.flatnonzero(slab.row_keys[start : min(start + _CHUNK, high)])
            if len(rows):
                yield slab.row_keys[rows], slab.values[rows]

    def state(self) -> dict[str, NDArray[Any]]:
        """keys uint64 [n] ascending, values float32 [n, dim], optimizer float32 [n, width], family uint8 [n], seen
        uint32 [n] (seconds), sights uint8 [4, cells], hands uint64 [1 + families], counters uint64 [3]: seed, draws,
        sights since the last halving."""
        slab = self._body.slab
        rows = np.flatnonzero(slab.row_keys[: self._body.high])
        rows = rows[np.argsort(slab.row_keys[rows])]
        cells, counted = (self._sights.cells, self._sights.counted) if self._sights else (np.zeros((4, 0), np.uint8), 0)
        return {
            "keys": slab.row_keys[rows],
            "values": slab.values[rows],
            "optimizer": slab.state[rows],
            "family": slab.family[rows],
            "seen": slab.seen[rows],
            "sights": cells.copy(),
            "hands": self._hands.copy(),
            "counters": np.array([self.seed, self._draws, counted], np.uint64),
        }

    def load(self, state: Arrays) -> None:
        full = checked_state(state, self.dim, self.width, len(self.families), self._sight_cells)
        keys = full["keys"]
        n = len(keys)
        body, old = self._new_body(n), self._body
        slab = body.slab
        slab.values[:n], slab.state[:n] = full["values"], full["optimizer"]
        slab.family[:n], slab.seen[:n] = full["family"], full["seen"]
        body.fill(keys)
        for place in range(len(self.families)):
            slab.tally[FAMILIES + place] = int((full["family"] == place).sum())
        self._reset(body)
        old.retire()
        self._hands[:] = full["hands"]
        if "counters" in state:
            self.seed, self._draws = int(full["counters"][0]), int(full["counters"][1])
        if self._sights is not None:
            self._sights.cells[:] = full["sights"]
            self._sights.counted = int(full["counters"][2])
        self._announced = True
        body.announce()

    def explain(self) -> Memory:
        """parts: bytes written so far, of rows that were ever in use, of slots and of counters; predicted: by
        `predicted_bytes` for the rows there are now. Pages add up to 2 MiB to each part."""
        parts = self._body.bytes_by_part()
        if self._sights is not None:
            parts["sights"] = self._sights.cells.nbytes
        return Memory(len(self), parts, predicted_bytes(len(self), self.dim, self.width, self._sight_cells))

    def close(self) -> None:
        """Let another writer have the folder. Readers go on with what is there."""
        if self._folder is not None:
            self._folder.close()

    def _family(self, family: int) -> Family:
        if not 0 <= family < len(self.families):
            raise ValueError(f"family {family} is not one of the table's {len(self.families)}")
        return self.families[family]


def _distinct(keys: Keys, times: NDArray[np.int64] | None) -> tuple[Keys, NDArray[np.int64]]:
    """These keys once each, in order of first appearance, and how often they were seen in all."""
    distinct, places = unique_places(keys)
    # bincount's weights are float64: exact below 2^53 sights
    summed = np.bincount(places, weights=times, minlength=len(distinct)).astype(np.int64)
    return distinct[1:], summed[1:]
