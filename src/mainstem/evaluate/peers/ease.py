"""The linear autoencoder in closed form: `models.neighbourhood.ease`, its weights summed over the user's history."""

from __future__ import annotations

from typing import Any

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask, Scorer
from mainstem.evaluate.peers.matrix import histories, interactions
from mainstem.models.neighbourhood import MOST_ITEMS, ease
from mainstem.schema.errors import NotReady
from mainstem.schema.protocols import Floats

__all__ = ["GRID", "fit"]

GRID: tuple[dict[str, Any], ...] = tuple({"l2": l2} for l2 in (20.0, 100.0, 500.0))


def fit(data: LeaveOneOut, learned: Mask, /, *, l2: float) -> Scorer:
    """Weights between all pairs of items. Raises NotReady for a catalogue that is too large for that."""
    if data.items > MOST_ITEMS:
        raise NotReady(f"{data.items:,} items, and weights of every pair are made for at most {MOST_ITEMS:,}")
    weights = ease(interactions(data, learned), l2=l2)

    def scores(data: LeaveOneOut, places: Ints) -> Floats:
        found: Floats = histories(data, places) @ weights
        return found

    return scores
