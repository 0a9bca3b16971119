"""Hour of the day and day of the week of the request (UTC), each as a point on a circle. No state."""

from __future__ import annotations

import numpy as np

from mainstem.features.pending import Fold
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Snapshot
from mainstem.schema.protocols import Floats
from mainstem.schema.time import DAY

__all__ = ["Moment"]


class Moment:
    """The same for every candidate of a request."""

    name = "moment"
    names = ("hour_sin", "hour_cos", "weekday_sin", "weekday_cos")
    definition = "v1"

    def write(self, fold: Fold, state: Overlay) -> None:
        """Nothing to keep."""

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        hour = 2 * np.pi * (reading.time % DAY) / DAY
        weekday = 2 * np.pi * (reading.time // DAY % 7) / 7
        out[:] = np.sin(hour), np.cos(hour), np.sin(weekday), np.cos(weekday)

    def erase(self, user: int, state: Overlay) -> None:
        """Nothing is kept of a user."""

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Nothing is kept of a user."""

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        return 0
