"""Canvases as small numbers, for models and state: 0 is one that the configuration does not name."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import DEFAULT_TENANT, Keys, keys64

__all__ = ["UNKNOWN", "CanvasPlaces"]

UNKNOWN = 0


class CanvasPlaces:
    """1 + the place of each canvas in the configuration."""

    def __init__(self, names: Sequence[str], tenant: str = DEFAULT_TENANT) -> None:
        self.names = tuple(names)
        keys = keys64("canvas", self.names, tenant)
        self._sorted, self._place = np.sort(keys), 1 + np.argsort(keys)

    def __len__(self) -> int:
        """Of the vocabulary: `UNKNOWN` counts."""
        return 1 + len(self.names)

    def of(self, name: str) -> int:
        """The place of a canvas by name."""
        return 1 + self.names.index(name) if name in self.names else UNKNOWN

    def of_keys(self, keys: Keys) -> NDArray[np.int64]:
        """The places of canvases by key, as in `EventBatch`: int64 [n]."""
        if not len(self.names) or not keys.any():
            return np.full(len(keys), UNKNOWN)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._place[at], UNKNOWN)
