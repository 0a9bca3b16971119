"""One follower for state and catalogue: reads the log in order, writes the stores, notes how far it came.

Each store commits the Position together with its change, so after a crash each continues where *it*
stopped: the follower reads from the least of them and gives every store only what it has not seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import Catalog, FeatureStore, Log, LogBatch
from mainstem.schema.records import Entity, EntityDelete, Erase, Event, LogRecord

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

Sink = Callable[[Sequence[Entity], Sequence[int]], None]
"""Told of the entities that changed (as they now are) and of the keys that left."""


class Follower:
    """Keeps `catalog` and `features` current with `log`; `sinks` hear of changed entities afterwards."""

    def __init__(
        self,
        log: Log,
        catalog: Catalog,
        features: FeatureStore,
        sinks: Sequence[Sink] = (),
        *,
        place_extra: str | None = None,
        batch: int = 50_000,
        name: str = "state",
    ) -> None:
        self.name = name
        self.log, self.catalog, self.features = log, catalog, features
        self.sinks, self.place_extra, self.batch = sinks, place_extra, batch
        self.failure: Exception | None = None
        self._moved = threading.Condition()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._noted_at = 0.0
        known = log.follow(self.name)
        self._seen = min(self.catalog.position(), self.features.position(), key=lambda p: p.offset())
        if not known <= self._seen:
            _log.warning("stores stand at %s, before the follower's note %s; reading again", self._seen, known)

    @property
    def position(self) -> Position:
        """All stores reflect the log up to here."""
        return self._seen

    def lag(self) -> int:
        """Records in the log that the stores do not reflect yet."""
        return max(self.log.end().offset() - self._seen.offset(), 0)

    def step(self) -> int:
        """Apply one batch; how many records it had."""
        batch = self.log.read(self._seen, self.batch)
        if not batch.records:
            return 0
        self._write_catalog(batch)
        self._write_features(batch)
        with self._moved:
            self._seen = batch.next
            self._moved.notify_all()
        if time.monotonic() - self._noted_at > 1.0:
            self.note()
        return len(batch.records)

    def note(self) -> None:
        """Tell the log what is safely stored, so that it may let go of older ranges."""
        self._noted_at = time.monotonic()
        self.log.note(self.name, self._seen)

    def catch_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Apply everything that is in the log now; `progress(done, total)` in records."""
        first, end = self._seen.offset(), self.log.end().offset()
        while self._seen.offset() < end and self.step():
            if progress:
                progress(min(self._seen.offset(), end) - first, end - first)
        self.note()

    def wait_for(self, position: Position, timeout: float) -> bool:
        """Block until the stores reflect `position` or `timeout` seconds pass (law 3)."""
        with self._moved:
            return self._moved.wait_for(lambda: position <= self._seen, timeout)

    def start(self) -> None:
        """Follow in a thread of its own until `stop`. An error ends it and is kept in `failure`."""
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()

    def _run(self) -> None:
        try:
            while not self._stop.is_set():
                if not self.step():
                    self.log.wait(self._seen, 0.2)
            self.note()
        except Exception as error:  # noqa: BLE001 - any failure must reach readiness, not vanish with the thread
            _log.exception("the follower stopped at %s; slates no longer reflect new events", self._seen)
            self.failure = error

    def _fresh(self, batch: LogBatch, position: Position) -> tuple[list[LogRecord], list[int]]:
        """What a store standing at `position` has not seen of the batch."""
        first = position.offset()
        if not batch.offsets or batch.offsets[0] >= first:
            return batch.records, batch.offsets
        kept = [i for i, offset in enumerate(batch.offsets) if offset >= first]
        return [batch.records[i] for i in kept], [batch.offsets[i] for i in kept]

    def _write_catalog(self, batch: LogBatch) -> None:
        records, _ = self._fresh(batch, self.catalog.position())
        changed = self.catalog.write(records, batch.next)
        left = [
            key64(record.entity_type, record.entity, record.tenant)
            for record in records
            if isinstance(record, EntityDelete | Erase) and record.entity is not None
        ]
        if changed or left:
            for sink in self.sinks:
                sink(changed, left)

    def _write_features(self, batch: LogBatch) -> None:
        records, offsets = self._fresh(batch, self.features.position())
        start, run, places = self.features.position(), list[Event](), list[int]()
        for record, offset in zip(records, offsets, strict=True):
            if isinstance(record, Event):
                run.append(record)
                places.append(offset)
            elif isinstance(record, Erase) and record.user is not None:
                # What came before goes in first, so that it is erased too. The position stays before the
                # erasure itself: a crash in between erases again, which changes nothing.
                start = start.merge(Position.at(offset))
                self.features.write(EventBatch.of(run, places, place_extra=self.place_extra), start)
                self.features.erase(key64("user", record.user, record.tenant))
                run, places = [], []
        self.features.write(EventBatch.of(run, places, place_extra=self.place_extra), batch.next)
