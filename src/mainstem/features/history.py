"""The user's latest events, in order of time; who co-occurs with whom follows from it.

Rows stand by ascending time (equal times: in the order of the log). Beyond the bound the oldest leaves.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from mainstem.features.pending import Fold, Kinds
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, arena, store_arena
from mainstem.features.user_item import NEVER
from mainstem.schema.canvases import CanvasPlaces
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.schema.protocols import Floats, History

__all__ = ["ROW", "UserHistory"]

Ints = NDArray[np.int64]

ROW = np.dtype(
    [
        ("time", "i8"),
        ("entity", "u8"),
        ("place", "u8"),
        ("session", "u4"),
        ("value", "f4"),
        ("kind", "i2"),
        ("canvas", "u2"),
    ],
    align=True,
)


@compiled
def _fold(
    user: Ints, time: Ints, entity: Keys, session: NDArray[np.uint32], place: Keys, value: Floats,
    kind: NDArray[np.int16], canvas: NDArray[np.uint16], start: Ints, length: Ints, h_time: Ints, h_entity: Keys,
    h_session: NDArray[np.uint32], h_place: Keys, h_value: Floats, h_kind: NDArray[np.int16],
    h_canvas: NDArray[np.uint16], weight: Floats, bound: int, span: int, pair_event: Ints, pair_other: Keys,
    pair_weight: Floats,
) -> int:  # fmt: skip
    pairs = 0
    for e in range(len(user)):
        u = user[e]
        low, end = start[u], start[u] + length[u]
        at = end
        while at > low and h_time[at - 1] > time[e]:
            at -= 1
        mine, row = pairs, at - 1
        while row >= low and pairs - mine < span:  # latest first, each other entity once
            other = h_entity[row]
            new = other != entity[e] and (session[e] == 0 or h_session[row] == session[e])
            for p in range(mine, pairs):
                new = new and pair_other[p] != other
            if new:
                pair_event[pairs], pair_other[pairs] = e, other
                pair_weight[pairs] = min(weight[kind[e]], weight[h_kind[row]])
                pairs += 1
            row -= 1
        for row in range(end, at, -1):
            h_time[row], h_entity[row], h_session[row] = h_time[row - 1], h_entity[row - 1], h_session[row - 1]
            h_place[row], h_value[row], h_kind[row] = h_place[row - 1], h_value[row - 1], h_kind[row - 1]
            h_canvas[row] = h_canvas[row - 1]
        h_time[at], h_entity[at], h_session[at] = time[e], entity[e], session[e]
        h_place[at], h_value[at], h_kind[at], h_canvas[at] = place[e], value[e], kind[e], canvas[e]
        if length[u] == bound:
            start[u] += 1
        else:
            length[u] += 1
    return pairs


class UserHistory:
    """Table `history`: a list of ROW per user."""

    name = "history"

    def __init__(self, config: Config) -> None:
        self.bound = config.features.history
        self.span = config.features.cooccurrence_span
        self.weight = Kinds(config).weight
        self.canvases = CanvasPlaces(tuple(config.canvases), config.tenant)
        self.names = ("in_last_session", "events_since")
        self.definition = f"v3 history={self.bound} span={self.span} kinds={Kinds(config).definition}"

    def write(self, fold: Fold, state: Overlay) -> None:
        rows, start, length = arena(state, "history", fold.users, fold.room, ROW)
        e, n = fold.rows, len(fold) * self.span
        fold.pair_event, fold.pair_other = np.empty(n, np.int64), np.empty(n, np.uint64)
        fold.pair_weight = np.empty(n, np.float32)
        pairs = _fold(
            fold.user, e["time"], e["entity"], e["session"], e["place"], e["value"], e["kind"], e["canvas"],
            start, length, rows["time"], rows["entity"], rows["session"], rows["place"], rows["value"], rows["kind"],
            rows["canvas"], self.weight, self.bound, self.span, fold.pair_event, fold.pair_other, fold.pair_weight,
        )  # fmt: skip
        fold.pair_event, fold.pair_other = fold.pair_event[:pairs], fold.pair_other[:pairs]
        fold.pair_weight = fold.pair_weight[:pairs]
        store_arena(state, "history", fold.users, rows, start, length)

    def rows(self, reading: Reading) -> Records:
        """The user's ROWs, oldest first."""

        def read() -> Records:
            blob = reading.state.get("history", [reading.user])[0] if reading.user else None
            return np.frombuffer(blob or b"", ROW)

        return reading.once("history", read)

    def latest(self, reading: Reading, limit: int) -> Keys:
        """The user's latest distinct entities, newest first, at most `limit`."""
        rows = self.rows(reading)["entity"][::-1]
        first = np.sort(np.unique(rows, return_index=True)[1])[:limit]
        return np.ascontiguousarray(rows[first])

    def usual_place(self, reading: Reading) -> int:
        """The place of most of the user's latest events (of equals, the latest one); 0 where none is known."""
        places = self.rows(reading)["place"][::-1]
        places = places[places != 0]
        if not len(places):
            return 0
        found, first, count = np.unique(places, return_index=True, return_counts=True)
        return int(found[np.lexsort((first, -count))[0]])

    def history(self, reading: Reading) -> History:
        rows = self.rows(reading)
        entity, kind, value, time = (rows[name].copy() for name in ("entity", "kind", "value", "time"))
        return History(entity, kind, value, time, self.canvases.of_short(rows["canvas"]))

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        """Was it in the session (or at the time) of the user's latest event; how many events ago."""
        rows = self.rows(reading)
        out[:, 0], out[:, 1] = 0, np.log1p(NEVER)
        if not len(rows):
            return
        entity, newest = rows["entity"][::-1], rows[-1]
        keys, first = np.unique(entity, return_index=True)
        place = np.minimum(np.searchsorted(keys, candidates.keys), len(keys) - 1)
        hit = keys[place] == candidates.keys
        out[hit, 1] = np.log1p(first[place[hit]])
        same = rows["session"] == newest["session"] if newest["session"] else rows["time"] == newest["time"]
        out[:, 0] = np.isin(candidates.keys, rows["entity"][same])

    def erase(self, user: int, state: Overlay) -> None:
        state.delete("history", [user])

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        rows = np.concatenate([np.frombuffer(blob or b"", ROW) for blob in state.get("history", [user, guest])])
        rows = rows[np.argsort(rows["time"], kind="stable")][-self.bound :]
        state.put("history", [user], [rows.tobytes()])
        self.erase(guest, state)

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        """A history leaves with the user's totals, whose `last` is the time of its newest row; `UserItem` expires
        before."""
        old = [key for key, totals in state.changes.get("user", {}).items() if totals is None]
        state.delete("history", old)
        return len(old)
