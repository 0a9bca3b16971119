"""What must hold after the chaos: each check gives the faults that it finds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from chaos_clients import Evidence, Seen
from chaos_shop import REBUILT, kind_of
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem.learning import definition, learner_of
from mainstem.schema.config import Config
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Erase, Event
from mainstem.train import OnlineLearner
from mainstem.train.guard import Guard
from mainstem.train.published import adopt, state_of
from mainstem.train.threads import torch_threads
from mainstem.train.towers import TABLE
from mainstem.weights import Apply, Delta, LineReader, Manifest, Rebase, Snapshot, Snapshots


def new_learner(config: Config) -> OnlineLearner:
    catalog = catalogs.open("memory://", entities=config.entities)
    return learner_of(config, catalog, definition(config)[1])


# ---- what was published --------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class History:
    """All that a line ever published, in order, and what was rebuilt or refused beside it."""

    bases: list[tuple[Snapshot, list[Delta]]]
    manifests: dict[str, Manifest]
    rebuilt: dict[str, Snapshot]
    refused: set[tuple[str, int, str]]
    """Base, number and log position of updates that the guard kept back."""

    @classmethod
    def of(cls, archive: Snapshots) -> History:
        """From a store that deletes nothing."""
        manifests = {manifest.version: manifest for manifest in archive.manifests("main")}
        bases = [
            (
                archive.load("main", version, training=True),
                [archive.deltas.load("main", version, number) for number in archive.deltas.sequences("main", version)],
            )
            for version in sorted(manifests)
            if manifests[version].base == version
        ]
        line = f"main{REBUILT}"
        return cls(
            bases,
            manifests,
            {version: archive.load(line, version, training=True) for version in archive.versions(line)},
            {
                (one.delta_base, one.delta_sequence, str(archive.deltas.load_refused("main", one.name).position))
                for one in archive.deltas.refused("main")
            },
        )

    @property
    def deltas(self) -> list[Delta]:
        return [delta for _, deltas in self.bases for delta in deltas]

    @property
    def newest(self) -> Delta | Snapshot:
        base, deltas = self.bases[-1]
        return deltas[-1] if deltas else base

    def made(self, kind: str) -> list[Manifest]:
        """Bases that began as `rolled_back` or `rebuilt` ones."""
        found = [base.manifest for base, _ in self.bases]
        return [manifest for manifest in found if kind_of(manifest) == kind]


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


def follow_all(config: Config, log: Log, history: History) -> Lineage:
    """Every lineage of a line, one after the other, and how each began; counters of all, the learner of the last."""
    (base, deltas), rest = history.bases[0], history.bases[1:]
    lineage, before = follow(config, log, base, deltas, history.refused), (base, deltas)
    for base, deltas in rest:
        faults = lineage.faults or began_wrongly(config, log, history, before, base)
        after = follow(config, log, base, deltas, history.refused, erased_since=rows_from(history, base.manifest))
        lineage = Lineage(
            after.learner,
            faults or after.faults,
            lineage.micro_batches + after.micro_batches,
            lineage.passed_over + after.passed_over,
            lineage.dense_parts + after.dense_parts,
            lineage.deltas + after.deltas,
        )
        if lineage.faults:
            return lineage
        before = base, deltas
    return lineage


def follow(
    config: Config,
    log: Log,
    base: Snapshot,
    deltas: Iterable[Delta],
    refused: Collection[tuple[str, int, str]] = (),
    erased_since: Position | None = None,
) -> Lineage:
    """Learn what the deltas say was learned, and compare each with what that gives: bit by bit.

    erased_since: of a rollback, the position from which on erasures are applied to its rows again.
    """
    with torch_threads(1):
        learner, _ = adopt(base, new_learner(config), Guard(config.train.online), log)
        lineage, position, place = Lineage(learner), base.position, base.place
        if erased_since is not None:
            erase_again(learner, log, erased_since, position)
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
                if (delta.base, delta.sequence, str(delta.position)) not in refused:
                    lineage.faults.append(f"{name} passes over {position} to {delta.position}: nothing was refused")
                lineage.passed_over += delta.position.offset() - position.offset()
                learner.pass_over(log.read(position, delta.position.offset() - position.offset()))
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


def erase_again(learner: OnlineLearner, log: Log, since: Position, until: Position) -> None:
    """Law 10: what was erased since the rows of a rollback were learned."""
    while since.offset() < until.offset():
        batch = log.read(since, until.offset() - since.offset())
        for record in batch.records:
            if isinstance(record, Erase):
                learner.erase(record)
        since = batch.next


def rows_from(history: History, manifest: Manifest) -> Position | None:
    """Up to where the rows of a rollback have learned; None of another base."""
    if "rolled_back" not in manifest.extras:
        return None
    while "rolled_back" in manifest.extras:
        manifest = history.manifests[manifest.extras["rolled_back"]["to"]]
    return Position.parse(manifest.position)


def began_wrongly(
    config: Config, log: Log, history: History, before: tuple[Snapshot, list[Delta]], base: Snapshot
) -> list[str]:
    """Is a new base a version gone back to, or a model rebuilt from history, at a place that leaves out nothing?"""
    manifest, kind = base.manifest, kind_of(base.manifest)
    name = f"base {manifest.version}"
    published = [before[0].position, *(delta.position for delta in before[1])]
    if kind == "rolled_back":
        source = history.manifests.get(manifest.extras["rolled_back"]["to"])
        if source is None or source.version >= manifest.version:
            return [f"{name} goes back to what never was"]
        return [
            *([f"{name} is not what {source.version} is"] if source.files != manifest.files else []),
            *(
                [f"{name} stands at {base.position}, where neither {source.version} nor training stood"]
                if base.position not in (Position.parse(source.position), *published)
                else []
            ),
        ]
    rebuilt = history.rebuilt.get(str(manifest.extras.get("rebuilt")))
    if kind == "first" or rebuilt is None:
        return [f"{name} comes from nowhere"]
    faults = (
        [f"{name} does not see what was learned already"] if base.position.offset() < published[-1].offset() else []
    )
    if "rolled_back" in before[0].manifest.extras and rebuilt.manifest.version < before[0].manifest.version:
        faults.append(f"{name} undoes the rollback {before[0].manifest.version}")
    return faults + [f"{name}: {why}" for why in noted_differently(config, log, rebuilt, base)]


def noted_differently(config: Config, log: Log, rebuilt: Snapshot, base: Snapshot) -> list[str]:
    """Does a base hold every event since the rebuild once? Its histories tell, however they were cut on the way."""
    guard = Guard(config.train.online)
    once, _ = adopt(rebuilt, new_learner(config), guard, log)
    found, _ = adopt(base, new_learner(config), guard, log)
    seen = rebuilt.position
    while seen.offset() < base.position.offset():
        batch = log.read(seen, base.position.offset() - seen.offset())
        once.fold(batch)
        seen = batch.next
    ours, theirs = once.histories.state(), found.histories.state()
    wrong = [name for name in ours if not np.array_equal(ours[name], theirs[name])]
    return [f"its histories are not those of each event once: {', '.join(wrong)}"] if wrong else []


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
    for name, array in learner.dense().items() if delta.dense is not None else ():
        if not np.array_equal(array, delta.dense[name]):
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
    return found + [
        f"table {kind}, {name}"
        for kind, table in ours.tables.items()
        for name in table
        if _by_key(table, name) != _by_key(theirs.tables[kind], name)
    ]


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
    return found + rows_differ(learner, keys, np.array([rows[key] for key in keys.tolist()]))


def held_differs(learner: OnlineLearner, served: Path, version: str) -> list[str]:
    """Did the server that ended hold the learner's rows, all of them and no others (`chaos_world.save_served`)?"""
    with np.load(served) as held:
        found = [] if str(held["version"]) == version else [f"{held['version']} was served, {version} is the newest"]
        return found + rows_differ(learner, held["keys"], held["values"])


def rows_differ(learner: OnlineLearner, keys: NDArray[np.uint64], values: NDArray[np.float32]) -> list[str]:
    """keys uint64 [n], values float32 [n, dim]: are these the learner's rows?"""
    table = learner.towers.table
    if len(keys) != len(table):
        return [f"{len(keys)} rows are served, {len(table)} were learned"]
    if not np.array_equal(table.read(keys), values):
        return ["served rows are not what was learned"]
    return []


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


def moments(history: History) -> dict[tuple[str, int], int]:
    """Of each published base (number 0) and delta: when, wall-clock ms."""
    bases = {(base.manifest.version, 0): base.manifest.created for base, _ in history.bases}
    return bases | {(delta.base, delta.sequence): delta.created for delta in history.deltas}


def went_back(seen: Sequence[Seen], created: Mapping[tuple[str, int], int], networks: Mapping[str, str]) -> list[str]:
    """Within a server's life rows and networks only move forward, from life to life bases do; none is served before
    it is published, and networks are never newer than the rows nor of another base.

    created: `moments`; networks: of each base, the dense version that it began with.
    """
    found = []
    latest: dict[int, tuple[Seen, tuple[str, int]]] = {}
    newest = ""
    for one in seen:
        place = one.base, one.sequence
        dense = (one.base, 0) if one.dense == networks.get(one.base) else _place(one.dense)
        before, dense_before = latest.get(one.life, (one, dense))
        if place < (before.base, before.sequence) or one.base < newest:
            found.append(f"in life {one.life} of the server {max(before.base, newest)} {before.sequence} < {place}")
        if dense < dense_before:
            found.append(f"in life {one.life} of the server the networks {dense_before} were followed by {dense}")
        if one.at < created.get(place, one.at + 1):
            found.append(f"a slate came from delta {one.sequence} of {one.base}, which was not published then")
        if dense[0] != one.base or dense[1] > one.sequence:
            found.append(f"a slate's networks are {one.dense}, its rows {place}")
        latest[one.life], newest = (one, dense), max(newest, one.base)
    return found


def _place(dense: str) -> tuple[str, int]:
    base, _, sequence = dense.partition("+")
    return base, int(sequence or 0)


def unanswered(evidence: Evidence) -> list[str]:
    """Requests that failed although the server was up all the time between their sending and their failing."""
    return [
        f"while the server was up: {why}"
        for sent, failed, why in evidence.broken
        if not any(begin <= failed and sent <= end for begin, end in evidence.down)
    ]
