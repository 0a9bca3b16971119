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

from mainstem.features.history import UserHistory
from mainstem.features.mirror import distinct
from mainstem.features.pending import Fold
from mainstem.features.popularity import Popularity, best
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, arena, store_arena
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
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


def _score(count: Floats, own: NDArray[np.float64], other: NDArray[np.float64]) -> NDArray[np.float64]:
    """Normalised co-occurrence; 0 where the other entity has left the state."""
    score: NDArray[np.float64] = np.where(other > 0, count / (np.sqrt(own * other) + SHRINK), 0.0)
    return score


class Cooccurrence:
    """Table `neighbours`: a list of ENTRY per entity."""

    name = "cooccurrence"

    def __init__(self, config: Config, history: UserHistory, user_item: UserItem, popularity: Popularity) -> None:
        self._history, self._user_item, self._popularity = history, user_item, popularity
        self.bound = config.features.neighbours
        self.names = ("cooccurrence_sum", "cooccurrence_max", "cooccurrence_session", "cooccurrence_favourites")
        self.definition = f"v1 neighbours={self.bound} {history.definition}"

    def write(self, fold: Fold, state: Overlay) -> None:
        if not len(fold.pair_event):
            return
        own = fold.rows["entity"][fold.pair_event]
        entities, place = distinct(np.concatenate([own, fold.pair_other]))
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
        """All neighbours of `entities` [m], side by side: place of the entity [e], neighbour [e], count [e]."""
        none = np.zeros(len(entities), np.int64)
        rows, _, length = arena(reading.state, "neighbours", entities, none, ENTRY)
        return np.repeat(np.arange(len(entities)), length), rows["key"], rows["count"] - rows["error"]

    def _events(self, reading: Reading, keys: Keys) -> NDArray[np.float64]:
        return reading.counts("item", keys, self._popularity.ring.dtype).astype(np.float64)

    def neighbours(self, reading: Reading, entities: Keys, weights: Floats, limit: int) -> Scored:
        """Entities beside `entities` [m] by the weighted sum of scores; `entities` themselves are left out."""
        if not len(entities):
            return Scored.none()
        own, keys, count = self.edges(reading, entities)
        seen = self._events(reading, np.concatenate([keys, entities]))
        score = _score(count, seen[len(keys) :][own], seen[: len(keys)])
        found, place = np.unique(keys, return_inverse=True)
        total = np.bincount(place, score * weights[own], len(found)).astype(np.float32)
        total[np.isin(found, entities)] = 0
        return best(found, total, limit)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        out[:] = 0
        latest = self._history.latest(reading, LATEST)
        if not len(latest):
            return
        favourite, love = self._favourites(reading)
        entities = np.concatenate([latest, favourite])
        own, keys, count, seen = reading.once(
            "cooccurrence", lambda: (*self.edges(reading, entities), self._events(reading, entities))
        )
        order = np.argsort(candidates.keys)
        ranked = candidates.keys[order]
        place = np.minimum(np.searchsorted(ranked, keys), len(ranked) - 1)
        hit = np.flatnonzero(ranked[place] == keys)
        place, own = place[hit], own[hit]
        total = self._popularity.records(reading, candidates)["count"][order[place]]
        score = _score(count[hit], seen[own], total)
        recent = own < len(latest)
        session = np.isin(entities, self._session(reading)) & (np.arange(len(entities)) < len(latest))
        weight = np.concatenate([np.zeros(len(latest)), love])
        shape = len(ranked)
        found = np.zeros((shape, 4))
        found[:, 0] = np.bincount(place, score * recent, shape)
        np.maximum.at(found[:, 1], place, score * recent)
        found[:, 2] = np.bincount(place, score * session[own], shape)
        found[:, 3] = np.bincount(place, score * weight[own], shape)
        out[:] = found[np.searchsorted(ranked, candidates.keys)]  # by place of the first of equal keys

    def _favourites(self, reading: Reading) -> tuple[Keys, NDArray[np.float64]]:
        """The user's entities with the largest counts (middle half-life), and the square root of these."""
        decayed = self._user_item.decayed(reading)
        decayed = decayed[:, decayed.shape[1] // 2] if decayed.shape[1] else np.zeros(len(decayed))
        rows = self._user_item.rows(reading)
        first = np.lexsort((rows["item"], -decayed))[:LATEST]
        return rows["item"][first], np.sqrt(decayed[first])

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
