"""Moves ranges that are full or too old from SQLite to history, in the background of the writing process. Its
thread takes what is erased out of the files, too (`erasing.py`).

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

_AGAIN, _BREATH = 60.0, 0.002  # seconds: after a failure, and between slices, so that others come to their turn

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

    def erase_some(self) -> float | None:
        """Take a slice of what is erased out of the files; seconds until there is more to do, None until something
        is erased."""
        ...


class Sealer:
    """One thread that seals, drops and erases whenever it is woken, and every `every` seconds where given. A failure
    is logged, and tried again the next time; that of an erasure after a minute at most."""

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
        """Finish the range or the slice at hand and end; what is due waits for the next start."""
        with self._wake:
            self._stop = True
            self._wake.notify()
        self._thread.join()

    def _run(self) -> None:
        left: float | None = None  # seconds until more is to be erased
        while True:
            with self._wake:
                self._wake.wait_for(lambda: self._due or self._stop, _least(self._every, left))
                if self._stop:
                    return
                self._due = False
            sealing = self._seal()
            left, erasing = self._erase()
            self.error = sealing or erasing

    def _seal(self) -> Exception | None:
        try:
            while not self._stop and self._log.seal_due():
                self._log.drop_sealed()
            self._log.drop_sealed()
        except Exception as error:
            _logger.exception("sealing a range failed; its records stay in SQLite and it is tried again")
            return error
        return None

    def _erase(self) -> tuple[float | None, Exception | None]:
        """One slice: sealing comes first again after it."""
        try:
            left = self._log.erase_some()
        except Exception as error:
            _logger.exception("erasing from the files of the log failed; readers do not see it, and it is tried again")
            return _AGAIN, error
        return None if left is None else max(left, _BREATH), None


def _least(*waits: float | None) -> float | None:
    """The least of them; None waits for ever."""
    return min((wait for wait in waits if wait is not None), default=None)
