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
from mainstem.train.interactions import HISTORY, Interactions
from mainstem.weights import Gathered, Lookup, Table

__all__ = ["CHANNELS", "FAMILIES", "TABLE", "Towers"]

# Half-lives of the history's two poolings: what the user is, and what the user is up to.
CHANNELS = (90 * DAY, 7 * DAY)
# The table's name in snapshots and deltas.
TABLE = "towers"
# Feature families of the table, and which one the keys of each role belong to.
FAMILIES = ("user", "entity", "attribute")
ENTITY_ROLES = ("entity", "attribute")
ROLE_FAMILY = {"user": 0, "entity": 1, "history": 1, "attribute": 2}


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

    def gather(
        self, users: Keys, history: Keys, entities: Keys, *,
        taken: Keys | None = None, gradient: bool = True, time: int = 0,
    ) -> Gathered:  # fmt: skip
        """One look-up (law 7) of users, of their histories, and of entities with their attributes.

        taken: what the users took, for a training step at `time`: users, these entities and their attributes may earn
        rows and count as seen. What is only drawn as a negative, or stands in a history, does neither.
        """
        roles = self._entity_roles(entities) | {"user": users, "history": history}
        families = dict(ROLE_FAMILY)
        if taken is not None:
            seen = {f"taken {role}": keys for role, keys in self._entity_roles(taken).items()}
            families |= {role: ROLE_FAMILY[role.removeprefix("taken ")] for role in seen}
            roles |= seen
        create = ("user", *(role for role in roles if role.startswith("taken "))) if taken is not None else False
        return self.lookup.gather(roles, families=families, time=time, create=create, gradient=gradient)

    def _entity_roles(self, entities: Keys) -> dict[str, Keys]:
        keys = self.entity_keys(entities)
        return {"entity": np.ascontiguousarray(keys[:, 0]), "attribute": keys[:, 1:].ravel()}

    def entity_batch(self, gathered: Gathered, n: int) -> Tensor:
        """Vectors [n, dim] of the entities whose keys were gathered."""
        own, attributes = (gathered.places[role] for role in ENTITY_ROLES)
        places = torch.cat([own[:, None], attributes.reshape(n, len(self.attributes))], dim=1)
        return self.module.entity(gathered.rows, places.ravel(), torch.arange(n + 1) * places.shape[1])

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
            gathered = self.lookup.gather(self._entity_roles(some), create=False, gradient=False)
            parts.append(self.entity_batch(gathered, len(some)).numpy())
        return np.concatenate(parts)

    @torch.no_grad()
    def vectors_before(self, batch: Interactions) -> Floats:
        """Unit vectors float32 [b, dim] of the users of `batch` as of then."""
        gathered = self.gather(batch.user, batch.history, batch.entity[:0], gradient=False)
        weights = self.history_weights(batch.age, batch.history_interest)
        found: Floats = self.user_batch(gathered, batch.offsets, weights).numpy()
        return found

    def user_vectors(self) -> Callable[[int, History, Floats, int], Floats]:
        """A function of (user key, history oldest first, interest float32 [m] of its events, time) that gives the
        user's unit vector float32 [dim], zeros where nothing is known, by the networks' weights of now."""
        tower, table, dim = NumpyUserTower(self.module), self.table, self.table.dim

        def user_vector(user: int, history: History, interest: Floats, time: int) -> Floats:
            entity, age = history.entity[-HISTORY:], time - history.time[-HISTORY:]
            if not len(entity):
                return np.zeros(dim, np.float32)
            rows = table.read(np.concatenate([np.array([user], np.uint64), entity]))
            return tower(rows[0], rows[1:], self.history_weights(age, interest[-HISTORY:]))

        return user_vector
