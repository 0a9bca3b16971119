"""When state expires: a clock of event time that a few events with odd times cannot set.

A day has begun once `ENOUGH` events bear its date or a later one, counted from the start of the process.
One event of today on a log of old data moves nothing; in normal operation the clock lags by that many
events, and a sweep a day bounds the state.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mainstem.schema.time import DAY

__all__ = ["ENOUGH", "ExpiryClock"]

ENOUGH = 1_000


class ExpiryClock:
    """Counts events by day (UTC) and tells when a new day has begun. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # events by day, of days after the one that was reached
        self._reached: int | None = None
        self._swept: int | None = None

    def add(self, times: Sequence[int]) -> None:
        """Count events at `times` (ms)."""
        days, counts = np.unique(np.array(times, np.int64) // DAY, return_counts=True)
        for day, count in zip(days.tolist(), counts.tolist(), strict=True):
            if self._reached is None or day > self._reached:
                self._counts[day] = self._counts.get(day, 0) + count
        later = 0
        for day in sorted(self._counts, reverse=True):
            later += self._counts[day]
            if later >= ENOUGH:
                self._reached = day
                self._counts = {ahead: count for ahead, count in self._counts.items() if ahead > day}
                break

    def due(self) -> int | None:
        """The beginning (ms) of the day that was reached, while that day is not swept; else None."""
        return None if self._reached is None or self._reached == self._swept else self._reached * DAY

    def swept(self, time: int) -> None:
        """The sweep at `time`, as `due` gave it, is done."""
        self._swept = time // DAY
