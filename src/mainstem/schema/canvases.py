"""Canvases as small numbers, for models and state: 0 is one that the configuration does not name."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import DEFAULT_TENANT, Keys, keys64

__all__ = ["UNKNOWN", "CanvasPlaces", "canvas_inputs"]

UNKNOWN = 0


def canvas_inputs(names: Iterable[str]) -> tuple[str, ...]:
    """Names of the ranking network's inputs that say which canvas asks: 1 for it, 0 for the others."""
    return tuple(f"canvas_{name}" for name in names)


class CanvasPlaces:
    """1 + the place of each canvas in the configuration. What is stored for long holds a canvas in 16 bits that do not
    depend on the others (`short`); two that meet there, one pair in 65,536, are taken for one."""

    def __init__(self, names: Sequence[str], tenant: str = DEFAULT_TENANT) -> None:
        self.names = tuple(names)
        keys = keys64("canvas", self.names, tenant)
        self._sorted, self._place = np.sort(keys), 1 + np.argsort(keys)
        short = self.short(keys)
        self._short, self._short_place = np.sort(short), 1 + np.argsort(short, kind="stable")

    def __len__(self) -> int:
        """Of the vocabulary: `UNKNOWN` counts."""
        return 1 + len(self.names)

    def of(self, name: str) -> int:
        """The place of a canvas by name."""
        return 1 + self.names.index(name) if name in self.names else UNKNOWN

    @staticmethod
    def short(keys: Keys) -> NDArray[np.uint16]:
        """16 bits of each canvas by key, for state that outlives a configuration: uint16 [n]; 0 for none."""
        return (keys & np.uint64(0xFFFF)).astype(np.uint16)

    def of_short(self, short: NDArray[np.uint16]) -> NDArray[np.int64]:
        """The places of canvases by `short`: int64 [n]."""
        if not len(self.names):
            return np.full(len(short), UNKNOWN)
        at = np.minimum(np.searchsorted(self._short, short), len(self._short) - 1)
        return np.where((self._short[at] == short) & (short != 0), self._short_place[at], UNKNOWN)

    def of_keys(self, keys: Keys) -> NDArray[np.int64]:
        """The places of canvases by key, as in `EventBatch`: int64 [n]."""
        if not len(self.names) or not keys.any():
            return np.full(len(keys), UNKNOWN)
        at = np.minimum(np.searchsorted(self._sorted, keys), len(self._sorted) - 1)
        return np.where(self._sorted[at] == keys, self._place[at], UNKNOWN)
