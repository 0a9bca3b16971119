"""Keeps the model in use: watches the weights, loads what is new, swaps towers and index together (law 8)."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

from mainstem.schema.errors import Incompatible, MainstemError, NotReady, StoreError
from mainstem.schema.records import Entity
from mainstem.weights import Snapshots

__all__ = ["ModelKeeper"]

_log = logging.getLogger(__name__)

Model = TypeVar("Model")

# Seconds until a version whose load failed for a passing reason is tried again: at first, and at most.
RETRY_FIRST, RETRY_MOST = 2.0, 300.0


def _for_good(error: Exception) -> bool:
    """Does `error` say that the version itself is wrong? A file that could not be read now may be read later."""
    return isinstance(error, Incompatible) or (
        isinstance(error, StoreError) and not isinstance(error.__cause__, OSError)
    )


class ModelKeeper(Generic[Model]):
    """Holds the newest good version of a model line.

    `load(version)` builds it whole, index included, beside the one in use; then one assignment switches.
    `touch(model, changed, left)` re-embeds entities that changed meanwhile. A version that is damaged or does not
    fit (StoreError, Incompatible) is reported in `refused` and not tried again; one that fails to load for another
    reason (no memory, a disk that is away) is reported in `failure` and tried again, ever less often. The version
    in use stays meanwhile, or where there is none the next older one is tried.
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
        """Versions that are on disk and were not taken into use -> why."""
        self.failure: Exception | None = None
        """Why the weights could not be looked at, or a version not loaded, the last time; None while all is well."""
        self._waiting: dict[str, tuple[float, float, Exception]] = {}  # version -> when again, pause, what failed
        self._current: Model | None = None
        self._version: str | None = None
        self._missed: list[tuple[Sequence[Entity], Sequence[int]]] | None = None
        self._refreshing = threading.Lock()  # one load at a time: held for long
        self._lock = threading.Lock()  # of the model in use and what it missed: held for touches only
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
        """Take the newest version that loads into use, if it is newer than the one in use; whether it switched."""
        with self._refreshing:
            versions = self.snapshots.versions(self.line)
            self.refused = {version: why for version, why in self.refused.items() if version in versions}
            try:
                for version in reversed(versions):
                    if version == self._version:
                        return False
                    if version not in self.refused and self._is_time(version) and self._take(version):
                        return True
                return False
            finally:
                newer = [v for v in versions if v in self._waiting and (self._version is None or v > self._version)]
                self._waiting = {version: self._waiting[version] for version in newer}
                self.failure = self._waiting[newer[-1]][2] if newer else None

    def _is_time(self, version: str) -> bool:
        return version not in self._waiting or time.monotonic() >= self._waiting[version][0]

    def _take(self, version: str) -> bool:
        with self._lock:
            self._missed = []
        try:
            model = self.load(version)
            with self._lock:
                for changed, left in self._missed:
                    self.touch(model, changed, left)
                self._current, self._version = model, version
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a version, the one in use answers on
            self._set_aside(version, error)
            return False
        finally:
            with self._lock:
                self._missed = None
        return True

    def _set_aside(self, version: str, error: Exception) -> None:
        """For good, or until it is time to try again."""
        if _for_good(error):
            _log.error("model version %s was not taken into use: %s", version, error)
            self.refused[version] = str(error)
            self._waiting.pop(version, None)
            return
        pause = min(2 * self._waiting[version][1], RETRY_MOST) if version in self._waiting else RETRY_FIRST
        self._waiting[version] = (time.monotonic() + pause, pause, error)
        expected = isinstance(error, MainstemError)
        _log.error(
            "model version %s could not be loaded, again in %g s: %s", version, pause, error, exc_info=not expected
        )

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """A follower's sink: keep the index of the model in use current, and of one being loaded."""
        with self._lock:
            if self._missed is not None:
                self._missed.append((changed, left))
            if self._current is not None:
                self.touch(self._current, changed, left)

    def start(self, every: float = 2.0) -> None:
        """Look for new versions in a thread of its own until `stop`."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(every,), name="model-keeper", daemon=True)
        self._thread.start()

    def _run(self, every: float) -> None:
        while not self._stop.wait(every):
            try:
                self.refresh()
            except Exception as error:  # noqa: BLE001 - the folder may be away for a while; the thread must not be
                if self.failure is None:
                    _log.exception("the weights could not be looked at; the model in use stays")
                self.failure = error

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None
