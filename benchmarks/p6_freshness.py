"""Freshness: from an accepted event to slates that come from what was learned of it, p99 in seconds under 100 events/s.

`mainstem serve` and `mainstem train --online` run as two processes with default settings, on a model of all but the
last ratings of a data set; the rest comes in over HTTP, one event a request.

idle, load    an event's POST has returned -> a slate says (`sparse_version`) that it comes from the first delta whose
              log position covers the event, or a later one. Slates are asked every 20 ms, so that is the resolution.
              idle: one event at a time, at random moments; load: 100 events/s. `stages` in ms: `learn` from the answer
              until the delta is made (waiting for `publish_every`, and one step), `write` until its file is there,
              `take` until a slate comes from it. Rows are those of examples that the event makes at once.
next_slate    an event is posted -> its user's next slate, asked `after` it, is there: both requests in ms. Each is
              checked: it reflects the position, says so, and does not show the rated film again; or it says that the
              state is late (`serve.freshness_wait`), which `late` counts. Under load alone, as
              the looks of the other parts are some forty slates/s more, which no shop asks for; `next_slate, looked
              at` is what it takes with them.
dense         a delta with networks is there -> a slate comes from them: `dense_every` is 5 s for this part alone, 1
              minute by default, which is what the rest ran with.

The peer is what Monolith publishes: minutes (Liu et al. 2022, section 3.3: minute-level sync of sparse parameters).

    python benchmarks/p6_freshness.py [--seconds 60] [--idle 150] [--dir FOLDER]
"""

from __future__ import annotations

import argparse
import http.client
import itertools
import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from bench import Bench, say
from mainstem import datasets, weights
from mainstem.demo.server import ServerProcess
from mainstem.loop import Loop
from mainstem.schema.config_file import load
from mainstem.schema.position import Position
from mainstem.schema.records import Event

DATASET = "ml-latest-small"
LIVE = 20_000
"""Ratings that are left out of the base."""
RATE, ASKING, WATCH = 100, 10, 0.02
"""Events/s under load; those of them that ask for the next slate; seconds between looks at the model in use."""
PATIENCE = 60.0


# ---- the system ----------------------------------------------------------------------------------


def configure(folder: Path, **online: str) -> Path:
    settings: dict[str, Any] = {**datasets.get(DATASET).config, "data": "data"}
    if online:
        settings["train"] = {"online": online}
    path = folder / "mainstem.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def base_of(kept: Path) -> list[Event]:
    """A trained base in `kept`, made unless it is there; the ratings that it has not seen."""
    records = datasets.get(DATASET).load()
    events = list(records.events())
    if not (kept / "trained").exists():
        shutil.rmtree(kept, ignore_errors=True)
        kept.mkdir(parents=True)
        with Loop(load(configure(kept)), kept) as loop:
            loop.append(list(records.entities()))
            loop.append(events[:-LIVE])
            loop.catch_up()
            say(f"p6_freshness: trained {loop.train().version}")
        (kept / "trained").touch()
    return events[-LIVE:]


@contextmanager
def trainer(config_file: Path) -> Iterator[None]:
    """`mainstem train --online`; it ends with this block."""
    command = [sys.executable, "-m", "mainstem", "train", "--online", "--config", str(config_file)]
    with (config_file.parent / "trainer.log").open("ab") as out:
        process = subprocess.Popen([*command, "--while-stdin-open"], stdin=subprocess.PIPE, stdout=out, stderr=out)
    assert process.stdin
    try:
        yield
        assert process.poll() is None, f"the trainer has ended: see {config_file.parent}/trainer.log"
    finally:
        process.stdin.close()
        process.wait(PATIENCE)


class Wire:
    """One kept-alive connection."""

    def __init__(self, server: ServerProcess) -> None:
        self._connection = http.client.HTTPConnection(server.host, server.port, timeout=PATIENCE)

    def post(self, path: str, body: object) -> Any:
        self._connection.request("POST", path, json.dumps(body))
        response = self._connection.getresponse()
        answer = response.read()
        if response.status != 200:
            raise SystemExit(f"{path} answered {response.status}: {answer[:300]!r}")
        return json.loads(answer)

    def close(self) -> None:
        self._connection.close()


# ---- traffic -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Traffic:
    """Events from `events` through `server`, and what was seen; times are wall-clock seconds."""

    server: ServerProcess
    events: Iterator[Event]
    accepted: list[tuple[float, int]] = field(default_factory=list)
    """When an event's POST had returned, and the offset behind it."""
    looks: list[tuple[float, int, str]] = field(default_factory=list)
    """When a slate was there, and of which delta and dense version it was."""
    next_slate_ms: list[float] = field(default_factory=list)
    answered_ms: list[float] = field(default_factory=list)
    """Of `next_slate_ms` the slate's own part."""
    late: int = 0
    """Of these slates those that the state was too late for, which say so."""
    degraded: Counter[str] = field(default_factory=Counter)
    """What these slates left out, and why."""
    _stop: threading.Event = field(default_factory=threading.Event)

    @contextmanager
    def watched(self) -> Iterator[None]:
        watcher = threading.Thread(target=self._watch)
        watcher.start()
        try:
            yield
        finally:
            self._stop.set()
            watcher.join()

    def _watch(self) -> None:
        with closing(Wire(self.server)) as wire:
            for number in itertools.count():
                if self._stop.wait(WATCH):
                    return
                slate = wire.post("/v1/slates", {"context": {"user": str(number % 600)}, "limit": 1, "shown": False})
                sparse, dense = slate["sparse_version"], slate["dense_version"]
                self.looks.append((time.time(), int(sparse.partition("+")[2]), dense))

    def post(self, wire: Wire) -> tuple[Event, str]:
        event = next(self.events)
        names = ("event_id", "time", "user", "kind", "entity", "value")
        answer = wire.post("/v1/events", {name: getattr(event, name) for name in names})
        self.accepted.append((time.time(), Position.parse(answer["position"]).offset()))
        return event, answer["position"]

    def post_and_ask(self, wire: Wire) -> None:
        began = time.perf_counter()
        event, position = self.post(wire)
        between = time.perf_counter()
        asked = {"context": {"user": event.user}, "after": position, "shown": False}
        slate = wire.post("/v1/slates", asked)
        ended = time.perf_counter()
        self.next_slate_ms.append((ended - began) * 1e3)
        self.answered_ms.append((ended - between) * 1e3)
        reflects = Position.parse(position) <= Position.parse(slate["position"])
        late = any(part["stage"] == "freshness" for part in slate["degraded"])
        if late:  # it waited as long as it may, and says so; its time counts like any other
            self.late += 1
        elif not reflects or event.entity in [item["entity"] for item in slate["items"]]:
            raise SystemExit(f"a slate does not reflect {event}: {slate}")
        self.degraded.update(f"{part['stage']} {part['what']}: {part['why']}" for part in slate["degraded"])

    def load(self, seconds: float) -> None:
        """RATE events/s on a schedule that does not wait for slow answers, ASKING of them followed by a slate."""
        plain = threading.Thread(target=self._steady, args=(self.post, RATE - ASKING, seconds))
        plain.start()
        self._steady(self.post_and_ask, ASKING, seconds)
        plain.join()

    def _steady(self, act: Callable[[Wire], object], rate: int, seconds: float) -> None:
        began = time.monotonic()
        with closing(Wire(self.server)) as wire:
            for number in range(round(rate * seconds)):
                time.sleep(max(began + number / rate - time.monotonic(), 0.0))
                act(wire)

    def idle(self, count: int) -> None:
        dice = random.Random(0)
        with closing(Wire(self.server)) as wire:
            for _ in range(count):
                time.sleep(dice.uniform(0.2, 0.8))
                self.post(wire)

    def until_served(self, lines: Callable[[], Published]) -> Published:
        """Wait until all that was accepted is served; the deltas by then."""
        last, until = max(offset for _, offset in self.accepted), time.monotonic() + PATIENCE
        while time.monotonic() < until:
            published = lines()
            if published.offsets and published.offsets[-1] >= last:
                wanted = published.first_covering(last)
                if self.looks and self.looks[-1][1] >= wanted:
                    return published
            time.sleep(0.5)
        raise SystemExit(f"what was accepted up to {last} is not served after {PATIENCE:.0f} s")


# ---- figures -------------------------------------------------------------------------------------


@dataclass(slots=True)
class Published:
    """The deltas of the newest base: number n of them stands at index n - first."""

    first: int
    offsets: list[int]
    made: list[float]
    there: list[float]
    dense: dict[str, float]
    """Dense version -> when its delta's file was there."""

    def first_covering(self, offset: int) -> int:
        return self.first + int(np.searchsorted(self.offsets, offset))


def published(folder: Path) -> Published:
    """All deltas on disk: read anew each time, they are few."""
    store = weights.open(str(folder / "data" / "weights"))
    place = store.place("main")
    assert place
    numbers = store.deltas.sequences("main", place.base)
    deltas = [store.deltas.load("main", place.base, number) for number in numbers]
    path = folder / "data" / "weights" / "main" / "deltas" / place.base
    there = [(path / f"{number:010d}.delta").stat().st_ctime for number in numbers]
    dense = {d.dense_version: at for d, at in zip(deltas, there, strict=True) if d.dense is not None}
    made = [delta.created / 1e3 for delta in deltas]
    return Published(numbers[0] if numbers else 1, [d.position.offset() for d in deltas], made, there, dense)


def spread(values: Sequence[float] | np.ndarray, digits: int = 1) -> dict[str, float]:
    p50, p99, most = np.percentile(np.asarray(values), [50, 99, 100], method="higher")
    return {"p50": round(float(p50), digits), "p99": round(float(p99), digits), "max": round(float(most), digits)}


def freshness(traffic: Traffic, found: Published) -> tuple[np.ndarray, dict[str, Any]]:
    """Seconds [n] from accepted to served, and in ms where they went."""
    looked, sequence = np.array([at for at, _, _ in traffic.looks]), np.array([n for _, n, _ in traffic.looks])
    highest = np.maximum.accumulate(sequence)
    accepted = np.array([at for at, _ in traffic.accepted])
    wanted = np.array([found.first_covering(offset) for _, offset in traffic.accepted])
    served = looked[np.searchsorted(highest, wanted)]
    made, there = (np.array(times)[wanted - found.first] for times in (found.made, found.there))
    stages = {
        "learn": spread((made - accepted) * 1e3), "write": spread((there - made) * 1e3),
        "take": spread((served - there) * 1e3),
    }  # fmt: skip
    return served - accepted, stages


def dense_delays(traffic: Traffic, found: Published) -> list[float]:
    """Seconds from a dense part's file to a slate of it, for each that came into use."""
    first: dict[str, float] = {}
    for at, _, dense in traffic.looks:
        first.setdefault(dense, at)
    began = traffic.looks[0][0]
    return [first[name] - at for name, at in found.dense.items() if at > began and name in first]


def measure(bench: Bench, folder: Path, events: Iterator[Event], arguments: argparse.Namespace) -> dict[str, Any]:
    with ExitStack() as running:
        server = running.enter_context(ServerProcess(configure(folder), folder / "server.log", 0))
        server.wait_ready("main")
        with trainer(configure(folder)):
            warm = Traffic(server, events)
            with warm.watched():
                warm.load(5)
                warm.until_served(lambda: published(folder))
            quiet, busy = Traffic(server, events), Traffic(server, events)
            for traffic, act in (
                (quiet, partial(quiet.idle, arguments.idle)), (busy, partial(busy.load, arguments.seconds))
            ):  # fmt: skip
                with traffic.watched():
                    act()
                    found = traffic.until_served(lambda: published(folder))
                say(f"p6_freshness: {len(traffic.accepted)} events, {len(traffic.looks)} looks, {found.offsets[-1]}")
            alone = Traffic(server, events)
            alone.load(arguments.seconds)
        idle, idle_stages = freshness(quiet, found)
        loaded, stages = freshness(busy, found)
        dense = Traffic(server, events)
        with trainer(configure(folder, dense_every="5s")), dense.watched():
            dense.load(arguments.seconds)
            after = dense.until_served(lambda: published(folder))
    delays = dense_delays(dense, after)
    if not delays:
        raise SystemExit(f"no dense part came into use: published {after.dense}, seen {dense.looks[-1]}")
    bench.part("idle", metric="p99_s", ours=spread(idle, 4)["p99"], goal=2.0, events=len(idle),
               seconds=spread(idle, 3), stages_ms=idle_stages)  # fmt: skip
    for name, traffic, goal in (("next_slate", alone, 100.0), ("next_slate, looked at", busy, None)):
        slates = spread(traffic.next_slate_ms)
        bench.part(name, metric="p99_ms", ours=slates["p99"], goal=goal, ms=slates,
                   of_it_the_slate_ms=spread(traffic.answered_ms), requests=len(traffic.next_slate_ms),
                   late=traffic.late, degraded=dict(traffic.degraded.most_common(5)))  # fmt: skip
    bench.part("dense", metric="median_s", ours=float(np.median(delays)), seconds=spread(delays, 3),
               versions=len(delays), published=len(after.dense), dense_every="5s")  # fmt: skip
    looks = np.diff([at for at, _, _ in busy.looks])
    return {
        "ours": spread(loaded, 4)["p99"], "load_seconds": spread(loaded, 3), "stages_ms": stages,
        "events": len(loaded), "events_per_s": round(len(loaded) / arguments.seconds, 1),
        "looks_ms": spread(looks * 1e3), "slates_per_s": round(1 / float(looks.mean()) + ASKING, 1),
        "cpu_count": os.cpu_count(),
    }  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="of load, and of the dense part")
    parser.add_argument("--idle", type=int, default=150, help="events, one at a time")
    parser.add_argument("--dir", type=Path, help="keeps the trained base from run to run")
    arguments = parser.parse_args()
    bench = Bench("p6_freshness", metric="p99_s_accepted_to_served", goal=2.0, lower_is_better=True)
    with tempfile.TemporaryDirectory() as scratch:
        kept = (arguments.dir or Path(scratch)) / "p6-base"
        events = base_of(kept)
        shutil.copytree(kept, Path(scratch) / "run")
        figures = measure(bench, Path(scratch) / "run", iter(events), arguments)
    bench.report(
        **figures, peer=None, peer_name="none", published={"Monolith": "minutes"}, dataset=DATASET,
        keep=arguments.seconds >= 60 and arguments.idle >= 150,
    )  # fmt: skip


if __name__ == "__main__":
    main()
