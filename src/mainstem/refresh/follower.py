"""One follower for state and catalogue: reads the log in order, writes the stores, notes how far it came.

Each store commits the Position together with its change, so after a crash each continues where *it*
stopped: the follower reads from the least of them and gives every store only what it has not seen.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence

import numpy as np

from mainstem.catalog import EventEntities, MemoryCatalog
from mainstem.schema.batch import EventBatch
from mainstem.schema.errors import StoreError
from mainstem.schema.expiry import ExpiryClock
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import FeatureStore, Log, LogBatch
from mainstem.schema.records import Entity, EntityDelete, Erase, Event, LogRecord, Served
from mainstem.schema.time import iso

__all__ = ["Follower"]

_log = logging.getLogger(__name__)

Sink = Callable[[Sequence[Entity], Sequence[int]], None]
"""Told of the entities that changed (as they now are) and of the keys that left; may be told twice."""

Forget = Callable[[str, str], object]
"""Told of an erased user and its tenant (law 10); may be told twice."""

Sweep = Callable[[int], int]
"""Called once a day of event time (`expiry.py`) with the day reached (ms): drops what has expired; how much."""

# Seconds from one step to the next while nobody waits for it: a step costs nearly the same for one event as for ten,
# and each makes views anew. Whoever waits (`wait_for`), and a log that was still, is not held up.
GATHER = 0.025
# Seconds between notes to the log, and between attempts after a failure: at first, and at most.
NOTE_EVERY = 1.0
RETRY_FIRST, RETRY_MOST = 0.5, 30.0
# Seconds that a step may take before it is told of, where it has no more records than this: whoever waits for one of
# them waits for all of it. And seconds between two such lines.
SLOW, FEW, TELL_EVERY = 0.25, 1_000, 60.0


class _Laps:
    """What the parts of a step take."""

    def __init__(self) -> None:
        self.began = self._last = time.monotonic()
        self._ms: dict[str, float] = {}

    def lap(self, part: str) -> None:
        """`part` ends now; it began where the one before ended."""
        now = time.monotonic()
        self._ms[part], self._last = 1e3 * (now - self._last), now

    @property
    def seconds(self) -> float:
        return self._last - self.began

    def __str__(self) -> str:
        return ", ".join(f"{part} {ms:.0f} ms" for part, ms in self._ms.items())


class Follower:
    """Keeps `catalog` and `features` current with `log`; `sinks` hear of changed entities afterwards, and
    `forget` of erased users. What expires is swept once a day of event time, by the stores and `sweeps`.
    With `entities`, what only events know of comes into the catalogue too.

    Raises StoreError where the stores reflect more than the log holds: it is not the log they were made from.
    """

    def __init__(
        self,
        log: Log,
        catalog: MemoryCatalog,
        features: FeatureStore,
        sinks: Sequence[Sink] = (),
        *,
        forget: Sequence[Forget] = (),
        sweeps: Sequence[Sweep] = (),
        entities: EventEntities | None = None,
        place_extra: str | None = None,
        batch: int = 16_000,
        name: str = "state",
    ) -> None:
        self.name = name
        self.log, self.catalog, self.features = log, catalog, features
        self.sinks, self.forget, self.place_extra, self.batch = sinks, forget, place_extra, batch
        self.entities = entities or EventEntities(frozenset(), frozenset())
        self.sweeps: Sequence[Sweep] = (features.expire, *sweeps)
        self.expired = 0
        """What sweeps have dropped since this follower was made."""
        self._clock = ExpiryClock()
        self.failure: Exception | None = None
        """What stopped the last attempt; None while all is well."""
        self._stepping = threading.Lock()
        self._moved = threading.Condition()
        self._waiting = 0  # callers of `wait_for` whose position is not reached yet; under `_moved`
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._noted_at = 0.0
        self._slow_at = -TELL_EVERY  # when a slow step was told of
        self._untold: list[tuple[Sequence[Entity], Sequence[int]]] = []
        known, end = log.follow(self.name), log.end()
        stand = catalog.position(), features.position()
        self._seen = min(stand, key=lambda p: p.offset())
        self._noted = known
        if not known <= self._seen:
            _log.warning("stores stand at %s, before the follower's note %s; reading again", self._seen, known)
        if not all(position <= end for position in stand):
            raise StoreError(
                f"the catalogue reflects the log up to {stand[0]} and the features up to {stand[1]}, but the log ends "
                f"at {end}: it is another log, or a part of it is lost. Put it back, or delete the state, which is "
                "then rebuilt from the log"
            )

    @property
    def position(self) -> Position:
        """All stores reflect the log up to here."""
        return self._seen

    def lag(self) -> int:
        """Records in the log that the stores do not reflect yet."""
        return max(self.log.end().offset() - self._seen.offset(), 0)

    def step(self) -> int:
        """Apply one batch; how many records it had. After an error the same batch can be applied again."""
        with self._stepping:
            laps = _Laps()
            batch = self.log.read(self._seen, self.batch)
            laps.lap("log")
            if batch.records:
                self._write_catalog(batch)
                laps.lap("catalogue")
                self._tell()
                laps.lap("indexes")
                self._write_features(batch)
                laps.lap("features")
                with self._moved:
                    self._seen = batch.next
                    self._moved.notify_all()
            if self._seen != self._noted and time.monotonic() - self._noted_at > NOTE_EVERY:
                self._note()
                laps.lap("note")
            self._tell_if_slow(laps, len(batch.records))
            return len(batch.records)

    def _tell_if_slow(self, laps: _Laps, records: int) -> None:
        now = time.monotonic()
        if laps.seconds > SLOW and records <= FEW and now - self._slow_at > TELL_EVERY:
            self._slow_at = now
            _log.warning("a step of %d records took %.0f ms (%s)", records, 1e3 * laps.seconds, laps)

    def note(self) -> None:
        """Tell the log what is safely stored, so that it may let go of older ranges."""
        with self._stepping:
            self._note()

    def _note(self) -> None:
        # A store that a run of the log did not concern has not committed it yet.
        for store in (self.catalog, self.features):
            if not self._seen <= store.position():
                self._commit(store)
        self._noted_at = time.monotonic()
        self.log.note(self.name, self._seen)
        self._noted = self._seen

    def _commit(self, store: MemoryCatalog | FeatureStore) -> None:
        """The position alone."""
        if store is self.catalog:
            self.catalog.write([], self._seen)
        else:
            self.features.write(EventBatch.of([]), self._seen)

    def catch_up(self, progress: Callable[[int, int], None] | None = None) -> None:
        """Apply everything that is in the log now; `progress(done, total)` in records.

        Raises StoreError where the log ends before the end that it told: a part of it cannot be read.
        """
        first, end = self._seen.offset(), self.log.end().offset()
        while self._seen.offset() < end:
            # Another caller may have applied the rest meanwhile; then nothing is left, and nothing wrong.
            if not self.step() and self._seen.offset() < end:
                raise StoreError(
                    f"the log ends at {end} and has nothing to read from {self._seen.offset()} on: a part of it is "
                    "lost. Put it back; the state reflects what came before"
                )
            if progress:
                progress(min(self._seen.offset(), end) - first, end - first)
        self.note()

    def wait_for(self, position: Position, timeout: float) -> bool:
        """Block until the stores reflect `position` or `timeout` seconds pass (law 3). A follower that gathers stops
        gathering."""
        with self._moved:
            if position <= self._seen:
                return True
            self._waiting += 1
            self._moved.notify_all()
            try:
                return self._moved.wait_for(lambda: position <= self._seen, timeout)
            finally:
                self._waiting -= 1

    def start(self) -> None:
        """Follow in a thread of its own until `stop`. An error is kept in `failure` until a later attempt works."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, name="follower", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        with self._moved:
            self._moved.notify_all()
        if self._thread:
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        pause = RETRY_FIRST
        while not self._stop.is_set():
            try:
                began = time.monotonic()
                taken = self.step()
                if not taken:
                    self.log.wait(self._seen, 0.2)
                elif taken < self.batch:
                    self._gather(began + GATHER - time.monotonic())
                self.failure, pause = None, RETRY_FIRST
            except Exception as error:  # noqa: BLE001 - any failure must reach readiness, not vanish with the thread
                self.failure = error
                _log.exception(
                    "the follower fails at %s: slates reflect no new events; again in %g s", self._seen, pause
                )
                self._stop.wait(pause)
                pause = min(2 * pause, RETRY_MOST)
        try:
            self.note()
        except Exception as error:  # noqa: BLE001 - as above; the note is repeated at the next start
            self.failure = error
            _log.exception("stopped at %s and could not note it", self._seen)

    def _gather(self, seconds: float) -> None:
        """Let records come together for so long, or until somebody waits for one."""
        with self._moved:
            self._moved.wait_for(lambda: self._waiting or self._stop.is_set(), max(seconds, 0.0))

    def _fresh(self, batch: LogBatch, position: Position) -> tuple[list[LogRecord], list[int]]:
        """What a store standing at `position` has not seen of the batch."""
        first = position.offset()
        if not batch.offsets or batch.offsets[0] >= first:
            return batch.records, batch.offsets
        kept = [i for i, offset in enumerate(batch.offsets) if offset >= first]
        return [batch.records[i] for i in kept], [batch.offsets[i] for i in kept]

    def _write_catalog(self, batch: LogBatch) -> None:
        records, _ = self._fresh(batch, self.catalog.position())
        concerned = self.entities.records(records, self.catalog)
        if not concerned:  # the position is committed with the next note: most of a log is events of known entities
            return
        changed = self.catalog.write(concerned, batch.next)
        dropped = {
            key64(record.entity_type, record.entity, record.tenant)
            for record in concerned
            if isinstance(record, EntityDelete | Erase) and record.entity is not None
        }
        # One that came back in the same batch, or that a later record had outlived, has not left.
        left = np.fromiter(dropped, np.uint64, len(dropped))
        gone: list[int] = left[self.catalog.rows(left) < 0].tolist() if dropped else []
        if changed or gone:
            self._untold.append((changed, gone))

    def _tell(self) -> None:
        """Tell the sinks, all of them again if one failed: what is in the catalogue must reach every index."""
        while self._untold:
            for sink in self.sinks:
                sink(*self._untold[0])
            del self._untold[0]

    def _write_features(self, batch: LogBatch) -> None:
        records, offsets = self._fresh(batch, self.features.position())
        if all(isinstance(record, Served) for record in records):  # our own slates change no state
            return
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
                for forget in self.forget:
                    forget(record.user, record.tenant)
                run, places = [], []
        self.features.write(EventBatch.of(run, places, place_extra=self.place_extra), batch.next)
        self._clock.add([record.time for record in records if isinstance(record, Event)])
        if (reached := self._clock.due()) is not None:
            dropped = [sweep(reached) for sweep in self.sweeps]
            self._clock.swept(reached)
            self.expired += sum(dropped)
            _log.info(
                "expiry by event time %s: %d keys of the feature state dropped, %d of the rest", iso(reached),
                dropped[0], sum(dropped[1:]),
            )  # fmt: skip
