"""`heads.NAME` of the configuration: what the ranking network predicts, and which events teach it."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mainstem.schema.section import Duration, Name, Section

__all__ = ["HeadConfig", "HeadType"]

HeadType = Literal["binary", "value", "ordinal", "weighted_logistic", "lifetime_value"]

_LEVELS = [1.0, 2.0, 3.0, 4.0, 5.0]


class HeadConfig(Section):
    """One prediction of the ranking network."""

    # Fingerprints of snapshots are made of the repr: what came later, at its default, is not to change them.

    event: Name
    """The kind of event that labels it."""
    type: HeadType = "binary"
    """`binary`: a chance; `value`: what is usual; `ordinal`: a grade; the others: what to expect (see the-model.md)."""
    window: Duration = "1d"
    """How long after the slate an event still counts as its consequence."""
    weight: float = Field(default=1.0, ge=0.0)
    """Weight of this head's loss in training."""
    levels: list[float] = Field(default=_LEVELS, repr=False)
    """The grades of an `ordinal` head, rising; a value between two counts as the nearer."""
    unit: float = Field(default=1.0, gt=0, repr=False)
    """Of a `weighted_logistic` head: a typical value of its events, which counts as 1 in the loss."""

    each_next: float = Field(default=1.0, ge=0.5, le=2.0, repr=False)
    """Of a `binary` head: what a positive counts against the one before it in a visit; below 1 the first count most."""

    @field_validator("levels")
    @classmethod
    def _levels_rise(cls, levels: list[float], info: ValidationInfo) -> list[float]:
        if info.data.get("type", "ordinal") != "ordinal" and levels != _LEVELS:
            raise ValueError(f"levels are of `type: ordinal` alone, and this head is {info.data['type']}")
        if len(levels) < 2 or not all(map(math.isfinite, levels)) or any(b <= a for a, b in pairwise(levels)):
            raise ValueError(f"{levels} must be at least two grades that rise")
        return levels

    @field_validator("unit")
    @classmethod
    def _unit_is_read(cls, unit: float, info: ValidationInfo) -> float:
        if info.data.get("type", "weighted_logistic") != "weighted_logistic" and unit != 1.0:
            raise ValueError(f"unit is of `type: weighted_logistic` alone, and this head is {info.data['type']}")
        if not math.isfinite(unit):
            raise ValueError(f"{unit} must be finite")
        return unit

    @field_validator("each_next")
    @classmethod
    def _places_are_counted(cls, each_next: float, info: ValidationInfo) -> float:
        if info.data.get("type", "binary") != "binary" and each_next != 1.0:
            raise ValueError(f"each_next is of `type: binary` alone, and this head is {info.data['type']}")
        return each_next

    @property
    def unanswered(self) -> float:
        """The label of a candidate that no event of the head is about: 0, or NaN where that says nothing."""
        return math.nan if self.type in ("value", "ordinal") else 0.0

    @property
    def delayed(self) -> bool:
        """Whether a label is known only when the whole window is over: what came so far would be too little."""
        return self.type == "lifetime_value"
