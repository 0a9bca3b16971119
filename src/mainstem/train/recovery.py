"""Where a trainer of a model line goes on: its newest good snapshot, then the log again as the deltas say it was cut.

snapshot      the learner's whole state at a delta, with the guard's memory and the catalogue
rolled back   erasures since its rows were learned, once more (law 10)
deltas        the micro-batches after it; what a refused update had learned is passed over
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from mainstem.schema.config import OnlineConfig
from mainstem.schema.errors import Incompatible, NotReady, StoreError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Erase, Erased
from mainstem.train.guard import Guard
from mainstem.train.online import RANKING, RETRIEVAL, OnlineLearner, Step
from mainstem.train.published import adopt
from mainstem.weights import Manifest, Snapshot, Snapshots
from mainstem.weights.manifests import Place

__all__ = ["Recovery", "Standing", "pass_over"]

_log = logging.getLogger(__name__)

# Records read at once where nothing is learned from them.
READ = 50_000


@dataclass(slots=True)
class Standing:
    """A learner with the guard's memory, after the newest delta of the line, at `position` of the log.

    manifest: of the snapshot that it went on from; forgotten: whether the log has lost records, by an erasure, of those
    that were learned again, so that serving may hold rows that the learner has not.
    """

    learner: OnlineLearner
    guard: Guard
    place: Place
    dense_version: str
    position: Position
    manifest: Manifest
    forgotten: bool = False


class Recovery:
    """Finds where the trainer of a line stands. on_step is told each micro-batch that is learned again."""

    def __init__(
        self, log: Log, store: Snapshots, line: str, new_learner: Callable[[], OnlineLearner], fingerprint: str,
        online: OnlineConfig, on_step: Callable[[Step], None],
    ) -> None:  # fmt: skip
        self.log, self.store, self.line = log, store, line
        self.new_learner, self.fingerprint, self.online, self.on_step = new_learner, fingerprint, online, on_step

    def run(self) -> Standing:
        """Raises NotReady where the line has no whole snapshot of this fingerprint with all parts."""
        snapshot = self._newest()
        try:
            learner, guard = adopt(snapshot, self.new_learner(), Guard(self.online), self.log, self.store.catalogs)
        except Incompatible as error:
            raise NotReady(str(error)) from error
        manifest = snapshot.manifest
        at = Standing(learner, guard, snapshot.place, manifest.dense_version, snapshot.position, manifest)
        self._erase_again(at)
        self._relearn(at)
        return at

    def _newest(self) -> Snapshot:
        found = self.store.latest(self.line)
        for version, why in found.skipped.items():
            _log.error("snapshot %s is set aside: %s", version, why)
        if found.version is None:
            raise NotReady("no trained model to go on from: run `mainstem train` first")
        snapshot = self.store.load(self.line, found.version, training=True)
        if snapshot.manifest.fingerprint != self.fingerprint:
            raise NotReady(
                f"{found.version} was trained with other features, heads, entity types or sizes than configured now: "
                "run `mainstem train`"
            )
        return snapshot

    def _erase_again(self, at: Standing) -> None:
        """A rolled back version knows nothing of later erasures, and its position may lie behind them (law 10)."""
        rolled_back = at.manifest.extras.get("rolled_back")
        if rolled_back is None:
            return
        seen = self._learned_until(rolled_back["to"])
        while seen.offset() < at.position.offset():
            batch = self.log.read(seen, min(READ, at.position.offset() - seen.offset()))
            for record in batch.records:
                if isinstance(record, Erase):
                    at.learner.erase(record)
            seen = batch.next

    def _learned_until(self, version: str) -> Position:
        """Up to where the rows of a version have learned: of a rollback, where those that it copied had."""
        try:
            manifest = self.store.manifest(self.line, version)
        except (NotReady, StoreError):  # no longer kept: from the beginning
            return START
        before = manifest.extras.get("rolled_back")
        return Position.parse(manifest.position) if before is None else self._learned_until(before["to"])

    def _relearn(self, at: Standing) -> None:
        """Learn again what deltas after the snapshot had learned; they stay as they are."""
        base = at.place.base
        after = [n for n in self.store.deltas.sequences(self.line, base) if n > at.place.sequence]
        for sequence in after:
            delta = self.store.deltas.load(self.line, base, sequence)
            losses: dict[str, list[tuple[float, int]]] = {RETRIEVAL: [], RANKING: []}
            for cut, learned in delta.extras.get("cuts", []):
                step = self._again(at, int(cut), learn=bool(learned))
                for name, of in step.losses.items():
                    losses[name].append(of)
            pass_over(at.learner, self.log, at.position, delta.position)
            # so that the guard's memory is what it was
            if (refused := delta.extras.get("refused_levels")) is not None:
                at.guard.refuse(refused)
            else:
                at.guard.judge((), losses, {})
            at.place, at.dense_version, at.position = delta.place, delta.dense_version, delta.position

    def _again(self, at: Standing, until: int, *, learn: bool) -> Step:
        """The micro-batch that ends at the offset `until`."""
        batch = self.log.read(at.position, until - at.position.offset())
        if batch.next.offset() != until:
            raise NotReady(f"the log ends at {batch.next} and was learned from up to {until}: a part of it is lost")
        at.forgotten |= any(isinstance(record, Erased) for record in batch.records)
        step = at.learner.learn(batch) if learn else at.learner.fold(batch)
        at.position = batch.next
        self.on_step(step)
        return step


def pass_over(learner: OnlineLearner, log: Log, position: Position, until: Position) -> int:
    """Pass over what a refused update had learned, from `position` on; how many records. What the catalogue and law 10
    need of them counts all the same."""
    count = 0
    while (left := until.offset() - position.offset()) > 0:
        batch = log.read(position, min(READ, left))
        if not batch.records:
            raise NotReady(f"the log ends at {position} and was read up to {until}: a part of it is lost")
        learner.pass_over(batch)
        position = batch.next
        count += len(batch)
    return count
