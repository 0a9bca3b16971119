"""What a snapshot says of itself: its manifest, sealed by a SHA-256 over its own bytes."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from typing import Any

import msgspec

from mainstem.schema.errors import Incompatible, InvalidRecord, StoreError
from mainstem.schema.position import START, Position
from mainstem.weights.files import FileSum

__all__ = [
    "FORMAT",
    "NAME",
    "Manifest",
    "Place",
    "SnapshotMeta",
    "TableShape",
    "is_version",
    "line_folder",
    "seal",
    "unseal",
    "version_folder",
]

FORMAT = 2
NAME = re.compile(r"[a-z][a-z0-9_-]{0,63}")
"""How lines and tables are named. Names become parts of paths, so what is read is checked against it."""
_VERSION = re.compile(r"v-[0-9a-f]{32}")

_HASH = re.compile(r"[0-9a-f]{64}")


def line_folder(line: str) -> str:
    """The folder of a model line. Raises ValueError where that is no name of one."""
    if not NAME.fullmatch(line):
        raise ValueError(f"{line!r} is no model line: a-z, then a-z, 0-9, _ and -")
    return line


def version_folder(version: str) -> str:
    """The folder of a version within its line. Raises ValueError where that is no name of one."""
    if not is_version(version):
        raise ValueError(f"{version!r} is no snapshot version")
    return version


def is_version(name: str) -> bool:
    return _VERSION.fullmatch(name) is not None


@dataclass(frozen=True, slots=True)
class Place:
    """A place in a model line: after delta `sequence` of the lineage that began with version `base`.

    sha256: of that delta, or of the base's manifest body where sequence is 0; the next delta names it as `previous`.
    """

    base: str
    sequence: int
    sha256: str

    def after(self, other: Place | None) -> bool:
        """Is it later? A newer base is later than everything of an older one."""
        return other is None or (self.base, self.sequence) > (other.base, other.sequence)


class SnapshotMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What the writer says of a snapshot.

    fingerprint: of the features and configuration it was trained for (law 11); position: the log it has seen;
    dense_version: which dense part this is, None for a new one; metrics: of its validation; extras: whatever
    JSON the models need to be built again (sizes, feature names).
    base: the version whose lineage it goes on with, after delta `sequence` of it; None starts a lineage.
    """

    fingerprint: str = ""
    position: Position = START
    dense_version: str | None = None
    metrics: dict[str, float] = {}
    extras: dict[str, Any] = {}
    base: str | None = None
    sequence: int = 0


class TableShape(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a snapshot holds of one table."""

    dim: int
    rows: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a snapshot is. `created` is wall-clock time in ms; `position` is a Position's text.

    chain: SHA-256 of the last delta that is in it (of the base's manifest body where that is number 0);
    empty in a full snapshot, whose chain begins with its own manifest.
    """

    line: str
    version: str
    base: str
    sequence: int
    chain: str
    dense_version: str
    fingerprint: str
    position: str
    created: int
    metrics: dict[str, float | None]
    extras: dict[str, Any]
    tables: dict[str, TableShape]
    files: dict[str, FileSum]
    format: int = FORMAT

    @property
    def place(self) -> Place:
        """Where deltas go on from here."""
        return Place(self.base, self.sequence, self.chain or hashlib.sha256(_body(self)).hexdigest())


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str
    manifest: msgspec.Raw


class _Format(msgspec.Struct, frozen=True):
    format: int = 0


def seal(manifest: Manifest) -> bytes:
    """The bytes of manifest.json. Raises TypeError or OverflowError where `extras` is no JSON."""
    return _sealed(_body(manifest))


def unseal(data: bytes | bytearray, name: str) -> Manifest:
    """Inverse of `seal`. Raises StoreError where one byte differs, Incompatible where another release wrote it."""
    try:
        body = bytes(msgspec.json.decode(data, type=_Sealed).manifest)
        # every byte counts, those outside the body too
        if bytes(data) != _sealed(body):
            raise StoreError(f"{name} is damaged")
        form = msgspec.json.decode(body, type=_Format).format
        if form != FORMAT:
            raise Incompatible(
                f"{name} is of format {form}, this release reads {FORMAT}: "
                + ("run `mainstem train` to make a new version" if form < FORMAT else "use the release that wrote it")
            )
        manifest = msgspec.json.decode(body, type=Manifest)
        _consistent(manifest)
    except (msgspec.MsgspecError, UnicodeDecodeError, ValueError, RecursionError, InvalidRecord) as error:
        raise StoreError(f"{name} is damaged: {error}") from error
    return manifest


def _consistent(manifest: Manifest) -> None:
    names = ((manifest.base, _VERSION), (manifest.chain, _HASH), *((table, NAME) for table in manifest.tables))
    for text, pattern in names:
        if text and not pattern.fullmatch(text):
            raise ValueError(f"{text!r} is no name of its kind")
    full = manifest.base == manifest.version
    if full != (manifest.chain == "") or (full and manifest.sequence != 0):
        raise ValueError("a full snapshot has sequence 0 and no chain, another one has a chain")
    if manifest.base > manifest.version or manifest.sequence < 0:
        raise ValueError(f"it follows {manifest.base}, delta {manifest.sequence}")
    Position.parse(manifest.position)


def _body(manifest: Manifest) -> bytes:
    return msgspec.json.format(msgspec.json.encode(manifest), indent=2)


def _sealed(body: bytes) -> bytes:
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"manifest": ' + body + b"}\n"
