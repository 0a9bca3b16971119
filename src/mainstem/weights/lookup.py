"""One look-up a step (law 7): the keys of all roles -> one leaf tensor of rows, and places that index it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numba
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix, slots_for
from mainstem.schema.protocols import Floats
from mainstem.weights.address import copy_row, prefetch, zero_row
from mainstem.weights.lanes import add_row
from mainstem.weights.parts import compiled_in_parts, owner, parts
from mainstem.weights.table import Rows, Table

__all__ = ["Gathered", "Lookup"]

Numbers = NDArray[np.int64]

_LEAST = 4096  # places a thread must get: below, waking it costs more than it saves
_LEAST_KEYS = 65_536  # keys likewise: every thread looks at all of them, and slots of fewer lie in its caches
_AHEAD = 16  # keys whose slots are fetched ahead of the one that is worked on
_SAMPLED = 16  # one of so many places is looked at to cut a gradient's rows into parts of equal work


@dataclass(slots=True)
class Gathered:
    """What one look-up gave.

    rows    float32 [u, dim], a leaf; rows[0] is the default row (zeros) that key 0 and keys without a row read
    places  int64 [n] per role, into rows

        history  a b a      rows      0 | a b c        places  history 1 2 1
        target   c b                                           target  3 2
    """

    rows: Tensor
    places: dict[str, Tensor]
    _table_rows: Rows

    def take(self, role: str) -> Tensor:
        """The rows of a role's keys, one below the other: [n, dim], equal to `rows[places[role]]`.

        Its gradient is summed per row by a compiled loop, in the order of the places whatever the number of threads;
        that of row 0 is dropped, as the default row does not learn. Takes and indexings of one step add up. There is no
        second derivative. On a GPU torch sums, in no stated order.
        """
        out: Tensor = _Take.apply(self.rows, self.places[role])  # type: ignore[no-untyped-call]
        return out


class Lookup:
    """Gathers rows of one table, and applies what backward left on them once per row.

    A step: `gathered = lookup.gather({...})`, forward over `gathered.take(role)` or `gathered.rows` and
    `gathered.places`, `loss.backward()`, `lookup.apply_gradients(rate)`.

    device: where rows and places go to and gradients come from; the table and its steps stay where they are.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self.device = torch.device("cpu")
        self._pending: Gathered | None = None

    def gather(
        self,
        roles: Mapping[str, Keys],
        *,
        families: Mapping[str, int] | None = None,
        time: int = 0,
        create: bool | Collection[str] = True,
        gradient: bool = True,
    ) -> Gathered:
        """The rows of all roles' keys (uint64 [n] each), every key once.

        families: which of the table's families new keys of a role belong to, 0 where a role is not named; a key of
        several roles takes that of the first role that creates. time: event time in ms, for admission and expiry.
        create: whether keys without a row may get one, or the names of the roles whose keys may; others read the
        default row, and are no sight of their key. gradient: False for validation and serving: rows take none and
        nothing is left pending; it is then safe beside a thread that writes, where the table is.

        Raises TypeError where keys are not uint64, ValueError where an option names a role that is not there.
        """
        families = families or {}
        creating = _creating(roles, families, create)
        classes = [families.get(name, 0) if name in creating else -1 for name in roles]
        sizes = [len(keys) for keys in roles.values()]
        for name, each in roles.items():
            # a silent cast from float or a signed type would find other keys' rows
            if each.dtype != np.uint64 or each.ndim != 1:
                raise TypeError(f"keys of role {name!r} must be uint64 [n], not {each.dtype} {list(each.shape)}")
        keys = np.concatenate([np.zeros(0, np.uint64), *roles.values()])
        unique, family, sights, places = _distinct(keys, np.cumsum(sizes, dtype=np.int64), np.array(classes, np.int64))
        if gradient or creating:
            table_rows = _keep_found(self._rows(unique, classes, family, sights, time), places)
            leaf = torch.from_numpy(self.table.gather(table_rows)).to(self.device).requires_grad_(gradient)
        else:
            # by key, in one pass: between find and gather another thread may give a row to another key
            table_rows = np.zeros(0, np.int64)
            read = self.table.read(np.concatenate([np.zeros(1, np.uint64), unique]))
            leaf = torch.from_numpy(read).to(self.device)
        split = torch.split(torch.from_numpy(places).to(self.device), sizes) if sizes else ()
        gathered = Gathered(leaf, dict(zip(roles, split, strict=True)), table_rows)
        if gradient:
            self._pending = gathered
        return gathered

    def apply_gradients(self, learning_rate: float) -> None:
        """One optimizer step for the rows of the latest `gather`; rows that no gradient reached stay as they are.

        Raises RuntimeError where nothing was gathered since the last call: a gradient is applied once.
        """
        pending = self._pending
        if pending is None:
            raise RuntimeError("apply_gradients needs a gather with gradient=True before it, each time")
        self._pending = None
        if pending.rows.grad is not None:
            self.table.update(pending._table_rows, pending.rows.grad.cpu().numpy(), learning_rate, distinct=True)

    def _rows(self, unique: Keys, classes: list[int], family: Numbers, sights: Numbers, time: int) -> Rows:
        """The row of each key [u]: created, if its family is not -1, or only found."""
        if len(set(classes)) == 1 and classes[0] >= 0:
            return self.table.find_or_create(unique, classes[0], time, sights)
        for each in sorted({*classes} - {-1}):
            of = np.flatnonzero(family == each)
            self.table.find_or_create(unique[of], each, time, sights[of])
        # only now: making a row of one family may evict one that was found before
        return self.table.find(unique)


def _creating(roles: Mapping[str, Keys], families: Mapping[str, int], create: bool | Collection[str]) -> set[str]:
    """The roles whose keys may get rows. Raises ValueError where an option names what is not gathered."""
    creating = set(roles if create is True else () if create is False else create)
    for option, names in (("create", creating), ("families", set(families))):
        if unknown := names - set(roles):
            raise ValueError(f"{option} names roles that are not gathered: {', '.join(sorted(unknown))}")
    return creating


def _distinct(keys: Keys, ends: Numbers, classes: Numbers) -> tuple[Keys, Numbers, Numbers, Numbers]:
    """De-duplicate keys [n]: (unique [u], family [u], sights [u], places [n]), unique[places - 1] == keys.

    unique holds no 0; its keys stand in order of first appearance, and their places begin at 1. Role r ends before
    ends[r] and creates rows of family classes[r], or none if that is -1; sights are how often a key stands in roles
    that create.
    """
    firsts = np.empty(len(keys), np.int32)
    with parts(len(keys), _LEAST_KEYS) as count:
        run = _first_places if count == 1 else _all_first_places
        run(0, count, slots_for(len(keys)), keys, firsts)
    return _numbered(keys, firsts, ends, classes)


@compiled
def _first_places(part: int, count: int, slots: int, keys: Keys, firsts: NDArray[np.int32]) -> None:
    """firsts[i]: the first place of the key at place i, -1 for key 0, for the keys that are this part's."""
    mask = np.uint64(slots - 1)
    table = np.full(slots, -1, np.int32)
    base = np.int64(table.ctypes.data)
    for i in range(len(keys)):
        if i + _AHEAD < len(keys):
            prefetch(base + 4 * np.int64(mix(keys[i + _AHEAD]) & mask))
        key = keys[i]
        mixed = mix(key)
        if owner(mixed, count) != part:
            continue
        slot = mixed & mask
        while table[slot] >= 0 and keys[table[slot]] != key:
            slot = (slot + np.uint64(1)) & mask
        if table[slot] < 0:
            table[slot] = i
        firsts[i] = table[slot] if key != np.uint64(0) else -1


@compiled_in_parts
def _all_first_places(_: int, count: int, slots: int, keys: Keys, firsts: NDArray[np.int32]) -> None:
    for part in numba.prange(count):
        _first_places(part, count, slots, keys, firsts)


@compiled
def _numbered(
    keys: Keys, firsts: NDArray[np.int32], ends: Numbers, classes: Numbers
) -> tuple[Keys, Numbers, Numbers, Numbers]:
    """What `_distinct` gives, from the first place of each key."""
    unique = np.empty(len(keys), np.uint64)
    family = np.empty(len(keys), np.int64)
    sights = np.empty(len(keys), np.int64)
    places = np.empty(len(keys), np.int64)
    count, start = 0, 0
    for role in range(len(ends)):
        creator = classes[role]
        creates = 1 if creator >= 0 else 0
        for i in range(start, ends[role]):
            first = firsts[i]
            if first < 0:
                places[i] = 0
            elif first == i:
                unique[count], family[count], sights[count] = keys[i], creator, creates
                count += 1
                places[i] = count
            else:
                place = places[first]
                places[i] = place
                if creates:
                    sights[place - 1] += 1
                    if family[place - 1] < 0:
                        family[place - 1] = creator
        start = ends[role]
    return unique[:count], family[:count], sights[:count], places


@compiled
def _keep_found(rows: Rows, places: Numbers) -> Rows:
    """Table rows of the leaf [k], -1 first; places are moved on to them, those of keys without a row to 0."""
    kept = np.empty(len(rows) + 1, np.int64)
    kept[0] = -1
    count = 1
    for i in range(len(rows)):
        if rows[i] >= 0:
            kept[count] = rows[i]
            count += 1
    if count <= len(rows):
        moved = np.zeros(len(rows) + 1, np.int64)
        count = 1
        for i in range(len(rows)):
            if rows[i] >= 0:
                moved[i + 1] = count
                count += 1
        for i in range(len(places)):
            places[i] = moved[places[i]]
    return kept[:count].copy()


class _Take(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor, places: Tensor) -> Tensor:
        ctx.save_for_backward(places)
        ctx.count = len(rows)
        return rows.index_select(0, places)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (places,) = ctx.saved_tensors
        if gradient.device.type != "cpu":
            return _sums_on_device(places, gradient, ctx.count), None
        return torch.from_numpy(_row_sums(places.numpy(), gradient.contiguous().numpy(), ctx.count)), None


def _sums_on_device(places: Tensor, gradients: Tensor, count: int) -> Tensor:
    """`_row_sums` by torch."""
    sums = gradients.new_zeros(count, gradients.shape[1]).index_add_(0, places, gradients)
    sums[0] = 0.0
    return sums


def _row_sums(places: Numbers, gradients: Floats, count: int) -> Floats:
    """out[p] = sum of gradients [n, dim] at places p, in their order: float32 [count, dim]; out[0] stays 0."""
    out = np.empty((count, gradients.shape[1]), np.float32)
    met = np.zeros(count, np.bool_)
    with parts(len(places), _LEAST) as pieces:
        bounds = _cuts(places, count, pieces)
        run = _add_part if pieces == 1 else _add_parts
        run(0, bounds, places, gradients, met, out)
    return out


def _cuts(places: Numbers, count: int, pieces: int) -> Numbers:
    """bounds [pieces + 1]: part p has rows bounds[p] .. bounds[p + 1] - 1. About as many places fall to each, as far as
    no row has more; each row is one part's alone, so that sums do not depend on them."""
    bounds = np.array([0] + [count] * pieces)
    if pieces > 1:
        sampled = np.sort(places[::_SAMPLED])
        bounds[1:-1] = sampled[len(sampled) * np.arange(1, pieces) // pieces]
    return bounds


@compiled
def _add_part(
    part: int, bounds: Numbers, places: Numbers, gradients: Floats, met: NDArray[np.bool_], out: Floats
) -> None:
    """`_row_sums` for the rows that are this part's."""
    dim = out.shape[1]
    size = np.int64(4 * dim)
    target, source = np.int64(out.ctypes.data), np.int64(gradients.ctypes.data)
    first, end = bounds[part], bounds[part + 1]
    for i in range(len(places)):
        place = places[i]
        if place < max(first, 1) or place >= end:
            continue
        if met[place]:
            add_row(target + place * size, source + i * size, 0, dim)
        else:
            met[place] = True
            copy_row(target + place * size, source + i * size, size)
    for place in range(first, end):
        if not met[place]:
            zero_row(target + place * size, size)


@compiled_in_parts
def _add_parts(
    _: int, bounds: Numbers, places: Numbers, gradients: Floats, met: NDArray[np.bool_], out: Floats
) -> None:
    for part in numba.prange(len(bounds) - 1):
        _add_part(part, bounds, places, gradients, met, out)
