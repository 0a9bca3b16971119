"""User x item: how often, how lately, how regularly the user came back to an entity; and the user's own totals.

Decayed counts are sum(weight * 2^(-(t - time) / half-life)), kept as of the row's latest time. A session is
counted in a row when it differs from the row's latest one; events without a session share one per day (UTC).
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.features.pending import Fold, Kinds, session_of
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, arena, expire_records, store_arena
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.schema.protocols import Counts, Floats
from mainstem.schema.time import DAY, parse_duration

__all__ = ["NEVER", "UserItem", "log_days", "log_fine", "log_share"]

NEVER = 1000.0
"""Days that stand for "never": the sentinel of every recency is log1p(NEVER)."""

Ints = NDArray[np.int64]


def log_days(ms: NDArray[np.int64] | NDArray[np.float64]) -> NDArray[np.float64]:
    """log1p of days, from ms; negative spans count as none, those above NEVER days as NEVER."""
    return np.log1p(np.clip(ms / DAY, 0.0, NEVER))


def log_fine(decayed: NDArray[Any]) -> NDArray[np.float64]:
    """log1p(50 x): decayed counts that have nearly faded stay apart, which tells old favourites from old flings."""
    return np.log1p(50.0 * decayed)


def log_share(share: NDArray[Any]) -> NDArray[np.float64]:
    """log1p(1000 x): shares are small and skewed."""
    return np.log1p(1000.0 * share)


@compiled
def _decay(decay: Floats, row: int, last: int, time: int, weight: float, half_lives: NDArray[np.float64]) -> None:
    for h in range(len(half_lives)):
        if time >= last:
            decay[row, h] = decay[row, h] * 2.0 ** (-(time - last) / half_lives[h]) + weight
        else:
            decay[row, h] += weight * 2.0 ** (-(last - time) / half_lives[h])


@compiled
def _place(
    slots: NDArray[np.int64], items: Keys, user: int, key: np.uint64, start: Ints, length: Ints
) -> tuple[int, np.uint64]:
    """(row of the user's item or -1, the slot where it is or would be)."""
    mask = np.uint64(len(slots) - 1)
    slot = mix(key ^ mix(np.uint64(user + 1))) & mask
    while slots[slot] >= 0:
        row = slots[slot]
        if items[row] == key and start[user] <= row < start[user] + length[user]:
            return row, slot
        slot = (slot + np.uint64(1)) & mask
    return -1, slot


@compiled
def _oldest(last: Ints, items: Keys, first_row: int, length: int) -> int:
    best = first_row
    for row in range(first_row + 1, first_row + length):
        if last[row] < last[best] or (last[row] == last[best] and items[row] < items[best]):
            best = row
    return best


@compiled
def _fold(
    user: Ints, entity: Keys, time: Ints, weight: Floats, owned: NDArray[np.uint8], session: NDArray[np.uint32],
    start: Ints, length: Ints, items: Keys, first: Ints, last: Ints, row_session: NDArray[np.uint32],
    count: Floats, sessions: Floats, at: Floats, decay: Floats, row_owned: NDArray[np.uint8],
    u_first: Ints, u_last: Ints, u_session: NDArray[np.uint32], u_count: Floats, u_sessions: Floats,
    u_fresh: Floats, u_decay: Floats, half_lives: NDArray[np.float64], bound: int, fresh: NDArray[np.bool_],
) -> None:  # fmt: skip
    size = 16
    while size < 2 * len(items):
        size *= 2
    slots = np.full(size, -1, np.int64)
    for u in range(len(start)):
        for row in range(start[u], start[u] + length[u]):
            _, slot = _place(slots, items, u, items[row], start, length)
            slots[slot] = row
    for e in range(len(user)):
        u = user[e]
        row, slot = _place(slots, items, u, entity[e], start, length)
        fresh[e] = row < 0
        if row < 0:
            if length[u] < bound:
                row = start[u] + length[u]
                length[u] += 1
            else:  # the evicted item's slot stays behind as a tombstone: no key matches it any more
                row = _oldest(last, items, start[u], length[u])
            slots[slot] = row
            items[row], first[row], last[row] = entity[e], time[e], time[e]
            count[row], sessions[row], row_session[row], row_owned[row] = 0, 1, session[e], 0
            decay[row, :] = 0
        _decay(decay, row, last[row], time[e], weight[e], half_lives)
        count[row] += 1
        first[row], last[row] = min(first[row], time[e]), max(last[row], time[e])
        row_owned[row] |= owned[e]
        if row_session[row] != session[e]:
            sessions[row] += 1
            row_session[row] = session[e]
        if u_count[u] == 0:
            u_first[u], u_last[u], u_session[u], u_sessions[u] = time[e], time[e], session[e], 1
        _decay(u_decay, u, u_last[u], time[e], weight[e], half_lives)
        u_count[u] += 1
        u_fresh[u] += fresh[e]
        u_first[u], u_last[u] = min(u_first[u], time[e]), max(u_last[u], time[e])
        if u_session[u] != session[e]:
            u_sessions[u] += 1
            u_session[u] = session[e]
        at[row] = u_sessions[u]


@compiled
def _events(
    count: Ints,
    time: Ints,
    session: NDArray[np.uint32],
    kind: NDArray[np.int16],
    weights: Floats,
    owned: NDArray[np.uint8],
) -> tuple[Ints, NDArray[np.uint32], Floats, NDArray[np.uint8], Ints, bool]:
    """Of events that rest side by side, `count` of each user: user, session, weight, owned; where each user's start;
    whether all kinds are known."""
    n, at, known = len(time), 0, True
    user, start, sessions = np.empty(n, np.int64), np.empty(len(count), np.int64), np.empty(n, np.uint32)
    weight, own = np.empty(n, np.float32), np.empty(n, np.uint8)
    for u in range(len(count)):
        start[u] = at
        for e in range(at, at + count[u]):
            user[e], sessions[e] = u, session_of(session[e], time[e])
            if 0 <= kind[e] < len(weights):
                weight[e], own[e] = weights[kind[e]], owned[kind[e]]
            else:
                known = False
        at += count[u]
    return user, sessions, weight, own, start, known


class UserItem:
    """Tables `user_item` (a list of ROW per user) and `user` (one USER per user)."""

    name = "user_item"

    def __init__(self, config: Config) -> None:
        lives = config.features.half_lives
        self.half_lives = np.array([parse_duration(life) for life in lives], np.float64)
        self.bound = config.features.items_per_user
        self.kinds = Kinds(config)
        h = len(lives)
        self.row = np.dtype(
            [("item", "u8"), ("first", "i8"), ("last", "i8"), ("session", "u4"), ("count", "f4"),
             ("sessions", "f4"), ("at", "f4"), ("decay", "f4", (h,)), ("owned", "u1")], align=True,
        )  # fmt: skip
        self.user = np.dtype(
            [("first", "i8"), ("last", "i8"), ("session", "u4"), ("count", "f4"), ("sessions", "f4"),
             ("fresh", "f4"), ("decay", "f4", (h,))], align=True,
        )  # fmt: skip
        self.names = (
            "bought", "count", *(f"decayed_{life}" for life in lives), *(f"decayed_share_{life}" for life in lives),
            "days_since", "days_since_first", "due", "session_share", "owned", "sessions_since", "week_phase",
            "interval", "rhythm",
            "user_events", "user_items", "user_sessions", "user_days_since", "user_fresh_share",
            "user_events_per_session",
        )  # fmt: skip
        self.names = tuple(n if n.startswith("user_") else f"user_item_{n}" for n in self.names)
        self.definition = f"v2 half_lives={','.join(lives)} items_per_user={self.bound}"

    def write(self, fold: Fold, state: Overlay) -> None:
        rows, start, length = arena(state, "user_item", fold.users, fold.room, self.row)
        users = state.records("user", fold.users, self.user)
        e = fold.rows
        self._take(
            fold.user, e["entity"], e["time"], e["weight"], e["owned"], fold.sessions(), rows, start, length, users,
            fold.fresh,
        )  # fmt: skip
        store_arena(state, "user_item", fold.users, rows, start, length)
        state.put_records("user", fold.users, users)

    def folded(self, rows: Records, count: Ints) -> tuple[Records, Ints, Ints, Records]:
        """What folding events of u users from nothing gives; `rows`: ROWs side by side, `count` [u] of each user.

        The user's rows as in `arena`, start [u], length [u], and USERs [u]. Raises ValueError for an unknown kind.
        """
        user, session, weight, owned, start, known = _events(
            count, rows["time"], rows["session"], rows["kind"], self.kinds.weight, self.kinds.owned
        )
        if not known:
            raise ValueError("a kind that the configuration does not have")
        items, users = np.zeros(len(rows), self.row), np.zeros(len(count), self.user)
        length, fresh = np.zeros(len(count), np.int64), np.empty(len(rows), np.bool_)
        self._take(
            user, rows["entity"], rows["time"], weight, owned, session, items, start, length, users, fresh
        )  # fmt: skip
        return items, start, length, users

    def _take(
        self, user: Ints, entity: Keys, time: Ints, weight: Floats, owned: NDArray[np.uint8],
        session: NDArray[np.uint32], rows: Records, start: Ints, length: Ints, users: Records, fresh: NDArray[np.bool_],
    ) -> None:  # fmt: skip
        _fold(
            user, entity, time, weight, owned, session, start, length, rows["item"], rows["first"], rows["last"],
            rows["session"], rows["count"], rows["sessions"], rows["at"], rows["decay"], rows["owned"], users["first"],
            users["last"], users["session"], users["count"], users["sessions"], users["fresh"], users["decay"],
            self.half_lives, self.bound, fresh,
        )  # fmt: skip

    def rows(self, reading: Reading) -> Records:
        """The user's ROWs by ascending item."""

        def read() -> Records:
            blob = reading.state.get("user_item", [reading.user])[0] if reading.user else None
            rows = np.frombuffer(blob or b"", self.row)
            return rows[np.argsort(rows["item"])]

        return reading.once("user_item.rows", read)

    def totals(self, reading: Reading) -> Records:
        """The user's USER record [1]; zeros for nobody."""
        key = np.array([reading.user], np.uint64)
        return reading.once("user_item.user", lambda: reading.state.records("user", key, self.user))

    def decayed(self, reading: Reading) -> NDArray[np.float64]:
        """The decayed counts of `rows` as of the reading's time: [m, half-lives]."""

        def compute() -> NDArray[np.float64]:
            rows = self.rows(reading)
            age = (reading.time - rows["last"]).astype(np.float64)[:, None]
            return rows["decay"] * np.exp2(-age / self.half_lives)

        return reading.once("user_item.decayed", compute)

    def counts(self, reading: Reading) -> Counts:
        rows = self.rows(reading)
        return Counts(
            keys=rows["item"].copy(), count=rows["count"].copy(), first=rows["first"].copy(),
            last=rows["last"].copy(), owned=rows["owned"].astype(np.bool_),
        )  # fmt: skip

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        rows, h = self.rows(reading), len(self.half_lives)
        user = self.totals(reading)[0]
        out[:, : 2 + 2 * h] = 0
        out[:, 2 + 2 * h : 5 + 2 * h] = np.log1p(NEVER), np.log1p(NEVER), 0
        out[:, 5 + 2 * h : 7 + 2 * h] = 0
        out[:, 7 + 2 * h : 11 + 2 * h] = np.log1p(NEVER), 0, 0, 0
        if len(rows):
            place = np.minimum(np.searchsorted(rows["item"], candidates.keys), len(rows) - 1)
            hit = np.flatnonzero(rows["item"][place] == candidates.keys)
            place = place[hit]
            mine, decayed = rows[place], self.decayed(reading)[place]
            total = user["decay"] * np.exp2(-(reading.time - user["last"]) / self.half_lives)
            since = reading.time - mine["last"]
            interval = (mine["last"] - mine["first"]) / np.maximum(mine["sessions"] - 1, 1)
            known = (mine["sessions"] > 1) & (interval > 0)
            due = np.where(known, np.minimum(since / np.where(known, interval, 1), 10.0), 0.0)
            out[hit, 0] = 1
            out[hit, 1] = np.log1p(mine["count"])
            out[hit, 2 : 2 + h] = log_fine(decayed)
            out[hit, 2 + h : 2 + 2 * h] = log_share(decayed / np.maximum(total, 1e-9))
            out[hit, 2 + 2 * h] = log_days(since)
            out[hit, 3 + 2 * h] = log_days(reading.time - mine["first"])
            out[hit, 4 + 2 * h] = np.log1p(due)
            out[hit, 5 + 2 * h] = np.minimum(mine["sessions"] / max(float(user["sessions"]), 1.0), 1.0)
            out[hit, 6 + 2 * h] = mine["owned"]
            out[hit, 7 + 2 * h] = np.log1p(np.maximum(user["sessions"] - mine["at"], 0))
            out[hit, 8 + 2 * h] = np.cos(2 * np.pi * since / (7 * DAY))
            # As if one more purchase had come a week before the first: an interval from a single one, too.
            usual = (mine["last"] - mine["first"] + 7 * DAY) / mine["count"]
            out[hit, 9 + 2 * h] = log_days(usual)
            out[hit, 10 + 2 * h] = log_days(since) - log_days(usual)
        events, sessions = float(user["count"]), float(user["sessions"])
        since_last = log_days(np.array(reading.time - int(user["last"]))) if events else np.log1p(NEVER)
        out[:, 11 + 2 * h :] = (
            np.log1p(events), np.log1p(len(rows)), np.log1p(sessions), since_last,
            float(user["fresh"]) / max(events, 1.0), np.log1p(events / max(sessions, 1.0)),
        )  # fmt: skip

    def erase(self, user: int, state: Overlay) -> None:
        state.delete("user_item", [user])
        state.delete("user", [user])

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        old = expire_records("user", self.user, limit, snapshot, state)
        state.delete("user_item", old)
        return len(old)

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Rows of both are added up; beyond the bound the least recently used leave."""
        keys = np.array([user, guest], np.uint64)
        both = [np.frombuffer(blob or b"", self.row) for blob in state.get("user_item", keys.tolist())]
        totals = state.records("user", keys, self.user)
        rows = np.concatenate(both)
        rows["at"][len(both[0]) :] += totals["sessions"][0]
        items, place = np.unique(rows["item"], return_inverse=True)
        merged = np.zeros(len(items), self.row)
        for row, at in zip(rows, place, strict=True):
            self._add(row, merged, int(at))
            merged[at]["item"] = row["item"]
            merged[at]["owned"] |= row["owned"]
            merged[at]["at"] = max(merged[at]["at"], row["at"])
        keep = np.lexsort((merged["item"], merged["last"]))[-self.bound :]
        state.put("user_item", [user], [merged[np.sort(keep)].tobytes()])
        one = np.zeros(1, self.user)
        for row in totals:
            one[0]["fresh"] += row["fresh"]
            if row["count"] > 0:
                self._add(row, one, 0)
        state.put_records("user", keys[:1], one)
        self.erase(guest, state)

    def _add(self, row: Records, into: Records, at: int) -> None:
        """Add one record's counts, times and decayed counts to another's."""
        have = into[at]
        if have["count"] == 0:
            for name in ("first", "last", "session"):
                into[at][name] = row[name]
        last = max(int(have["last"]), int(row["last"]))
        decay = have["decay"] * np.exp2(-(last - int(have["last"])) / self.half_lives)
        into[at]["decay"] = decay + row["decay"] * np.exp2(-(last - int(row["last"])) / self.half_lives)
        into[at]["first"] = min(int(have["first"]), int(row["first"]))
        into[at]["last"] = last
        into[at]["count"] += row["count"]
        into[at]["sessions"] += row["sessions"]
