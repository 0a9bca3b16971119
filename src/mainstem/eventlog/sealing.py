"""Moves ranges that are full or too old from SQLite to history, in the background of the writing process.

The order is what makes a crash harmless anywhere: (1) the Parquet file and (2) the ids file are written
durably, (3) the log notes `sealed` in one transaction, and only (4) later do records leave SQLite. Before (3)
a file on disk counts for nothing and is removed on the next start; after (3) the range has two homes until (4).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator
from threading import Condition, Thread
from typing import Protocol

from mainstem.eventlog.admission import decode_many, id_digest
from mainstem.eventlog.dedup import IdRun
from mainstem.eventlog.history import ROW_GROUP, History

__all__ = ["Sealer", "rebuild_ids", "seal_range"]

_logger = logging.getLogger("mainstem.eventlog")

Rows = Callable[[int, int], tuple[list[bytes], list[bytes]]]
"""(first, last) -> bodies and digests of the records at these offsets."""


def seal_range(history: History, rows: Rows, first: int, last: int, fill: Callable[[IdRun], IdRun]) -> IdRun:
    """Steps 1 and 2 for offsets `first` to `last`; `fill` saves the ids. The saved ids."""
    digests: list[bytes] = []

    def chunks() -> Iterator[list[bytes]]:
        for at in range(first, last, ROW_GROUP):
            bodies, ids = rows(at, min(last, at + ROW_GROUP))
            digests.extend(ids)
            yield bodies

    history.write(first, chunks())
    return fill(IdRun.of(first, last, b"".join(digests)))


def rebuild_ids(history: History, start: int, sealed: int, fill: Callable[[IdRun], IdRun]) -> Iterator[IdRun]:
    """The ids of the sealed ranges from offset `start` on, from the history itself (their files were lost)."""
    for span in history.ranges():
        if start <= span.first and span.last <= sealed:
            digests: list[bytes] = []
            while (at := span.first + len(digests)) < span.last:
                digests.extend(map(id_digest, decode_many(history.bodies(at, ROW_GROUP))))
            yield fill(IdRun.of(span.first, span.last, b"".join(digests)))


class Sealable(Protocol):
    """What the sealer needs of its log."""

    def seal_due(self) -> bool:
        """Seal one range that is full, or else what is too old, if there is any; whether there was."""
        ...

    def drop_sealed(self) -> int:
        """Let sealed ranges leave SQLite, as far as allowed; how many records left."""
        ...


class Sealer:
    """One thread that seals and drops whenever it is woken, and every `every` seconds where given. A failure is
    logged, and tried again the next time."""

    def __init__(self, log: Sealable, every: float | None = None) -> None:
        self._log = log
        self._every = every
        self._wake = Condition()
        self._due = False
        self._stop = False
        self.error: Exception | None = None
        self._thread = Thread(target=self._run, name="mainstem-sealer", daemon=True)
        self._thread.start()

    def wake(self) -> None:
        with self._wake:
            self._due = True
            self._wake.notify()

    def stop(self) -> None:
        """Finish the range at hand and end; what is due waits for the next start."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._due or self._stop, self._every)
                if self._stop:
                    return
                self._due = False
            try:
                while not self._stop and self._log.seal_due():
                    self._log.drop_sealed()
                self._log.drop_sealed()
                self.error = None
            except Exception as error:
                self.error = error
                _logger.exception("sealing a range failed; its records stay in SQLite and it is tried again")
