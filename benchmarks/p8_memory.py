"""P8: memory and disk of all state for a number of users and items, in bytes a user and an item, against the formula.

A made world is written into the real stores: users with lognormal numbers of events (10 each in the mean, as in public
sets of shops and films), in sessions, on items of Zipf popularity, over 90 days; default features. Each step is a
process of its own, so that what it holds is what the system counts:

    state      the catalogue and the feature state in LMDB: file sizes, and pages per table
    worker     a serving worker on that state, with a row for every item and attribute value, the vector index,
               the content index and the mirrors, after some slates: private memory (RssAnon) beyond that of a worker on
               a state of next to nothing, which is the fixed cost. Pages of LMDB files that it maps are the files' and
               are not counted twice
    trainer    the online learner with rows, optimizer state, histories of all users and its own catalogue, likewise

Users and items are told apart by whose table, row or vector it is. The formula is `mainstem.footprint`
(docs/operations.md); it knows the configuration, the counts and the means of this world, not the measurements. The log
and its history, snapshots, and kept slates (100,000 at most) are not state of a user and not counted. The peer is what
Metarank publishes: .8 GiB of Redis for a million users.

    python benchmarks/p8_memory.py [--users 100000 1000000] [--items 50000] [--events 10] [--again]
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from bench import RESULTS, Bench, say

GIB = 2**30
DAYS, START_MS = 90, 1_700_000_000_000
BATCH = 16_000  # as the follower reads
CATEGORIES = 200
GOAL = 0.8  # GiB for a million users
LEAST = 500  # users and items of a state that says what a process takes whatever its state
SETTINGS: dict[str, Any] = {
    "entities": {"item": {"attributes": {"category": "category", "price": "number"}, "text": ["category"]}},
}
TABLES = {"users": ("users", "hidden"), "items": ("item", "neighbours", "value", "place")}


def resident() -> dict[str, int]:
    """Bytes of this process in memory: of mapped files, private now, and private once the allocator gave back what
    nobody holds (`RssAnon`): what reading at the start leaves behind is the difference."""

    def now() -> dict[str, int]:
        lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines() if ":" in line)
        return {name: int(lines[name].split()[0]) * 1024 for name in ("RssAnon", "RssFile")}

    gc.collect()
    untrimmed = now()["RssAnon"]
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    return now() | {"untrimmed": untrimmed}


def config_of(folder: Path) -> Any:
    from mainstem.schema.config import Config

    return Config.model_validate({**SETTINGS, "data": str(folder)})


class World:
    """Who does what, when; always the same for the same numbers."""

    def __init__(self, users: int, items: int, events: float) -> None:
        rng = np.random.default_rng(0)
        spread = 1.0
        counts = rng.lognormal(np.log(events) - spread**2 / 2, spread, users)
        self.counts = np.clip(np.round(counts), 1, 2_000).astype(np.int64)
        self.user_keys, self.item_keys = keys("user", users), keys("item", items)
        user = np.repeat(np.arange(users), self.counts)
        # sessions of three events in the mean, each at its own time
        opens = rng.random(len(user)) < 1 / 3
        opens[np.r_[0, np.cumsum(self.counts)[:-1]]] = True
        session = np.cumsum(opens)
        began = rng.integers(0, DAYS * 86_400_000, session[-1] + 1)
        first = np.maximum.accumulate(np.where(opens, np.arange(len(user)), 0))
        time = START_MS + began[session] + (np.arange(len(user)) - first) * 30_000
        # Zipf's law: the k-th item in proportion to 1 / k
        item = np.minimum(np.exp(rng.random(len(user)) * np.log(items + 1)).astype(np.int64), items) - 1
        order = np.argsort(time, kind="stable")
        self.user, self.item, self.time = user[order], item[order], time[order]
        # as wide as the hashed names that real ones are: small numbers would be compressed away
        self.session = rng.integers(1, 2**63, session[-1] + 1, np.uint64)[session[order]]
        self.users, self.items = users, items

    def batches(self, size: int = BATCH) -> Iterator[Any]:
        from mainstem.schema.batch import EventBatch

        for start in range(0, len(self.user), size):
            some = slice(start, start + size)
            n = len(self.user[some])
            # copies: a view would keep the world's own arrays in the process that is measured
            yield EventBatch(
                time=self.time[some].copy(), session=self.session[some].copy(),
                user=self.user_keys[self.user[some]], entity=self.item_keys[self.item[some]],
                kind=np.zeros(n, np.int16), value=np.ones(n),
                place=np.zeros(n, np.uint64), offset=np.full(n, -1), canvas=np.zeros(n, np.uint64),
                query=np.zeros(n, np.uint64), setting=np.zeros(n, np.uint64), kinds=("purchase",),
            )  # fmt: skip

    def forget(self) -> None:
        """Let its arrays go, so that they are not measured."""
        self.user = self.item = self.time = self.session = np.zeros(0, np.int64)
        self.user_keys = self.item_keys = np.zeros(0, np.uint64)
        self.counts = np.zeros(0, np.int64)

    def entities(self) -> Iterator[Any]:
        from mainstem.schema.records import Entity

        for i in range(self.items):
            yield Entity(
                record_id=f"item-{i}", time=START_MS, entity=f"item-{i}",
                attributes={"category": f"category-{i % CATEGORIES}", "price": float(i % 997)},
                text=f"product of kind {i % 5003}",
            )  # fmt: skip


def keys(family: str, count: int) -> np.ndarray:
    from mainstem.schema.ids import key64

    return np.fromiter((key64(family, f"{family}-{i}", "main") for i in range(count)), np.uint64, count)


# ---- steps, each in its own process ------------------------------------------------------------------


def state(world: World, folder: Path) -> dict[str, Any]:
    """Write catalogue and feature state; sizes of what came of it, and the means that the formula asks for."""
    from mainstem import catalog as catalogs
    from mainstem import features
    from mainstem.catalog.revisions import Revision, encode_revision
    from mainstem.schema.position import START

    config = config_of(folder)
    place = folder / "state"
    with closing(catalogs.open(f"lmdb://{place}/catalog", entities=config.entities)) as catalog:
        catalog.write(list(world.entities()), START)
        with closing(features.open(f"lmdb://{place}/features", config, catalog)) as store:
            done = 0
            for batch in world.batches():
                done += len(batch)
                store.write(batch, START)
                if done % (20 * BATCH) == 0:
                    say(f"p8_memory: {done:,} of {len(world.user):,} events")
            tables = {name: size for name, size in store.nbytes().items() if not name.startswith("mirror")}
            snapshot = store._backend.read()
            lengths = np.array([len(value) for _, value in snapshot.scan("neighbours")]) // 16
            snapshot.close()
    pairs = np.unique(world.user * world.items + world.item)
    records = [len(encode_revision(Revision(START_MS, entity))) for entity in islice(world.entities(), 1_000)]
    return {
        "tables": tables,
        "features_file": (place / "features" / "data.mdb").stat().st_size,
        "catalog_file": (place / "catalog" / "data.mdb").stat().st_size,
        "shape": {
            "users": world.users, "items": len(np.unique(world.item)), "catalogue": world.items,
            "events": len(world.user) / world.users, "distinct": len(pairs) / world.users,
            "neighbours": float(lengths.mean()), "values": CATEGORIES,
            "session": len(world.user) / len(np.unique(world.session)),
            "record": float(np.mean(records)), "batch": BATCH,
        },
    }  # fmt: skip


def fill(towers: Any, world: World) -> None:
    """A row for every item and category, and for every user where they have rows: its bytes do not depend on what it
    learned."""
    now = START_MS + DAYS * 86_400_000
    codes = np.unique(towers.entity_keys(world.item_keys)[:, 1:])
    users = world.user_keys if towers.user_rows else world.user_keys[:0]
    for family, found in enumerate((users, world.item_keys, codes[codes != 0])):
        for start in range(0, len(found), BATCH):
            towers.table.find_or_create(found[start : start + BATCH], family, now)
    towers.table.take_changes()


def worker(world: World, folder: Path) -> dict[str, Any]:
    """What a serving worker holds."""
    from mainstem.assemble import assemble
    from mainstem.live import LiveModel, model_of, scores_of
    from mainstem.rank.score import extra_inputs
    from mainstem.schema.records import Context, SlateRequest
    from mainstem.train.networks import new_ranker, new_towers

    config = config_of(folder)
    parts = assemble(config, folder)
    towers = new_towers(config, parts.catalog, concurrent=True)
    fill(towers, world)
    inputs = (*parts.features.names, *extra_inputs(tuple(config.canvases)))
    made = model_of(towers, config, parts.features.kinds, inputs, "p8", parts.catalog)
    ranker = new_ranker(config, len(inputs))
    answers = replace(made, scores=scores_of(ranker))
    parts.keeper._current = LiveModel(towers, ranker, answers)  # as if it came from a snapshot
    now = START_MS + (DAYS + 1) * 86_400_000
    for user in range(20):
        context = Context(canvas="home", user=f"user-{user}", time=now + user)
        slate = parts.pipeline.answer(SlateRequest(context=context, deadline_ms=60_000)).slate
        if slate.degraded or not slate.items:
            raise SystemExit(f"the worker does not answer from the whole state: {slate.degraded}")
    world.forget()
    found = resident()
    mirrors = {name: size for name, size in parts.features.nbytes().items() if name.startswith("mirror")}
    parts.close()
    return found | {"table": towers.table.explain().total, "mirrors": mirrors}


def trainer(world: World, folder: Path) -> dict[str, Any]:
    """What the online learner holds."""
    from mainstem import catalog as catalogs
    from mainstem.learning import definition, learner_of
    from mainstem.schema.position import START

    config = config_of(folder)
    catalog = catalogs.open("memory://", entities=config.entities)
    entities = world.entities()
    while some := list(islice(entities, BATCH)):
        catalog.write(some, START)
    learner = learner_of(config, catalog, definition(config)[1])
    towers = learner.towers
    fill(towers, world)
    for batch in world.batches():
        learner.prime(batch)
    # one step: the optimizer's state of the networks is there then
    learner.take(next(world.batches(512)))
    world.forget()
    return resident() | {"table": towers.table.explain().total, "histories": len(learner.histories)}


STEPS: dict[str, Callable[[World, Path], dict[str, Any]]] = {"state": state, "worker": worker, "trainer": trainer}


def in_process(step: str, users: int, items: int, events: float, folder: Path) -> dict[str, Any]:
    """What a step says in a process of its own."""
    command = [sys.executable, __file__, "--step", step, "--users", str(users), "--items", str(items),
               "--events", str(events), "--dir", str(folder)]  # fmt: skip
    done = subprocess.run(command, stdout=subprocess.PIPE, check=True, text=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    say(f"p8_memory: {users:,} users, {step}: {json.dumps(found)}")
    return found


# ---- measured against predicted ----------------------------------------------------------------------


def measured(users: int, items: int, events: float, fixed: dict[str, dict[str, Any]]) -> dict[str, Any]:
    """Bytes of one world by place."""
    with tempfile.TemporaryDirectory(prefix="p8-") as temp:
        folder = Path(temp)
        kept = in_process("state", users, items, events, folder)
        full = {step: in_process(step, users, items, events, folder) for step in ("worker", "trainer")}
    return {
        "measured": {
            "features": kept["features_file"],
            "catalog": kept["catalog_file"],
            "serving": full["worker"]["RssAnon"] - fixed["worker"]["RssAnon"],
            "trainer": full["trainer"]["RssAnon"] - fixed["trainer"]["RssAnon"],
        },
        "left_by_the_start": {step: full[step]["untrimmed"] - full[step]["RssAnon"] for step in full},
        "pages": kept["tables"],
        "shape": kept["shape"],
    }


def against_formula(world: dict[str, Any]) -> dict[str, Any]:
    """What was measured of a world, with what the formula says of it, and both shared out to users and items."""
    from mainstem.footprint import Shape, footprint

    found, shape = world["measured"], Shape(**world["shape"])
    said = footprint(config_of(Path()), shape)
    ratio = {place: round(said.of(place) / size, 4) for place, size in found.items()}
    # Files are shared out by pages. In memory a user has a row, and a history in the trainer; the rest is of items.
    pages = {kind: sum(world["pages"][name] for name in names) for kind, names in TABLES.items()}
    of_users = {
        "features": found["features"] * pages["users"] / sum(pages.values()),
        "serving": said.parts["serving.users"],
        "trainer": said.parts["trainer.users"] + said.parts["trainer.histories"],
    }
    names = said.parts["serving.names"]
    of_items = {place: found[place] - of_users.get(place, 0) for place in found}
    for place in ("serving", "trainer"):
        of_items[place] -= names
    return world | {
        "predicted": said.parts,
        "ratio": ratio | {"total": round(said.total / sum(found.values()), 4)},
        "bytes_a_user": {place: round(size / shape.users) for place, size in of_users.items()},
        "bytes_an_item": {place: round(size / shape.catalogue) for place, size in of_items.items()},
        "names": names,
        "gib_for_a_million_users": round(sum(found.values()) / shape.users * 1e6 / GIB, 3),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", type=int, nargs="*", default=[100_000, 1_000_000])
    parser.add_argument("--items", type=int, default=50_000)
    parser.add_argument("--events", type=float, default=10.0, help="a user, in the mean")
    parser.add_argument("--again", action="store_true", help="hold the formula against what was measured last")
    parser.add_argument("--step", choices=STEPS)
    parser.add_argument("--dir", type=Path)
    arguments = parser.parse_args()
    if arguments.step:
        world = World(arguments.users[0], arguments.items, arguments.events)
        print(json.dumps(STEPS[arguments.step](world, arguments.dir)))
        return
    if arguments.again:
        kept = json.loads((RESULTS / "p8_memory.json").read_text())
        worlds = [part for part in kept["parts"].values() if "measured" in part]
        told = {
            "events_a_user": kept["events_a_user"],
            "fixed": kept["fixed"],
            "machine": kept["machine"],
            "seconds": kept["seconds"],
        }
    else:
        with tempfile.TemporaryDirectory(prefix="p8-") as temp:
            fixed = {
                step: in_process(step, LEAST, LEAST, arguments.events, Path(temp))
                for step in ("state", "worker", "trainer")
            }
        worlds = [measured(users, arguments.items, arguments.events, fixed) for users in arguments.users]
        del fixed["state"]
        told = {"events_a_user": arguments.events, "fixed": fixed}
    report(worlds, told)


def report(worlds: list[dict[str, Any]], told: dict[str, Any]) -> None:
    with Bench(
        "p8_memory", metric="GiB of all state for a million users, items included", goal=GOAL, lower_is_better=True
    ) as bench:
        for world in worlds:
            found = against_formula({name: world[name] for name in ("measured", "left_by_the_start", "pages", "shape")})
            users = f"{found['shape']['users']} users"
            error = abs(found["ratio"]["total"] - 1)
            bench.part(users, metric="error of the formula, of the sum of all state", ours=error, goal=0.1, **found)
            alone = found["measured"]["features"] / found["shape"]["users"] * 1e6 / GIB
            bench.part(f"{users}, feature state", metric="GiB for a million users", ours=alone, goal=GOAL)
        for step, what in (("worker", "serving worker"), ("trainer", "trainer")):
            fixed = told["fixed"][step]
            bench.part(
                step,
                metric=f"MiB of a {what} whatever its state",
                ours=fixed["RssAnon"] / 2**20,
                mapped=fixed["RssFile"],
            )
        bench.report(
            ours=found["gib_for_a_million_users"], peer=GOAL, peer_name="Metarank, as published",
            keep=found["shape"]["users"] >= 100_000, **told,
        )  # fmt: skip


if __name__ == "__main__":
    main()
