"""The users' histories, kept while the log is read: what each positive's user did before its session, online.

Offline `Positives` finds the same from the whole log. Where events come in order of time and a user's sessions do not
overlap, the two agree exactly; a late event stands where it arrived, and a session that another one
interrupts (two tabs) begins anew.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows, compiled, unique_places
from mainstem.schema.protocols import Floats
from mainstem.schema.time import MINUTE
from mainstem.train.interactions import HISTORY, Interactions

__all__ = ["Histories"]

Ints = NDArray[np.int64]

_PER_USER = {"session": np.uint64} | dict.fromkeys(("opened", "last", "count", "head", "tail"), np.int64)
_FIRST_USERS, _FIRST_WAITING = 64, 256


@compiled
def _fold(  # type: ignore[no-untyped-def]
    rows, entity, session, time, interest, gap,
    of_session, opened, last, count, head, tail, ring_entity, ring_time, ring_interest,
    w_entity, w_time, w_interest, w_next, free,
    emit, out_entity, out_age, out_interest, out_offsets,
):  # fmt: skip
    """Take n events in order; with `emit`, write what lies before each one's session.

    free int64 [2]: head and length of the list of free places.
    """
    size = ring_entity.shape[1]
    t = 0
    for i in range(len(rows)):
        u = rows[i]
        new = last[u] == np.iinfo(np.int64).min or session[i] != of_session[u]
        if not new and session[i] == np.uint64(0) and time[i] - last[u] > gap:
            new = True
        if new:
            of_session[u], opened[u] = session[i], time[i]
        # what waits and lies before the session is history now; of its own session nothing is
        while new and head[u] >= 0 and w_time[head[u]] < opened[u]:
            node = head[u]
            place = count[u] % size
            ring_entity[u, place], ring_time[u, place] = w_entity[node], w_time[node]
            ring_interest[u, place] = w_interest[node]
            count[u] += 1
            head[u] = w_next[node]
            if head[u] < 0:
                tail[u] = -1
            w_next[node] = free[0]
            free[0] = node
            free[1] += 1
        if emit:
            for k in range(max(count[u] - size, 0), count[u]):
                place = k % size
                out_entity[t], out_interest[t] = ring_entity[u, place], ring_interest[u, place]
                out_age[t] = time[i] - ring_time[u, place]
                t += 1
            out_offsets[i + 1] = t
        node = free[0]
        free[0] = w_next[node]
        free[1] -= 1
        w_entity[node], w_time[node], w_interest[node], w_next[node] = entity[i], time[i], interest[i], -1
        if tail[u] >= 0:
            w_next[tail[u]] = node
        else:
            head[u] = node
        tail[u] = node
        last[u] = max(last[u], time[i])
    return t


class Histories:
    """The latest `HISTORY` events of interest of every user before the user's open session, and the session's own.

    Memory: about 1.1 KB a user. gap: ms after which events without a session belong to a new one.
    """

    def __init__(self, gap: int = 30 * MINUTE) -> None:
        self.gap = gap
        self._clear(_FIRST_USERS)

    def _clear(self, users: int) -> None:
        self._rows, self._free_rows, self._used = KeyRows(), list[int](), 0
        self._user: Keys = np.zeros(users, np.uint64)
        self._of: dict[str, NDArray[Any]] = {name: np.zeros(users, dtype) for name, dtype in _PER_USER.items()}
        self._ring_entity: Keys = np.zeros((users, HISTORY), np.uint64)
        self._ring_time: Ints = np.zeros((users, HISTORY), np.int64)
        self._ring_interest: Floats = np.zeros((users, HISTORY), np.float32)
        self._w_entity: Keys = np.zeros(0, np.uint64)
        self._w_time: Ints = np.zeros(0, np.int64)
        self._w_interest: Floats = np.zeros(0, np.float32)
        self._w_next: Ints = np.zeros(0, np.int64)
        self._free = np.array([-1, 0], np.int64)  # head and length of the list of free places for waiting events

    def __len__(self) -> int:
        return self._used - len(self._free_rows)

    def fold(self, events: EventBatch, interest: Floats) -> None:
        """Take events of interest in log order; interest float32 [n]: how much each says."""
        self._take(events, interest, emit=False)

    def before(self, events: EventBatch, interest: Floats) -> Interactions:
        """The same, and for each event what its user had done before its session."""
        return self._take(events, interest, emit=True)

    def _take(self, events: EventBatch, interest: Floats, *, emit: bool) -> Interactions:
        n = len(events)
        if not n:
            return Interactions.none()
        rows = self._rows_of(events.user)
        self._room(n)
        most = n * HISTORY if emit else 0
        entity, age = np.empty(most, np.uint64), np.empty(most, np.int64)
        weights, offsets = np.empty(most, np.float32), np.zeros(n + 1, np.int64)
        of = self._of
        t = _fold(  # type: ignore[no-untyped-call]
            rows, events.entity, events.session, events.time, interest, self.gap,
            of["session"], of["opened"], of["last"], of["count"], of["head"], of["tail"],
            self._ring_entity, self._ring_time, self._ring_interest,
            self._w_entity, self._w_time, self._w_interest, self._w_next, self._free,
            emit, entity, age, weights, offsets,
        )  # fmt: skip
        return Interactions(
            events.user, events.entity, interest, events.time,
            entity[:t].copy(), age[:t].copy(), weights[:t].copy(), offsets,
        )  # fmt: skip

    def forget(self, users: Keys) -> None:
        """Drop these users (law 10)."""
        rows = self._rows.remove(np.unique(users[users != 0]))
        for row in rows[rows >= 0].tolist():
            node = int(self._of["head"][row])
            while node >= 0:
                after = int(self._w_next[node])
                self._w_entity[node], self._w_time[node], self._w_interest[node] = 0, 0, 0.0
                self._w_next[node], self._free[0] = self._free[0], node
                self._free[1] += 1
                node = after
            self._user[row] = 0
            self._ring_entity[row], self._ring_time[row], self._ring_interest[row] = 0, 0, 0.0
            self._free_rows.append(row)

    def expire(self, before: int) -> int:
        """Drop users whose latest event is older than `before` (ms); how many."""
        used = np.flatnonzero(self._user[: self._used])
        gone = self._user[used[self._of["last"][used] < before]]
        self.forget(gone)
        return len(gone)

    # ---- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, by user key: equal contents, equal arrays."""
        rows = np.flatnonzero(self._user[: self._used])
        rows = rows[np.argsort(self._user[rows])]
        nodes, waiting = list[int](), list[int]()
        for row in rows.tolist():
            node, before = int(self._of["head"][row]), len(nodes)
            while node >= 0:
                nodes.append(node)
                node = int(self._w_next[node])
            waiting.append(len(nodes) - before)
        places = np.array(nodes, np.int64)
        return {
            "user": self._user[rows], **{name: self._of[name][rows] for name in ("session", "opened", "last", "count")},
            "ring_entity": self._ring_entity[rows], "ring_time": self._ring_time[rows],
            "ring_interest": self._ring_interest[rows], "waiting": np.array(waiting, np.int64),
            "w_entity": self._w_entity[places], "w_time": self._w_time[places], "w_interest": self._w_interest[places],
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises StoreError where it does not fit."""
        users, sizes = state["user"], state["waiting"]
        n, total = len(users), int(sizes.sum())
        if state["ring_entity"].shape != (n, HISTORY) or len(sizes) != n or len(state["w_entity"]) != total:
            raise StoreError("histories: the checkpoint's arrays do not fit each other")
        self._clear(max(n, _FIRST_USERS))
        self._used = n
        self._user[:n] = users
        self._rows.put(users, np.arange(n))
        for name in ("session", "opened", "last", "count"):
            self._of[name][:n] = state[name]
        self._ring_entity[:n], self._ring_time[:n] = state["ring_entity"], state["ring_time"]
        self._ring_interest[:n] = state["ring_interest"]
        self._w_entity, self._w_time = state["w_entity"].copy(), state["w_time"].copy()
        self._w_interest, self._w_next = state["w_interest"].copy(), np.arange(1, total + 1)
        last = np.cumsum(sizes)
        self._w_next[last[sizes > 0] - 1] = -1
        self._of["head"][:n] = np.where(sizes > 0, last - sizes, -1)
        self._of["tail"][:n] = np.where(sizes > 0, last - 1, -1)

    # ---- room --------------------------------------------------------------------------------------

    def _rows_of(self, users: Keys) -> Ints:
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
            self._user[made] = unique[new]
            self._of["last"][made] = np.iinfo(np.int64).min
            self._of["count"][made] = 0
            self._of["head"][made] = self._of["tail"][made] = -1
            self._rows.put(unique[new], made)
        return rows[places]

    def _reserve(self, users: int) -> None:
        if users <= len(self._user):
            return
        size = max(users, 2 * len(self._user))
        self._user = _grown(self._user, size)
        self._of = {name: _grown(array, size) for name, array in self._of.items()}
        self._ring_entity, self._ring_time = _grown(self._ring_entity, size), _grown(self._ring_time, size)
        self._ring_interest = _grown(self._ring_interest, size)

    def _room(self, n: int) -> None:
        """At least n free places for waiting events."""
        if self._free[1] >= n:
            return
        held = len(self._w_entity)
        size = max(2 * held, held + n, _FIRST_WAITING)
        self._w_entity, self._w_time = _grown(self._w_entity, size), _grown(self._w_time, size)
        self._w_interest, self._w_next = _grown(self._w_interest, size), _grown(self._w_next, size)
        self._w_next[held:] = np.arange(held + 1, size + 1)
        self._w_next[-1] = self._free[0]
        self._free[:] = held, self._free[1] + size - held


def _grown(array: NDArray[Any], length: int) -> NDArray[Any]:
    out = np.zeros((length, *array.shape[1:]), array.dtype)
    out[: len(array)] = array
    return out
