"""One request's view of the state: what `FeatureView` promises, over one snapshot."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from mainstem.features.reading import Candidates, Reading
from mainstem.schema.ids import Keys
from mainstem.schema.position import Position
from mainstem.schema.protocols import Counts, Floats, History, Scored

if TYPE_CHECKING:
    from mainstem.features.store import Store

__all__ = ["View"]


class View:
    """Events strictly before `time`. `exact` is False where events at or after `time` are already folded into
    the state, so that they cannot be left out: a request from the past, which only a replay answers exactly."""

    def __init__(self, store: Store, reading: Reading, position: Position, exact: bool) -> None:
        self._store, self._reading = store, reading
        self.time, self.position, self.exact = reading.time, position, exact

    def history(self) -> History:
        return self._store.history.history(self._reading)

    def counts(self) -> Counts:
        return self._store.user_item.counts(self._reading)

    def hidden(self) -> Keys:
        return self._store.hidden.keys(self._reading).copy()

    def popular(self, limit: int, window: int = 1, place: bool = False, fresh: bool = False) -> Scored:
        """Most popular of window number `window`; `place`: of the user's place; `fresh`: counting only each
        user's first event with an entity (what people newly take up), over all places."""
        window = min(window, len(self._store.popularity.ring.spans) - 1)
        if place:
            return self._store.place.popular(self._reading, self._store.place_rows, limit, window)
        return self._store.popularity.popular(self._reading, self._store.ranking, limit, window, fresh)

    def popularity(self, entities: Keys, window: int = 1) -> Floats:
        """How popular each of these is in window number `window`: float32 [n]; 0 where it is unknown."""
        window = min(window, len(self._store.popularity.ring.spans) - 1)
        asked = Candidates(np.asarray(entities, np.uint64))
        found: Floats = self._store.popularity.windows(self._reading, asked)[window]
        return found

    def neighbours(self, entities: Keys, weights: Floats, limit: int) -> Scored:
        return self._store.cooccurrence.neighbours(self._reading, np.asarray(entities, np.uint64), weights, limit)

    def values(self, candidates: Keys) -> Floats:
        asked = Candidates(np.asarray(candidates, np.uint64))
        out = np.zeros((len(asked.keys), len(self._store.names)), np.float32)
        if len(out):
            for feature, columns in self._store.columns:
                feature.values(self._reading, asked, out[:, columns])
        return out

    def close(self) -> None:
        """Release the snapshot; the view answers nothing afterwards."""
        self._reading.snapshot.close()

    def __enter__(self) -> View:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()
