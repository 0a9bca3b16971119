"""Ingest into a log that holds 20 million events: append, append to features applied, and over HTTP, in events/s.

The headline is `Log.append` of ready `Event`s in batches of 10,000: checked, stamped, encoded, looked up among all
ids of the log, committed with a sync, while ranges are sealed to Parquet in the background. The log is filled
through the same `append`, so `fill` in `parts` is what it sustains over the whole way, sealing included. The peer is
the least that any log on SQLite costs: `executemany` of the same rows, encoded beforehand, into a bare table (WAL,
synchronous FULL, same batches), without ids to look up.

`applied`: appended and folded by the real follower into the real state (LMDB, features as in the demo) until its
position is the log's end. `http_batches`, `http_single`: posted to a `mainstem serve` process by 64 connections, in
lists of 100 and one by one, each answered only once it is durable; the follower runs in the same server, and its lag
and the time it takes to drain are told. The peer of these is what Metarank publishes, 1-3 k events/s with features:
its upper end. The state starts at the end of the full log (see `_ingest.py`).

    python benchmarks/p7_ingest.py [--prefill 20000000] [--events 300000] [--runs 3] [--dir FOLDER] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import os
import sqlite3
import statistics
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

from _ingest import applied_rate, begin_at_the_end, config_of, http_run, served
from bench import Bench, say
from mainstem import eventlog
from mainstem.demo.server import ServerProcess
from mainstem.loop import Loop
from mainstem.schema.config import LogConfig
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Event, encode_record

BATCH = 10_000
FULL = 20_000_000
"""Only the figures of a log that holds so many are kept in results/."""
START_MS = 1_700_000_000_000
METARANK = 3_000
"""Events/s with features that Metarank publishes, at most."""


def events(first: int, count: int = BATCH) -> list[Event]:
    """Purchases as a grocery chain has them: about 150 bytes each, encoded. Always the same ones."""
    return [
        Event(
            event_id=f"order-{i // 7}-{i % 7}",
            time=START_MS + i,
            user=f"user-{i // 7 * 7919 % 100_003}",
            kind="purchase",
            entity=f"product-{i * 104_729 % 50_021}",
            value=float(1 + i % 3),
            session=f"order-{i // 7}",
            extras={"store": f"store-{i % 317}", "amount": i % 1000 / 100},
        )
        for i in range(first, first + count)
    ]


class Counter:
    """Hands out the next events, made before the clock runs."""

    def __init__(self) -> None:
        self.next = 0

    def batches(self, count: int) -> list[list[Event]]:
        first, self.next = self.next, self.next + count
        return [events(at, min(BATCH, first + count - at)) for at in range(first, first + count, BATCH)]

    def flat(self, count: int) -> list[Event]:
        return [event for batch in self.batches(count) for event in batch]


def fill(log: Log, source: Counter, count: int) -> float:
    """Append `count` events; events/s of the time spent appending, beside which sealing runs."""
    spent, told, first = 0.0, time.monotonic(), source.next
    for _ in range(0, count, BATCH):
        (batch,) = source.batches(BATCH)
        started = time.perf_counter()
        log.append(batch)
        spent += time.perf_counter() - started
        if time.monotonic() - told > 10:
            told = time.monotonic()
            say(f"p7_ingest: {source.next:,} in the log, {(source.next - first) / spent:,.0f} events/s")
    return count / spent if spent else 0.0


def append_rate(log: Log, batches: list[list[Event]]) -> float:
    count = sum(map(len, batches))
    started = time.perf_counter()
    for batch in batches:
        done = log.append(batch)
        assert done.accepted == len(batch)
    return count / (time.perf_counter() - started)


def bare_rate(folder: Path, count: int) -> float:
    """The peer: the same rows into a bare table, same batches, same durability."""
    batches = [
        [(START_MS + i, encode_record(e)) for i, e in enumerate(events(first, min(BATCH, count - first)))]
        for first in range(0, count, BATCH)
    ]
    path = folder / "bare.sqlite"
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute("PRAGMA journal_mode=WAL")
    connection.execute("PRAGMA synchronous=FULL")
    connection.execute("CREATE TABLE records (offset INTEGER PRIMARY KEY, time INTEGER, body BLOB)")
    started = time.perf_counter()
    for batch in batches:
        connection.execute("BEGIN")
        connection.executemany("INSERT INTO records (time, body) VALUES (?, ?)", batch)
        connection.execute("COMMIT")
    spent = time.perf_counter() - started
    connection.close()
    path.unlink()
    return count / spent


def duplicate_rate(log: Log, count: int) -> float:
    """Re-sending the oldest events: every one is looked up and refused."""
    batches = [events(first) for first in range(0, count, BATCH)]
    started = time.perf_counter()
    for batch in batches:
        assert log.append(batch).accepted == 0
    return count / (time.perf_counter() - started)


def single_rate(log: Log, threads: int, each: int) -> float:
    """Appends of one event from `threads` threads at once: group commit shares the syncs."""

    def send(number: int) -> None:
        for turn in range(each):
            log.append([Event(event_id=f"one-{started}-{number}-{turn}", time=START_MS, user="u", kind="view")])

    started = time.perf_counter()
    senders = [threading.Thread(target=send, args=(n,)) for n in range(threads)]
    for sender in senders:
        sender.start()
    for sender in senders:
        sender.join()
    return threads * each / (time.perf_counter() - started)


def read_rate(log: Log, first: int, count: int) -> float:
    at, seen = Position.at(first), 0
    started = time.perf_counter()
    while seen < count and len(batch := log.read(at, BATCH)):
        at, seen = batch.next, seen + len(batch)
    return seen / (time.perf_counter() - started)


def measure_log(bench: Bench, folder: Path, source: Counter, args: argparse.Namespace) -> dict[str, Any]:
    """The log alone; what `report` says of it."""
    log = eventlog.open(f"sqlite://{folder}/log.sqlite", history=f"file://{folder}/history", config=LogConfig())
    source.next = log.end().offset()  # at least one record of the log for every number used so far
    if (missing := args.prefill - source.next) > 0:
        bench.part("fill", metric="events_per_s", ours=fill(log, source, missing))
    bench.median(lambda: append_rate(log, source.batches(args.events)), args.runs, "append")
    peer = bench.median(lambda: bare_rate(folder, args.events), args.runs, "bare")
    bench.median(lambda: append_rate(log, source.batches(args.events)), args.runs, "append")
    held = log.end().offset()
    batches = source.batches(args.events)
    cpu = time.process_time()
    append_rate(log, batches)
    cpu_us = (time.process_time() - cpu) / args.events * 1e6
    bench.part("cpu", metric="cpu_us_per_event_all_threads", ours=cpu_us)
    duplicates = bench.median(lambda: duplicate_rate(log, min(held, args.events)), 1, "duplicates")
    bench.part("duplicates", metric="events_per_s", ours=duplicates)
    bench.part("single_64_threads", metric="appends_per_s", ours=single_rate(log, 64, 100), goal=2_000)
    history = bench.median(lambda: read_rate(log, 0, args.events), 1, "read_history")
    tail = bench.median(lambda: read_rate(log, held - args.events, args.events), 1, "read_tail")
    bench.part("read_history", metric="records_per_s", ours=history, goal=300_000)
    bench.part("read_tail", metric="records_per_s", ours=tail, goal=300_000)
    log.close()
    files = [*folder.glob("log.sqlite*"), *(folder / "history").rglob("*")]
    size = sum(path.stat().st_size for path in files if path.is_file())
    ours = statistics.median(bench.runs["append"])
    return {"ours": ours, "peer": peer, "held": held, "bytes_per_event": round(size / held, 1)}


def measure_applied(bench: Bench, folder: Path, source: Counter, args: argparse.Namespace) -> None:
    begin_at_the_end(config_of(folder), folder, START_MS)
    with Loop(config_of(folder), folder, follow=True) as loop:
        applied_rate(loop, source.batches(BATCH))  # first of all: what is compiled or loaded on use
        rate = bench.median(lambda: applied_rate(loop, source.batches(args.events // 3)), args.runs, "applied")
        users = args.events * args.runs // 21
        bench.part(
            "applied", metric="events_per_s", ours=rate, goal=10_000, ratio_to_metarank=_ratio(rate), users=users
        )


def measure_http(bench: Bench, folder: Path, source: Counter, args: argparse.Namespace) -> None:
    def both(server: ServerProcess) -> None:
        for name, per_request, goal in (("http_batches", 100, 20_000), ("http_single", 1, 2_000)):
            count = args.events if per_request > 1 else args.events // 10
            http_run(server, folder, source.flat(max(count // 10, 64)), per_request, args.clients)
            runs = [http_run(server, folder, source.flat(count), per_request, args.clients) for _ in range(args.runs)]
            bench.runs[name] = [run.pop("events_per_s") for run in runs]
            rate = statistics.median(bench.runs[name])
            bench.part(
                name, metric="events_per_s", ours=rate, goal=goal, ratio_to_metarank=_ratio(rate),
                clients=args.clients, runs=runs,
            )  # fmt: skip

    served(folder, both)


def _ratio(rate: float) -> float:
    return round(rate / METARANK, 2)


def main() -> None:
    given = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    given.add_argument("--prefill", type=int, default=int(os.environ.get("PREFILL", FULL)))
    given.add_argument("--events", type=int, default=300_000, help="events per run")
    given.add_argument("--runs", type=int, default=3)
    given.add_argument("--clients", type=int, default=64, help="connections")
    given.add_argument("--dir", type=Path, default=None, help="a folder on the disk to measure")
    given.add_argument("--keep", type=Path, default=None, help="a folder to keep the full log in, for the next run")
    args = given.parse_args()
    # Not the system's temporary folder by default: that may be memory, where a sync costs nothing.
    place = args.dir or Path.cwd()
    with tempfile.TemporaryDirectory(prefix="p7-", dir=place) as name:
        folder, source = (args.keep or Path(name)).resolve(), Counter()
        folder.mkdir(parents=True, exist_ok=True)
        bench = Bench("p7_ingest", metric="append_events_per_s", goal=50_000)
        figures = measure_log(bench, folder, source, args)
        measure_applied(bench, folder, source, args)
        measure_http(bench, folder, source, args)
        bench.report(
            **figures, peer_name="bare sqlite3 executemany, WAL, synchronous=FULL, no ids",
            published={"Metarank, features included": "1-3 k events/s"}, prefill=args.prefill,
            keep=args.prefill >= FULL,
        )  # fmt: skip


if __name__ == "__main__":
    main()
