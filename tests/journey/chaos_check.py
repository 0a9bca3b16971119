"""What must hold after the chaos: each check gives the faults that it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import numpy as np
from chaos_world import Evidence, Seen
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem.schema.config import Config
from mainstem.schema.position import START
from mainstem.schema.protocols import Log
from mainstem.schema.records import Event
from mainstem.train import OnlineLearner, new_towers
from mainstem.train.guard import Guard
from mainstem.train.published import adopt, state_of
from mainstem.train.threads import torch_threads
from mainstem.train.towers import TABLE
from mainstem.weights import Apply, Delta, LineReader, Rebase, Snapshot, Snapshots


def new_learner(config: Config) -> OnlineLearner:
    catalog = catalogs.open("memory://", entities=config.entities)
    return OnlineLearner(config, new_towers(config, catalog), catalog)


# ---- what was learned ----------------------------------------------------------------------------


@dataclass(slots=True)
class Lineage:
    """A trainer that nobody interrupts, taken through the cuts of a lineage. Stops at the first fault."""

    learner: OnlineLearner
    faults: list[str] = field(default_factory=list)
    micro_batches: int = 0
    passed_over: int = 0
    """Records of deltas without cuts."""
    dense_parts: int = 0
    deltas: int = 0


def follow(config: Config, log: Log, base: Snapshot, deltas: Iterable[Delta]) -> Lineage:
    """Learn what the deltas say was learned, and compare each with what that gives: bit by bit."""
    with torch_threads(1):
        learner, _ = adopt(base, new_learner(config), Guard(config.train.online), log)
        lineage, position, place = Lineage(learner), base.position, base.place
        for delta in deltas:
            name = f"delta {delta.sequence}"
            if (delta.base, delta.sequence, delta.previous) != (place.base, place.sequence + 1, place.sha256):
                lineage.faults.append(f"{name} does not follow on {place}")
                return lineage
            for cut, learned in delta.extras.get("cuts", []):
                if cut <= position.offset():
                    lineage.faults.append(f"{name} learns up to {cut} what was learned up to {position} already")
                    return lineage
                batch = log.read(position, cut - position.offset())
                if batch.next.offset() != cut:
                    lineage.faults.append(f"{name} learns up to {cut}, and the log ends at {batch.next}")
                    return lineage
                (learner.learn if learned else learner.fold)(batch)
                position, lineage.micro_batches = batch.next, lineage.micro_batches + 1
            if delta.position != position and not delta.extras.get("cuts"):
                lineage.passed_over += delta.position.offset() - position.offset()
                position = delta.position
            lineage.deltas += 1
            lineage.dense_parts += delta.dense is not None
            lineage.faults += [f"{name}: {why}" for why in _differences(learner, delta)]
            if delta.position != position:
                lineage.faults.append(f"{name} says that it has seen {delta.position}, its cuts end at {position}")
            if lineage.faults:
                return lineage
            place = delta.place
        return lineage


def _differences(learner: OnlineLearner, delta: Delta) -> list[str]:
    table, change = learner.towers.table, delta.tables[TABLE]
    found = []
    if len(change.keys) and int(table.find(change.keys).min()) < 0:
        found.append("it holds a row that an uninterrupted trainer has not")
    if len(change.deleted) and int(table.find(change.deleted).max()) >= 0:
        found.append("it deletes a row that an uninterrupted trainer has")
    differ = (table.read(change.keys) != change.values).any(axis=1)
    if differ.any():
        found.append(f"{int(differ.sum())} of {len(differ)} rows are not what an uninterrupted trainer has")
    for name, tensor in learner.towers.module.state_dict().items():
        if delta.dense is not None and not np.array_equal(tensor.numpy(), delta.dense[f"towers.{name}"]):
            found.append(f"{name} is not what an uninterrupted trainer has")
    return found


def state_differs(learner: OnlineLearner, snapshot: Snapshot, config: Config, log: Log) -> list[str]:
    """Is everything that decides what is learned next the same in a trainer's snapshot?"""
    other, _ = adopt(snapshot, new_learner(config), Guard(config.train.online), log)
    guard = Guard(config.train.online)
    ours, theirs = state_of(learner, guard), state_of(other, guard)
    found = [f"{kind} {name}" for kind, a, b in (("dense", ours.dense, theirs.dense),
                                                 ("training", ours.training, theirs.training))
             for name in a.keys() | b.keys() if name not in a or name not in b or not np.array_equal(a[name], b[name])
             ]  # fmt: skip
    found += ["the tree of the state"] if ours.tree != theirs.tree else []
    return found + [f"table {name}" for name in ours.table if _by_key(ours.table, name) != _by_key(theirs.table, name)]


def _by_key(table: dict[str, NDArray[np.generic]], name: str) -> bytes:
    """A part of a table's state in the order of its keys, where it is one number or row a key."""
    keys, part = table["keys"], table[name]
    return (part[np.argsort(keys)] if len(part) == len(keys) else part).tobytes()


def served_differs(learner: OnlineLearner, store: Snapshots) -> list[str]:
    """Does a server that starts now hold the learner's rows, all of them and no others?"""
    rows: dict[int, NDArray[np.float32]] = {}
    reader = LineReader(store, "main")
    while (step := reader.poll()) is not None:
        if isinstance(step, Rebase):
            table = step.snapshot.tables[TABLE]
            rows = dict(zip(table["keys"].tolist(), table["values"], strict=True))
        elif isinstance(step, Apply):
            change = step.delta.tables[TABLE]
            for key in change.deleted.tolist():
                rows.pop(key, None)
            rows |= dict(zip(change.keys.tolist(), change.values, strict=True))
        reader.accept(step)
    found = [f"{name} was set aside: {why}" for name, why in reader.set_aside.items()]
    keys = np.array(sorted(rows), np.uint64)
    if len(keys) != len(learner.towers.table):
        found.append(f"{len(keys)} rows are served, {len(learner.towers.table)} were learned")
    elif not np.array_equal(learner.towers.table.read(keys), np.array([rows[key] for key in keys.tolist()])):
        found.append("served rows are not what was learned")
    return found


# ---- what clients saw ----------------------------------------------------------------------------


def logged_ids(log: Log) -> list[str]:
    """Ids of all events, in log order."""
    found, seen = list[str](), START
    while (batch := log.read(seen, 50_000)).records:
        found += [record.event_id for record in batch.records if isinstance(record, Event)]
        seen = batch.next
    return found


def lost_or_twice(acknowledged: Sequence[str], logged: Sequence[str]) -> list[str]:
    """Every acknowledged event is in the log exactly once, in the order in which its client sent them."""
    counts = Counter(logged)
    found = [f"{name} is there {count} times" for name, count in counts.items() if count > 1]
    found += [f"{name} was acknowledged and is lost" for name in acknowledged if name not in counts]
    wanted = set(acknowledged)
    if not found and [name for name in logged if name in wanted] != list(acknowledged):
        found.append("events of one client are not in the order in which it sent them")
    return found


def went_back(seen: Sequence[Seen], base: str, created: dict[int, int]) -> list[str]:
    """Within a server's life the model only moves forward, and it is never one that is not published yet.

    created: of each published delta, wall-clock ms.
    """
    found = []
    latest: dict[int, Seen] = {}
    for one in seen:
        before = latest.get(one.life, one)
        if (one.base, one.sequence) < (before.base, before.sequence):
            found.append(f"in life {one.life} of the server delta {before.sequence} was followed by {one.sequence}")
        if one.base != base or (one.sequence and one.at < created.get(one.sequence, one.at + 1)):
            found.append(f"a slate came from delta {one.sequence} of {one.base}, which was not published then")
        latest[one.life] = one
    return found


def unanswered(evidence: Evidence) -> list[str]:
    """Requests that failed although the server was up all the time between their sending and their failing."""
    return [
        f"while the server was up: {why}"
        for sent, failed, why in evidence.broken
        if not any(begin <= failed and sent <= end for begin, end in evidence.down)
    ]
