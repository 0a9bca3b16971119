"""The whole state of a learner as a snapshot, and back."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from mainstem.schema.errors import Incompatible, MainstemError, StoreError
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.train.guard import Guard
from mainstem.train.online import Carried, OnlineLearner
from mainstem.train.towers import TABLE
from mainstem.weights import Snapshot, SnapshotMeta, Snapshots
from mainstem.weights.checkpoints import flatten, unflatten

__all__ = ["SnapshotWriter", "State", "adopt", "state_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """A copy of everything, safe to write while learning goes on."""

    dense: dict[str, NDArray[Any]]
    table: dict[str, NDArray[Any]]
    training: dict[str, NDArray[Any]]
    tree: Any


def state_of(learner: OnlineLearner, guard: Guard) -> State:
    """A copy of the learner's state as of now."""
    arrays, tree = flatten({"learner": learner.state(), "guard": guard.state()})
    return State(learner.dense(), learner.towers.table.state(), arrays, tree)


def adopt(snapshot: Snapshot, learner: OnlineLearner, guard: Guard, log: Log) -> tuple[OnlineLearner, Guard]:
    """Bring an untrained learner and guard to where the snapshot stands. Raises StoreError where it does not fit,
    Incompatible where it lacks a part that an older release did not write."""
    name = snapshot.manifest.version
    if TABLE not in snapshot.tables or "state" not in snapshot.manifest.extras:
        raise StoreError(f"{name} holds nothing to go on training from: run `mainstem train`")
    learner.catch_up(log, snapshot.position)
    state = unflatten(snapshot.training, snapshot.manifest.extras["state"])
    learner.towers.table.load(snapshot.tables[TABLE])
    try:
        learner.load(state["learner"])
        guard.load(state["guard"])
    except KeyError as error:
        raise Incompatible(f"{name} lacks {error}, which an older release did not write: run `mainstem train`") from error
    extras = {name: value for name, value in snapshot.manifest.extras.items() if name not in ("state", "rolled_back")}
    metrics = {name: value for name, value in snapshot.manifest.metrics.items() if value is not None}
    learner.carried = Carried(extras, metrics)
    return learner, guard


class SnapshotWriter:
    """Writes snapshots in a thread, one at a time, and lets old ones go."""

    def __init__(self, store: Snapshots, line: str, keep: int) -> None:
        self.store, self.line, self.keep = store, line, keep
        self.failure: Exception | None = None
        """Why the last one was not written; None while all is well."""
        self._thread: threading.Thread | None = None

    def write(
        self, state: State, *, base: str | None, sequence: int, dense_version: str | None, fingerprint: str,
        position: Position, extras: dict[str, Any], carried: Carried, wait: bool, expect: str | None = None,
    ) -> None:  # fmt: skip
        """Start writing; with `wait`, return when it is durable and raise what went wrong. expect: the base that a
        full snapshot (`base` None) must find to be the newest, else Superseded."""
        self.join()
        meta = SnapshotMeta(
            fingerprint=fingerprint, position=position, dense_version=dense_version, metrics=carried.metrics,
            extras={**carried.extras, **extras, "state": state.tree}, base=base, sequence=sequence,
        )  # fmt: skip
        if wait:
            self._save(state, meta, expect or base)
            return
        self._thread = threading.Thread(target=self._run, args=(state, meta), name="snapshot", daemon=True)
        self._thread.start()

    def _save(self, state: State, meta: SnapshotMeta, expect: str | None) -> None:
        self.store.save(self.line, state.dense, {TABLE: state.table}, meta, state.training, expect=expect)
        self.store.keep(self.line, self.keep)

    def _run(self, state: State, meta: SnapshotMeta) -> None:
        try:
            self._save(state, meta, meta.base)
            self.failure = None
        except Exception as error:  # noqa: BLE001 - learning goes on; the failure is shown and the next one tries again
            self.failure = error
            _log.error("a snapshot was not written: %s", error, exc_info=not isinstance(error, MainstemError))

    def join(self) -> None:
        """Wait for the one that is being written."""
        if self._thread:
            self._thread.join()
            self._thread = None
