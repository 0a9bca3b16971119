"""Latency percentiles in bounded memory: a log-bucketed histogram that adds up and serialises."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

__all__ = ["Latency"]

_GROWTH = 1.02
_LOG = math.log(_GROWTH)
_SMALLEST = 1e-3


@dataclass(slots=True)
class Latency:
    """Counts per bucket; bucket b holds milliseconds in (s * 1.02^(b-1), s * 1.02^b], s = 1 microsecond.

    A percentile is off by at most 1 % of itself: about 1,000 buckets reach from a microsecond to minutes.
    (The idea of HdrHistogram, with geometric buckets.)
    """

    buckets: dict[int, int] = field(default_factory=dict)
    count: int = 0
    total_ms: float = 0.0
    max_ms: float = 0.0

    def add(self, ms: float) -> None:
        bucket = math.ceil(math.log(ms / _SMALLEST) / _LOG) if ms > _SMALLEST else 0
        self.buckets[bucket] = self.buckets.get(bucket, 0) + 1
        self.count += 1
        self.total_ms += ms
        self.max_ms = max(self.max_ms, ms)

    def percentile(self, share: float) -> float | None:
        """The value below or at which `share` (0 to 1] of them lie (nearest rank), None when empty."""
        if not self.count:
            return None
        need = max(1, math.ceil(share * self.count))
        for bucket in sorted(self.buckets):
            need -= self.buckets[bucket]
            if need <= 0:
                return min(_SMALLEST * float(_GROWTH ** (bucket - 0.5)), self.max_ms)
        return self.max_ms

    def mean(self) -> float | None:
        return self.total_ms / self.count if self.count else None

    def summary(self) -> dict[str, float | None]:
        """{"p50": ms, "p99": ms}, rounded to a microsecond; None where nothing was measured."""
        found = {"p50": self.percentile(0.5), "p99": self.percentile(0.99)}
        return {name: None if value is None else round(value, 3) for name, value in found.items()}

    def histogram(self, bins: int = 40) -> list[tuple[float, float, int]]:
        """(low ms, high ms, count) of at most `bins` bars of equal width on a log scale, for plotting."""
        if not self.buckets:
            return []
        first, last = min(self.buckets), max(self.buckets)
        width = max(1, math.ceil((last - first + 1) / bins))
        bars = [0] * math.ceil((last - first + 1) / width)
        for bucket, count in self.buckets.items():
            bars[(bucket - first) // width] += count
        edge = [_SMALLEST * _GROWTH ** (first - 1 + i * width) for i in range(len(bars) + 1)]
        return [(edge[i], edge[i + 1], count) for i, count in enumerate(bars)]

    def state(self) -> dict[str, object]:
        """JSON-serialisable."""
        return {
            "buckets": {str(bucket): count for bucket, count in sorted(self.buckets.items())},
            "total_ms": self.total_ms,
            "max_ms": self.max_ms,
        }

    @classmethod
    def of(cls, state: dict[str, object]) -> Latency:
        """Inverse of `state`."""
        buckets, total, high = state["buckets"], state["total_ms"], state["max_ms"]
        assert isinstance(buckets, dict)
        assert isinstance(total, int | float)
        assert isinstance(high, int | float)
        held = {int(bucket): int(count) for bucket, count in buckets.items()}
        return cls(held, sum(held.values()), float(total), float(high))
