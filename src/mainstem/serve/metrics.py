"""Prometheus metrics of one process, in a registry of their own."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mainstem.schema.protocols import Appended
from mainstem.schema.records import Slate

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS)


class Metrics:
    """What is counted. Safe to use from any thread."""

    def __init__(self) -> None:
        registry = self.registry = CollectorRegistry()
        self._requests = Counter(
            "mainstem_requests", "HTTP requests.", ["route", "method", "status"], registry=registry
        )
        self._latency = Histogram(
            "mainstem_request_seconds",
            "From the head of the request to the end of the answer.",
            ["route"],
            buckets=_SECONDS,
            registry=registry,
        )
        self._stages = Histogram(
            "mainstem_stage_seconds", "Time per stage of a slate.", ["stage"], buckets=_STAGE_SECONDS, registry=registry
        )
        self._slates = Counter("mainstem_slates", "Slates answered.", ["canvas"], registry=registry)
        self._degraded = Counter(
            "mainstem_degraded", "Parts of slates that were left out.", ["stage"], registry=registry
        )
        self._accepted = Counter("mainstem_records_accepted", "Records written.", ["record"], registry=registry)
        self._duplicates = Counter(
            "mainstem_records_duplicate", "Records whose id was known already.", ["record"], registry=registry
        )
        self._refused = Counter(
            "mainstem_writes_refused",
            "Writes answered 503 because the state was further behind the log than serve.max_lag.",
            registry=registry,
        )
        self._lag = Gauge("mainstem_follower_lag", "How far a follower is behind the log.", ["follower"],
                          registry=registry)  # fmt: skip

    def request(self, route: str, method: str, status: int, seconds: float) -> None:
        """One request is answered. `route` is the template of the path, never the path itself."""
        self._requests.labels(route, method, str(status)).inc()
        self._latency.labels(route).observe(seconds)

    def slate(self, slate: Slate) -> None:
        self._slates.labels(slate.canvas).inc()
        for stage, ms in slate.timings_ms.items():
            self._stages.labels(stage).observe(ms / 1000)
        for degraded in slate.degraded:
            self._degraded.labels(degraded.stage).inc()

    def appended(self, record: str, appended: Appended) -> None:
        """`record` is one of event, entity, patch, delete, erase."""
        self._accepted.labels(record).inc(appended.accepted)
        self._duplicates.labels(record).inc(appended.duplicates)

    def refused(self) -> None:
        """A write was refused because the state lags too far."""
        self._refused.inc()

    def text(self, lag: Mapping[str, float]) -> bytes:
        """The exposition format, with the followers' lag as of now."""
        self._lag.clear()
        for follower, behind in lag.items():
            self._lag.labels(follower).set(behind)
        return generate_latest(self.registry)
