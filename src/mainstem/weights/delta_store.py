"""The deltas of model lines on disk: one object each, and those that a guard refused.

ROOT/LINE/deltas/BASE/0000000007.delta    number 7 of the lineage that began with version BASE
ROOT/LINE/refused/r-....delta             kept for inspection, with the reason among its extras
"""

from __future__ import annotations

import re
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.ids import fresh_id
from mainstem.schema.time import now_ms
from mainstem.weights.deltas import Delta, decode, encode
from mainstem.weights.files import TEMPORARY, Files
from mainstem.weights.manifests import is_version, line_folder, version_folder

__all__ = ["Deltas", "Refused", "delta_name"]

# Larger than any sensible delta: a file that has more is not read at all.
_MOST_BYTES = 1 << 32
# Longest wait, in seconds, for another thread or process that is about to add a delta or a manifest.
_HEAD_WAIT = 30.0
_FILE = re.compile(r"(\d{10})\.delta")
_REFUSED = re.compile(r"(r-[0-9a-f]{32})\.delta")


@dataclass(frozen=True, slots=True)
class Refused:
    """A delta that was not published: why, when (wall-clock ms), and where in the line it would have stood."""

    name: str
    why: str
    refused_at: int
    delta_base: str
    delta_sequence: int


def delta_name(base: str, sequence: int) -> str:
    """How reports name a delta: its path within the line."""
    return f"deltas/{base}/{sequence:010d}.delta"


class Deltas:
    """Reads and lists them. `Snapshots.publish` adds, for it knows whose turn it is."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def bases(self, line: str) -> list[str]:
        """Bases that have deltas on disk."""
        return [name for name in self.files.list(f"{line_folder(line)}/deltas") if is_version(name)]

    def sequences(self, line: str, base: str) -> list[int]:
        """Numbers of the deltas on disk, ascending, good or damaged."""
        folder = f"{line_folder(line)}/deltas/{version_folder(base)}"
        names = (_FILE.fullmatch(name) for name in self.files.list(folder))
        return sorted(int(match[1]) for match in names if match)

    def load(self, line: str, base: str, sequence: int) -> Delta:
        """The delta. Raises StoreError where it is damaged or another one, NotReady where it is absent.

        A StoreError whose cause is an OSError may pass; the others are for good.
        """
        name = delta_name(version_folder(base), sequence)
        delta = self._read(line, name)
        if (delta.line, delta.base, delta.sequence) != (line, base, sequence):
            raise StoreError(f"{name} holds delta {delta.sequence} of {delta.line}/{delta.base}")
        return delta

    def add(self, line: str, delta: Delta) -> Delta:
        """Write it, durable on return; with its sha256. Raises StoreError where it is not valid or there already."""
        data = encode(delta)
        name = delta_name(delta.base, delta.sequence)
        try:
            self.files.put(f"{line}/{name}", [data])
        except FileExistsError as error:
            raise StoreError(f"{name} is there already") from error
        return replace(delta, sha256=data[-32:].hex())

    def head(self, line: str) -> AbstractContextManager[None]:
        """Be the one who moves the line's newest place: compared and moved as one. Held for moments."""
        held = f"model line {line!r} is held by another process or thread that adds to it"
        return self.files.lock(f"{line_folder(line)}/.head", held, _HEAD_WAIT)

    def drop(self, line: str, base: str, until: int | None) -> None:
        """Delete the deltas of `base` up to number `until`, or all. Only the holder of `head` may."""
        if until is None:
            self.files.delete(f"{line}/deltas/{base}")
            return
        old = [sequence for sequence in self.sequences(line, base) if sequence <= until]
        self.files.delete(*(f"{line}/{delta_name(base, sequence)}" for sequence in old))
        self._clear(f"{line}/deltas/{base}")

    def refuse(self, line: str, delta: Delta, why: str) -> str:
        """Keep a delta that must not be published, with values that are not finite if need be; the name it gets."""
        note = {"why": why, "at": now_ms()}
        data = encode(replace(delta, extras={**delta.extras, "refused": note}), finite=False)
        name = fresh_id("r")
        try:
            with self.head(line):
                self.files.put(f"{line}/refused/{name}.delta", [data])
        except OSError as error:
            raise StoreError(f"refused/{name}.delta cannot be written: {error.strerror or error}") from error
        return name

    def refused(self, line: str) -> list[Refused]:
        """What was refused and is still kept, newest first; of a damaged one `why` tells that."""
        found = []
        for name in self._refused_names(line):
            try:
                delta = self.load_refused(line, name)
            except NotReady:  # dropped since it was listed
                continue
            except StoreError as error:
                found.append(Refused(name, str(error), 0, "", 0))
                continue
            note = delta.extras["refused"]
            found.append(Refused(name, note["why"], note["at"], delta.base, delta.sequence))
        return found

    def load_refused(self, line: str, name: str) -> Delta:
        """A refused delta, its reason in `extras["refused"]["why"]`. Raises StoreError, NotReady."""
        if not _REFUSED.fullmatch(f"{name}.delta"):
            raise ValueError(f"{name!r} is no name of a refused delta")
        delta = self._read(line, f"refused/{name}.delta", finite=False)
        note = delta.extras.get("refused")
        if not isinstance(note, dict) or not isinstance(note.get("why"), str) or not isinstance(note.get("at"), int):
            raise StoreError(f"refused/{name}.delta does not say why it was refused")
        return delta

    def drop_refused(self, line: str, keep: int) -> None:
        """Delete all but the newest `keep` refused deltas. Only the holder of `head` may."""
        self.files.delete(*(f"{line}/refused/{name}.delta" for name in self._refused_names(line)[keep:]))
        self._clear(f"{line}/refused")

    def _clear(self, folder: str) -> None:
        """Remove what killed writers left."""
        left = [name for name in self.files.list(folder) if name.startswith(TEMPORARY)]
        self.files.delete(*(f"{folder}/{name}" for name in left))

    def _refused_names(self, line: str) -> list[str]:
        names = (_REFUSED.fullmatch(name) for name in self.files.list(f"{line_folder(line)}/refused"))
        return sorted((match[1] for match in names if match), reverse=True)

    def _read(self, line: str, name: str, *, finite: bool = True) -> Delta:
        try:
            data = self.files.get(f"{line_folder(line)}/{name}", _MOST_BYTES)
        except FileNotFoundError:
            raise NotReady(f"model line {line!r} has no {name}") from None
        except OSError as error:
            raise StoreError(f"{name} cannot be read: {error.strerror or error}") from error
        return decode(data, name, finite=finite)
