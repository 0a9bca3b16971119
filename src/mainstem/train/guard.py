"""What stands between the trainer and serving: an update that fails a check is not published.

finite      every number of it is finite
loss        its mean loss is not far above a running reference
canary      the slates of some fixed users, and the order of some fixed pools, did not turn over at once

The reference moves with what is accepted, so a loss whose level has shifted for good would be refused for ever. Hence a
row of refusals that agree among themselves makes a new reference, as the first updates of all made the first one:

    usual 2.0      accepted   1.9  2.1  2.0
    a bad batch    refused                    9.0              one is no row: the next good one ends it
    an explosion   refused                    4.0  7.0  15     they do not agree
    a new level    refused                    3.4  3.6  3.5 .. after `LEAST_UPDATES` of them 3.5 is usual
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from mainstem.schema.config import OnlineConfig
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["Guard", "Losses", "Reference", "Refusal"]

Losses = Mapping[str, Sequence[tuple[float, int]]]
"""By name of what is learned: (mean loss, of how many) of each step."""

# Of how many (positives, slates) a mean loss must be before it says anything, and updates before there is a reference.
LEAST = {"retrieval": 256, "ranking": 64}
LEAST_UPDATES = 8
# Refused means that lie within this share of `loss_jump` of each other are of one level.
AGREE = 0.5
# Weight of a new update in the reference.
RATE = 0.05
# Standard errors by which a jump must also stand out: small updates are noisy.
ERRORS = 6.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why an update must not be published; levels: the mean of each loss that was too high, by name."""

    why: str
    levels: dict[str, float] = field(default_factory=dict)


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
class Watch:
    """One loss; `pending` collects (loss, of how many) until they are enough to judge. refused: the latest means that
    were too high, since one was not."""

    least: int
    reference: Reference = field(default_factory=Reference)
    pending: list[tuple[float, int]] = field(default_factory=list)
    refused: list[float] = field(default_factory=list)

    def with_these(self, losses: Sequence[tuple[float, int]]) -> tuple[list[tuple[float, int]], float, bool]:
        """(pending, their mean, whether they are enough)."""
        pending = self.pending + [(loss, n) for loss, n in losses if n]
        count = sum(n for _, n in pending)
        return pending, sum(loss * n for loss, n in pending) / max(count, 1), count >= self.least

    def accept(self, losses: Sequence[tuple[float, int]]) -> None:
        pending, mean, enough = self.with_these(losses)
        if enough:
            self.reference.add(mean)
            self.refused = []
        self.pending = [] if enough else pending

    def refuse(self, mean: float, apart: float) -> bool:
        """Note a mean that was too high; whether it and those before it, at most the share `apart` from each other, are
        the reference from now on."""
        self.pending = []  # they were judged with what was refused, and would spoil what comes
        self.refused = [*self.refused, mean][-LEAST_UPDATES:]
        low, high = min(self.refused), max(self.refused)
        if len(self.refused) < LEAST_UPDATES or high - low > apart * abs(low):
            return False
        self.reference = Reference()
        for one in self.refused:
            self.reference.add(one)
        self.refused = []
        return True


@dataclass(slots=True)
class Guard:
    """Judges updates in order; its memory is what was published."""

    config: OnlineConfig
    watches: dict[str, Watch] = field(default_factory=lambda: {name: Watch(least) for name, least in LEAST.items()})
    slates: dict[str, Keys] = field(default_factory=dict)

    def judge(self, arrays: Iterable[Floats], losses: Losses, slates: Mapping[str, Keys]) -> Refusal | None:
        """Why this update must not be published, or None, and then it is the new reference.

        arrays: everything that it would publish; losses: of its steps; slates uint64 [c, k]: what the canaries of each
        kind would be shown.
        """
        if not all(bool(np.isfinite(array).all()) for array in arrays):
            return Refusal("finite: it holds values that are not finite")
        for name, steps in losses.items():
            if any(not math.isfinite(loss) for loss, n in steps if n):
                return Refusal(f"finite: its {name} loss is not finite")
        if (jumped := self._jumped(losses)) is not None:
            return jumped
        for name, now in slates.items():
            kept = overlap(self.slates[name], now) if name in self.slates else 1.0
            if kept < self.config.canary_overlap:
                return Refusal(f"canary: only {kept:.0%} of the {name} canaries' items are still in their slates")
        for name, steps in losses.items():
            self.watches[name].accept(steps)
        self.slates |= slates
        return None

    def _jumped(self, losses: Losses) -> Refusal | None:
        levels, why = dict[str, float](), list[str]()
        for name, steps in losses.items():
            watch = self.watches[name]
            _, mean, enough = watch.with_these(steps)
            if enough and watch.reference.jumped(mean, self.config.loss_jump):
                levels[name] = mean
                why.append(f"{mean:.4g} in {name} where {watch.reference.mean:.4g} was usual")
        return Refusal(f"loss: {', '.join(why)}", levels) if levels else None

    def refuse(self, levels: Mapping[str, float]) -> list[str]:
        """Note that an update was refused: the means of the losses that were too high, none where it failed another
        check, which ends every row. The losses that have a new reference by it."""
        if not levels:
            for watch in self.watches.values():
                watch.refused = []
        apart = AGREE * self.config.loss_jump
        return [name for name, mean in levels.items() if self.watches[name].refuse(mean, apart)]

    def state(self) -> dict[str, Any]:
        return {
            name: {
                "reference": [watch.reference.mean, watch.reference.variance, watch.reference.updates],
                "pending": [list(one) for one in watch.pending],
                "refused": list(watch.refused),
            }
            for name, watch in self.watches.items()
        }

    def load(self, state: dict[str, Any]) -> None:
        self.slates = {}  # other canaries will be chosen
        for name, watch in self.watches.items():
            mean, variance, updates = state[name]["reference"]
            watch.reference = Reference(float(mean), float(variance), int(updates))
            watch.pending = [(float(loss), int(n)) for loss, n in state[name]["pending"]]
            watch.refused = [float(mean) for mean in state[name].get("refused", ())]  # older snapshots have none


def overlap(before: Keys, after: Keys) -> float:
    """Mean share of each slate's keys that are still in it. uint64 [c, k] each."""
    if before.shape != after.shape or not before.size:
        return 1.0
    return float(np.mean([np.isin(old, new).mean() for old, new in zip(before, after, strict=True)]))
