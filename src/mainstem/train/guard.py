"""What stands between the trainer and serving: an update that fails a check is not published.

finite      every number of it is finite
loss        its mean loss is not far above a running reference
canary      the slates of some fixed users did not turn over at once
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.config import OnlineConfig
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["Guard", "Reference"]

# Positives that an update must hold before its mean loss says anything, and updates before there is a reference.
LEAST_POSITIVES, LEAST_UPDATES = 256, 8
# Weight of a new update in the reference.
RATE = 0.05
# Standard errors by which a jump must also stand out: small updates are noisy.
ERRORS = 6.0


@dataclass(slots=True)
class Reference:
    """Running mean and variance of a loss, exponentially weighted over updates."""

    mean: float = 0.0
    variance: float = 0.0
    updates: int = 0

    def add(self, value: float) -> None:
        rate = max(RATE, 1.0 / (self.updates + 1))
        away = value - self.mean
        self.mean += rate * away
        self.variance = (1 - rate) * (self.variance + rate * away * away)
        self.updates += 1

    def jumped(self, value: float, share: float) -> bool:
        """Is `value` above the mean by more than `share` of it, and by more than chance allows?"""
        if self.updates < LEAST_UPDATES:
            return False
        return value > self.mean + max(share * abs(self.mean), ERRORS * math.sqrt(self.variance))


@dataclass(slots=True)
class Guard:
    """Judges updates in order; its memory is what was published.

    `pending` collects (loss, positives) until they are enough to judge.
    """

    config: OnlineConfig
    reference: Reference = field(default_factory=Reference)
    slates: NDArray[np.uint64] | None = None
    pending: list[tuple[float, int]] = field(default_factory=list)

    def judge(self, arrays: Iterable[Floats], losses: list[tuple[float, int]], slates: Keys | None) -> str | None:
        """Why this update must not be published, or None, and then it is the new reference.

        arrays: everything that it would publish; losses: (mean loss, positives) of its steps; slates uint64 [c, k]:
        what the canaries would be shown, None where there are none yet.
        """
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            return "finite: it holds values that are not finite"
        if any(not math.isfinite(loss) for loss, positives in losses if positives):
            return "finite: its loss is not finite"
        pending = self.pending + [(loss, n) for loss, n in losses if n]
        positives = sum(n for _, n in pending)
        mean = sum(loss * n for loss, n in pending) / max(positives, 1)
        enough = positives >= LEAST_POSITIVES
        if enough and self.reference.jumped(mean, self.config.loss_jump):
            return f"loss: {mean:.4g} where {self.reference.mean:.4g} was usual"
        if slates is not None and self.slates is not None:
            kept = overlap(self.slates, slates)
            if kept < self.config.canary_overlap:
                return f"canary: only {kept:.0%} of the canary slates' items are still in them"
        if enough:
            self.reference.add(mean)
        self.pending = [] if enough else pending
        self.slates = slates if slates is not None else self.slates
        return None

    def state(self) -> dict[str, Any]:
        reference = self.reference
        return {
            "reference": [reference.mean, reference.variance, reference.updates],
            "pending": [list(one) for one in self.pending],
        }

    def load(self, state: dict[str, Any]) -> None:
        mean, variance, updates = state["reference"]
        self.reference = Reference(float(mean), float(variance), int(updates))
        self.slates = None  # other canaries will be chosen
        self.pending = [(float(loss), int(n)) for loss, n in state["pending"]]


def overlap(before: Keys, after: Keys) -> float:
    """Mean share of each slate's keys that are still in it. uint64 [c, k] each."""
    if before.shape != after.shape or not before.size:
        return 1.0
    return float(np.mean([np.isin(old, new).mean() for old, new in zip(before, after, strict=True)]))
