"""Keeps the model in use: follows the weights, applies deltas while requests are answered, swaps what must be swapped.

snapshot       a whole new model beside the one in use, index included; then one assignment switches (law 8)
delta          rows change under the model in use; the entities whose own rows changed are embedded anew
its dense part networks beside the ones in use, the catalogue embedded anew by a thread of its own; then they switch.
               Deltas go on meanwhile: the new networks read the same rows.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Sequence
from typing import Generic, Protocol, TypeVar

from mainstem.schema.errors import Incompatible, MainstemError, NotReady, StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.records import Entity
from mainstem.weights import Apply, Delta, LineReader, Rebase, Snapshot

__all__ = ["ModelKeeper", "Models"]

_log = logging.getLogger(__name__)

Model = TypeVar("Model")

# Seconds until a step that failed for a passing reason is tried again: at first, and at most.
RETRY_FIRST, RETRY_MOST = 2.0, 300.0
# Deltas applied before a look at whether to stop.
TURN = 64


class Models(Protocol[Model]):
    """What models are made of; `assemble` hands it in."""

    def build(self, snapshot: Snapshot) -> Model:
        """A whole model, its index included."""
        ...

    def apply(self, model: Model, delta: Delta) -> tuple[Model, Keys]:
        """Set and delete rows under `model`, in place; the model as it is called now, and the entities to embed."""
        ...

    def renew(self, model: Model, delta: Delta) -> Model:
        """`model` with the delta's dense part and an index of its own, over the same rows."""
        ...

    def embed(self, model: Model, entities: Keys) -> None:
        """Put these entities' vectors into the model's index as they are now."""
        ...

    def touch(self, model: Model, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """Entities changed or left the catalogue."""
        ...


def _for_good(error: Exception) -> bool:
    """Does `error` say that the version itself is wrong? A file that could not be read now may be read later."""
    return isinstance(error, Incompatible) or (
        isinstance(error, StoreError) and not isinstance(error.__cause__, OSError)
    )


class ModelKeeper(Generic[Model]):
    """Holds the newest good state of a model line.

    What is damaged or does not fit is reported in `refused` and not tried again; what fails for another reason (no
    memory, a disk that is away) is reported in `failure` and tried again, ever less often. The model in use stays.
    """

    def __init__(self, reader: LineReader, models: Models[Model]) -> None:
        self.reader, self.models = reader, models
        self.failure: Exception | None = None
        """Why the last step was not taken; None while all is well."""
        self.applied = 0
        """Deltas applied since the start."""
        self.learned_at = 0
        """When what is in use now was published, wall-clock ms."""
        self._again = (0.0, RETRY_FIRST)  # when a failed step is tried again, and the pause after that
        self._current: Model | None = None
        self._missed: list[tuple[Sequence[Entity], Sequence[int]] | Keys] | None = None
        self._refreshing = threading.Lock()  # one step at a time: held for long
        self._lock = threading.Lock()  # of the model in use and what a new one missed: held for touches only
        self._renewing: threading.Thread | None = None
        self._dense: Delta | None = None  # the newest dense part that waits
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def current(self) -> Model:
        """The model in use. Raises NotReady where there is none yet."""
        if self._current is None:
            raise NotReady("no trained model yet: run `mainstem train`")
        return self._current

    @property
    def version(self) -> str | None:
        """The snapshot that the model in use came from."""
        return self.reader.version if self._current is not None else None

    @property
    def sequence(self) -> int:
        """The last delta applied, 0 where none is."""
        return self.reader.place.sequence if self.reader.place else 0

    @property
    def refused(self) -> dict[str, str]:
        """What was not taken into use -> why."""
        return self.reader.set_aside

    def refresh(self) -> bool:
        """Take what is new into use; whether there was anything."""
        with self._refreshing:
            moved = False
            for _ in range(TURN):
                if time.monotonic() < self._again[0] or not self._one_step():
                    break
                moved = True
            if self._thread is None:
                self._renew()
            return moved

    def _one_step(self) -> bool:
        step = self.reader.poll()
        if step is None:
            return False
        name = step.snapshot.manifest.version if isinstance(step, Rebase) else f"delta {step.delta.sequence}"
        try:
            if isinstance(step, Rebase):
                self._rebase(step)
            else:
                self._apply(step)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a step, the model in use answers on
            self._set_aside(step, name, error)
            return False
        self.reader.accept(step)
        self.failure, self._again = None, (0.0, RETRY_FIRST)
        return True

    def _rebase(self, step: Rebase) -> None:
        """Build the snapshot's model beside the one in use, then switch."""
        self._wait_renewed()
        with self._lock:
            self._missed, self._dense = [], None
        try:
            model = self.models.build(step.snapshot)
            self._switch(model)
        finally:
            with self._lock:
                self._missed = None
        self.learned_at = step.snapshot.manifest.created

    def _switch(self, model: Model) -> None:
        with self._lock:
            for missed in self._missed or ():
                if isinstance(missed, tuple):
                    self.models.touch(model, *missed)
                else:
                    self.models.embed(model, missed)
            self._current = model

    def _apply(self, step: Apply) -> None:
        delta = step.delta
        with self._lock:
            model, entities = self.models.apply(self.current(), delta)
            self.models.embed(model, entities)
            self._current = model
            if self._missed is not None:
                self._missed.append(entities)
            if delta.dense is not None:
                self._dense = delta
        self.applied += 1
        self.learned_at = delta.created
        if delta.dense is not None and self._thread is not None and self._renewing is None:
            self._renewing = threading.Thread(target=self._renew, name="model-renewal", daemon=True)
            self._renewing.start()

    # ---- a new dense part ------------------------------------------------------------------------------

    def _renew(self) -> None:
        """Bring the newest dense part into use, beside the model that answers."""
        try:
            while True:
                with self._lock:
                    delta, self._dense = self._dense, None
                    if delta is None:
                        return
                    before, self._missed = self.current(), []
                model = self.models.renew(before, delta)
                self._switch_renewed(model, delta)
        except Exception as error:  # noqa: BLE001 - the networks in use go on; the next dense part tries again
            self.failure = error
            _log.exception("the dense part of a delta could not be taken into use")
        finally:
            with self._lock:
                self._missed, self._renewing = None, None

    def _switch_renewed(self, model: Model, delta: Delta) -> None:
        place = self.reader.place
        if place is not None and place.base == delta.base:
            self._switch(model)

    def _wait_renewed(self) -> None:
        renewing = self._renewing
        if renewing is not None:
            renewing.join()

    def _set_aside(self, step: Rebase | Apply, name: str, error: Exception) -> None:
        """For good, or until it is time to try again."""
        if _for_good(error):
            _log.error("model %s was not taken into use: %s", name, error)
            self.reader.reject(step, str(error))
            return
        pause = self._again[1]
        self._again = time.monotonic() + pause, min(2 * pause, RETRY_MOST)
        self.failure = error
        expected = isinstance(error, MainstemError)
        _log.error("model %s could not be taken into use, again in %g s: %s", name, pause, error, exc_info=not expected)

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """A follower's sink: keep the index of the model in use current, and of one being made."""
        with self._lock:
            if self._missed is not None:
                self._missed.append((changed, left))
            if self._current is not None:
                self.models.touch(self._current, changed, left)

    # ---- following -------------------------------------------------------------------------------------

    def start(self, every: float = 0.1) -> None:
        """Look for what is new in a thread of its own until `stop`, `every` so many seconds."""
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
        self._wait_renewed()
