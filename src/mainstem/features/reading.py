"""What a view reads through: one snapshot, the pending events over it where they count, the mirrors beside it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from threading import RLock
from typing import Any, Protocol, TypeVar

import numpy as np

from mainstem.features.mirror import Mirror
from mainstem.features.pending import Fold
from mainstem.features.state import Overlay, Records, Snapshot
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["Candidates", "Feature", "Reading"]

T = TypeVar("T")


@dataclass(slots=True)
class Candidates:
    """The entities that are asked about; `memo` holds what several features need of them."""

    keys: Keys
    memo: dict[str, Any] = field(default_factory=dict)

    def once(self, name: str, make: Callable[[], T]) -> T:
        if name not in self.memo:
            self.memo[name] = make()
        found: T = self.memo[name]
        return found


class Reading:
    """The state as one view sees it. `user` 0 is nobody; `place` 0 is not given."""

    def __init__(
        self,
        snapshot: Snapshot,
        overlay: Overlay | None,
        mirrors: Mapping[str, Mirror],
        lock: RLock,
        current: Callable[[], bool],
    ) -> None:
        self.snapshot = snapshot
        self.overlay = overlay
        self.state = overlay if overlay is not None else Overlay(snapshot)
        self.mirrors = mirrors
        self.lock = lock
        self.current = current
        """Whether the mirrors still show this snapshot; call it with the lock held."""
        self.time, self.user, self.place = 0, 0, 0
        self._memo: dict[str, Any] = {}

    def once(self, name: str, make: Callable[[], T]) -> T:
        """`make()`, computed once for this reading."""
        if name not in self._memo:
            self._memo[name] = make()
        found: T = self._memo[name]
        return found

    def records(self, table: str, keys: Keys, dtype: np.dtype[Any]) -> Records:
        """Records of `keys` [n], zeros where unknown: from the mirror where it shows this snapshot, else from
        the snapshot itself."""
        mirror = self.mirrors.get(table)
        with self.lock:
            if mirror is None or not self.current():
                return self.state.records(table, keys, dtype)
            found: Records = mirror.records.take(mirror.rows(keys))
        if self.overlay is not None:
            changed, records = self.overlay.changed(table, dtype)
            if len(changed):
                place = np.minimum(np.searchsorted(changed, keys), len(changed) - 1)
                hit = changed[place] == keys
                found[hit] = records[place[hit]]
        return found

    def counts(self, table: str, keys: Keys, dtype: np.dtype[Any]) -> Floats:
        """Only the field `count` of `records`."""
        mirror = self.mirrors.get(table)
        with self.lock:
            if mirror is None or not self.current():
                found: Floats = self.state.records(table, keys, dtype)["count"]
                return found
            count: Floats = mirror.records["count"][mirror.rows(keys)]
        if self.overlay is not None:
            changed, records = self.overlay.changed(table, dtype)
            if len(changed):
                place = np.minimum(np.searchsorted(changed, keys), len(changed) - 1)
                count = np.where(changed[place] == keys, records["count"][place], count)
        return count


class Feature(Protocol):
    """One definition, used at join time and at request time (law 5).

    `definition` names everything its state depends on: a stored state of another one is refused (law 11).
    """

    @property
    def name(self) -> str: ...

    @property
    def names(self) -> tuple[str, ...]: ...

    @property
    def definition(self) -> str: ...

    def write(self, fold: Fold, state: Overlay) -> None:
        """Fold events into the state, as if one after the other."""
        ...

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        """Fill out float32 [n, len(names)], finite everywhere."""
        ...

    def erase(self, user: int, state: Overlay) -> None:
        """Drop what is kept of the user."""
        ...

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Fold what is kept of the guest into the user's, and drop the guest's."""
        ...

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        """Drop what was last touched before `limit`; how many keys went."""
        ...
