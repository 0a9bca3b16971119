"""Keeps the model in use: watches the weights, loads what is new, swaps towers and index together (law 8)."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.records import Entity
from mainstem.weights import Snapshots

__all__ = ["ModelKeeper"]

_log = logging.getLogger(__name__)

Model = TypeVar("Model")


class ModelKeeper(Generic[Model]):
    """Holds the newest good version of a model line.

    `load(version)` builds it whole, index included, beside the one in use; then one assignment switches.
    `touch(model, changed, left)` re-embeds entities that changed meanwhile. A version that does not load
    is reported in `refused` and the one in use stays.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        load: Callable[[str], Model],
        touch: Callable[[Model, Sequence[Entity], Sequence[int]], None],
        line: str = "main",
    ) -> None:
        self.snapshots, self.load, self.touch, self.line = snapshots, load, touch, line
        self.refused: dict[str, str] = {}
        self._current: Model | None = None
        self._version: str | None = None
        self._missed: list[tuple[Sequence[Entity], Sequence[int]]] | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> Model:
        """The model in use. Raises NotReady where there is none yet."""
        if self._current is None:
            raise NotReady("no trained model yet: run `mainstem train`")
        return self._current

    @property
    def version(self) -> str | None:
        """The version in use."""
        return self._version

    def refresh(self) -> bool:
        """Load the newest version if it is not the one in use; whether it switched."""
        versions = self.snapshots.versions(self.line)
        if not versions or versions[-1] == self._version or versions[-1] in self.refused:
            return False
        newest = self.snapshots.latest(self.line)
        self.refused |= newest.skipped
        if newest.version is None or newest.version == self._version:
            return False
        with self._lock:
            self._missed = []
        try:
            model = self.load(newest.version)
        except (StoreError, NotReady) as reason:
            _log.error("model version %s was not taken into use: %s", newest.version, reason)
            self.refused[newest.version] = str(reason)
            with self._lock:
                self._missed = None
            return False
        with self._lock:
            for changed, left in self._missed or ():
                self.touch(model, changed, left)
            self._missed = None
            self._current, self._version = model, newest.version
        return True

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """A follower's sink: keep the index of the model in use current, and of one being loaded."""
        with self._lock:
            if self._missed is not None:
                self._missed.append((changed, left))
            if self._current is not None:
                self.touch(self._current, changed, left)

    def start(self, every: float = 2.0) -> None:
        """Look for new versions in a thread of its own until `stop`."""

        def run() -> None:
            while not self._stop.wait(every):
                self.refresh()

        self._thread = threading.Thread(target=run, name="model-keeper", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
