"""Models rebuilt from the whole history, brought up to where the one in use is, beside it.

    LINE-rebuilt    v-7 (has seen the log up to 900)
                        | learns 900 .. 1,200, some micro-batches at a time
    LINE            v-1 --1--2--3--4 (stands at 1,200)
                                   | v-8: a new base, the rebuilt model at 1,200

A rebuild may also have seen more of the log than a trainer that lags behind: then it is taken where it stands.
A rollback leaves behind the rebuilds that were begun before it, too, whenever they end: somebody wanted what is older.
So a rebuild says which version of the line was the newest when it began, and is taken up if no rollback is newer.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass

from mainstem.schema.config import OnlineConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.train.guard import Guard
from mainstem.train.online import OnlineLearner
from mainstem.train.published import adopt
from mainstem.weights import Manifest, Snapshots

__all__ = ["BEGUN_ON", "Rebuilt", "RebuiltModels"]

_log = logging.getLogger(__name__)

# In the extras of a rebuild: the newest version of the line when it began; "" where there was none.
BEGUN_ON = "begun_on"

# Micro-batches of a rebuilt model between two of the one in use, while it catches up.
CATCH_UP = 4
# Seconds between looks for a rebuilt model.
LOOK = 2.0


@dataclass(slots=True)
class Rebuilt:
    """A rebuilt model and the position that it has learned up to. spoiled: why it cannot go on, if it cannot."""

    version: str
    learner: OnlineLearner
    position: Position
    spoiled: str = ""


class RebuiltModels:
    """Those of one line, of which the newest is brought up to date."""

    def __init__(
        self, store: Snapshots, line: str, log: Log, new_learner: Callable[[], OnlineLearner], fingerprint: str,
        online: OnlineConfig,
    ) -> None:  # fmt: skip
        self.store, self.line, self.log, self.new_learner = store, f"{line}-rebuilt", log, new_learner
        self.fingerprint, self.online = fingerprint, online
        self.passed = ""
        """Versions up to this one are in use, were refused or are left behind."""
        self.rolled_back = ""
        """The newest version that a rollback made of the line: rebuilds begun before it are left behind."""
        self._catching_up: Rebuilt | None = None
        self._looked = 0.0

    def go_on_from(self, manifest: Manifest) -> None:
        """The trainer goes on from this snapshot of its line."""
        self.passed = str(manifest.extras.get("rebuilt", self.passed))
        self.rolled_back = max(self.rolled_back, str(manifest.extras.get("after_rollback", "")))
        if "rolled_back" in manifest.extras:
            self.rolled_back = manifest.version
            self.passed, self._catching_up = max(self.passed, manifest.version), None

    def memory(self) -> dict[str, str]:
        """For the extras of the line's snapshots: what `go_on_from` reads."""
        return {"rebuilt": self.passed, "after_rollback": self.rolled_back}

    def caught_up(self, until: Position) -> Rebuilt | None:
        """Learn some micro-batches; the rebuilt model where it has learned up to `until` or further, or is spoiled.
        It is handed out once, and found again unless it is `passed` by then."""
        rebuilt = self._catching_up = self._catching_up or self._find()
        if rebuilt is None:
            return None
        for _ in range(CATCH_UP):
            left = until.offset() - rebuilt.position.offset()
            if left <= 0 or rebuilt.spoiled:
                break
            batch = self.log.read(rebuilt.position, min(self.online.batch, left))
            try:
                rebuilt.learner.learn(batch)
            except FloatingPointError as error:
                rebuilt.spoiled = f"finite: {error}"
                break
            rebuilt.position = batch.next
        else:
            return None
        self._catching_up = None
        return rebuilt

    def _find(self) -> Rebuilt | None:
        if time.monotonic() - self._looked < LOOK:
            return None
        self._looked = time.monotonic()
        if max(self.store.versions(self.line), default="") <= self.passed:
            return None
        version = self.store.latest(self.line).version
        if version is None or version <= self.passed:
            return None
        if str(self.store.manifest(self.line, version).extras.get(BEGUN_ON, version)) < self.rolled_back:
            _log.warning("rebuilt model %s is left behind: it was begun before a rollback", version)
            self.passed = version
            return None
        snapshot = self.store.load(self.line, version, training=True)
        rebuilt = Rebuilt(version, self.new_learner(), snapshot.position)
        if snapshot.manifest.fingerprint != self.fingerprint:
            rebuilt.spoiled = "it is of another configuration"
            return rebuilt
        try:
            adopt(snapshot, rebuilt.learner, Guard(self.online), self.log, self.store.catalogs)
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise  # the log may be back later
            rebuilt.spoiled = str(error)
        return rebuilt
