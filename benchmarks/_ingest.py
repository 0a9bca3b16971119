"""The parts of P7 in which the system runs whole: events folded into features, and events over HTTP.

All of them share one folder, whose log is full already. The feature state starts where the log ends (an empty batch
is written at that position): what 20 million older events would have left there is not rebuilt for a measurement of
what new ones cost. The catalogue is filled through the log as ever.
"""

from __future__ import annotations

import json
import re
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

import _load
from bench import say
from mainstem import assemble, eventlog
from mainstem.demo.server import ServerProcess
from mainstem.loop import Loop
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.config_file import load
from mainstem.schema.records import Entity, Event

ITEMS, STORES = 50_021, 317
SETTINGS: dict[str, Any] = {
    "data": ".",
    "entities": {"item": {"attributes": {"department": "category", "category": "category"}}},
    "features": {"by": ["department", "category"], "place": "store"},
}
_LAG = re.compile(r'^mainstem_follower_lag\{follower="state"\} ([\d.e+]+)', re.MULTILINE)


def configure(folder: Path) -> Path:
    """Features as the demo has them: by two attributes and by store, beside the defaults."""
    path = folder / "mainstem.yaml"
    path.write_text(yaml.safe_dump(SETTINGS))
    return path


def begin_at_the_end(config: Config, folder: Path, time_ms: int) -> None:
    """Let the state reflect the log as it is, without having read it; then put the catalogue into the log."""
    parts = assemble.assemble(config, folder)
    end = parts.log.end()
    parts.catalog.write([], end)
    parts.features.write(EventBatch.of([]), end)
    parts.close()
    with Loop(config, folder) as loop:
        loop.append(
            [
                Entity(
                    record_id=f"product-{i}",
                    time=time_ms,
                    entity=f"product-{i}",
                    attributes={"department": f"d{i % 23}", "category": f"c{i % 307}"},
                )
                for i in range(ITEMS)
            ]
        )
        loop.catch_up()


# ---- append to features applied --------------------------------------------------------------------


def applied_rate(loop: Loop, batches: Sequence[Sequence[Event]]) -> float:
    """Events/s from the first append until the state reflects the last event; the follower runs beside the appends."""
    started = time.perf_counter()
    for batch in batches:
        done = loop.append(batch)
    assert loop.parts.follower.wait_for(done.position, 600), "the follower does not come up"
    return sum(map(len, batches)) / (time.perf_counter() - started)


# ---- over HTTP -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Lag:
    """The follower's lag in records, sampled every quarter of a second through the server's own /metrics."""

    url: str
    samples: list[tuple[float, float]] = field(default_factory=list)

    def now(self) -> float:
        with urllib.request.urlopen(f"{self.url}/metrics", timeout=30) as answer:
            found = _LAG.search(answer.read().decode())
        assert found, "the server tells no lag"
        return float(found[1])

    @contextmanager
    def sampled(self) -> Iterator[None]:
        stop = threading.Event()

        def sample() -> None:
            while not stop.wait(0.25):
                self.samples.append((time.perf_counter(), self.now()))

        thread = threading.Thread(target=sample)
        thread.start()
        try:
            yield
        finally:
            stop.set()
            thread.join()

    def drain(self) -> float:
        """Seconds until it is 0."""
        started = time.perf_counter()
        while self.now() > 0:
            time.sleep(0.02)
        return time.perf_counter() - started

    def most(self, half: int) -> float:
        """The largest lag in the first (0) or second (1) half of the samples."""
        middle = len(self.samples) // 2
        return max((lag for _, lag in (self.samples[middle:] if half else self.samples[:middle])), default=0.0)


def as_bodies(path: Path, events: Sequence[Event], per_request: int) -> Path:
    """One body a line: a list of `per_request` events, or a single event, as a client would write it."""
    fields = ("event_id", "time", "user", "kind", "entity", "value", "session", "extras")
    wire = [{name: getattr(event, name) for name in fields} for event in events]
    with path.open("w") as out:
        for first in range(0, len(wire), per_request):
            out.write(json.dumps(wire[first : first + per_request] if per_request > 1 else wire[first]) + "\n")
    return path


def http_run(server: ServerProcess, folder: Path, events: Sequence[Event], per_request: int, clients: int) -> Any:
    """Post all of `events`; what the generator saw, and the lag. The log on disk must then hold exactly them."""
    bodies = as_bodies(folder / "bodies.jsonl", events, per_request)
    log = eventlog.open(f"sqlite://{folder}/log.sqlite", history=f"file://{folder}/history")
    before, lag, cpu = log.end().offset(), Lag(server.url), server_cpu(server)
    started = time.perf_counter()
    with lag.sampled():
        said = _load.result(_load.post(server.host, server.port, "/v1/events", clients, bodies))
    drained = lag.drain()
    whole = time.perf_counter() - started
    held = log.end().offset() - before
    log.close()
    if said["accepted"] != len(events) or held != len(events) or set(said["statuses"]) != {"200"}:
        raise SystemExit(f"{len(events)} events posted, {held} more in the log: {said}")
    rate = len(events) / said["seconds"]
    say(f"p7_ingest: {rate:,.0f} events/s in posts of {per_request}, {said}")
    return {
        **said,
        "events_per_s": rate,
        "lag_most": max(lag.most(0), lag.most(1)),
        "lag_most_halves": [lag.most(0), lag.most(1)],
        "drain_s": round(drained, 2),
        "applied_per_s": round(len(events) / (said["seconds"] + drained), 1),
        "server_cpu_share": round((server_cpu(server) - cpu) / whole, 3),
    }


def server_cpu(server: ServerProcess) -> float:
    """CPU seconds of the server process so far, all threads."""
    fields = Path(f"/proc/{server.pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / 100


def served(folder: Path, measure: Callable[[ServerProcess], None]) -> None:
    """`measure` against `mainstem serve` on the folder."""
    with ServerProcess(configure(folder), folder / "server.log", 0) as server:
        server.wait_ready()
        measure(server)


def config_of(folder: Path) -> Config:
    return load(configure(folder))
