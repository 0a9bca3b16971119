"""Weighted neighbours of entities, in memory: what they say together of whoever took some of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats, Scored

__all__ = ["Neighbourhood"]


@dataclass(frozen=True, slots=True)
class Neighbourhood:
    """n entities, each with some of the others and their weights, w in all.

    keys     uint64  [n]      ascending, none 0
    offsets  int64   [n + 1]  the neighbours of `keys[i]` stand at offsets[i] : offsets[i + 1]
    places   uint32  [w]      where each neighbour stands in `keys`
    weights  float32 [w]      finite
    """

    keys: Keys
    offsets: NDArray[np.int64]
    places: NDArray[np.uint32]
    weights: Floats

    def __len__(self) -> int:
        return len(self.keys)

    def near(self, entities: Keys, strengths: Floats, limit: int) -> Scored:
        """What is tied to `entities` [m] most, by the sum of its weights times their `strengths` [m]: at most `limit`,
        above 0, best first, of equal ones the smaller key. Entities without neighbours say nothing."""
        if not len(self):
            return Scored.none()
        at = np.minimum(np.searchsorted(self.keys, entities), len(self) - 1)
        known = self.keys[at] == entities
        at, strengths = at[known], strengths[known]
        counts = self.offsets[at + 1] - self.offsets[at]
        ends = np.cumsum(counts)
        rows = np.repeat(self.offsets[at] - (ends - counts), counts) + np.arange(ends[-1] if len(ends) else 0)
        found, place = np.unique(self.places[rows], return_inverse=True)
        summed = np.bincount(place, np.repeat(strengths, counts) * self.weights[rows], minlength=len(found))
        scores = summed.astype(np.float32)
        best = np.argsort(-scores, kind="stable")[:limit]
        best = best[scores[best] > 0]
        return Scored(self.keys[found[best]], scores[best])

    def arrays(self) -> dict[str, NDArray[Any]]:
        """To be stored: what `of` takes."""
        return {"keys": self.keys, "offsets": self.offsets, "places": self.places, "weights": self.weights}

    @classmethod
    def of(cls, arrays: Mapping[str, NDArray[Any]], name: str) -> Neighbourhood:
        """What `arrays` gave. Raises StoreError naming `name` where it is not that, whoever wrote it: a place beyond
        the keys would end a request, not this."""
        wanted = {"keys": np.uint64, "offsets": np.int64, "places": np.uint32, "weights": np.float32}
        forms = {part: (array.dtype, array.ndim) for part, array in arrays.items()}
        if forms != {part: (np.dtype(kind), 1) for part, kind in wanted.items()}:
            raise StoreError(f"{name} is damaged: it does not hold keys, offsets, places and weights")
        keys, offsets, places, weights = (arrays[part] for part in wanted)
        if len(offsets) != len(keys) + 1 or offsets[0] != 0 or not (offsets[-1] == len(places) == len(weights)):
            raise StoreError(f"{name} is damaged: its offsets do not fit its weights")
        if (np.diff(offsets) < 0).any() or (len(places) and int(places.max()) >= len(keys)):
            raise StoreError(f"{name} is damaged: an offset or a place leads out of it")
        if (keys[1:] <= keys[:-1]).any() or (len(keys) and keys[0] == 0) or not np.isfinite(weights).all():
            raise StoreError(f"{name} is damaged: a key is out of order or a weight not finite")
        return cls(keys, offsets, places, weights)
