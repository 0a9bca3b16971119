"""Which entities are taken, and how often lately: Q of the logQ correction, and what negatives are drawn from."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows
from mainstem.schema.protocols import Floats

__all__ = ["Population"]

# An entity whose decayed count fell below this is forgotten; it comes back with its next positive.
LEAST = 1e-3
# The weight of a new positive grows; beyond this all counts are scaled down, so that none overflows.
RESCALE = 1e100


class Population:
    """Entities with the decayed count of their positives.

    half_life: positives (of all entities) after which one counts half; infinite for a training set that is drawn
    from evenly. An exponentially weighted form of the streaming frequency estimate of Yi et al. 2019,
    "Sampling-Bias-Corrected Neural Modeling", section 4.
    """

    def __init__(self, half_life: float = math.inf) -> None:
        if not half_life > 0:
            raise ValueError(f"half_life {half_life} must be above 0")
        self.half_life = half_life
        self.changes = 0
        """How often it has changed: what was made from its counts is of now while this stands."""
        self._set(np.zeros(0, np.uint64), np.zeros(0))

    def _set(self, keys: Keys, counts: NDArray[np.float64]) -> None:
        self._places = KeyRows()
        self._places.put(keys, np.arange(len(keys)))
        self._keys, self._counts = keys.copy(), counts.copy()
        self._weight = 1.0  # of the next positive
        self._total = float(counts.sum())
        self._prune_at = 2 * len(keys) + 1024

    def __len__(self) -> int:
        return len(self._keys)

    @property
    def keys(self) -> Keys:
        """Entities [n], in the order in which they came."""
        return self._keys

    def add(self, entities: Keys) -> None:
        """Count positives, in order of time."""
        if not len(entities):
            return
        self.changes += 1
        unique, times = np.unique(entities, return_counts=True)
        places = self._places.find(unique)
        new = np.flatnonzero(places < 0)
        places[new] = len(self._keys) + np.arange(len(new))
        self._places.put(unique[new], places[new])
        self._keys = np.concatenate([self._keys, unique[new]])
        self._counts = np.concatenate([self._counts, np.zeros(len(new))])
        self._counts[places] += self._weight * times
        self._total += self._weight * len(entities)
        if math.isinf(self.half_life):
            return
        self._weight *= 2.0 ** (len(entities) / self.half_life)
        if self._weight > RESCALE or len(self._keys) > self._prune_at:
            counts = self._counts / self._weight
            kept = counts >= LEAST
            self._set(self._keys[kept], counts[kept])

    def places(self, entities: Keys) -> NDArray[np.int64]:
        """Where each stands in `keys`: int64 [n]; -1 where it is not known."""
        return self._places.find(entities)

    def share(self, entities: Keys) -> Floats:
        """The part of all positives that each entity is: float32 [n]; 0 where it is not known."""
        places = self._places.find(entities)
        counts = np.where(places >= 0, self._counts[np.maximum(places, 0)] if len(self) else 0.0, 0.0)
        return (counts / max(self._total, 1e-300)).astype(np.float32)

    def shares(self) -> Floats:
        """The part of all positives that each of `keys` is: float32 [n]."""
        return (self._counts / max(self._total, 1e-300)).astype(np.float32)

    def state(self) -> dict[str, Any]:
        """For `load`: keys, counts in units of the next positive."""
        return {"keys": self._keys, "counts": self._counts, "weight": self._weight, "prune_at": self._prune_at}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises StoreError where it does not fit."""
        self.changes += 1
        keys, counts = state["keys"], state["counts"]
        if keys.dtype != np.uint64 or keys.shape != counts.shape:
            raise StoreError(f"population: keys {keys.dtype} {keys.shape}, counts {counts.shape}")
        self._set(keys, counts)
        self._weight, self._prune_at = float(state["weight"]), int(state["prune_at"])
