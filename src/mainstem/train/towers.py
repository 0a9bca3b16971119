"""The two-tower model with its table: which keys speak for an entity and for a user.

One definition, used by training (many users at once) and by serving (one user, many entities).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import NumpyUserTower, TwoTower
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats, History
from mainstem.schema.time import DAY
from mainstem.weights import Gathered, Lookup, Table

__all__ = ["CHANNELS", "HISTORY", "Towers"]

# Half-lives of the history's two poolings: what the user is, and what the user is up to.
CHANNELS = (90 * DAY, 7 * DAY)
# Latest events that the user tower reads.
HISTORY = 50


class Towers:
    """`module` over `table`. `attributes` are the category attributes whose keys speak for an entity too."""

    def __init__(self, module: TwoTower, table: Table, catalog: Catalog, attributes: Sequence[str]) -> None:
        self.module, self.table, self.catalog = module, table, catalog
        self.attributes = tuple(attributes)
        self.lookup = Lookup(table)

    def entity_keys(self, entities: Keys) -> Keys:
        """Keys that speak for each entity: uint64 [n, 1 + attributes]; 0 where an attribute is absent."""
        rows = self.catalog.rows(entities)
        return np.column_stack([entities, *(self.catalog.codes(name, rows) for name in self.attributes)])

    @staticmethod
    def history_weights(age: NDArray[np.int64], interest: Floats) -> Floats:
        """How much an event of this age (ms) counts in each channel: float32 [m, channels]."""
        half_lives = np.array(CHANNELS, np.float64)
        return (interest[:, None] * np.exp2(-np.maximum(age, 0)[:, None] / half_lives)).astype(np.float32)

    def entity_batch(self, gathered: Gathered, role: str, n: int) -> Tensor:
        """Vectors [n, dim] of the entities whose keys were gathered as `role`."""
        each = 1 + len(self.attributes)
        return self.module.entity(gathered.rows, gathered.places[role], torch.arange(n + 1) * each)

    def user_batch(self, gathered: Gathered, offsets: NDArray[np.int64], weights: Floats) -> Tensor:
        """Vectors [b, dim] of the users gathered as `user`, each with its segment of `history`.

        offsets int64 [b + 1] and weights float32 [t, channels] of the histories.
        """
        places = gathered.places
        segments, counted = torch.from_numpy(offsets), torch.from_numpy(weights)
        return self.module.user(gathered.rows, places["user"], places["history"], segments, counted)

    @torch.no_grad()
    def entity_vectors(self, entities: Keys, chunk: int = 20_000) -> Floats:
        """Unit vectors float32 [n, dim]; attributes alone speak for an entity without a row of its own."""
        self.module.eval()
        parts = [np.zeros((0, self.table.dim), np.float32)]
        for start in range(0, len(entities), chunk):
            some = entities[start : start + chunk]
            gathered = self.lookup.gather({"entity": self.entity_keys(some).ravel()}, create=False, gradient=False)
            parts.append(self.entity_batch(gathered, "entity", len(some)).numpy())
        return np.concatenate(parts)

    def user_vectors(self) -> Callable[[int, History, Floats, int], Floats]:
        """A function of (user key, history oldest first, interest float32 [m] of its events, time) that gives the
        user's unit vector float32 [dim], zeros where nothing is known, by the networks' weights of now."""
        tower, table, dim = NumpyUserTower(self.module), self.table, self.table.dim

        def user_vector(user: int, history: History, interest: Floats, time: int) -> Floats:
            entity, age = history.entity[-HISTORY:], time - history.time[-HISTORY:]
            if not len(entity):
                return np.zeros(dim, np.float32)
            rows = table.gather(table.find(np.concatenate([np.array([user], np.uint64), entity])))
            return tower(rows[0], rows[1:], self.history_weights(age, interest[-HISTORY:]))

        return user_vector
