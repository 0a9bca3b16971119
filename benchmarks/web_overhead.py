"""The web layer: CPU of a request over HTTP around an engine that does nothing, against the CPU of a real slate.

Ours is the CPU time of a server process (all threads, kernel time included) for a slate of 20 items that is ready
beforehand, divided by the requests, with 64 connections: HTTP, routing, decoding, checking, the hops between threads,
encoding, metrics. The peer is the CPU time of `Loop.slate` in one process without HTTP: a catalogue of 20,000 items,
a model trained on 150,000 made-up purchases, 500 candidates, 20 items returned and put on record. This decides
docs/decisions/0002-web-layer.md.

    python benchmarks/web_overhead.py [--requests 6000] [--slates 400] [--runs 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np

import _load
from bench import Bench, say
from mainstem.loop import Loop
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, FeatureConfig, TrainConfig
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Context, Entity, Event, LogRecord, Slate, SlateItem, SlateRequest
from mainstem.schema.time import DAY
from mainstem.serve import run
from mainstem.serve.answers import Answers
from mainstem.serve.metrics import Metrics

ITEMS, USERS, EACH, KINDS = 20_000, 3_000, 50, 40
START_MS = 1_700_000_000_000
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""As `mainstem serve` has it: threads that wait for each other burn CPU, which would flatter the web layer."""


class ReadyEngine:
    """Has every answer ready: what is left is the web layer."""

    def __init__(self, config: Config) -> None:
        self.config = config
        sources = ["two_tower", "popular"]
        items = [
            SlateItem(entity=f"product-{i}", score=1 / (i + 1), scores={"purchase": 0.5 / (i + 1)}, sources=sources)
            for i in range(20)
        ]
        timings = {"retrieve": 2.5, "filter": 0.25, "score": 4.5, "order": 0.5}
        self._slate = Slate(
            request_id=fresh_id("slate"), canvas="home", time=START_MS, items=items, position=str(START),
            timings_ms=timings, candidates=dict.fromkeys(sources, 250),
        )  # fmt: skip

    def append(self, records: Sequence[LogRecord]) -> Appended:
        return Appended(Position.at(1), len(records), 0)

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        return [Appended(Position.at(1), len(records), 0) for records in batches]

    def slate(self, request: SlateRequest) -> Slate:
        return self._slate

    def entity(self, entity_type: str, entity: str) -> Entity | None:
        return None

    def ready(self) -> tuple[bool, dict[str, object]]:
        return True, {}

    def lag(self) -> dict[str, float]:
        return {}

    def figures(self) -> dict[str, float]:
        return {}

    def end(self) -> Position:
        return START


QUESTION = b'{"context": {"canvas": "home", "user": "user-17", "time": 1700000000000}, "limit": 20}'
EVENT = (
    b'{"event_id": "order-1-2", "user": "user-17", "kind": "purchase", "entity": "product-9", "value": 2.0, '
    b'"session": "order-1", "time": 1700000000000, "extras": {"store": "store-3"}}'
)


# ---- the web layer ---------------------------------------------------------------------------------


class ReadyServer:
    """This script with `--serve`, as a process of its own."""

    def __enter__(self) -> ReadyServer:
        self.process = subprocess.Popen([sys.executable, __file__, "--serve"], stdout=subprocess.PIPE, text=True)
        assert self.process.stdout
        self.port = int(self.process.stdout.readline().rpartition(":")[2])
        return self

    def __exit__(self, *exc: object) -> None:
        self.process.terminate()
        self.process.communicate()

    def cpu(self) -> float:
        """Seconds so far, all threads."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rpartition(")")[2].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def cpu_us(self, path: str, body: bytes, requests: int, clients: int, folder: Path) -> float:
        """Microseconds of CPU a request."""
        bodies = folder / "bodies.jsonl"
        bodies.write_bytes((body + b"\n") * requests)
        before = self.cpu()
        said = _load.result(_load.post("127.0.0.1", self.port, path, clients, bodies))
        if said["statuses"] != {"200": requests}:
            raise SystemExit(f"web_overhead: {said}")
        say(f"web_overhead: {path} {clients} clients: {requests / said['seconds']:,.0f} requests/s")
        return (self.cpu() - before) / requests * 1e6


def answers_us(call: str, body: bytes, count: int) -> float:
    """Microseconds of CPU for decoding, checking and encoding alone, without HTTP and threads."""
    answer = getattr(Answers(ReadyEngine(Config()), Metrics()), call)
    started = time.process_time()
    for _ in range(count):
        answer(body)
    return (time.process_time() - started) / count * 1e6


# ---- a real slate ----------------------------------------------------------------------------------


def world(rng: np.random.Generator) -> tuple[list[Entity], list[Event]]:
    """Items of 40 kinds; every user buys from three of them, the popular ones more, over four months."""
    items = [
        Entity(record_id=f"product-{i}", time=START_MS, entity=f"product-{i}", attributes={"kind": f"k{i % KINDS}"})
        for i in range(ITEMS)
    ]
    users = rng.integers(0, USERS, USERS * EACH)
    tastes = rng.integers(0, KINDS, (USERS, 3))
    kinds = tastes[users, rng.integers(0, 3, len(users))]
    ranks = np.minimum(rng.zipf(1.4, len(users)) - 1, ITEMS // KINDS - 1)
    times = np.sort(rng.integers(START_MS, START_MS + 120 * DAY, len(users)))
    rows = zip(users.tolist(), (kinds + KINDS * ranks).tolist(), times.tolist(), strict=True)
    return items, [
        Event(event_id=f"e{n}", time=time, user=f"user-{user}", kind="purchase", entity=f"product-{item}")
        for n, (user, item, time) in enumerate(rows)
    ]


def config() -> Config:
    return Config(
        data=".",
        entities={"item": EntityTypeConfig(attributes={"kind": "category"})},
        features=FeatureConfig(by=["kind"]),
        canvases={"home": CanvasConfig(deadline="10s")},  # late is not the question here
        train=TrainConfig(ranking_slates=1_500, ranking_epochs=2),
    )


def slates_us(loop: Loop, users: Sequence[int]) -> float:
    """Microseconds of CPU a slate, all threads: the search beside it and the recording too."""
    started = time.process_time()
    for user in users:
        context = Context(canvas="home", user=f"user-{user}", time=START_MS + 121 * DAY)
        slate = loop.slate(SlateRequest(context=context, limit=20, shown=False))
        assert len(slate.items) == 20, slate.degraded
        assert not slate.degraded, slate.degraded
    return (time.process_time() - started) / len(users) * 1e6


def measure(bench: Bench, folder: Path, requests: int, slates: int, runs: int) -> None:
    rng = np.random.default_rng(0)
    items, events = world(rng)
    with Loop(config(), folder) as loop:
        loop.append(items)
        loop.append(events)
        loop.catch_up()
        say("web_overhead: training")
        loop.train()
        slates_us(loop, rng.integers(0, USERS, 100).tolist())
        peer = bench.median(lambda: slates_us(loop, rng.integers(0, USERS, slates).tolist()), runs, "slate_us")
    with ReadyServer() as server:
        server.cpu_us("/v1/slates", QUESTION, 500, 64, folder)
        ours = bench.median(lambda: server.cpu_us("/v1/slates", QUESTION, requests, 64, folder), runs, "http_us")
        alone = server.cpu_us("/v1/slates", QUESTION, requests // 3, 1, folder)
        event = server.cpu_us("/v1/events", EVENT, requests, 64, folder)
    bench.part("one_at_a_time", metric="CPU us a slate, one client", ours=alone, ratio=round(alone / peer, 4))
    bench.part("event", metric="CPU us a post of one event, 64 clients", ours=event)
    bench.part("slate_without_http", metric="CPU us", ours=answers_us("slate", QUESTION, requests))
    bench.part("event_without_http", metric="CPU us", ours=answers_us("events", EVENT, requests))
    encoded = len(msgspec.json.encode(ReadyEngine(Config()).slate(SlateRequest(context=Context()))))
    bench.report(ours=ours, peer=peer, peer_name="Loop.slate: 20,000 items, trained model, 500 candidates",
                 slate_bytes=encoded)  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--requests", type=int, default=6_000)
    parser.add_argument("--slates", type=int, default=400)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--serve", action="store_true", help="be the server around the engine that does nothing")
    given = parser.parse_args()
    if not os.environ.keys() >= ONE_THREAD.keys():  # read when numpy and torch load: start again
        os.execve(sys.executable, [sys.executable, *sys.argv], os.environ | ONE_THREAD)
    if given.serve:
        run(ReadyEngine(Config()), "127.0.0.1", 0, on_started=lambda url: print(url, flush=True))
        return
    with (
        tempfile.TemporaryDirectory(prefix="web-") as folder,
        Bench("web_overhead", metric="CPU us a request, web layer / slate", goal=0.1, lower_is_better=True,
              goal_is_ratio=True) as bench,
    ):  # fmt: skip
        measure(bench, Path(folder), given.requests, given.slates, given.runs)


if __name__ == "__main__":
    main()
