"""Follows a model line for serving: which snapshot to start from, which delta comes next, what to set aside.

    v-1 --1--2--3--4--5          a lineage: a base and its deltas; a snapshot v-2 may stand at delta 3 of it
         \\______v-2              a reader at 2 takes 3; where 3 is lost or damaged it takes v-2
    v-3 --1--2                   a newer base (a rebuild, a rollback): taken as soon as it is there and whole

Where it stands (`place`) only moves forward: to the next delta of its base, to a later snapshot of its base where that
delta cannot be had, to a newer base. Every delta names the SHA-256 of the one before, so what is reached by deltas is
what the trainer had. What is damaged or does not fit is set aside and said; the last good state stays in use.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from mainstem.schema.errors import NotReady, StoreError
from mainstem.weights.delta_store import delta_name
from mainstem.weights.deltas import Delta
from mainstem.weights.manifests import Manifest, Place
from mainstem.weights.snapshots import Snapshots
from mainstem.weights.version_files import Snapshot

__all__ = ["Apply", "LineReader", "Rebase"]

# Seconds until what failed is read again: at first, and at most. A file may be half there on stores that do not put
# whole files, and a damaged one may be put right.
_PASSING = (1.0, 60.0)
_DAMAGED = (5.0, 300.0)
# A listing of all deltas tells of a gap; nothing but the report waits for it.
_LOOK_FOR_GAPS = 5.0


@dataclass(frozen=True, slots=True)
class Rebase:
    """Build a whole new state from `snapshot`, then switch."""

    snapshot: Snapshot


@dataclass(frozen=True, slots=True)
class Apply:
    """Apply `delta` to the state in use: write its keys, forget the deleted ones."""

    delta: Delta


@dataclass(frozen=True, slots=True)
class _Aside:
    """Something that was not taken: why, and when (by the clock) it is looked at again."""

    why: str
    passing: bool
    again: float
    pause: float


class LineReader:
    """Where one user of a model line stands, and what it should do next. One thread at a time.

    while (step := reader.poll()) is not None:
        match step:
            case Rebase(snapshot): ...  # build beside, switch
            case Apply(delta): ...
        reader.accept(step)             # or reject(step, why)

    training: load snapshots with what only a trainer needs.
    """

    def __init__(
        self,
        snapshots: Snapshots,
        line: str = "main",
        *,
        training: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.snapshots, self.line, self.training = snapshots, line, training
        self.place: Place | None = None
        """What was accepted last."""
        self.version: str | None = None
        """The snapshot that was accepted last."""
        self.failure: str | None = None
        """Why the store could not be read the last time; None while it can."""
        self._clock = clock
        self._known: dict[str, Manifest] = {}
        self._aside: dict[str, _Aside] = {}
        self._gap = ""
        self._look_again = 0.0

    @property
    def set_aside(self) -> dict[str, str]:
        """What is damaged, does not follow on or was rejected, and lies ahead of `place`: its name -> why."""
        found = {name: aside.why for name, aside in self._aside.items() if not aside.passing}
        return found | ({f"deltas/{self.place.base}": self._gap} if self._gap and self.place else {})

    def poll(self) -> Rebase | Apply | None:
        """What to do next, None where nothing better is there. Changes nothing until `accept`.

        Never raises for what is in the store or how it fails: see `set_aside` and `failure`.
        """
        self.failure = None
        try:
            ahead = self._ahead()
            newer = [m for m in ahead if self.place is None or m.base > self.place.base]
            step: Rebase | Apply | None = self._rebase(newer)
            if step is None and self.place is not None:
                # listed before the delta is looked for: one that is missing now was lost, not late
                later = [m for m in ahead if m.base == self.place.base]
                step = self._next_delta(self.place) or self._rebase(later)
                self._note_gap(self.place, step)
        except OSError as error:
            self.failure = f"model line {self.line!r} cannot be read: {error.strerror or error}"
            return None
        passing = [aside.why for aside in self._aside.values() if aside.passing]
        self.failure = passing[-1] if passing else self.failure
        return step

    def accept(self, step: Rebase | Apply) -> None:
        """`step` is in use now. Raises ValueError where it does not lead forward from `place`."""
        if isinstance(step, Rebase):
            place = step.snapshot.place
            if not place.after(self.place):
                raise ValueError(f"{place} is not ahead of {self.place}")
            self.version = step.snapshot.manifest.version
        else:
            place, delta = step.delta.place, step.delta
            here = self.place
            if here is None or (delta.base, delta.sequence - 1, delta.previous) != (
                here.base,
                here.sequence,
                here.sha256,
            ):
                raise ValueError(f"{place} does not follow on {here}")
        self.place, self._gap = place, ""
        self._tidy()

    def reject(self, step: Rebase | Apply, why: str) -> None:
        """`step` does not fit its user, and never will: it is not proposed again, by this reader."""
        self._aside[_name(step)] = _Aside(why, False, float("inf"), 0.0)

    # ---- snapshots -------------------------------------------------------------------------------

    def _ahead(self) -> list[Manifest]:
        """Manifests of what is later than `place` and may be looked at now, the latest first."""
        versions = self.snapshots.versions(self.line)
        if self.place is not None and not versions:
            self.failure = f"model line {self.line!r} has no snapshot any more: its folder is empty or away"
        self._known = {version: manifest for version, manifest in self._known.items() if version in versions}
        self._tidy(versions)
        for version in versions:
            if version not in self._known and self._may(version):
                try:
                    self._known[version] = self.snapshots.manifest(self.line, version)
                except NotReady:  # deleted since it was listed
                    continue
                except StoreError as error:
                    self._put_aside(version, error)
        ahead = [m for m in self._known.values() if m.place.after(self.place) and self._may(m.version)]
        return sorted(ahead, key=lambda m: (m.base, m.sequence, m.version), reverse=True)

    def _rebase(self, choice: Iterable[Manifest]) -> Rebase | None:
        """The first of them that is whole."""
        for manifest in choice:
            try:
                snapshot = self.snapshots.load(self.line, manifest.version, training=self.training)
            except NotReady:
                continue
            except StoreError as error:
                self._put_aside(manifest.version, error)
                continue
            self._aside.pop(manifest.version, None)
            return Rebase(snapshot)
        return None

    # ---- deltas ----------------------------------------------------------------------------------

    def _next_delta(self, place: Place) -> Apply | None:
        name = delta_name(place.base, place.sequence + 1)
        if not self._may(name):
            return None
        try:
            delta = self.snapshots.deltas.load(self.line, place.base, place.sequence + 1)
            if delta.previous != place.sha256:
                raise StoreError(
                    f"{name} follows {delta.previous[:12]}, and {place.sha256[:12]} is in use: another history"
                )
        except NotReady:
            return None
        except StoreError as error:
            self._put_aside(name, error)
            return None
        self._aside.pop(name, None)
        return Apply(delta)

    def _note_gap(self, place: Place, step: Rebase | Apply | None) -> None:
        """Say when later deltas are there and the next one is not."""
        if step is not None:
            self._gap = ""
            return
        now = self._clock()
        if now < self._look_again:
            return
        self._look_again = now + _LOOK_FOR_GAPS
        numbers = self.snapshots.deltas.sequences(self.line, place.base)
        following = place.sequence + 1
        lost = bool(numbers) and numbers[-1] > following and following not in numbers
        self._gap = f"delta {following} is missing, {numbers[-1]} is there" if lost else ""

    # ---- what was set aside ----------------------------------------------------------------------

    def _may(self, name: str) -> bool:
        return name not in self._aside or self._clock() >= self._aside[name].again

    def _put_aside(self, name: str, error: StoreError) -> None:
        passing = isinstance(error.__cause__, OSError)
        first, most = _PASSING if passing else _DAMAGED
        before = self._aside.get(name)
        pause = min(2 * before.pause, most) if before and before.passing == passing else first
        self._aside[name] = _Aside(str(error), passing, self._clock() + pause, pause)

    def _tidy(self, versions: list[str] | None = None) -> None:
        """Forget what was set aside and is deleted or lies behind by now."""
        for name in list(self._aside):
            if name.startswith("deltas/"):
                gone = self.place is None or name != delta_name(self.place.base, self.place.sequence + 1)
            else:
                known = self._known.get(name)
                gone = versions is not None and name not in versions
                gone = gone or (known is not None and not known.place.after(self.place))
            if gone:
                del self._aside[name]


def _name(step: Rebase | Apply) -> str:
    if isinstance(step, Rebase):
        return step.snapshot.manifest.version
    return delta_name(step.delta.base, step.delta.sequence)
