"""Entities that the user never wants to see again (events of kind `hide`), the latest `items_per_user` of them."""

from __future__ import annotations

import numpy as np

from mainstem.features.pending import Fold
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["ROW", "Hidden"]

ROW = np.dtype([("entity", "u8"), ("time", "i8")])


class Hidden:
    """Table `hidden`: a list of ROW per user, one per entity, in the order of their latest hiding."""

    name = "hidden"

    def __init__(self, config: Config) -> None:
        self.bound = config.features.items_per_user
        self.names = ("hidden",)
        self.definition = f"v1 items_per_user={self.bound}"

    def write(self, fold: Fold, state: Overlay) -> None:
        for u, user in enumerate(fold.users.tolist()):
            rows = np.zeros(int(fold.room[u]), ROW)
            for name in ROW.names or ():
                rows[name] = fold.rows[name][fold.user == u]
            self._extend(user, rows, state)

    def _extend(self, user: int, rows: Records, state: Overlay) -> None:
        rows = np.concatenate([np.frombuffer(state.get("hidden", [user])[0] or b"", ROW), rows])
        rows = rows[::-1]  # the latest hiding of each counts: then the order of forgetting knows no batches
        _, latest = np.unique(rows["entity"], return_index=True)
        state.put("hidden", [user], [rows[np.sort(latest)[: self.bound]][::-1].tobytes()])

    def keys(self, reading: Reading) -> Keys:
        """Hidden entities of the reading's user, ascending."""

        def read() -> Keys:
            blob = reading.state.get("hidden", [reading.user])[0] if reading.user else None
            return np.sort(np.frombuffer(blob or b"", ROW)["entity"])

        return reading.once("hidden", read)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        keys = self.keys(reading)
        out[:, 0] = np.isin(candidates.keys, keys) if len(keys) else 0

    def erase(self, user: int, state: Overlay) -> None:
        state.delete("hidden", [user])

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        blob = state.get("hidden", [guest])[0]
        if blob:
            self._extend(user, np.frombuffer(blob, ROW), state)
            self.erase(guest, state)

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        old = [key for key, blob in snapshot.scan("hidden") if np.frombuffer(blob, ROW)["time"].max() < limit]
        state.delete("hidden", old)
        return len(old)
