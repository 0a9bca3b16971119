"""Item-item co-occurrence: a bounded list of neighbours with counts per entity, a graph.

Each event pairs with the user's latest other entities (`UserHistory` finds them: within the session where the
event has one). A full list is kept as in SpaceSaving (Metwally, Agrawal, El Abbadi 2005): a newcomer takes the
place of the least count and inherits it as its error; what is used is count - error, a lower bound of the true
count that is exact while an entity has at most `neighbours` neighbours.

Score of j beside i: (count - error) / (sqrt(n_i n_j) + 10), n the entities' event counts.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.features.compiled import compiled
from mainstem.features.history import UserHistory
from mainstem.features.pending import Fold
from mainstem.features.popularity import Popularity, best
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, arena, store_arena
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats, Scored

__all__ = ["ENTRY", "LATEST", "SHRINK", "Cooccurrence"]

Ints = NDArray[np.int64]

ENTRY = np.dtype([("key", "u8"), ("count", "f4"), ("error", "f4")])
SHRINK = 10.0
LATEST = 20
"""The user's latest distinct entities that a candidate is held against."""


@compiled
def _add(key: np.uint64, weight: float, at: int, low: int, length: Ints, keys: Keys, count: Floats, error: Floats,
         bound: int) -> None:  # fmt: skip
    end = low + length[at]
    least = low
    for row in range(low, end):
        if keys[row] == key:
            count[row] += weight
            return
        if count[row] < count[least]:
            least = row
    if length[at] < bound:
        keys[end], count[end], error[end] = key, weight, 0
        length[at] += 1
    else:
        keys[least], error[least] = key, count[least]
        count[least] += weight


@compiled
def _fold(left: Ints, right: Ints, entities: Keys, weight: Floats, length: Ints, keys: Keys, count: Floats,
          error: Floats, bound: int) -> None:  # fmt: skip
    for p in range(len(left)):
        i, j = left[p], right[p]
        _add(entities[j], weight[p], i, i * bound, length, keys, count, error, bound)
        _add(entities[i], weight[p], j, j * bound, length, keys, count, error, bound)


class Cooccurrence:
    """Table `neighbours`: a list of ENTRY per entity."""

    name = "cooccurrence"

    def __init__(self, config: Config, history: UserHistory, popularity: Popularity) -> None:
        self._history, self._popularity = history, popularity
        self.bound = config.features.neighbours
        self.names = ("cooccurrence_sum", "cooccurrence_max", "cooccurrence_session")
        self.definition = f"v1 neighbours={self.bound} {history.definition}"

    def write(self, fold: Fold, state: Overlay) -> None:
        if not len(fold.pair_event):
            return
        own = fold.rows["entity"][fold.pair_event]
        entities, place = np.unique(np.concatenate([own, fold.pair_other]), return_inverse=True)
        blobs = state.get("neighbours", entities.tolist())
        width = ENTRY.itemsize
        length = np.array([len(blob) // width if blob else 0 for blob in blobs], np.int64)
        full = bytes(width * self.bound)
        rows = np.frombuffer(bytearray(b"".join([(b or b"") + full[len(b or b"") :] for b in blobs])), ENTRY)
        _fold(
            place[: len(own)], place[len(own) :], entities, fold.pair_weight, length,
            rows["key"], rows["count"], rows["error"], self.bound,
        )  # fmt: skip
        start = np.arange(len(entities), dtype=np.int64) * self.bound
        store_arena(state, "neighbours", entities, rows, start, length)

    def edges(self, reading: Reading, entities: Keys) -> tuple[Ints, Keys, Floats]:
        """All neighbours of `entities` [m], side by side: place of the entity [e], neighbour [e], score [e]."""
        none = np.zeros(len(entities), np.int64)
        rows, _, length = arena(reading.state, "neighbours", entities, none, ENTRY)
        own = np.repeat(np.arange(len(entities)), length)
        keys, place = np.unique(rows["key"], return_inverse=True)
        both = np.concatenate([keys, entities])
        seen = reading.records("item", both, self._popularity.ring.dtype)["count"].astype(np.float64)
        total, mine = seen[: len(keys)][place], seen[len(keys) :][own]
        score = (rows["count"] - rows["error"]) / (np.sqrt(total * mine) + SHRINK)
        return own, rows["key"], np.where(total > 0, score, 0).astype(np.float32)

    def neighbours(self, reading: Reading, entities: Keys, weights: Floats, limit: int) -> Scored:
        """Entities beside `entities` [m] by the weighted sum of scores; `entities` themselves are left out."""
        if not len(entities):
            return Scored.none()
        own, keys, score = self.edges(reading, entities)
        found, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, score * weights[own], len(found)).astype(np.float32)
        total[np.isin(found, entities)] = 0
        return best(found, total, limit)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        out[:] = 0
        entities = self._history.latest(reading, LATEST)
        if not len(entities):
            return
        own, keys, score = reading.once("cooccurrence", lambda: self.edges(reading, entities))
        order = np.argsort(candidates.keys)
        ranked = candidates.keys[order]
        place = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1) if len(ranked) else np.zeros(0, np.int64)
        hit = ranked[place] == keys if len(ranked) else np.zeros(0, np.bool_)
        column = order[place[hit]]
        session = np.isin(entities, self._session(reading))
        for at, strength in enumerate((score, score, score * session[own])):
            if at == 1:
                np.maximum.at(out[:, 1], column, strength[hit])
            else:
                out[:, at] = np.bincount(column, strength[hit], len(out))

    def _session(self, reading: Reading) -> Keys:
        """Entities of the session (or the time) of the user's latest event."""
        rows: Records = self._history.rows(reading)
        newest = rows[-1]
        same = rows["session"] == newest["session"] if newest["session"] else rows["time"] == newest["time"]
        found: Keys = rows["entity"][same]
        return found

    def erase(self, user: int, state: Overlay) -> None:
        """Counts over all users hold nothing that names one."""

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Counts over all users stay as they are."""

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        """Drop the lists of entities that have no `item` record any more; `Popularity` expires before."""
        keys = [key for key, _ in snapshot.scan("neighbours")]
        old = [key for key, item in zip(keys, state.get("item", keys), strict=True) if item is None]
        state.delete("neighbours", old)
        return len(old)
