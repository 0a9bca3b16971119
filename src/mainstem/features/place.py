"""Popularity per place (a store, a country), and the place where the user usually is.

Per place and entity, exponentially weighted counts with a half-life of half of each popularity window: a few
floats a pair instead of a ring of days, since there are many more pairs than entities. The view's place is the
request's extra where given, else the place of most of the user's latest events.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.features.history import UserHistory
from mainstem.features.mirror import Mirror
from mainstem.features.pending import Fold
from mainstem.features.popularity import best
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Snapshot, expire_records
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.schema.protocols import Floats, Scored
from mainstem.schema.time import parse_duration

__all__ = ["Place", "PlaceRows"]

Ints = NDArray[np.int64]


@compiled
def _pair_keys(place: Keys, entity: Keys, out: Keys) -> None:
    for i in range(len(entity)):
        out[i] = mix(mix(place[i]) + entity[i])


@compiled
def _fold(
    row: Ints, time: Ints, weight: Floats, last: Ints, count: Floats, decay: Floats, half_lives: NDArray[np.float64]
) -> None:
    for e in range(len(row)):
        i, t = row[e], time[e]
        if count[i] == 0:
            last[i] = t
        for h in range(len(half_lives)):
            if t >= last[i]:
                decay[i, h] = decay[i, h] * 2.0 ** (-(t - last[i]) / half_lives[h]) + weight[e]
            else:
                decay[i, h] += weight[e] * 2.0 ** (-(last[i] - t) / half_lives[h])
        last[i] = max(last[i], t)
        count[i] += 1


class PlaceRows:
    """Rows of the place mirror by place."""

    def __init__(self, mirror: Mirror) -> None:
        self._mirror = mirror
        self._generation, self._seen = -1, 1
        self._rows: dict[int, list[NDArray[np.int32]]] = {}

    def of(self, place: int) -> NDArray[np.int32]:
        """Rows [m] of the place's entities. Hold the store's lock."""
        mirror = self._mirror
        if self._generation != mirror.generation:
            self._generation, self._seen, self._rows = mirror.generation, 1, {}
        mirror.touched = []
        if self._seen < mirror.size:
            new = mirror.records["place"][self._seen : mirror.size]
            order = np.argsort(new, kind="stable")
            places, first = np.unique(new[order], return_index=True)
            for one, rows in zip(places.tolist(), np.split(order, first[1:]), strict=True):
                self._rows.setdefault(one, []).append((rows + self._seen).astype(np.int32))
            self._seen = mirror.size
        parts = self._rows.get(place, [np.zeros(0, np.int32)])
        if len(parts) > 1:
            parts[:] = [np.concatenate(parts)]
        return parts[0]


class Place:
    """Table `place`: one record per (place, entity), under a key mixed from both."""

    name = "place"

    def __init__(self, config: Config, history: UserHistory) -> None:
        self._history = history
        windows = config.features.popularity_windows
        self.half_lives = np.array([parse_duration(window) / 2 for window in windows], np.float64)
        self.dtype = np.dtype(
            [("place", "u8"), ("entity", "u8"), ("last", "i8"), ("count", "f4"), ("decay", "f4", (len(windows),))],
            align=True,
        )
        self.names = (*(f"place_{window}" for window in windows), "place_known")
        self.definition = f"v1 windows={','.join(windows)} place={config.features.place}"

    def write(self, fold: Fold, state: Overlay) -> None:
        e = fold.rows[fold.rows["place"] != 0]
        if not len(e):
            return
        pair = np.empty(len(e), np.uint64)
        _pair_keys(e["place"], e["entity"], pair)
        keys, first, row = np.unique(pair, return_index=True, return_inverse=True)
        records = state.records("place", keys, self.dtype)
        records["place"], records["entity"] = e["place"][first], e["entity"][first]
        _fold(row, e["time"], e["weight"], records["last"], records["count"], records["decay"], self.half_lives)
        state.put_records("place", keys, records)

    def place(self, reading: Reading) -> int:
        """The key of the place that counts for this reading; 0 where unknown."""
        return reading.place or reading.once("place", lambda: self._history.usual_place(reading))

    def popular(self, reading: Reading, index: PlaceRows, limit: int, window: int) -> Scored:
        """Entities of the reading's place by weighted count. From the mirror, as in `Popularity.popular`."""
        place, mirror = self.place(reading), reading.mirrors["place"]
        if not place:
            return Scored.none()
        with reading.lock:
            rows, records = index.of(place), mirror.records
            entity, last, decay = records["entity"][rows], records["last"][rows], records["decay"][rows, window]
        if reading.overlay is not None:
            _, changed = reading.overlay.changed("place", self.dtype)
            changed = changed[changed["place"] == place]
            stays = ~np.isin(entity, changed["entity"])
            entity = np.concatenate([entity[stays], changed["entity"]])
            last = np.concatenate([last[stays], changed["last"]])
            decay = np.concatenate([decay[stays], changed["decay"][:, window]])
        age = (reading.time - last) / self.half_lives[window]
        return best(entity, (decay * np.exp2(-age)).astype(np.float32), limit)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        place = self.place(reading)
        out[:] = 0
        if not place:
            return
        keys = np.empty(len(candidates.keys), np.uint64)
        _pair_keys(np.full(len(keys), place, np.uint64), candidates.keys, keys)
        records = reading.records("place", keys, self.dtype)
        age = (reading.time - records["last"])[:, None] / self.half_lives
        out[:, :-1] = np.log1p(records["decay"] * np.exp2(-age))
        out[:, -1] = 1

    def erase(self, user: int, state: Overlay) -> None:
        """Sums over all users hold nothing that names one."""

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Sums over all users stay as they are."""

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        return len(expire_records("place", self.dtype, limit, snapshot, state))
