"""Trainer start: how long until an online trainer of a million items goes on from its snapshot?

A made log of items with attributes and some events is written into SQLite and Parquet; a snapshot at its end, with the
catalogue beside it; then a trainer is made, as `mainstem train --online` makes it. The peer is the same start where the
kept catalogue is missing: the catalogue is read from the beginning of the log, as every start did without one. Tables
are small here, so what is timed is the catalogue. Parts: what writing costs, apart from learning (a thread of its own,
but for the copy), and the bytes of the file.

    python benchmarks/trainer_start.py [--items 1000000] [--runs 1]
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

from bench import Bench, say
from mainstem import catalog as catalogs
from mainstem import weights
from mainstem.assemble import open_log
from mainstem.learning import definition, learner_of, online_trainer
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls
from mainstem.schema.protocols import Log
from mainstem.schema.records import Attribute, Entity, Event, LogRecord
from mainstem.train.catalogs import keep
from mainstem.train.guard import Guard
from mainstem.train.published import save_state, state_of
from mainstem.weights import SnapshotMeta

START_MS = 1_700_000_000_000
EVENTS = 50_000
BATCH = 20_000
CONFIG = Config.model_validate(
    {"entities": {"item": {"attributes": {"category": "category", "brand": "category", "price": "number"}}}}
)


def records(items: int) -> Iterator[LogRecord]:
    for i in range(items):
        attributes: dict[str, Attribute] = {
            "category": f"c{i % 200}",
            "brand": f"b{i % 5_003}",
            "price": float(i % 997),
        }
        yield Entity(record_id=f"e{i}", time=START_MS, entity=str(i), text=f"the item {i}", attributes=attributes)
    for i in range(EVENTS):
        yield Event(
            event_id=f"p{i}", time=START_MS + i, user=f"u{i % 9_973}", kind="purchase", entity=str(i * 7 % items)
        )


def fill(log: Log, items: int) -> None:
    batch: list[LogRecord] = []
    for record in records(items):
        batch.append(record)
        if len(batch) == BATCH:
            log.append(batch)
            batch = []
    log.append(batch)


def snapshot(log: Log, base: Path, bench: Bench) -> None:
    """An untrained model at the log's end, with the catalogue beside it."""
    fingerprint, inputs = definition(CONFIG)
    learner = learner_of(CONFIG, catalogs.open("memory://", entities=CONFIG.entities), inputs)
    learner.catch_up(log, log.end())
    begun = time.monotonic()
    copied = learner.catalog.state()
    bench.part("copy", metric="seconds that learning waits for the copy", ours=time.monotonic() - begun)
    store, begun = weights.open(storage_urls(CONFIG, base).weights), time.monotonic()
    keep(store.catalogs, "main", copied, 0, CONFIG)
    bench.part("write", metric="seconds to write the catalogue", ours=time.monotonic() - begun)
    state = state_of(learner, Guard(CONFIG.train.online))
    extras = {
        "inputs": list(inputs), "attributes": ["category", "brand"], "heads": list(CONFIG.heads), "state": state.tree,
    }  # fmt: skip
    meta = SnapshotMeta(fingerprint=fingerprint, position=log.end(), extras=extras)
    save_state(store, "main", state, meta, CONFIG)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--items", type=int, default=1_000_000)
    parser.add_argument("--runs", type=int, default=1)
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory() as folder,
        closing(open_log(CONFIG, Path(folder))) as log,
        Bench("trainer_start", metric="seconds until a trainer of 1M items goes on", goal=None) as bench,
    ):
        base = Path(folder)
        fill(log, given.items)
        say(f"{log.end()} in the log")
        snapshot(log, base, bench)
        kept = next((weights.open(storage_urls(CONFIG, base).weights).root / "main" / "catalog").iterdir())
        bench.part("bytes", metric="bytes of the file an item", ours=kept.stat().st_size / given.items)

        def start() -> float:
            begun = time.monotonic()
            trainer = online_trainer(CONFIG, log, base)
            taken = time.monotonic() - begun
            assert len(trainer.learner.catalog) == given.items
            return taken

        ours = bench.median(start, given.runs, label="kept beside")
        shutil.rmtree(kept.parent)
        peer = bench.median(start, given.runs, label="from the log")
        whole = given.items == 1_000_000
        bench.report(ours=ours, peer=peer, peer_name="the log read from its beginning", keep=whole, items=given.items)


if __name__ == "__main__":
    main()
