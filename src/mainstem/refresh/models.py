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
from dataclasses import dataclass, field
from enum import Enum
from typing import Generic, Protocol, TypeVar

import numpy as np

from mainstem.schema.errors import Incompatible, MainstemError, NotReady, StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.records import Entity
from mainstem.weights import Apply, Delta, LineReader, Rebase, Snapshot

__all__ = ["ModelKeeper", "Models"]

_log = logging.getLogger(__name__)

Model = TypeVar("Model")

# Seconds until what failed for a passing reason is tried again: at first, and at most.
RETRY_FIRST, RETRY_MOST = 2.0, 300.0
# Steps taken before a look at whether to stop.
TURN = 64
# Rounds in which a new model is given what it missed, before all is held up for the rest.
ROUNDS = 3


class Models(Protocol[Model]):
    """What models are made of; `assemble` hands it in."""

    def build(self, snapshot: Snapshot) -> Model:
        """A whole model, its index included."""
        ...

    def apply(self, model: Model, delta: Delta) -> tuple[Model, Keys]:
        """Set and delete rows under `model`, in place; the model as it is called now, and the entities to embed.
        Doing it twice is doing it once. Raises Incompatible, changing nothing, where the delta does not fit."""
        ...

    def renew(self, model: Model, delta: Delta) -> Model:
        """`model` with the delta's dense part and an index of its own, over the same rows.
        Raises Incompatible where the dense part does not fit."""
        ...

    def take_over(self, renewed: Model, current: Model) -> Model:
        """`renewed` as it is called now: the rows that it shares with `current` have moved while it was made."""
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


class _Did(Enum):
    """What a look at the line came to."""

    TAKEN, REFUSED, NOTHING = range(3)


@dataclass(slots=True)
class _Trouble:
    """What failed for a passing reason, and when it is tried again: after pauses that double."""

    error: Exception | None = None
    again: float = 0.0
    pause: float = 0.0

    def failed(self, what: str, error: Exception) -> None:
        self.pause = min(2 * self.pause, RETRY_MOST) or RETRY_FIRST
        self.error, self.again = error, time.monotonic() + self.pause
        unexpected = None if isinstance(error, MainstemError) else error
        _log.error("%s could not be taken into use, again in %g s: %s", what, self.pause, error, exc_info=unexpected)

    def over(self) -> None:
        self.error, self.again, self.pause = None, 0.0, 0.0

    def waits(self) -> bool:
        return self.error is not None and time.monotonic() < self.again


@dataclass(slots=True)
class _Missed:
    """What happened to the model in use while another was being made."""

    rows: list[Keys] = field(default_factory=list)
    touches: list[tuple[Sequence[Entity], Sequence[int]]] = field(default_factory=list)


class ModelKeeper(Generic[Model]):
    """Holds the newest good state of a model line.

    What is damaged or does not fit is reported in `refused` and not tried again; what fails for another reason (no
    memory, a disk that is away) is reported in `failure` and tried again, ever less often. The model in use stays.
    """

    def __init__(self, reader: LineReader, models: Models[Model]) -> None:
        self.reader, self.models = reader, models
        self.applied = 0
        """Deltas applied since the start."""
        self.learned_at = 0
        """When what is in use now was published, wall-clock ms."""
        self._current: Model | None = None
        self._missed: _Missed | None = None  # None while no other model is being made
        self._refreshing = threading.Lock()  # one step at a time: held for long
        self._lock = threading.Lock()  # of the model in use and what a new one missed: held for touches only
        self._step = _Trouble()
        self._listed: list[str] = []  # the versions there were when the last step was tried
        self._store: str | None = None  # why the store could not be read
        self._broken: Exception | None = None  # why the last turn of the thread ended early
        self._renewing: threading.Thread | None = None
        self._dense: Delta | None = None  # the newest dense part that waits
        self._networks = _Trouble()
        self._unfit: dict[str, str] = {}  # dense parts that do not fit -> why
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
        return self.reader.set_aside | self._unfit

    @property
    def failure(self) -> Exception | None:
        """Why something new is not in use yet; None while all is well."""
        unread = StoreError(self._store) if self._store else None
        return self._step.error or self._networks.error or self._broken or unread

    def refresh(self) -> bool:
        """Take all that is new into use; whether there was anything."""
        moved = False
        while self._turn():
            moved = True
        return moved

    def _turn(self) -> bool:
        """Some steps, and the start of a renewal that is due; whether anything was taken into use."""
        with self._refreshing:
            moved = False
            for _ in range(TURN):
                did = self._one_step()
                moved = moved or did is _Did.TAKEN
                self._renew_beside()
                if did is _Did.NOTHING:
                    break
            if self._thread is None:
                self._wait_renewed()
            return moved

    def _one_step(self) -> _Did:
        if self._step.waits() and not self._overtaken():
            return _Did.NOTHING
        step, self._store = self.reader.poll(), self.reader.failure
        if step is None:
            self._step.over()
            return _Did.NOTHING
        name = step.snapshot.manifest.version if isinstance(step, Rebase) else f"delta {step.delta.sequence}"
        try:
            self._listed = self._versions()
            if isinstance(step, Rebase):
                self._rebase(step)
            else:
                self._apply(step)
        except Exception as error:  # noqa: BLE001 - whatever is wrong with a step, the model in use answers on
            if not _for_good(error):
                self._step.failed(f"model {name}", error)
                return _Did.NOTHING
            _log.error("model %s was not taken into use: %s", name, error)
            self.reader.reject(step, str(error))
            return _Did.REFUSED
        self.reader.accept(step)
        self._step.over()
        return _Did.TAKEN

    def _versions(self) -> list[str]:
        return self.reader.snapshots.versions(self.reader.line)

    def _overtaken(self) -> bool:
        """Is there another snapshot than when the step failed? It may do where that one did not."""
        try:
            return self._versions() != self._listed
        except OSError:  # `poll` says so when it is due
            return False

    def _rebase(self, step: Rebase) -> None:
        """Build the snapshot's model beside the one in use, then switch."""
        self._wait_renewed()  # so that what is renewed from the old base never follows on the new one
        with self._lock:
            self._missed = _Missed()
        try:
            model = self.models.build(step.snapshot)
            self._catch_up(model)
            with self._lock:
                self._make_up(model)
                self._current, self._dense, self._unfit = model, None, {}
        finally:
            with self._lock:
                self._missed = None
        self._networks.over()
        self.learned_at = step.snapshot.manifest.created

    def _apply(self, step: Apply) -> None:
        delta = step.delta
        with self._lock:
            model, entities = self.models.apply(self.current(), delta)
            if self._missed is not None:
                self._missed.rows.append(entities)
            self.models.embed(model, entities)
            self._current = model
            if delta.dense is not None:
                self._dense = delta
        self.applied += 1
        self.learned_at = delta.created

    # ---- what a new model missed -----------------------------------------------------------------------

    def _catch_up(self, model: Model) -> None:
        """Give `model`, not in use yet, what it missed; little is left then."""
        for _ in range(ROUNDS):
            with self._lock:
                missed, self._missed = self._missed or _Missed(), _Missed()
            self._give(model, missed)

    def _make_up(self, model: Model) -> None:
        """The rest, with the lock held."""
        self._give(model, self._missed or _Missed())

    def _give(self, model: Model, missed: _Missed) -> None:
        # rows first: an entity whose row changed may have left the catalogue afterwards, not before
        if missed.rows:
            self.models.embed(model, np.unique(np.concatenate(missed.rows)))
        for changed, left in missed.touches:
            self.models.touch(model, changed, left)

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """A follower's sink: keep the index of the model in use current, and of one being made."""
        with self._lock:
            if self._missed is not None:
                self._missed.touches.append((changed, left))
            if self._current is not None:
                self.models.touch(self._current, changed, left)

    # ---- a new dense part ------------------------------------------------------------------------------

    def _renew_beside(self) -> None:
        """Start a thread that brings the dense part that waits into use."""
        with self._lock:
            if self._dense is None or self._renewing is not None or self._networks.waits():
                return
            renewing = threading.Thread(target=self._renew, name="model-renewal", daemon=True)
            renewing.start()
            self._renewing = renewing

    def _renew(self) -> None:
        """Bring the newest dense part into use, beside the model that answers, until none waits."""
        while True:
            with self._lock:
                delta, self._dense = self._dense, None
                if delta is None:
                    self._renewing = None  # under the lock: a dense part that comes now starts a thread of its own
                    return
                before, self._missed = self.current(), _Missed()
            try:
                model = self.models.renew(before, delta)
                self._catch_up(model)
                with self._lock:
                    self._make_up(model)
                    self._current = self.models.take_over(model, self.current())
                    self._missed, self._unfit = None, {}
                self._networks.over()
            except Exception as error:  # noqa: BLE001 - the networks in use go on
                self._not_renewed(delta, error)
                return

    def _not_renewed(self, delta: Delta, error: Exception) -> None:
        """For good, or until it is time to try again, or a newer dense part."""
        name = f"dense part {delta.dense_version}"
        with self._lock:
            self._missed, self._renewing = None, None
            if _for_good(error):
                _log.error("%s was not taken into use: %s", name, error)
                self._unfit = {**self._unfit, name: str(error)}
                return
            self._dense = self._dense or delta
            self._networks.failed(name, error)

    def _wait_renewed(self) -> None:
        renewing = self._renewing
        if renewing is not None:
            renewing.join()

    # ---- following -------------------------------------------------------------------------------------

    def start(self, every: float = 0.1) -> None:
        """Look for what is new in a thread of its own until `stop`, `every` so many seconds."""
        self._stop.clear()
        self._thread = threading.Thread(target=self._run, args=(every,), name="model-keeper", daemon=True)
        self._thread.start()

    def _run(self, every: float) -> None:
        pause = every
        while not self._stop.wait(pause):
            pause = every
            try:
                pause = 0.0 if self._turn() else every
                self._broken = None
            except Exception as error:  # noqa: BLE001 - the folder may be away for a while; the thread must not be
                if self._broken is None:
                    _log.exception("the weights could not be looked at; the model in use stays")
                self._broken = error

    def stop(self) -> None:
        self._stop.set()
        if self._thread:
            self._thread.join()
            self._thread = None
        self._wait_renewed()
