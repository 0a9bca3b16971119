"""The trainer beside the server: tails the log, learns, publishes deltas, writes snapshots, recovers.

    log ----------------------------------------------------------------------------->
        | snapshot (base B, sequence 4, position P)      | delta 5 | delta 6   | killed
    next start:  load the snapshot, learn again from P, cut where the deltas say it was cut, go on with delta 7

What was published is never published otherwise: the replay ends where the newest delta ended, and delta 7 carries all
rows that the replay touched, so serving agrees even where the arithmetic would not.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from numpy.typing import NDArray

from mainstem.schema.config import Config
from mainstem.schema.errors import StoreError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Erase
from mainstem.schema.time import parse_duration
from mainstem.train.canaries import Canaries
from mainstem.train.guard import Guard, Refusal
from mainstem.train.neighbourhoods import bring
from mainstem.train.online import RANKING, RETRIEVAL, OnlineLearner, Step
from mainstem.train.published import SnapshotWriter, state_of
from mainstem.train.rebuilt import Rebuilt, RebuiltModels
from mainstem.train.recovery import Recovery, pass_over
from mainstem.weights import Changes, Delta, Snapshots, Superseded, TableDelta

__all__ = ["OnlineTrainer", "Status"]

_log = logging.getLogger(__name__)

# The follower under which the log knows the trainer.
FOLLOWER = "trainer"
# Seconds that an idle trainer waits for the log at most.
IDLE = 0.2
# Seconds from one step to the next, at least, while records come thinly: a step of a few costs nearly what one of many
# does, and the cores are for those who answer. What is due is published as soon as without it.
GATHER = 0.1
# Seconds between attempts after a failure: at first, and at most.
RETRY_FIRST, RETRY_MOST = 0.5, 30.0


@dataclass(slots=True)
class Status:
    """What there is to know of a running trainer; counters since it started."""

    base: str = ""
    sequence: int = 0
    position: Position = START
    lag: int = 0
    records: int = 0
    positives: int = 0
    slates: int = 0
    """Slates on record of which a label was learned; one counts each time that it gets more."""
    only_noted: int = 0
    """Records that were folded but not learned from, as the trainer was more than `max_lag` behind."""
    passed_over: int = 0
    """Records of refused updates, which are not learned from again."""
    published: int = 0
    refused: int = 0
    last_refusal: str = ""
    new_levels: int = 0
    """Times that a loss got a new reference, as it stayed where updates of it were refused."""
    snapshots: int = 0
    loss: float = float("nan")
    failure: str = ""


@dataclass(slots=True)
class _Window:
    """What happened since the last publication."""

    cuts: list[tuple[int, bool]] = field(default_factory=list)
    """Where each micro-batch ended (offset), and whether it was learned from or only noted."""
    losses: dict[str, list[tuple[float, int]]] = field(default_factory=lambda: {RETRIEVAL: [], RANKING: []})
    since: float = field(default_factory=time.monotonic)


class OnlineTrainer:
    """Keeps one model line learning. `new_learner()` gives an untrained learner with an empty catalogue.

    `step` and `publish` are yours to call, or `run` calls them until told to stop. One trainer per line.
    Raises NotReady where the line has no snapshot of this `fingerprint`, with all parts, to go on from.
    """

    def __init__(
        self, config: Config, log: Log, store: Snapshots, new_learner: Callable[[], OnlineLearner], fingerprint: str,
        line: str = "main",
    ) -> None:  # fmt: skip
        self.config, self.log, self.store, self.line = config, log, store, line
        self.online, self.fingerprint = config.train.online, fingerprint
        self.status = Status()
        self.guard = Guard(self.online)
        self._every = {
            name: parse_duration(text) / 1000
            for name, text in (
                ("publish", self.online.publish_every),
                ("dense", self.online.dense_every),
                ("snapshot", self.online.snapshot_every),
            )
        }
        self._writer = SnapshotWriter(store, line, config)
        self._recovery = Recovery(log, store, line, new_learner, fingerprint, self.online, self._count)
        self._rebuilt = RebuiltModels(store, line, log, new_learner, fingerprint, self.online)
        self._canaries = Canaries()
        self._unsent: dict[str, Changes] = {}
        self._torn = False
        """Whether something failed between two states of the learner: only a recovery leads out."""
        log.follow(FOLLOWER)
        self.recover()

    def recover(self) -> None:
        """Go on from where the line stands (see `Recovery`). Where the log has forgotten somebody since, serving may
        hold rows that are not learned again: then from a new base."""
        self._writer.join()
        self._torn = True
        at = self._recovery.run()
        self.learner, self.guard = at.learner, at.guard
        self.place, self.dense_version, self.position = at.place, at.dense_version, at.position
        self._window, self._unsent, self._canaries = _Window(), {}, Canaries()
        self._since_snapshot = time.monotonic()
        # the networks may be newer than those that serving has
        self._since_dense = float("-inf") if self.place.sequence else time.monotonic()
        self._rebuilt.go_on_from(at.manifest)
        self._torn = False
        if at.forgotten:
            self._new_base(self.learner, self.position)
        self._note()

    # ---- learning ------------------------------------------------------------------------------------

    def step(self) -> int:
        """Learn one micro-batch; how many records it had. Where that fails half done (the networks may have moved, the
        table not), the next call begins with a recovery, so nothing of it stays."""
        if self._torn:
            self.recover()
        end = self.log.end().offset()
        self.status.lag = max(end - self.position.offset(), 0)
        batch = self.log.read(self.position, self.online.batch)
        if len(batch):
            late = end - batch.next.offset() > self.online.max_lag
            self._torn = True
            try:
                step = self.learner.fold(batch) if late else self.learner.learn(batch)
            except FloatingPointError as error:
                self.position = batch.next
                delta = self._delta(self.learner.take_changes(), None)
                self._refused(delta, Refusal(f"finite: {error}"))
                return len(batch)
            self._torn = False
            if any(isinstance(record, Erase) for record in batch.records):  # they may be of who is erased (law 10)
                self._canaries, self.guard.slates = Canaries(), {}
            self.status.only_noted += len(batch) if late else 0
            self.position = batch.next
            self._window.cuts.append((batch.next.offset(), not late))
            self._count(step)
            for name, of in step.losses.items():
                self._window.losses[name].append(of)
            self.status.lag = max(end - self.position.offset(), 0)
        if (rebuilt := self._rebuilt.caught_up(self.position)) is not None:
            self._switch(rebuilt)
        return len(batch)

    def _count(self, step: Step) -> None:
        self.status.records += step.records
        self.status.positives += step.positives
        self.status.slates += step.losses[RANKING][1]
        loss, count = step.losses[RETRIEVAL]
        if count and loss == loss:
            self.status.loss = loss

    # ---- publishing ----------------------------------------------------------------------------------

    def due(self) -> bool:
        return bool(self._window.cuts) and time.monotonic() - self._window.since >= self._every["publish"]

    def publish(self) -> bool:
        """Publish what was learned since, if there is anything and the guard lets it through; whether it did."""
        if self._torn:
            self.recover()
        if not self._window.cuts:
            return False
        # until they are there, whatever fails in between
        changes = self._unsent = _merged(self._unsent, self.learner.take_changes())
        dense = self.learner.dense() if time.monotonic() - self._since_dense >= self._every["dense"] else None
        delta = self._delta(changes, dense)
        arrays = [*(table.values for table in delta.tables.values()), *(dense or {}).values()]
        refusal = self.guard.judge(arrays, self._window.losses, self._canaries.slates(self.learner))
        if refusal is not None:
            self._refused(delta, refusal)
            return False
        try:
            self._send(delta)
        except Superseded as error:
            _log.warning("another base is in the line now, going on from it: %s", error)
            self.recover()
            return False
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise  # the store may be back later; what was learned waits in `_unsent`
            _log.error("the line cannot go on from %s, so a new base is written: %s", self.place, error)
            self._new_base(self.learner, self.position)
            return False
        if time.monotonic() - self._since_snapshot >= self._every["snapshot"]:
            self.snapshot()
        self._show()
        return True

    def _delta(self, changes: dict[str, Changes], dense: dict[str, NDArray[Any]] | None, **extras: Any) -> Delta:
        tables = {
            name: TableDelta(changes[name].touched, table.read(changes[name].touched), changes[name].deleted)
            for name, table in self.learner.tables().items()
        }
        base, sequence = self.place.base, self.place.sequence + 1
        metrics = {}
        for name, steps in self._window.losses.items():
            count = sum(n for _, n in steps)
            metrics[f"{name}_count"] = float(count)
            metrics[f"{name}_loss"] = sum(loss * n for loss, n in steps if n and loss == loss) / max(count, 1)
        return Delta(
            line=self.line,
            base=base,
            sequence=sequence,
            previous=self.place.sha256,
            dense_version=self.dense_version if dense is None else f"{base}+{sequence}",
            position=self.position,
            metrics=metrics,
            tables=tables,
            dense=dense,
            extras={"cuts": [list(cut) for cut in self._window.cuts], **extras},
        )

    def _refused(self, delta: Delta, refusal: Refusal) -> None:
        """Keep it for inspection, go back to the last good state, and pass over what spoiled it."""
        why, self._torn = refusal.why, True
        name = self.store.deltas.refuse(self.line, delta, why)
        _log.error("update %s was refused (%s): its records up to %s are not learned from", name, why, self.position)
        bad = self.position
        self.status.refused += 1
        self.status.last_refusal = why
        self.recover()
        self._torn = True  # until a delta says what is passed over
        if self.position.offset() < bad.offset():  # not where a newer base has seen more
            self.status.passed_over += pass_over(self.learner, self.log, self.position, bad)
            self.position = bad
        # A delta without cuts says so: a restart passes over these records too, and its guard remembers as this one.
        changes = self.learner.take_changes()
        self._send(self._delta(changes, None, refused_levels=refusal.levels))
        self._torn = False
        for loss in self.guard.refuse(refusal.levels):
            self.status.new_levels += 1
            usual = self.guard.watches[loss].reference.mean
            _log.warning("refused updates in a row agree: a %s loss of %.4g is usual from now on", loss, usual)

    def _send(self, delta: Delta) -> None:
        self.place, self.dense_version = self.store.publish(self.line, delta), delta.dense_version
        if delta.dense is not None:
            self._since_dense = time.monotonic()
        self._window, self._unsent = _Window(), {}
        self.status.published += 1

    # ---- snapshots -----------------------------------------------------------------------------------

    def snapshot(self, wait: bool = False) -> None:
        """Write the whole state at the newest delta, in a thread of its own: learning goes on meanwhile."""
        if self._torn:
            self.recover()
        if self._window.cuts:
            raise ValueError("publish first: a snapshot stands at a delta")
        self._writer.write(
            state_of(self.learner, self.guard), base=self.place.base, sequence=self.place.sequence,
            dense_version=self._dense_name(), fingerprint=self.fingerprint, position=self.position,
            extras=self._rebuilt.memory(), carried=self.learner.carried, wait=wait,
        )  # fmt: skip
        self._since_snapshot = time.monotonic()
        self.status.snapshots += 1

    def _dense_name(self) -> str:
        """Of the networks as they are now: what was published last may be older (law 8)."""
        place = self.place
        return f"{place.base}+{place.sequence}" if place.sequence else self.dense_version

    def _note(self) -> None:
        """The log must keep what a recovery would read."""
        kept = [Position.parse(manifest.position) for manifest in self.store.manifests(self.line)]
        oldest = min([*kept, self.position], key=lambda position: position.offset())
        self.log.note(FOLLOWER, oldest)

    # ---- a model rebuilt from history --------------------------------------------------------------------

    def _switch(self, rebuilt: Rebuilt) -> None:
        """The rebuilt model, now as far as the one in use or further, becomes the line's new base."""
        self._writer.join()
        tables = rebuilt.learner.tables().values()
        arrays = [*(values for table in tables for _, values in table.items()), *rebuilt.learner.dense().values()]
        refusal = Refusal(rebuilt.spoiled) if rebuilt.spoiled else Guard(self.online).judge(arrays, {}, {})
        if refusal is not None:
            self._rebuilt.passed = rebuilt.version
            self.status.refused += 1
            self.status.last_refusal = f"rebuilt model {rebuilt.version}: {refusal.why}"
            _log.error("rebuilt model %s was refused: %s", rebuilt.version, refusal.why)
            return
        bring(self.store.neighbours, rebuilt.learner.carried.extras, self._rebuilt.line, self.line)
        rebuilt.learner.take_changes()
        self._new_base(rebuilt.learner, rebuilt.position, {"rebuilt": rebuilt.version})
        _log.info("from position %s on the model in use is of base %s", self.position, self.place.base)

    def _new_base(self, learner: OnlineLearner, position: Position, taken_up: Mapping[str, str] | None = None) -> None:
        """Write `learner`, which has learned up to `position`, as a full snapshot, and go on from it; from another one
        where somebody rolled back meanwhile. taken_up: what differs in the memory of rebuilt models then."""
        try:
            self._writer.write(
                state_of(learner, Guard(self.online)), base=None, sequence=0, dense_version=None,
                fingerprint=self.fingerprint, position=position, extras=self._rebuilt.memory() | dict(taken_up or {}),
                carried=learner.carried, wait=True, expect=self.place.base,
            )  # fmt: skip
            self.status.snapshots += 1
        except Superseded as error:
            _log.warning("another base is in the line now, going on from it: %s", error)
        self.recover()

    # ---- running -------------------------------------------------------------------------------------

    def run(self, stop: threading.Event) -> None:
        """Learn and publish until `stop`; then publish and write a snapshot. An error is shown in `status.failure`, and
        the trainer goes on from the last good state."""
        pause = RETRY_FIRST
        while not stop.is_set():
            try:
                self._turn(stop)
                self.status.failure, pause = str(self._writer.failure or ""), RETRY_FIRST
            except Exception as error:  # noqa: BLE001 - whatever fails must be seen, and not end the learning
                self.status.failure = f"{type(error).__name__}: {error}"
                _log.exception("the trainer fails at %s; again in %g s", self.position, pause)
                stop.wait(pause)
                pause = min(2 * pause, RETRY_MOST)
        self.close()

    def _turn(self, stop: threading.Event) -> None:
        """One micro-batch, and what is due; then a wait for more, where there was not enough for a full one."""
        began = time.monotonic()
        taken = self.step()
        if self.due():
            self.publish()
        left = self._every["publish"] - (time.monotonic() - self._window.since) if self._window.cuts else IDLE
        if not taken:
            self.log.wait(self.position, max(min(left, IDLE), 0.001))
        elif taken < self.online.batch:
            stop.wait(max(min(left, began + GATHER - time.monotonic()), 0.0))

    def close(self) -> None:
        """Publish what is learned and write a snapshot, so that the next start has nothing to repeat."""
        self.publish()
        if not self._window.cuts:
            self.snapshot(wait=True)
        self._note()
        self._writer.join()

    def _show(self) -> None:
        status = self.status
        status.base, status.sequence, status.position = self.place.base, self.place.sequence, self.position


def _merged(before: dict[str, Changes], after: dict[str, Changes]) -> dict[str, Changes]:
    """Those of one stretch and the next, table by table."""
    return {name: Changes.merged([before[name], new] if name in before else [new]) for name, new in after.items()}
