"""Weights between items, of the sources `item_knn` and `ease`: how they are computed, and how many are kept."""

from __future__ import annotations

from pydantic import Field

from mainstem.schema.section import Section

__all__ = ["EaseConfig", "ItemKnnConfig", "NeighbourhoodConfig"]


class ItemKnnConfig(Section):
    """Items that share their users: cosine, lowered where it rests on few."""

    neighbours: int = Field(default=100, ge=1, le=1_000)
    """Kept of each item, 8 bytes each in the file and in every serving process."""
    shrink: float = Field(default=20.0, ge=0)
    """The more, the less counts what few users share."""


class EaseConfig(Section):
    """What says each item best from the others, jointly (Steck 2019)."""

    neighbours: int = Field(default=100, ge=1, le=1_000)
    """Kept of each item, the strongest, also those that speak against one."""
    l2: float = Field(default=300.0, ge=0.01)
    """The more, the less counts what few users share."""
    most: int = Field(default=5_000, ge=1, le=20_000)
    """Items that have weights, those of most users: the trainer takes 12 bytes for each pair of them, 0.3 GB for 5,000
    (some seconds) and 4.8 GB for 20,000 (some minutes)."""


class NeighbourhoodConfig(Section):
    """Weights between items, for the sources `item_knn` and `ease` where a canvas names them (see the-model.md)."""

    item_knn: ItemKnnConfig = ItemKnnConfig()
    ease: EaseConfig = EaseConfig()
