"""The whole state of a learner as a snapshot, with its catalogue beside it, and back."""

from __future__ import annotations

import logging
import threading
from dataclasses import dataclass
from typing import Any

import msgspec
from numpy.typing import NDArray

from mainstem.catalog import State as CatalogState
from mainstem.schema.config import Config
from mainstem.schema.errors import Incompatible, MainstemError, StoreError
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.schema.time import now_ms
from mainstem.train.catalogs import keep, take_up
from mainstem.train.guard import Guard
from mainstem.train.online import Carried, OnlineLearner
from mainstem.weights import KeptCatalogs, Snapshot, SnapshotMeta, Snapshots
from mainstem.weights.checkpoints import flatten, unflatten

__all__ = ["SnapshotWriter", "State", "adopt", "save_state", "state_of"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class State:
    """A copy of everything, safe to write while learning goes on.

    catalog: as of the wall-clock time `taken` (ms).
    """

    dense: dict[str, NDArray[Any]]
    tables: dict[str, dict[str, NDArray[Any]]]
    training: dict[str, NDArray[Any]]
    tree: Any
    catalog: CatalogState
    taken: int


def state_of(learner: OnlineLearner, guard: Guard) -> State:
    """A copy of the learner's state as of now."""
    arrays, tree = flatten({"learner": learner.state(), "guard": guard.state()})
    tables = {name: table.state() for name, table in learner.tables().items()}
    return State(learner.dense(), tables, arrays, tree, learner.catalog.state(), now_ms())


def adopt(
    snapshot: Snapshot, learner: OnlineLearner, guard: Guard, log: Log, kept: KeptCatalogs | None = None
) -> tuple[OnlineLearner, Guard]:
    """Bring an untrained learner and guard to where the snapshot stands; its catalogue from the one kept beside the
    snapshot, where `kept` has it, and the log from there.

    Raises StoreError where it does not fit, Incompatible where it lacks a part that an older release did not write.
    """
    name = snapshot.manifest.version
    tables = learner.tables()
    if not tables.keys() <= snapshot.tables.keys() or "state" not in snapshot.manifest.extras:
        raise StoreError(f"{name} holds nothing to go on training from: run `mainstem train`")
    if kept is not None:
        take_up(kept, snapshot.manifest, learner)
    learner.catch_up(log, snapshot.position)
    state = unflatten(snapshot.training, snapshot.manifest.extras["state"])
    for table_name, table in tables.items():
        table.load(snapshot.tables[table_name])
    try:
        learner.load(state["learner"])
        guard.load(state["guard"])
    except KeyError as error:
        raise Incompatible(
            f"{name} lacks {error}, which an older release did not write: run `mainstem train`"
        ) from error
    of_its_own = ("state", "rolled_back", "catalog")
    extras = {name: value for name, value in snapshot.manifest.extras.items() if name not in of_its_own}
    metrics = {name: value for name, value in snapshot.manifest.metrics.items() if value is not None}
    learner.carried = Carried(extras, metrics)
    return learner, guard


def save_state(
    store: Snapshots, line: str, state: State, meta: SnapshotMeta, config: Config, expect: str | None = None
) -> str:
    """Save a state with its catalogue beside it; the version. Raises what `Snapshots.save` raises."""
    kept = keep(store.catalogs, line, state.catalog, state.taken, config)
    meta = msgspec.structs.replace(meta, extras={**meta.extras, **kept})
    return store.save(line, state.dense, state.tables, meta, state.training, expect=expect)


class SnapshotWriter:
    """Writes snapshots in a thread, one at a time, each with the catalogue beside it, and lets old ones go."""

    def __init__(self, store: Snapshots, line: str, config: Config) -> None:
        self.store, self.line, self.config = store, line, config
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
        save_state(self.store, self.line, state, meta, self.config, expect)
        self.store.keep(self.line, self.config.train.online.keep)

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
