"""The plain log: one list in memory, gone with the process. It is the oracle of every other log."""

from __future__ import annotations

import time
from collections.abc import Sequence
from threading import Condition

import msgspec

from mainstem.eventlog.admission import admit
from mainstem.eventlog.forgetting import USER, Name, forgotten, guest_in, target
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import LogError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Appended, Erasures, LogBatch
from mainstem.schema.records import Erase, Erased, Event, LogRecord, record_id
from mainstem.schema.time import now_ms, parse_duration

__all__ = ["MemoryLog"]


class MemoryLog:
    """`Log` without durability. Nothing is ever sealed or dropped; what is erased is gone when `append` returns."""

    def __init__(self, config: LogConfig) -> None:
        self._skew = parse_duration(config.skew)
        self._records: list[LogRecord] = []
        self._known: set[tuple[str, str]] = set()
        self._followers: dict[str, Position] = {}
        self._erased: dict[Name, int] = {}  # the time of the last erasure of each
        self._guests: list[Erase] = []
        self._changed = Condition()
        self._closed = False

    def append(self, records: Sequence[LogRecord]) -> Appended:
        admitted = admit(records, now_ms(), self._skew)
        with self._changed:
            self._check_open()
            before = len(self._records)
            duplicates = sum(not self._take(record) for record in admitted.records)
            end = len(self._records)
            while guests := self._guests:  # of which each may have been joined to others before
                self._guests = []
                for guest in guests:
                    self._take(guest)
            self._changed.notify_all()
            return Appended(Position.at(end), end - before, duplicates, len(records) - (end - before) - duplicates)

    def _take(self, record: LogRecord) -> bool:
        """Append `record`, or what is left of it; False where its id is known."""
        key = (record.tenant, record_id(record))
        if key in self._known:
            return False
        if isinstance(record, Erase):
            self._erase(record)
        else:
            record = forgotten(record, lambda name: name in self._erased and record.time <= self._erased[name])
        if not isinstance(record, Erased):
            self._known.add(key)
            self._records.append(record)
        return True

    def _erase(self, erase: Erase) -> None:
        """Take the name out of all that is here."""
        gone = target(erase)
        for offset, record in enumerate(self._records):
            left = forgotten(record, lambda name: name == gone)
            if left is not record:
                self._records[offset] = left
                guest = guest_in(record)
                if guest and isinstance(record, Event) and gone[1:] == (USER, record.user) and guest != record.user:
                    self._guests.append(
                        msgspec.structs.replace(erase, record_id=f"erase-{guest}-{offset}", user=guest, entity=None)
                    )
        self._erased[gone] = max(erase.time, self._erased.get(gone, erase.time))

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        outcomes: list[Appended | Exception] = []
        for records in batches:
            try:
                outcomes.append(self.append(records))
            except Exception as error:  # noqa: BLE001 - it is the outcome of that batch alone
                outcomes.append(error)
        return outcomes

    def read(self, start: Position, limit: int = 10_000) -> LogBatch:
        with self._changed:
            self._check_open()
            at, end = start.offset(), len(self._records)
            if at > end:
                raise LogError(f"position {start} lies after the end of the log, {Position.at(end)}")
            records = self._records[at : at + max(0, limit)]
            upto = at + len(records)
            return LogBatch(records, list(range(at, upto)), Position.at(upto))

    def erasures(self) -> Erasures:
        with self._changed:
            self._check_open()
            return Erasures(len(self._erased), 0)

    def end(self) -> Position:
        with self._changed:
            self._check_open()
            return Position.at(len(self._records))

    def wait(self, seen: Position, timeout: float) -> bool:
        deadline = time.monotonic() + timeout
        with self._changed:
            while len(self._records) <= seen.offset():
                left = deadline - time.monotonic()
                if left <= 0 or self._closed:
                    return False
                self._changed.wait(left)
            return True

    def follow(self, name: str) -> Position:
        with self._changed:
            self._check_open()
            return self._followers.setdefault(name, START)

    def note(self, name: str, position: Position) -> None:
        with self._changed:
            self._check_open()
            self._followers[name] = position

    def unfollow(self, name: str) -> None:
        """Forget the follower `name`; it holds nothing back any more."""
        with self._changed:
            self._check_open()
            self._followers.pop(name, None)

    def followers(self) -> dict[str, Position]:
        """Every follower's noted position, by name."""
        with self._changed:
            self._check_open()
            return dict(self._followers)

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _check_open(self) -> None:
        if self._closed:
            raise LogError("the log is closed")
