"""Recorded candidate pools and what their users took, told as it becomes known: labels without waiting.

    pool on record     an answer        another           windows and lateness are over
      |------------------|----------------|-------------------------|
      nothing yet        revision         revision                  closed: all labels are known

A pool is what a slate was chosen from, shown or not. Its candidates that the user took within a head's window are
positives, as in the replayed visits of `replay.py`; the others are not "seen and left", but what the choice was among.
So a slate that was never shown (a replay, a shadow) may stand here too: no place of it becomes a negative by exposure.

A revision tells what was known of the labels before and what is now (see `Revision`): learning needs not wait for the
windows to pass, and takes back what it took too early. The problem is that of Ktena et al. 2019, "Addressing Delayed
Feedback for Continuous Training with Neural Networks in CTR prediction"; instead of weighing by how likely a label is
still to come, as there, what was emitted is retracted, as incremental views do, which needs the pool to be held.

What is known only when a long window is over (`HeadConfig.delayed`) is told in a last revision, of pools that are still
held then and of which something was taken.

Pools arrive behind the answers to them (the recorder writes in batches), so the latest answers wait for them too.
Memory is bounded: `most` pools, `LATEST` answers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.join.labels import grades, shares
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.errors import InvalidRecord, StoreError
from mainstem.schema.examples import Examples, Revision, answered
from mainstem.schema.ids import key64
from mainstem.schema.pasts import Pasts, past_without, unpack_past
from mainstem.schema.pools import pack_pool, unpack_pool
from mainstem.schema.protocols import Floats
from mainstem.schema.records import Erase, Past, Pool, Served
from mainstem.schema.time import HOUR, parse_duration

__all__ = ["PoolCounts", "PoolJoin"]

# Answers that wait for pools that are put on record behind them.
LATEST = 10_000


class PoolCounts(msgspec.Struct):
    """What became of the pools that were fed in."""

    pools: int = 0
    """Pools taken in."""
    closed: int = 0
    """Pools whose windows have passed."""
    let_go: int = 0
    """Pools let go before that, as there were more than `most`."""
    other_inputs: int = 0
    """Pools whose inputs, or history where it reads one, are not those of the network, or damaged."""


class _Held(msgspec.Struct):
    """A pool that waits for labels; labels: (row, head) -> the label so far, as a flat list for storage.

    moments: (row, head) -> when the event was that a label is from: the last of a grade, the first of what counts by
    its place. closed: whether only delayed labels are waited for.
    """

    request_id: str
    user: int
    time: int
    pool: Pool
    labels: list[tuple[int, int, float]]
    moments: list[tuple[int, int, int]] = msgspec.field(default_factory=list, name="graded")
    closed: bool = False
    past: Past | None = None


class _State(msgspec.Struct):
    counts: PoolCounts
    clock: int
    held: list[_Held]
    latest: bytes


_ANSWER = np.dtype([("user", "<u8"), ("entity", "<u8"), ("time", "<i8"), ("kind", "<i8"), ("value", "<f8")])
"""An event that labels something; kind: its place among `PoolJoin.kinds`."""

_Answers = NDArray[np.void]


def _answers(events: EventBatch, kinds: Sequence[str]) -> _Answers:
    named = np.array([kinds.index(kind) if kind in kinds else -1 for kind in events.kinds] or [-1], np.int64)
    kind = named[events.kind]
    some = (kind >= 0) & (events.entity != 0)
    out = np.zeros(int(some.sum()), _ANSWER)
    out["user"], out["entity"], out["time"] = events.user[some], events.entity[some], events.time[some]
    out["kind"], out["value"] = kind[some], events.value[some]
    return out


class PoolJoin:
    """Feed it the log's records in order with `take`; it gives revisions and closed examples (`schema.Labelling`).

    inputs: names of the network's inputs, and reads: the kinds of events whose history it reads, None where it reads
    none; pools with others are counted and left. had: the input that is above 0 for what the user had before. most:
    pools held; one more lets the oldest go. lateness: ms of event time that are waited beyond the longest window for
    events out of order. The clock is that of the newest event.
    """

    def __init__(
        self, heads: Mapping[str, HeadConfig], inputs: Sequence[str], *, reads: Sequence[str] | None = None,
        had: str | None = None, most: int = 1_000, lateness: int = HOUR,
    ) -> None:  # fmt: skip
        self.heads, self.inputs, self.most, self.lateness = list(heads.values()), list(inputs), most, lateness
        self.reads = None if reads is None else list(reads)
        self.had = self.inputs.index(had) if had in self.inputs else None
        self.windows = [parse_duration(head.window) for head in self.heads]
        soon = [window for head, window in zip(self.heads, self.windows, strict=True) if not head.delayed]
        self._soon, self._longest = max(soon) + lateness, max(self.windows) + lateness
        self._delayed = np.array([head.delayed for head in self.heads])
        self.kinds = list(dict.fromkeys(head.event for head in self.heads))
        self.counts = PoolCounts()
        self._clock = 0
        self._latest: _Answers = np.zeros(0, _ANSWER)
        self._held: dict[str, _Held] = {}  # the first to come first
        self._of_user: dict[int, list[str]] = {}

    # ---- taking in -----------------------------------------------------------------------------------

    def take(self, served: Sequence[Served], events: EventBatch) -> tuple[list[Revision], list[Examples]]:
        """Slates and events that follow the last ones in the log: (revisions, closed), by (time, request_id) each, the
        revisions of delayed labels after the others."""
        touched: dict[str, list[tuple[int, int, float]]] = {}
        answers = _answers(events, self.kinds)
        for each in served:
            held = self._hold(each)
            if held is not None:
                self._label(held, self._latest[self._latest["user"] == np.uint64(held.user)], touched)
        for user in np.unique(answers["user"]).tolist():
            for request_id in self._of_user.get(user, ()):
                self._label(self._held[request_id], answers[answers["user"] == np.uint64(user)], touched)
        revised = sorted((self._held[name] for name in touched if name in self._held), key=_order)
        revisions = [self._revision(held, touched[held.request_id]) for held in revised]
        self._latest = np.concatenate([self._latest, answers])[-LATEST:]
        if len(events):
            self._clock = max(self._clock, int(events.time.max()))
        closed = self._close()
        return [*revisions, *self._let_go_of_the_due()], closed

    def _hold(self, served: Served) -> _Held | None:
        pool, slate = served.pool, served.slate
        if pool is None or served.user is None or slate.request_id in self._held or not self.most:
            return None
        try:
            if served.feature_names != self.inputs:
                raise InvalidRecord("pool", "it has the inputs of another network")
            unpack_pool(pool, len(self.inputs))
            self._pasts(served.past)
        except InvalidRecord:
            self.counts.other_inputs += 1
            return None
        while len(self._held) >= self.most:
            self._let_go(next(iter(self._held)))
            self.counts.let_go += 1
        past = None if self.reads is None else served.past
        held = _Held(slate.request_id, key64("user", served.user, served.tenant), slate.time, pool, [], past=past)
        self._held[slate.request_id] = held
        self._of_user.setdefault(held.user, []).append(slate.request_id)
        self.counts.pools += 1
        return held

    def _label(self, held: _Held, answers: _Answers, touched: dict[str, list[tuple[int, int, float]]]) -> None:
        """Note what these answers of its user say; `touched` gets the labels as they were before."""
        keys = np.frombuffer(held.pool.keys, "<u8")
        place = np.argsort(keys, kind="stable")
        at = np.minimum(np.searchsorted(keys, answers["entity"], sorter=place), len(keys) - 1)
        rows = place[at] if len(keys) else at
        elapsed = answers["time"] - held.time
        hits = np.flatnonzero((keys[rows] == answers["entity"]) & (elapsed >= 0)) if len(keys) else at[:0]
        labels = {(row, head): value for row, head, value in held.labels}
        moments = {(row, head): time for row, head, time in held.moments}
        changed = False
        for hit in hits.tolist():
            for column, (head, window) in enumerate(zip(self.heads, self.windows, strict=True)):
                if self.kinds[answers["kind"][hit]] != head.event or elapsed[hit] >= window:
                    continue
                name, value = (int(rows[hit]), column), float(answers["value"][hit])
                moment = int(answers["time"][hit])
                if head.type == "binary":
                    now = labels.get(name, 1.0)
                    if head.each_next != 1.0:
                        moments[name] = min(moment, moments.get(name, moment))
                elif head.type == "ordinal":
                    now = float(grades(head, np.array([value]))[0])
                    if name in moments and (moment, now) <= (moments[name], labels[name]):
                        continue
                    moments[name] = moment
                else:
                    now = labels.get(name, 0.0) + value
                changed |= labels.get(name, head.unanswered) != now and not head.delayed
                labels[name] = now
        if len(hits):
            changed |= self._weigh(labels, moments)
        if changed:
            touched.setdefault(held.request_id, held.labels)
        held.labels = [(row, head, value) for (row, head), value in labels.items()]
        held.moments = [(row, head, time) for (row, head), time in moments.items()]

    def _weigh(self, labels: dict[tuple[int, int], float], moments: Mapping[tuple[int, int], int]) -> bool:
        """Let each positive of a visit count by its place in it; whether any counts otherwise than before."""
        changed = False
        for column, head in enumerate(self.heads):
            taken = [name for name in moments if name[1] == column] if head.each_next != 1.0 else []
            counted = shares(head, np.array([moments[name] for name in taken], np.int64))
            for name, share in zip(taken, counted.tolist(), strict=True):
                changed |= labels[name] != share
                labels[name] = share
        return changed

    def _close(self) -> list[Examples]:
        """Of the pools whose windows are over, but for those of delayed heads."""
        due = self._clock - self._soon
        over = sorted((held for held in self._held.values() if held.time <= due and not held.closed), key=_order)
        for held in over:
            held.closed = True
        return [self._examples(held, self._matrix(held, held.labels)) for held in over]

    def _let_go_of_the_due(self) -> list[Revision]:
        """Let go of the pools whose windows are all over; what that tells of their delayed labels."""
        due = self._clock - self._longest
        over = sorted((held for held in self._held.values() if held.time <= due), key=_order)
        for held in over:
            self._let_go(held.request_id)
        self.counts.closed += len(over)
        told = [self._revision(held, held.labels, due=True) for held in over] if self._delayed.any() else []
        return [each for each in told if answered(each.examples.labels, self.heads).any()]

    def _let_go(self, request_id: str) -> None:
        user = self._held.pop(request_id).user
        self._of_user[user].remove(request_id)
        if not self._of_user[user]:
            del self._of_user[user]

    def erase(self, erase: Erase) -> None:
        """Forget the user's pools and answers, or the entity's rows in all of them (law 10)."""
        if erase.user is not None:
            key = np.uint64(key64("user", erase.user, erase.tenant))
            for request_id in list(self._of_user.get(int(key), ())):
                self._let_go(request_id)
            self._latest = self._latest[self._latest["user"] != key]
            return
        key = np.uint64(key64(erase.entity_type, str(erase.entity), erase.tenant))
        self._latest = self._latest[self._latest["entity"] != key]
        for held in self._held.values():
            held.past = past_without(held.past, key)
            keys, inputs = unpack_pool(held.pool, len(self.inputs))
            kept = np.flatnonzero(keys != key)
            if len(kept) < len(keys):
                moved = {int(old): new for new, old in enumerate(kept.tolist())}
                held.pool = pack_pool(keys[kept], inputs[kept])
                held.labels = [(moved[row], head, value) for row, head, value in held.labels if row in moved]
                held.moments = [(moved[row], head, time) for row, head, time in held.moments if row in moved]

    def __len__(self) -> int:
        return len(self._held)

    # ---- giving out ----------------------------------------------------------------------------------

    def pools(self, most: int) -> list[Examples]:
        """The latest pools that are held, at most so many."""
        return [self._examples(held, self._matrix(held, held.labels)) for held in [*self._held.values()][-most:]]

    def _revision(self, held: _Held, before: list[tuple[int, int, float]], *, due: bool = False) -> Revision:
        examples = self._examples(held, self._matrix(held, held.labels, due=due))
        return Revision(examples, self._matrix(held, before))

    def _matrix(self, held: _Held, labels: list[tuple[int, int, float]], *, due: bool = False) -> Floats:
        """What these labels say of each row and head, those of delayed heads only where they are due: [rows, h]."""
        rows = len(held.pool.keys) // 8
        out = np.tile(np.array([head.unanswered for head in self.heads], np.float32), (rows, 1))
        for row, head, value in labels:
            out[row, head] = value
        if not due:
            out[:, self._delayed] = np.nan
        return out

    def _examples(self, held: _Held, labels: Floats) -> Examples:
        keys, inputs = unpack_pool(held.pool, len(self.inputs))
        n = len(keys)
        return Examples(
            inputs=inputs,
            labels=labels,
            negative_rate=np.ones(n, np.float32),
            fresh=np.zeros(n, np.bool_) if self.had is None else inputs[:, self.had] <= 0,
            weight=np.ones(n, np.float32),
            keys=keys,
            offsets=np.array([0, n], np.int64),
            time=np.array([held.time], np.int64),
            user=np.array([held.user], np.uint64),
            pasts=self._pasts(held.past),
        )

    def _pasts(self, past: Past | None) -> Pasts | None:
        """What the network reads of it. Raises InvalidRecord where it is not that."""
        return None if self.reads is None else unpack_past(past, self.reads)

    # ---- checkpoints ---------------------------------------------------------------------------------

    def state(self) -> bytes:
        """Everything that is held, for `load`."""
        return msgspec.msgpack.encode(_State(self.counts, self._clock, [*self._held.values()], self._latest.tobytes()))

    def load(self, state: bytes) -> None:
        """Go on where `state` was taken; no bytes are the state of the beginning. Raises StoreError for other bytes."""
        nothing = _State(PoolCounts(), 0, [], b"")
        try:
            kept = msgspec.msgpack.decode(state, type=_State) if state else nothing
        except msgspec.MsgspecError as error:
            raise StoreError(f"the checkpoint's pools cannot be read: {error}") from error
        self.counts, self._clock = kept.counts, kept.clock
        self._latest = np.frombuffer(kept.latest, _ANSWER).copy()
        self._held, self._of_user = {held.request_id: held for held in kept.held}, {}
        for held in kept.held:
            self._of_user.setdefault(held.user, []).append(held.request_id)


def _order(held: _Held) -> tuple[int, str]:
    return held.time, held.request_id
