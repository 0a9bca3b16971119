"""Prometheus metrics of one process, in a registry of their own."""

from __future__ import annotations

from collections.abc import Mapping

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mainstem.schema.protocols import Appended
from mainstem.schema.records import Slate

__all__ = ["Metrics"]

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
_STAGE_SECONDS = (0.0001, 0.00025, 0.0005, *_SECONDS)

FIGURES = {
    "model_age_seconds": "Since what is in use now was published.",
    "model_sequence": "The last delta in use, counted from its base.",
    "model_deltas_applied": "Deltas taken into use since the start.",
    "model_set_aside": "Snapshots and deltas that were not taken into use.",
    "erasures_known": "Users and entities that are erased.",
    "erasures_pending": "Steps of erasing that have not reached every file of the log.",
    "trainer_lag_records": "Records of the log that the trainer has not come to.",
    "trainer_records": "Records that the trainer has read since its start.",
    "trainer_positives": "Events that it has learned from.",
    "trainer_slates": "Slates on record of which it has learned a label; one counts each time that it gets more.",
    "trainer_only_noted_records": "Records noted but not learned from, as the trainer was more than max_lag behind.",
    "trainer_passed_over_records": "Records of refused updates.",
    "trainer_published": "Deltas published.",
    "trainer_refused": "Updates that the guard refused.",
    "trainer_new_levels": "Times that refused updates in a row made a new reference of a loss.",
    "trainer_loss": "Loss of the latest micro-batch before it was learned.",
}
"""Gauges of the model in use, of what the log erases, and of a trainer in the same process."""


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
        self._erased = Counter(
            "mainstem_records_erased", "Records refused as of an erased user or entity.", ["record"], registry=registry
        )
        self._refused = Counter(
            "mainstem_writes_refused",
            "Writes answered 503 because the state was further behind the log than serve.max_lag.",
            registry=registry,
        )
        self._lag = Gauge("mainstem_follower_lag", "How far a follower is behind the log.", ["follower"],
                          registry=registry)  # fmt: skip
        self._figures: dict[str, Gauge] = {}

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
        self._erased.labels(record).inc(appended.erased)

    def refused(self) -> None:
        """A write was refused because the state lags too far."""
        self._refused.inc()

    def text(self, lag: Mapping[str, float], figures: Mapping[str, float]) -> bytes:
        """The exposition format, with the followers' lag and the model's figures as of now."""
        self._lag.clear()
        for follower, behind in lag.items():
            self._lag.labels(follower).set(behind)
        for name, value in figures.items():
            if name not in self._figures:
                self._figures[name] = Gauge(f"mainstem_{name}", FIGURES[name], registry=self.registry)
            self._figures[name].set(value)
        return generate_latest(self.registry)
