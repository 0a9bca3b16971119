"""When state expires: a clock of event time that a few events with odd times cannot set.

A day has begun once `ENOUGH` events bear its date or a later one, counted from the start of the process (or of what was
checkpointed).
One event of today on a log of old data moves nothing; in normal operation the clock lags by that many
events, and a sweep a day bounds the state.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.time import DAY

__all__ = ["ENOUGH", "ExpiryClock"]

ENOUGH = 1_000


class ExpiryClock:
    """Counts events by day (UTC) and tells when a new day has begun. Not thread-safe."""

    def __init__(self) -> None:
        self._counts: dict[int, int] = {}  # events by day, of days after the one that was reached
        self._reached: int | None = None
        self._swept: int | None = None

    def add(self, times: Sequence[int] | NDArray[np.int64]) -> None:
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

    def reached(self) -> int:
        """The beginning (ms) of the newest day that has begun; 0 where none has."""
        return 0 if self._reached is None else self._reached * DAY

    def state(self) -> dict[str, Any]:
        """For `load`."""
        return {"counts": [list(pair) for pair in sorted(self._counts.items())], "days": [self._reached, self._swept]}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self._counts = {int(day): int(count) for day, count in state["counts"]}
        self._reached, self._swept = state["days"]

    def due(self) -> int | None:
        """The beginning (ms) of the day that was reached, while that day is not swept; else None."""
        return None if self._reached is None or self._reached == self._swept else self._reached * DAY

    def swept(self, time: int) -> None:
        """The sweep at `time`, as `due` gave it, is done."""
        self._swept = time // DAY
