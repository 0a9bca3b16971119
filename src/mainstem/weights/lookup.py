"""One look-up a step (law 7): the keys of all roles -> one leaf tensor of rows, and places that index it."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import unique_places
from mainstem.weights.table import Rows, Table

__all__ = ["Gathered", "Lookup"]


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


class Lookup:
    """Gathers rows of one table, and applies what backward left on them once per row.

    A step: `gathered = lookup.gather({...})`, forward over `gathered.rows` and `gathered.places`,
    `loss.backward()`, `lookup.apply_gradients(rate)`.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        self._pending: Gathered | None = None

    def gather(
        self, roles: Mapping[str, Keys], *, create: bool | Collection[str] = True, gradient: bool = True
    ) -> Gathered:
        """The rows of all roles' keys (uint64 [n] each), every key once.

        create: whether keys without a row get one, or the names of the roles whose keys do; others read the
        default row. gradient: False for validation and serving: rows take none and nothing is left pending.
        """
        names = list(roles)
        sizes = [len(roles[name]) for name in names]
        keys = np.concatenate([np.zeros(0, np.uint64), *(roles[name] for name in names)])
        unique, places = unique_places(keys)
        rows = self._rows(unique, roles, create)
        # keys without a row all share place 0, as key 0 does: their gradient has nowhere to go
        found = rows >= 0
        kept = np.concatenate((np.zeros(1, np.int64), np.flatnonzero(found)))
        new_place = np.zeros(len(unique), np.int64)
        new_place[kept[1:]] = np.arange(1, len(kept))
        table_rows = rows[kept]
        leaf = torch.from_numpy(self.table.gather(table_rows)).requires_grad_(gradient)
        parts = torch.split(torch.from_numpy(new_place[places]), sizes) if names else ()
        gathered = Gathered(leaf, dict(zip(names, parts, strict=True)), table_rows)
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
            self.table.update(pending._table_rows, pending.rows.grad.numpy(), learning_rate)

    def _rows(self, unique: Keys, roles: Mapping[str, Keys], create: bool | Collection[str]) -> Rows:
        if create is True:
            return self.table.find_or_create(unique)
        if create is not False:
            unknown = set(create) - set(roles)
            if unknown:
                raise ValueError(f"create names roles that are not gathered: {', '.join(sorted(unknown))}")
            for name in create:
                self.table.find_or_create(roles[name])
        return self.table.find(unique)
