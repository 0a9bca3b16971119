"""What a replay has found so far: sums per day, system and restriction. Everything shown is derived from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from mainstem.evaluate.latency import Latency
from mainstem.evaluate.metrics import Interval, paired_interval
from mainstem.schema.time import DAY

__all__ = ["RESTRICTIONS", "Restriction", "Results", "Score"]

Restriction = Literal["all", "new"]
RESTRICTIONS: tuple[Restriction, ...] = ("all", "new")


@dataclass(slots=True)
class Score:
    """Sums over slates; `ndcg` and `recall` are their means, None before the first."""

    ndcg_sum: float = 0.0
    recall_sum: float = 0.0
    n: int = 0

    def add(self, ndcg: float, recall: float) -> None:
        self.ndcg_sum += ndcg
        self.recall_sum += recall
        self.n += 1

    @property
    def ndcg(self) -> float | None:
        return self.ndcg_sum / self.n if self.n else None

    @property
    def recall(self) -> float | None:
        return self.recall_sum / self.n if self.n else None


@dataclass(slots=True)
class Results:
    """Running results of one system and its baselines on the same requests.

    `days[day][system][restriction]`: day is event time // 1 day. `baskets` counts those taken from the
    stream, `slates` those asked of the system, `events` those posted; `seconds` is the wall time of the
    replay over all its runs, the baselines' own time included.
    """

    systems: list[str]
    k: int = 10
    baskets: int = 0
    slates: int = 0
    events: int = 0
    seconds: float = 0.0
    time: int = 0
    days: dict[int, dict[str, dict[Restriction, Score]]] = field(default_factory=dict)
    slate_ms: Latency = field(default_factory=Latency)
    post_ms: Latency = field(default_factory=Latency)
    freshness_ms: Latency = field(default_factory=Latency)

    def add(self, time: int, system: str, restriction: Restriction, ndcg: float, recall: float) -> None:
        day = self.days.setdefault(time // DAY, {})
        day.setdefault(system, {}).setdefault(restriction, Score()).add(ndcg, recall)

    def score(self, system: str, restriction: Restriction) -> Score:
        """Sums over all days."""
        total = Score()
        for day in sorted(self.days):
            part = self.days[day].get(system, {}).get(restriction)
            if part is not None:
                total.ndcg_sum += part.ndcg_sum
                total.recall_sum += part.recall_sum
                total.n += part.n
        return total

    def by_day(self, system: str, restriction: Restriction) -> list[tuple[int, float, int]]:
        """(day, mean NDCG, slates) of the days that have any, in order."""
        found = []
        for day in sorted(self.days):
            part = self.days[day].get(system, {}).get(restriction)
            if part is not None and part.ndcg is not None:
                found.append((day, part.ndcg, part.n))
        return found

    def best_baseline(self, restriction: Restriction) -> str | None:
        """The baseline with the highest NDCG so far; ties by its place in `systems`."""
        rivals = [(self.score(name, restriction).ndcg, name) for name in self.systems[1:]]
        scored = [(value, name) for value, name in rivals if value is not None]
        return max(scored, key=lambda pair: pair[0])[1] if scored else None

    def lift(self, restriction: Restriction, over: str | None = None) -> float | None:
        """Relative gain in NDCG over `over` (the best baseline): 0.1 is 10 % better. None where undefined."""
        over = over or self.best_baseline(restriction)
        if over is None:
            return None
        ours, theirs = self.score(self.systems[0], restriction).ndcg, self.score(over, restriction).ndcg
        return ours / theirs - 1.0 if ours is not None and theirs else None

    def interval(self, restriction: Restriction, over: str) -> Interval | None:
        """Paired bootstrap of the NDCG difference to `over`, whole days resampled; None with under two days."""
        ours = self.by_day(self.systems[0], restriction)
        theirs = self.by_day(over, restriction)
        if len(ours) < 2 or [row[0] for row in ours] != [row[0] for row in theirs]:
            return None
        return paired_interval(
            np.array([row[1] for row in ours]), np.array([row[1] for row in theirs]),
            weights=np.array([row[2] for row in ours]),
        )  # fmt: skip

    def events_per_s(self) -> float | None:
        return self.events / self.seconds if self.seconds > 0 else None

    def summary(self) -> dict[str, Any]:
        """The one JSON object of the demo: see the README for its form. Values are None where nothing was measured."""

        def both(system: str) -> dict[str, dict[str, float | None]]:
            return {
                name: {
                    f"ndcg@{self.k}": _round(self.score(system, name).ndcg, 5),
                    f"recall@{self.k}": _round(self.score(system, name).recall, 5),
                }
                for name in RESTRICTIONS
            }

        return {
            self.systems[0]: both(self.systems[0]),
            "baselines": {name: both(name) for name in self.systems[1:]},
            "slates": self.slates,
            "latency_ms": self.slate_ms.summary(),
            "events_per_s": _round(self.events_per_s(), 1),
            "freshness_ms": self.freshness_ms.summary(),
            "seconds": round(self.seconds, 3),
        }

    def state(self) -> dict[str, Any]:
        """JSON-serialisable; floats survive the round trip exactly."""
        return {
            "systems": self.systems,
            "k": self.k,
            "baskets": self.baskets,
            "slates": self.slates,
            "events": self.events,
            "seconds": self.seconds,
            "time": self.time,
            "days": {
                str(day): {
                    system: {name: [part.ndcg_sum, part.recall_sum, part.n] for name, part in parts.items()}
                    for system, parts in systems.items()
                }
                for day, systems in self.days.items()
            },
            "slate_ms": self.slate_ms.state(),
            "post_ms": self.post_ms.state(),
            "freshness_ms": self.freshness_ms.state(),
        }

    @classmethod
    def of(cls, state: Mapping[str, Any]) -> Results:
        """Inverse of `state`."""
        return cls(
            systems=list(state["systems"]), k=state["k"], baskets=state["baskets"], slates=state["slates"],
            events=state["events"], seconds=state["seconds"], time=state["time"],
            days={
                int(day): {
                    system: {name: Score(*sums) for name, sums in parts.items()} for system, parts in systems.items()
                }
                for day, systems in state["days"].items()
            },
            slate_ms=Latency.of(state["slate_ms"]),
            post_ms=Latency.of(state["post_ms"]),
            freshness_ms=Latency.of(state["freshness_ms"]),
        )  # fmt: skip


def _round(value: float | None, digits: int) -> float | None:
    return None if value is None else round(value, digits)
