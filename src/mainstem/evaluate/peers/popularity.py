"""What is taken most, the same for everybody."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask, Scorer
from mainstem.schema.protocols import Floats

__all__ = ["GRID", "fit"]

GRID: tuple[dict[str, Any], ...] = ({},)


def fit(data: LeaveOneOut, learned: Mask, /) -> Scorer:
    """Counts of the actions that are learned from."""
    counts = np.bincount(data.item[learned], minlength=data.items).astype(np.float32)

    def scores(data: LeaveOneOut, places: Ints) -> Floats:
        return np.broadcast_to(counts, (len(places), data.items))

    return scores
