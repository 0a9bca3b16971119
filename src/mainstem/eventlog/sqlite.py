"""The default log: SQLite in WAL mode, with sealed ranges in Parquet.

Acknowledged means durable: `synchronous=FULL` syncs the write-ahead log on every commit, and appends that
arrive while a commit is under way share the next one (group commit, DeWitt et al. 1984). One process writes,
held by a lock file that dies with it; any process reads. Offsets are dense: 0, 1, 2 ... without gaps.

Idempotency: an id is refused for as long as the log is kept, see `dedup.py`. What an `Erase` forgets is refused,
hidden from readers at once, and taken out of the files in the background, see `erasing.py`.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Condition, Lock, RLock

from mainstem.eventlog.admission import Admitted, admit, decode_many
from mainstem.eventlog.arrivals import Arrivals
from mainstem.eventlog.connections import Connections, lock_writer
from mainstem.eventlog.dedup import IdRun, Ids
from mainstem.eventlog.erasing import Eraser
from mainstem.eventlog.history import History
from mainstem.eventlog.rows import Arrival, Followers, Rows
from mainstem.eventlog.sealing import Sealer, rebuild_ids, seal_range
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import LogError, PositionGone, StoreError
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended, Erasures, LogBatch
from mainstem.schema.records import LogRecord
from mainstem.schema.time import now_ms, parse_duration

__all__ = ["SqliteLog"]

_GROUP_ROWS = 50_000  # a group commit takes no more than this: bounds memory and the wait of the smallest append
_DROP_ROWS = 20_000  # records that leave SQLite per transaction: bounds how long appends wait for it
_POLL = 0.005  # seconds between looks of a process that does not write


@dataclass(slots=True)
class _Ticket:
    """One append on its way through a group commit."""

    admitted: Admitted
    done: Appended | None = None
    error: Exception | None = None

    def outcome(self) -> Appended | Exception:
        """What became of it; it is through."""
        outcome = self.done if self.error is None else self.error
        assert outcome is not None
        return outcome


class SqliteLog:
    """`Log` in one SQLite file at `path`, history in the folder `history`. See the module for its promises."""

    def __init__(self, path: Path, history: Path, config: LogConfig) -> None:
        self._path = path
        self._skew = parse_duration(config.skew)
        self._seal_rows, self._keep_rows = config.seal_rows, config.keep_rows
        self.history = History(history)
        self._ids = Ids(history / "ids", config.seal_rows)
        self._queue: deque[_Ticket] = deque()
        self._writing = RLock()  # everything that only the writer may touch
        self._sealing = Lock()  # one range is sealed or dropped at a time
        self._changed = Condition()
        self._lock_file: int | None = None
        self._sealer: Sealer | None = None
        self._loaded = self._unsure = self._closed = False
        self._end = self._sealed = self._first = 0
        self._store = Connections(path)
        self._rows, self._followers = Rows(self._store, path), Followers(self._store)
        self._arrivals = Arrivals(self._store, config.keep_age)
        self._eraser = Eraser(
            path, self._store, self.history, self._sealing, self._writing, self.append,
            parse_duration(config.keep_erasures),
        )  # fmt: skip

    # ---- writing ---------------------------------------------------------------------------------

    def append(self, records: Sequence[LogRecord]) -> Appended:
        """All or nothing, durable on return. Raises InvalidRecord naming the field, StoreError where another
        process is the writer, LogError where the disk refuses."""
        ticket = _Ticket(admit(records, now_ms(), self._skew))
        self._queue.append(ticket)
        with self._writing:
            # Whoever gets here first commits for all that queued up behind the commit before.
            while ticket.done is None and ticket.error is None:
                self._commit_group()
        outcome = ticket.outcome()
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        """`append` of every batch by itself, in one commit (in a few beyond 50,000 records, as the errors are then of
        each): for each, in order, what `append` returns or raises."""
        now = now_ms()
        tickets = [self._ticket(records, now) for records in batches]
        self._queue.extend(ticket for ticket in tickets if ticket.error is None)
        with self._writing:
            for ticket in tickets:
                while ticket.done is None and ticket.error is None:
                    self._commit_group()
        return [ticket.outcome() for ticket in tickets]

    def _ticket(self, records: Sequence[LogRecord], now: int) -> _Ticket:
        try:
            return _Ticket(admit(records, now, self._skew))
        except Exception as error:  # noqa: BLE001 - whatever is wrong with one batch is the outcome of that batch alone
            return _Ticket(Admitted([], [], []), error=error)

    def claim(self) -> None:
        """Become the log's one writer. Raises StoreError where another process is."""
        with self._writing:
            self._store.check_open()
            if self._lock_file is None:
                self._lock_file = lock_writer(self._path)
            if not self._loaded:
                self._load()
            elif self._unsure:
                self._catch_up()

    def _commit_group(self) -> None:
        group: list[_Ticket] = []
        size = 0
        while self._queue and size < _GROUP_ROWS:
            group.append(self._queue.popleft())
            size += len(group[-1].admitted.bodies)
        try:
            self.claim()
            self._commit(group)
        except (LogError, StoreError) as error:
            for ticket in group:
                ticket.error = type(error)(str(error))
        except BaseException as error:
            self._unsure = True  # what the disk holds is looked up before the next write
            for ticket in group:
                ticket.error = LogError(f"the append failed, nothing of it is acknowledged: {error!r}")
                ticket.error.__cause__ = error
            if not isinstance(error, Exception):
                raise

    def _commit(self, group: Sequence[_Ticket]) -> None:
        digests = [digest for ticket in group for digest in ticket.admitted.digests]
        known = iter(self._ids.known(digests).tolist())
        arrival = Arrival(self._eraser.tombstones(), self._end)
        new: dict[bytes, None] = {}
        outcomes = [arrival.add(ticket.admitted, known, new) for ticket in group]
        if arrival.rows:
            with self._store.transaction() as writer:
                arrival.insert(writer)
            self._eraser.commit(arrival.erasures)
            self._ids.add(self._end, list(new))
            with self._changed:
                self._end = arrival.end
                self._changed.notify_all()
            if arrival.erasures or self._end >= self._next_seal():
                self._wake()
        for ticket, outcome in zip(group, outcomes, strict=True):
            ticket.done = outcome

    # ---- reading ---------------------------------------------------------------------------------

    def read(self, start: Position, limit: int = 10_000) -> LogBatch:
        """The records from `start` on, from SQLite or, where they have left it, from history: `limit` of them
        unless the log ends. Raises PositionGone where neither has them, LogError past the end of the log."""
        first = start.offset()
        bodies: list[bytes] = []
        if limit <= 0 and first > (end := self._rows.end()):
            raise LogError(f"position {start} lies after the end of the log, {Position.at(end)}")
        while len(bodies) < limit:
            at, wanted = first + len(bodies), limit - len(bodies)
            if kept := self._rows.kept(at, wanted):
                bodies += kept  # SQLite has all from its first record to the end of the log
                break
            end = self._rows.end()
            if at >= end:
                if first > end:
                    raise LogError(f"position {start} lies after the end of the log, {Position.at(end)}")
                break
            # Again SQLite: the record may have been appended between the first look and the second.
            part = self.history.bodies(at, wanted) or self._rows.kept(at, wanted)
            if not part:
                if bodies:
                    break
                raise PositionGone(f"the records at {start} are neither in {self._path} nor in {self.history.folder}")
            bodies += part
        upto = first + len(bodies)
        records, held = decode_many(bodies), self._eraser.tombstones()
        if first < held.reach:
            records = [held.read(record, first + place) for place, record in enumerate(records)]
        return LogBatch(records, list(range(first, upto)), Position.at(upto))

    def end(self) -> Position:
        return Position.at(self._end if self._loaded else self._rows.end())

    def wait(self, seen: Position, timeout: float) -> bool:
        """Woken at once by this process's appends; another process's are seen within 5 ms."""
        deadline = time.monotonic() + timeout
        while self._closed or self.end() <= seen:
            left = deadline - time.monotonic()
            if left <= 0 or self._closed:
                return False
            with self._changed:
                if not self._loaded:
                    self._changed.wait(min(left, _POLL))
                elif self._end <= seen.offset() and not self._closed:
                    self._changed.wait(left)
        return True

    # ---- followers -------------------------------------------------------------------------------

    def follow(self, name: str) -> Position:
        """Followers may live in any process; a kept snapshot follows as `snapshot:NAME`."""
        return self._followers.follow(name)

    def note(self, name: str, position: Position) -> None:
        """Not synced by itself: after a power cut an older position may be found, which holds more back, never less."""
        self._followers.note(name, position)
        bound = min(self._sealed, self._end - self._keep_rows, position.offset())
        sealer = self._sealer
        if sealer and bound // self._seal_rows > self._first // self._seal_rows:
            sealer.wake()  # a range may be free to leave SQLite now

    def unfollow(self, name: str) -> None:
        """Forget the follower `name`; it holds nothing back any more."""
        self._followers.unfollow(name)

    def followers(self) -> dict[str, Position]:
        """Every follower's noted position, by name."""
        return self._followers.all()

    # ---- erasing ---------------------------------------------------------------------------------

    def erasures(self) -> Erasures:
        """How far the erasures in the log have come."""
        return self._eraser.progress()

    def erase_some(self) -> float | None:
        """Take a slice of what is erased out of the files; seconds until there is more to do, None until something
        is erased. The background thread calls it."""
        return self._eraser.step()

    # ---- sealing ---------------------------------------------------------------------------------

    def sealed(self) -> Position:
        """Everything before it is in the Parquet history."""
        with self._store.shared() as reader:
            row = reader.execute("SELECT value FROM meta WHERE name = 'sealed'").fetchone()
        return Position.at(row[0] if row else 0)

    def seal(self) -> Position:
        """Seal all there is now, also a range that is not full, and drop what may go; the position sealed up to."""
        self.claim()
        upto = self._end
        while self._sealed < upto:
            self._seal_to(min(upto, self._next_seal()))
        self.drop_sealed()
        return Position.at(self._sealed)

    def seal_due(self) -> bool:
        """Seal one range that is full, or else what is older than `keep_age`, if there is any; whether there was.

        The background thread calls it, and by it learns when records arrived."""
        if self._end >= self._next_seal():
            return self._seal_to(self._next_seal())
        with self._writing:
            self._arrivals.mark(self._end)
            due = self._arrivals.due(self._sealed)
        return due > self._sealed and self._seal_to(min(due, self._next_seal()))

    def drop_sealed(self) -> int:
        """Let sealed records leave SQLite that every follower has passed: the oldest whole ranges beyond `keep_rows`,
        and all that are older than `keep_age`. How many left."""
        with self._sealing:
            free = self._followers.slowest(self._sealed)
            before = upto = reach = self._first
            for span in self.history.ranges():  # only what history has without a gap
                reach = span.last if span.first <= reach < span.last else reach
                upto = reach if upto < reach <= min(free, self._end - self._keep_rows) else upto
            upto = max(upto, min(free, reach, self._arrivals.aged()))
            while self._first < upto:
                first = min(upto, self._first + _DROP_ROWS)
                with self._writing, self._store.transaction() as writer:
                    writer.execute("DELETE FROM records WHERE offset < ?", (first,))
                    writer.execute("INSERT OR REPLACE INTO meta VALUES ('first', ?)", (first,))
                self._first = first
            return self._first - before

    def _seal_to(self, last: int) -> bool:
        with self._sealing:
            first = self._sealed = self.sealed().offset()  # from the disk: an earlier try may have failed half way
            if last <= first:
                return False
            self.history.tidy(first)
            run = seal_range(self.history, self._rows.whole, first, last, self._save_ids)
            with self._writing:
                with self._store.transaction() as writer:
                    writer.execute("INSERT OR REPLACE INTO meta VALUES ('sealed', ?)", (last,))
                self._sealed = last
                self._ids.seal(run)
            while parts := self._ids.mergeable():
                merged = self._save_ids(IdRun.merged(parts))
                with self._writing:
                    self._ids.replace(parts, merged)
            return True

    def _save_ids(self, run: IdRun) -> IdRun:
        return run.save(self.history.folder / "ids")

    def _next_seal(self) -> int:
        """Where the range that is being filled ends: ranges end at multiples of `seal_rows`."""
        return (self._sealed // self._seal_rows + 1) * self._seal_rows

    def _wake(self) -> None:
        with self._writing:
            if self._lock_file is None or self._closed:
                return
            if self._sealer is None:
                self._sealer = Sealer(self, self._arrivals.every)
            self._sealer.wake()

    # ---- opening and closing ---------------------------------------------------------------------

    def close(self) -> None:
        """Idempotent. Appends under way finish; the sealing of a range under way finishes too."""
        with self._writing:
            if self._closed:
                return
            self._closed = True
            sealer, self._sealer = self._sealer, None
        with self._changed:
            self._changed.notify_all()
        if sealer:
            sealer.stop()
        with self._writing:
            if self._loaded:
                self._arrivals.mark(self._end)
            self._store.close()
            if self._lock_file is not None:
                os.close(self._lock_file)

    def __enter__(self) -> SqliteLog:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _load(self) -> None:
        """Read back what the disk holds, and clear away what a crash left half done."""
        meta = self._rows.meta()
        self._sealed, self._first = meta.get("sealed", 0), meta.get("first", 0)
        self.history.tidy(self._sealed)
        for run in rebuild_ids(self.history, self._ids.load(self._sealed), self._sealed, self._save_ids):
            self._ids.seal(run)
        self._arrivals.load()
        self._end = self._sealed
        self._catch_up()
        self._eraser.load(self._end)
        self._loaded = True
        if self._eraser.waiting or self._arrivals.every or self._end >= self._next_seal() or self._sealed > self._first:
            self._wake()

    def _catch_up(self) -> None:
        """Take in what the disk holds beyond `_end`: after opening, and after a commit whose fate is not known."""
        end = self._rows.end()
        for at in range(self._end, end, _GROUP_ROWS):
            self._ids.add(at, self._rows.whole(at, min(end, at + _GROUP_ROWS))[1])
        with self._changed:
            self._end = end
            self._changed.notify_all()
        self._eraser.learn()
        self._unsure = False
