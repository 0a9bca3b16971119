"""Kept slates in this process: the plain default, and the oracle of the others."""

from __future__ import annotations

import heapq
import threading
from math import inf

from mainstem.schema.ids import DEFAULT_TENANT
from mainstem.schema.records import Slate
from mainstem.schema.time import now_ms
from mainstem.slates.place import HALF, place_of, user_half

__all__ = ["MemorySlates"]


class MemorySlates:
    """A SlateStore of at most `capacity` slates; equally old ones leave by ascending place."""

    def __init__(self, *, capacity: int, keep_for: int) -> None:
        self.capacity = capacity
        self.keep_for = keep_for
        self._slates: dict[bytes, tuple[int, Slate]] = {}
        self._places: dict[bytes, set[bytes]] = {}  # of each user
        self._oldest: list[tuple[int, bytes]] = []  # a heap; an entry whose time is no longer the slate's is void
        self._lock = threading.Lock()

    def keep(self, tenant: str, canvas: str, user: str | None, slate: Slate, time: int) -> None:
        place = place_of(tenant, canvas, user)
        with self._lock:
            kept = self._slates.get(place)
            if kept is not None and kept[0] > time:
                return
            self._slates[place] = (time, slate)
            self._places.setdefault(user_half(tenant, user), set()).add(place)
            heapq.heappush(self._oldest, (time, place))
            self._evict()
            if len(self._oldest) > 2 * len(self._slates) + 64:
                self._oldest = sorted((time, place) for place, (time, _) in self._slates.items())

    def get(self, tenant: str, canvas: str, user: str | None, max_age: int, time: int | None = None) -> Slate | None:
        time = now_ms() if time is None else time
        with self._lock:
            kept = self._slates.get(place_of(tenant, canvas, user))
        return kept[1] if kept is not None and 0 <= time - kept[0] <= max_age else None

    def forget(self, user: str, tenant: str = DEFAULT_TENANT) -> int:
        with self._lock:
            places = self._places.pop(user_half(tenant, user), set())
            for place in places:
                del self._slates[place]
            return len(places)

    def expire(self, time: int) -> int:
        with self._lock:
            return self._evict(time - self.keep_for)

    def _evict(self, before: float = -inf) -> int:
        """Drop the oldest while there are too many, and all made before `before`."""
        gone = 0
        while self._oldest and (len(self._slates) > self.capacity or self._oldest[0][0] < before):
            time, place = heapq.heappop(self._oldest)
            if place not in self._slates or self._slates[place][0] != time:
                continue
            del self._slates[place]
            places = self._places[place[:HALF]]
            places.discard(place)
            if not places:
                del self._places[place[:HALF]]
            gone += 1
        return gone

    def __len__(self) -> int:
        return len(self._slates)

    def close(self) -> None:
        """Nothing to let go of."""
