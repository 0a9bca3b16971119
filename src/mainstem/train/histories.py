"""The users' histories, kept while the log is read: what each positive's user did before its session, online.

Offline `Positives` finds the same from the whole log. Where events come in order of time and a user's sessions do not
overlap, the two agree exactly; a late event stands where it arrived, and a session that another one
interrupts (two tabs) begins anew.

A user's events are one list: first those of the past, `length` at most, then those that wait for their session to
end. They are kept as bytes, in a chain of blocks (`history_bytes.py`), entities by their numbers (`numbering.py`).
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HistoryConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import KeyRows, compiled, unique_places
from mainstem.schema.protocols import Floats
from mainstem.schema.time import MINUTE
from mainstem.train.history_bytes import BLOCK, USER, Blocks, append, blank, drop, drop_all, first_of, grown, read
from mainstem.train.interactions import Interactions, Notes, Sequences
from mainstem.train.numbering import Numbering

__all__ = ["Histories"]

Ints = NDArray[np.int64]

_NEVER = np.iinfo(np.int64).min
_FIRST_USERS, _FIRST_BLOCKS = 64, 512
_LOADED = 1 << 16
"""Events of a checkpoint that are taken up at once."""
_MISFIT = "histories: the checkpoint's arrays do not fit each other"
_FEW = 1024
"""Numbers of entities up to which they are not given anew."""


class _Taken(NamedTuple):
    """n events: the row of each one's user, and the user's place among those of the batch, int64; the entity's number
    int64; session uint64; time int64; note uint32."""

    row: Ints
    who: Ints
    number: Ints
    session: Keys
    time: Ints
    note: Notes


class _Found(NamedTuple):
    """Where `_fold` writes: state int64 [n], previous uint64 [n], and `Sequences` with room for all."""

    state: Ints
    previous: Keys
    entity: Keys
    time: Ints
    note: Notes
    asked: Ints
    offsets: Ints


@compiled
def _ended(blocks: Blocks, user: Any, opened: np.int64) -> np.int64:
    """How many events wait before the first that does not lie before `opened`."""
    at, count = first_of(user), np.int64(0)
    for _ in range(user.past):
        _, _, at = read(blocks, at)
    while count < user.waiting:
        _, time, at = read(blocks, at)
        if time >= opened:
            break
        count += 1
    return count


@compiled
def _close_session(blocks: Blocks, user: Any, opened: np.int64, bound: int) -> None:
    """What waits and lies before `opened` is of the past now; beyond `bound` the oldest leave."""
    ended = np.int64(user.waiting)
    if user.last >= opened:  # then some may not; what is in order of time is never looked through
        ended = _ended(blocks, user, opened)
    past = np.int64(user.past) + ended
    user.waiting -= ended
    user.past = min(past, bound)
    drop(blocks, user, past - user.past)


@compiled
def _fold(
    events: _Taken, different: int, gap: int, bound: int, users: NDArray[Any], blocks: Blocks, keys: Keys,
    emit: bool, found: _Found,
) -> tuple[int, int]:  # fmt: skip
    """Take events in order, of so many different users; with `emit`, write what lies before each one's session, once
    for events of one user that see the same. How many events and sequences were written."""
    t, c = 0, 0
    written = np.full(different, -1)  # the last event of what was written of a user, while it is all of their past
    for i in range(len(events.row)):
        user, who, number, time = users[events.row[i]], events.who[i], events.number[i], events.time[i]
        new = user.last == _NEVER or events.session[i] != user.session
        if not new and user.session == np.uint64(0) and time - user.last > gap:
            new = True
        if new:
            user.session = events.session[i]
            written[who] = -1
            if user.waiting > 0:
                _close_session(blocks, user, time, bound)
        if emit:
            if user.past > 0 and written[who] < 0:
                at = first_of(user)
                for _ in range(user.past):
                    entity, found.time[t], at = read(blocks, at)
                    found.entity[t], found.note[t] = keys[entity], at.note
                    t += 1
                found.asked[c] = time
                c += 1
                found.offsets[c] = t
                written[who] = t - 1
            found.state[i] = written[who]
            found.previous[i] = keys[user.before if user.latest == number else user.latest]
        if user.latest != number:
            user.before, user.latest = user.latest, number
        append(blocks, user, number, time, events.note[i])
        user.waiting += 1
    return t, c


@compiled
def _append_all(rows: Ints, number: Ints, time: Ints, note: Notes, users: NDArray[Any], blocks: Blocks) -> None:
    """Put events at the ends of their users' lists."""
    for i in range(len(rows)):
        append(blocks, users[rows[i]], number[i], time[i], note[i])


@compiled
def _spread(rows: Ints, users: NDArray[Any], blocks: Blocks, keys: Keys, entity: Keys, time: Ints, note: Notes) -> None:
    """Write the events of `rows` side by side."""
    t = 0
    for row in rows:
        at = first_of(users[row])
        for _ in range(users[row].past + users[row].waiting):
            number, time[t], at = read(blocks, at)
            entity[t], note[t] = keys[number], at.note
            t += 1


class Histories:
    """The latest `length` events of interest of every user before the user's open session, and the session's own.

    Memory: five or six bytes an event (a new note: four more), 16 bytes for the rest of the last block, and 88 to 120 a
    user; 40 to 72 an entity. gap: ms after which events without a session belong to a new one.
    """

    def __init__(self, gap: int = 30 * MINUTE, length: int = HistoryConfig().length) -> None:
        self.gap, self.length = gap, length
        self._clear(_FIRST_USERS, _FIRST_BLOCKS)

    def _clear(self, users: int, blocks: int) -> None:
        self._rows, self._free_rows, self._used = KeyRows(), list[int](), 0
        self._users = np.zeros(users, USER)
        self._blocks = blank(blocks)
        self._entities, self._in_use = Numbering(), _FEW

    def __len__(self) -> int:
        return len(self._rows)

    def nbytes(self) -> int:
        """Bytes that are in use: of users and blocks up to the last one ever used, of the look-up by key, and of the
        entities' numbers."""
        blocks = BLOCK * int(self._blocks.free[2])
        return self._used * USER.itemsize + blocks + self._rows.nbytes() + self._entities.nbytes()

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
        rows, who, different = self._rows_of(events.user)
        taken = _Taken(rows, who, self._entities.of(events.entity), events.session, events.time, note)
        self._room(n)
        most = n * self.length if emit else 0
        found = _Found(
            np.full(n, -1), np.zeros(n, np.uint64), np.empty(most, np.uint64), np.empty(most, np.int64),
            np.empty(most, np.uint32), np.empty(n, np.int64), np.zeros(n + 1, np.int64),
        )  # fmt: skip
        keys = self._entities.keys()
        t, c = _fold(taken, different, self.gap, self.length, self._users, self._blocks, keys, emit, found)
        sequences = Sequences(
            found.entity[:t].copy(), found.note[:t].copy(), found.time[:t].copy(),
            found.asked[:c].copy(), found.offsets[: c + 1].copy(),
        )  # fmt: skip
        return Interactions(
            events.user, events.entity, interest, events.time, found.previous, events.canvas, events.query,
            events.setting, found.state, sequences, events.queries, events.settings,
        )  # fmt: skip

    def forget(self, users: Keys) -> None:
        """Drop these users (law 10)."""
        rows = self._rows.remove(np.unique(users[users != 0]))
        rows = rows[rows >= 0]
        drop_all(self._blocks, self._users, rows)
        self._users[rows] = np.zeros(1, USER)
        self._free_rows.extend(rows.tolist())

    def expire(self, before: int) -> int:
        """Drop users whose latest event is older than `before` (ms); how many. Entities that are in no history any more
        lose their numbers once these are twice as many as when that was done last."""
        users, rows = self._rows.items()
        gone = users[self._users["last"][rows] < before]
        self.forget(gone)
        if len(self._entities) > 2 * self._in_use:
            self.load(self.state())
        return len(gone)

    # ---- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, Any]:
        """Everything, by user key: equal contents, equal arrays.

            user, session, last, latest, before, past, waiting [u]; entity, time, note [t]: each user's events, oldest
            first, of which the first `past` lie before the open session
        """  # fmt: skip
        user, rows = self._rows.items()
        order = np.argsort(user)
        user, rows, keys = user[order], rows[order], self._entities.keys()
        held = self._users[rows]
        past, waiting = held["past"].astype(np.int64), held["waiting"].astype(np.int64)
        total = int((past + waiting).sum())
        entity, time, note = np.empty(total, np.uint64), np.empty(total, np.int64), np.empty(total, np.uint32)
        _spread(rows, self._users, self._blocks, keys, entity, time, note)
        return {
            "user": user, "session": held["session"].copy(), "last": held["last"].copy(),
            "latest": keys[held["latest"]], "before": keys[held["before"]], "past": past, "waiting": waiting,
            "entity": entity, "time": time, "note": note,
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave. Raises StoreError where it does not fit."""
        users, past, waiting = state["user"], state["past"], state["waiting"]
        n, count = len(users), past + waiting
        total = int(count.sum())
        fits = len(past) == n and all(len(state[name]) == total for name in ("entity", "time", "note"))
        if not fits or (n and not (0 <= past.min() <= past.max() <= self.length and waiting.min() >= 0)):
            raise StoreError(_MISFIT)
        self._clear(max(n, _FIRST_USERS), _FIRST_BLOCKS)
        self._used = n
        self._rows.put(users, np.arange(n))
        number = self._entities.of(state["entity"])
        of = self._users[:n]
        of["session"], of["past"], of["waiting"] = state["session"], past, waiting
        of["latest"], of["before"] = self._entities.of(state["latest"]), self._entities.of(state["before"])
        of["last"], of["head"] = _NEVER, -1
        self._in_use = max(len(self._entities), _FEW)
        rows = np.repeat(np.arange(n), count)
        for start in range(0, total, _LOADED):
            some = slice(start, start + _LOADED)
            self._room(len(rows[some]))
            _append_all(rows[some], number[some], state["time"][some], state["note"][some], self._users, self._blocks)
        # the latest event is among those held: what left was earlier than the one that ended its session
        if not np.array_equal(of["last"], state["last"]):
            raise StoreError(_MISFIT)

    # ---- room --------------------------------------------------------------------------------------

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
            blank_user = np.zeros(1, USER)
            blank_user["last"], blank_user["head"] = _NEVER, -1
            self._users[made] = blank_user
            self._rows.put(unique[new], made)
        return rows[places], places, len(unique)

    def _reserve(self, users: int) -> None:
        if users > len(self._users):
            wider = np.zeros(max(users, 2 * len(self._users)), USER)
            wider[: len(self._users)] = self._users
            self._users = wider

    def _room(self, n: int) -> None:
        """At least n free blocks: an event takes one at most."""
        free, held = self._blocks.free, len(self._blocks.next)
        if free[1] + held - free[2] < n:
            self._blocks = grown(self._blocks, max(2 * held, held + n))
