"""When records arrived: a few marks (offset, time), each saying that all before `offset` had arrived by `time`.

The log's own clock decides, not `received_at`, which whoever imports old records may set. Marks are made in the
background, not by appends: each comes late rather than early, so a record may pass for younger than it is, by at
most the time between two marks, never for older.
"""

from __future__ import annotations

import logging

from mainstem.eventlog.connections import Connections
from mainstem.schema.errors import StoreError
from mainstem.schema.time import now_ms, parse_duration

__all__ = ["Arrivals"]

_logger = logging.getLogger("mainstem.eventlog")
_MARKS = 32  # marks per `keep_age`: how exact it is


class Arrivals:
    """The marks of one log and what follows from `keep_age`. Without one nothing is ever marked or too old.

    `mark` and `load` are called under the writer's lock.
    """

    def __init__(self, store: Connections, keep_age: str | None) -> None:
        self._store = store
        self._keep = None if keep_age is None else parse_duration(keep_age)
        self._marks: list[tuple[int, int]] = []

    @property
    def every(self) -> float | None:
        """Seconds between two marks; None where nothing has to be marked."""
        return None if self._keep is None else self._keep / _MARKS / 1000

    def load(self) -> None:
        """Read the marks back from the disk."""
        with self._store.shared() as reader:
            self._marks = reader.execute("SELECT offset, time FROM arrivals ORDER BY offset").fetchall()

    def mark(self, end: int) -> None:
        """All before offset `end` has arrived by now. Marks that say nothing any more go."""
        if self._keep is None:
            return
        now, aged = now_ms(), self.aged()
        # What is there has arrived by now, whatever a clock that has been set back since said then.
        marks = [(offset, min(time, now)) for offset, time in self._marks if offset >= aged]
        if end > (marks[-1][0] if marks else 0):
            marks.append((end, now))
        if marks == self._marks:
            return
        self._marks = marks
        try:
            with self._store.shared() as writer:
                writer.execute("BEGIN IMMEDIATE")
                writer.execute("DELETE FROM arrivals")
                writer.executemany("INSERT INTO arrivals VALUES (?, ?)", marks)
                writer.execute("COMMIT")
        except StoreError as error:
            _logger.warning("when records arrived is not noted; after a restart they pass for younger: %s", error)

    def aged(self) -> int:
        """All before this offset is older than `keep_age`."""
        return 0 if self._keep is None else self._before(now_ms() - self._keep)

    def due(self, sealed: int) -> int:
        """Up to which offset to seal, where the oldest record that is not `sealed` yet is too old; else `sealed`.

        What is half as old is sealed with it, so that a slow log gets two files per `keep_age`, not one per mark.
        """
        if self._keep is None or self.aged() <= sealed:
            return sealed
        return self._before(now_ms() - self._keep // 2)

    def _before(self, moment: int) -> int:
        return max((offset for offset, time in self._marks if time <= moment), default=0)
