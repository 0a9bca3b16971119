"""The users' histories, kept while the log is read: what each positive's user did before its session, online.

Offline `Positives` finds the same from the whole log. Where events come in order of time and a user's sessions do not
overlap, the two agree exactly; a late event stands where it arrived, and a session that another one
interrupts (two tabs) begins anew.

A user's events are one list: first those of the past, `length` at most, then those that wait for their session to
end. A list is a chain of blocks of three events; a block is a line of the cache, and goes back whole when its events
have been dropped.

    head                          middle         tail
    [. a b] ------> [c d e] ----> [f x y] -----> [z . .]      past 6: a to f    waiting 3: x y z
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HistoryConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows, compiled, unique_places
from mainstem.schema.protocols import Floats
from mainstem.schema.time import MINUTE
from mainstem.train.interactions import Interactions, Notes, Sequences

__all__ = ["BLOCK", "SIZE", "USER", "Histories"]

Ints = NDArray[np.int64]

SIZE = 3
"""Events of a block."""
BLOCK = 64
"""Bytes of a block: keys, times and notes of its events, and the next block's number (-1: none)."""
USER = np.dtype(
    [
        ("key", "u8"), ("session", "u8"), ("last", "i8"), ("latest", "u8"), ("before", "u8"),
        ("head", "i4"), ("middle", "i4"), ("tail", "i4"),
        ("waiting", "i4"), ("past", "i2"), ("first", "i1"), ("filled", "i1"),
    ],
    align=True,
)  # fmt: skip
"""first: place of the oldest event in `head`; filled: places used in `tail`; middle: the block of the first event that
waits, -1 where none does; last: the latest time, the least of all where there is none yet;
latest: the entity that was taken last, before: the latest other one."""
_KEPT = ("session", "last", "latest", "before")
_NEVER = np.iinfo(np.int64).min
_FIRST_USERS, _FIRST_BLOCKS = 64, 256


@compiled
def _give_back(block, b_entity, b_time, b_note, b_next, free):  # type: ignore[no-untyped-def]
    """Blank a block and put it on the list of free ones."""
    b_entity[block, :], b_time[block, :], b_note[block, :] = np.uint64(0), 0, 0
    b_next[block] = free[0]
    free[0] = block
    free[1] += 1


@compiled
def _close_session(  # type: ignore[no-untyped-def]
    u, opened, bound, head, middle, first, past, waiting, b_entity, b_time, b_note, b_next, free
):  # fmt: skip
    """What waits and lies before `opened` is of the past now; beyond `bound` the oldest leave."""
    block, place = middle[u], (first[u] + past[u]) % SIZE
    while waiting[u] > 0 and b_time[block, place] < opened:
        waiting[u] -= 1
        past[u] += 1
        place += 1
        if place == SIZE:
            block, place = b_next[block], 0
        if past[u] > bound:
            past[u] -= 1
            first[u] += 1
            if first[u] == SIZE:
                oldest = head[u]
                head[u], first[u] = b_next[oldest], 0
                _give_back(oldest, b_entity, b_time, b_note, b_next, free)  # type: ignore[no-untyped-call]
    middle[u] = block if waiting[u] > 0 else -1


@compiled
def _fold(  # type: ignore[no-untyped-def]
    rows, who, users, entity, session, time, note, gap, bound,
    of_session, last, latest, before, head, middle, tail, waiting, past, first, filled,
    b_entity, b_time, b_note, b_next, free,
    emit, previous, state, out_entity, out_time, out_note, out_asked, out_offsets,
):  # fmt: skip
    """Take n events in order; with `emit`, write what lies before each one's session, once for events of one user that
    see the same.

    who int64 [n]: the place of each one's user among the `users` of the batch; free int64 [3]: head and length of the
    list of free blocks, and the first block that was never used. Returns how many events and sequences were written.
    """
    t, c = 0, 0
    written = np.full(users, -1)  # the last event of what was written of a user, while it is all of their past
    for i in range(len(rows)):
        u = rows[i]
        new = last[u] == _NEVER or session[i] != of_session[u]
        if not new and session[i] == np.uint64(0) and time[i] - last[u] > gap:
            new = True
        if new:
            of_session[u] = session[i]
            written[who[i]] = -1
            _close_session(  # type: ignore[no-untyped-call]
                u, time[i], bound, head, middle, first, past, waiting, b_entity, b_time, b_note, b_next, free
            )  # fmt: skip
        if emit:
            if past[u] > 0 and written[who[i]] < 0:
                block, place, end = head[u], first[u], t + past[u]
                while t < end:
                    for k in range(place, min(SIZE, place + end - t)):
                        out_entity[t], out_note[t], out_time[t] = b_entity[block, k], b_note[block, k], b_time[block, k]
                        t += 1
                    block, place = b_next[block], 0
                out_asked[c] = time[i]
                c += 1
                out_offsets[c] = t
                written[who[i]] = t - 1
            state[i] = written[who[i]]
            previous[i] = before[u] if latest[u] == entity[i] else latest[u]
        if latest[u] != entity[i]:
            before[u], latest[u] = latest[u], entity[i]
        if head[u] < 0 or filled[u] == SIZE:
            if free[1] > 0:
                taken = free[0]
                free[0] = b_next[taken]
                free[1] -= 1
            else:
                taken = free[2]
                free[2] += 1
            if head[u] < 0:
                head[u], first[u] = taken, 0
            else:
                b_next[tail[u]] = taken
            b_next[taken], tail[u], filled[u] = -1, taken, 0
        place, block = filled[u], tail[u]
        b_entity[block, place], b_time[block, place], b_note[block, place] = entity[i], time[i], note[i]
        if waiting[u] == 0:
            middle[u] = block
        filled[u] += 1
        waiting[u] += 1
        last[u] = max(last[u], time[i])
    return t, c


@compiled
def _spread(rows, head, first, count, b_entity, b_time, b_note, b_next, entity, time, note):  # type: ignore[no-untyped-def]
    """Write the events of `rows`, `count` of each, side by side."""
    t = 0
    for i in range(len(rows)):
        block, place = head[rows[i]], first[rows[i]]
        for _ in range(count[i]):
            entity[t], time[t], note[t] = b_entity[block, place], b_time[block, place], b_note[block, place]
            t += 1
            place += 1
            if place == SIZE:
                block, place = b_next[block], 0


@compiled
def _drop(rows, head, b_entity, b_time, b_note, b_next, free):  # type: ignore[no-untyped-def]
    """Give back all blocks of `rows`."""
    for row in rows:
        block = head[row]
        while block >= 0:
            after = b_next[block]
            _give_back(block, b_entity, b_time, b_note, b_next, free)  # type: ignore[no-untyped-call]
            block = after


class Histories:
    """The latest `length` events of interest of every user before the user's open session, and the session's own.

    Memory: 21 bytes an event, about one more event a user, and 80 to 112 bytes a user. gap: ms after which events
    without a session belong to a new one.
    """

    def __init__(self, gap: int = 30 * MINUTE, length: int = HistoryConfig().length) -> None:
        self.gap, self.length = gap, length
        self._clear(_FIRST_USERS, _FIRST_BLOCKS)

    def _clear(self, users: int, blocks: int) -> None:
        self._rows, self._free_rows, self._used = KeyRows(), list[int](), 0
        self._users = np.zeros(users, USER)
        self._blocks = _lines(blocks)
        self._free = np.array([-1, 0, 0], np.int64)

    def __len__(self) -> int:
        return self._used - len(self._free_rows)

    def nbytes(self) -> int:
        """Bytes that are in use: of users and blocks up to the last one ever used, and of the look-up by key."""
        return self._used * USER.itemsize + int(self._free[2]) * BLOCK + self._rows.nbytes()

    def fold(self, events: EventBatch, note: Notes) -> None:
        """Take events of interest in log order, with their `notes`."""
        self._take(events, np.zeros(len(events), np.float32), note, emit=False)

    def before(self, events: EventBatch, interest: Floats, note: Notes) -> Interactions:
        """The same, and for each event what its user had done before its session; interest float32 [n]."""
        return self._take(events, interest, note, emit=True)

    def _take(self, events: EventBatch, interest: Floats, note: Notes, *, emit: bool) -> Interactions:
        n = len(events)
        if not n:
            return Interactions.none()
        rows, who, users = self._rows_of(events.user)
        self._room(n)
        most = n * self.length if emit else 0
        entity, time = np.empty(most, np.uint64), np.empty(most, np.int64)
        noted, offsets = np.empty(most, np.uint32), np.zeros(n + 1, np.int64)
        asked, state, previous = np.empty(n, np.int64), np.full(n, -1), np.zeros(n, np.uint64)
        of = self._users
        t, c = _fold(  # type: ignore[no-untyped-call]
            rows, who, users, events.entity, events.session, events.time, note, self.gap, self.length,
            of["session"], of["last"], of["latest"], of["before"], of["head"], of["middle"], of["tail"], of["waiting"],
            of["past"], of["first"], of["filled"], *self._columns(), self._free,
            emit, previous, state, entity, time, noted, asked, offsets,
        )  # fmt: skip
        sequences = Sequences(
            entity[:t].copy(), noted[:t].copy(), time[:t].copy(), asked[:c].copy(), offsets[: c + 1].copy()
        )
        return Interactions(
            events.user, events.entity, interest, events.time, previous, events.canvas, events.query, events.setting,
            state, sequences, events.queries, events.settings,
        )  # fmt: skip

    def forget(self, users: Keys) -> None:
        """Drop these users (law 10)."""
        rows = self._rows.remove(np.unique(users[users != 0]))
        rows = rows[rows >= 0]
        _drop(rows, self._users["head"], *self._columns(), self._free)  # type: ignore[no-untyped-call]
        self._users[rows] = np.zeros(1, USER)
        self._free_rows.extend(rows.tolist())

    def expire(self, before: int) -> int:
        """Drop users whose latest event is older than `before` (ms); how many."""
        held = self._users[self._held()]
        gone = held["key"][held["last"] < before]
        self.forget(gone)
        return len(gone)

    def _held(self) -> Ints:
        """Rows that have a user."""
        return np.flatnonzero(self._users["key"][: self._used])

    # ---- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, by user key: equal contents, equal arrays.

            user, session, last, latest, before, past, waiting [u]; entity, time, note [t]: each user's events, oldest
            first, of which the first `past` lie before the open session
        """  # fmt: skip
        rows = self._held()
        rows = rows[np.argsort(self._users["key"][rows])]
        users = self._users[rows]
        count = users["past"].astype(np.int64) + users["waiting"]
        total = int(count.sum())
        entity, time, note = np.empty(total, np.uint64), np.empty(total, np.int64), np.empty(total, np.uint32)
        _spread(  # type: ignore[no-untyped-call]
            rows, self._users["head"], self._users["first"], count, *self._columns(), entity, time, note
        )
        return {
            "user": users["key"].copy(), **{name: users[name].copy() for name in _KEPT},
            **{name: users[name].astype(np.int64) for name in ("past", "waiting")},
            "entity": entity, "time": time, "note": note,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises StoreError where it does not fit."""
        users, past, waiting = state["user"], state["past"], state["waiting"]
        n, count = len(users), past + waiting
        total = int(count.sum())
        if len(past) != n or len(state["entity"]) != total or (n and not 0 <= past.min() <= past.max() <= self.length):
            raise StoreError("histories: the checkpoint's arrays do not fit each other")
        blocks = -(-count // SIZE)
        start = np.cumsum(blocks) - blocks
        used = int(blocks.sum())
        self._clear(max(n, _FIRST_USERS), max(used, _FIRST_BLOCKS))
        self._used, self._free[2] = n, used
        self._rows.put(users, np.arange(n))
        of = self._users[:n]
        of["key"] = users
        for name in (*_KEPT, "past", "waiting"):
            of[name] = state[name]
        of["head"] = np.where(count > 0, start, -1)
        of["tail"] = np.where(count > 0, start + blocks - 1, -1)
        of["middle"] = np.where(waiting > 0, start + past // SIZE, -1)
        of["filled"] = np.where(count > 0, count - SIZE * (blocks - 1), 0)
        b_entity, b_time, b_note, b_next = self._columns()
        place = np.arange(total) - np.repeat(np.cumsum(count) - count, count)
        at = np.repeat(start, count) + place // SIZE, place % SIZE
        b_entity[at], b_time[at], b_note[at] = state["entity"], state["time"], state["note"]
        b_next[:used] = np.arange(1, used + 1)
        b_next[of["tail"][count > 0]] = -1

    # ---- room --------------------------------------------------------------------------------------

    def _columns(self) -> tuple[Keys, Ints, Notes, NDArray[np.int32]]:
        """Of all blocks, as views: entity [b, 3], time [b, 3], note [b, 3], next [b]."""
        words = self._blocks
        return words[:, :3], words.view(np.int64)[:, 3:6], words.view(np.uint32)[:, 12:15], words.view(np.int32)[:, 15]

    def _rows_of(self, users: Keys) -> tuple[Ints, Ints, int]:
        """The row of each; its place among the different users of them, and how many these are."""
        unique, places = unique_places(users)
        rows = self._rows.find(unique)
        new = np.flatnonzero((rows < 0) & (unique != 0))
        if len(new):
            reused = [self._free_rows.pop() for _ in range(min(len(new), len(self._free_rows)))]
            fresh = len(new) - len(reused)
            made = np.concatenate([np.array(reused, np.int64), self._used + np.arange(fresh)])
            self._reserve(self._used + fresh)
            self._used += fresh
            rows[new] = made
            blank = np.zeros(len(new), USER)
            blank["key"], blank["last"] = unique[new], _NEVER
            blank["head"] = blank["middle"] = blank["tail"] = -1
            self._users[made] = blank
            self._rows.put(unique[new], made)
        return rows[places], places, len(unique)

    def _reserve(self, users: int) -> None:
        if users > len(self._users):
            grown = np.zeros(max(users, 2 * len(self._users)), USER)
            grown[: len(self._users)] = self._users
            self._users = grown

    def _room(self, n: int) -> None:
        """At least n free blocks."""
        held = len(self._blocks)
        if self._free[1] + held - self._free[2] < n:
            grown = _lines(max(2 * held, held + n))
            grown[:held] = self._blocks
            self._blocks = grown


def _lines(count: int) -> Keys:
    """Blank blocks, uint64 [count, 8], that begin where a line of the cache does."""
    room = np.zeros(count * BLOCK + BLOCK, np.uint8)
    start = -room.ctypes.data % BLOCK
    return room[start : start + count * BLOCK].view(np.uint64).reshape(count, BLOCK // 8)
