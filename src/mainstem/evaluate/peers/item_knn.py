"""Items that the same users took: `models.neighbourhood.item_knn`, its weights summed over the user's history."""

from __future__ import annotations

import itertools
from typing import Any

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask, Scorer
from mainstem.evaluate.peers.matrix import histories, interactions
from mainstem.models.neighbourhood import item_knn
from mainstem.schema.protocols import Floats

__all__ = ["GRID", "fit"]

GRID: tuple[dict[str, Any], ...] = tuple(
    {"shrink": shrink, "neighbours": neighbours}
    for shrink, neighbours in itertools.product((0.0, 10.0, 50.0), (50, 200))
)


def fit(data: LeaveOneOut, learned: Mask, /, *, shrink: float, neighbours: int) -> Scorer:
    """Weights between items by the users who took both."""
    weights = item_knn(interactions(data, learned), shrink=shrink, neighbours=neighbours)

    def scores(data: LeaveOneOut, places: Ints) -> Floats:
        found: Floats = (histories(data, places) @ weights).toarray()
        return found

    return scores
