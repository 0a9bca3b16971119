"""Small numbers for keys: what is kept of a key many times over is kept by its number."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows, unique_places

__all__ = ["Numbering"]


class Numbering:
    """Numbers for keys in the order in which they come: 1, 2, ...; key 0 has number 0. None is given back: who wants
    fewer begins anew. Memory: 40 to 72 bytes a key."""

    def __init__(self) -> None:
        self._numbers, self._count = KeyRows(), 1
        self._keys = np.zeros(1, np.uint64)

    def __len__(self) -> int:
        """How many numbers there are, with 0."""
        return self._count

    def nbytes(self) -> int:
        return self._numbers.nbytes() + self._keys.itemsize * self._count

    def keys(self) -> Keys:
        """The key of each number: uint64 [len]."""
        return self._keys[: self._count]

    def of(self, keys: Keys) -> NDArray[np.int64]:
        """The number of each key [n]; new ones get one."""
        unique, places = unique_places(keys)
        numbers = self._numbers.find(unique)
        numbers[0] = 0  # of key 0, which is always the first
        new = np.flatnonzero(numbers < 0)
        if len(new):
            numbers[new] = np.arange(self._count, self._count + len(new))
            self._numbers.put(unique[new], numbers[new])
            self._append(unique[new])
        return numbers[places]

    def _append(self, keys: Keys) -> None:
        end = self._count + len(keys)
        if end > len(self._keys):
            wider = np.zeros(max(end, 2 * len(self._keys)), np.uint64)
            wider[: self._count] = self.keys()
            self._keys = wider
        self._keys[self._count : end] = keys
        self._count = end
