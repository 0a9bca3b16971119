"""Snapshots of model lines in a local directory: written whole or not at all, checked before they load.

    ROOT/LINE/VERSION/manifest.json        what it is, and the SHA-256 of everything else (and of itself)
                      dense.safetensors    the tensors of the network
                      table.safetensors    keys, rows and optimizer state of the table, where there is one
    ROOT/LINE/.writer                      locked by whoever writes this line
    ROOT/LINE/.new-*, .gone-*              being written, being deleted: never read, cleared by the next writer

A snapshot is written to `.new-*`, flushed to disk and renamed: a writer killed at any moment leaves the older
snapshots as they were. Tombstones of erased keys are not known here: whoever loads re-applies them (law 10).
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import msgspec
import numpy as np
import safetensors.numpy
from numpy.typing import NDArray
from safetensors import SafetensorError

from mainstem.schema.errors import ConfigError, NotReady, StoreError
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import START, Position
from mainstem.schema.time import now_ms
from mainstem.weights.table import Arrays, Table

__all__ = ["Manifest", "Newest", "Snapshot", "SnapshotMeta", "Snapshots", "open"]

_LINE = re.compile(r"[a-z][a-z0-9_-]{0,63}")
_VERSION = re.compile(r"v-[0-9a-f]{32}")
_MANIFEST, _DENSE, _TABLE = "manifest.json", "dense.safetensors", "table.safetensors"


class SnapshotMeta(msgspec.Struct, frozen=True, kw_only=True):
    """What the writer says of a snapshot.

    fingerprint: of the features and configuration it was trained for (law 11); position: the log it has seen;
    dense_version: which dense part this is, None for a new one; metrics: of its validation; extras: whatever
    JSON the models need to be built again (sizes, feature names).
    """

    fingerprint: str = ""
    position: Position = START
    dense_version: str | None = None
    metrics: dict[str, float] = {}
    extras: dict[str, Any] = {}


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    sha256: str
    bytes: int


class Manifest(msgspec.Struct, frozen=True, kw_only=True):
    """What a snapshot is. `created` is wall-clock time in ms; `position` is a Position's text."""

    line: str
    version: str
    dense_version: str
    fingerprint: str
    position: str
    created: int
    metrics: dict[str, float | None]
    extras: dict[str, Any]
    files: dict[str, _File]
    format: int = 1


class _Sealed(msgspec.Struct, frozen=True):
    sha256: str
    manifest: msgspec.Raw


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded snapshot: every array is a private, writable copy. `table`: what `Table.load` takes, or None."""

    manifest: Manifest
    tensors: dict[str, NDArray[Any]]
    table: dict[str, NDArray[Any]] | None

    @property
    def position(self) -> Position:
        return Position.parse(self.manifest.position)


class Newest(msgspec.Struct, frozen=True):
    """The newest good version, None where there is none, and what was newer but damaged: version -> why."""

    version: str | None
    skipped: dict[str, str]


class Snapshots:
    """All model lines under one directory. Any number of readers; one writer per line at a time."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def save(
        self, line: str, tensors: Mapping[str, NDArray[Any]], table: Table | None, meta: SnapshotMeta | None = None
    ) -> str:
        """Write a snapshot; its version, which sorts after all earlier ones. Durable on return.

        Raises StoreError where another writer holds the line.
        """
        meta = meta or SnapshotMeta()
        with self._writing(line) as folder:
            version = self._next_version(line)
            staged = folder / f".new-{version}"
            staged.mkdir()
            files = {_DENSE: _write(staged / _DENSE, safetensors.numpy.save(_contiguous(tensors)))}
            if table is not None:
                files[_TABLE] = _write(staged / _TABLE, safetensors.numpy.save(_contiguous(table.state())))
            manifest = Manifest(
                line=line,
                version=version,
                dense_version=meta.dense_version or version,
                fingerprint=meta.fingerprint,
                position=str(meta.position),
                created=now_ms(),
                metrics={name: float(value) for name, value in meta.metrics.items()},
                extras=meta.extras,
                files=files,
            )
            _write(staged / _MANIFEST, _seal(manifest))
            _flush(staged)
            staged.rename(folder / version)
            _flush(folder)
        return version

    def versions(self, line: str) -> list[str]:
        """Every version on disk, oldest first, good or damaged."""
        folder = self._folder(line)
        if not folder.is_dir():
            return []
        return sorted(entry.name for entry in folder.iterdir() if _VERSION.fullmatch(entry.name))

    def latest(self, line: str) -> Newest:
        """The newest version whose files are whole, and which newer ones were skipped and why."""
        skipped: dict[str, str] = {}
        for version in reversed(self.versions(line)):
            try:
                self._checked(line, version, _hash_file)
            except StoreError as error:
                skipped[version] = str(error)
            except NotReady:  # deleted since it was listed
                continue
            else:
                return Newest(version, skipped)
        return Newest(None, skipped)

    def load(self, line: str, version: str) -> Snapshot:
        """The snapshot. Raises StoreError where a byte is not what was written, NotReady where it is absent."""
        contents: dict[str, bytes] = {}

        def read(path: Path) -> _File:
            # what is checked is what is parsed: the file is read once
            contents[path.name] = path.read_bytes()
            return _described(contents[path.name])

        manifest = self._checked(line, version, read)
        tensors = _parsed(contents[_DENSE], f"{version}/{_DENSE}")
        table = _parsed(contents[_TABLE], f"{version}/{_TABLE}") if _TABLE in contents else None
        return Snapshot(manifest=manifest, tensors=tensors, table=table)

    def manifest(self, line: str, version: str) -> Manifest:
        """The manifest alone, itself checked, its files not read. Raises StoreError, NotReady."""
        path = self._folder(line) / _known(version) / _MANIFEST
        try:
            manifest = _unseal(path.read_bytes(), f"{version}/{_MANIFEST}")
        except FileNotFoundError:
            if not path.parent.is_dir():
                raise NotReady(f"model line {line!r} has no snapshot {version}") from None
            raise StoreError(f"{version}: {_MANIFEST} is missing") from None
        except OSError as error:
            raise StoreError(f"{version}: {_MANIFEST} cannot be read: {error.strerror}") from error
        if (manifest.line, manifest.version) != (line, version):
            raise StoreError(f"{version}: its manifest is that of {manifest.line}/{manifest.version}")
        return manifest

    def manifests(self, line: str) -> list[Manifest]:
        """Manifests of all versions that can be read, newest first: the log must keep their positions."""
        found: list[Manifest] = []
        for version in reversed(self.versions(line)):
            try:
                found.append(self.manifest(line, version))
            except (StoreError, NotReady):  # damaged, or deleted meanwhile: `latest` names it
                continue
        return found

    def keep(self, line: str, n: int) -> list[str]:
        """Delete what is older than the n newest *good* versions; the versions deleted. Damaged newer ones stay."""
        if n < 1:
            raise ValueError("keep at least 1 snapshot")
        with self._writing(line) as folder:
            good = 0
            deleted: list[str] = []
            for version in reversed(self.versions(line)):
                if good >= n:
                    (folder / version).rename(folder / f".gone-{version}")
                    deleted.append(version)
                    continue
                try:
                    self._checked(line, version, _hash_file)
                    good += 1
                except StoreError:  # not counted, so that n good ones remain
                    continue
            _clear(folder)
            _flush(folder)
        return deleted

    def _checked(self, line: str, version: str, read: Any) -> Manifest:
        """The manifest, after `read(path) -> _File` of every file it names agrees with it."""
        manifest = self.manifest(line, version)
        for name, wanted in manifest.files.items():
            if name not in (_DENSE, _TABLE):
                raise StoreError(f"{version}: the manifest names a file {name!r} that is not a snapshot's")
            try:
                found: _File = read(self._folder(line) / version / name)
            except OSError as error:
                raise StoreError(f"{version}: {name} cannot be read: {error.strerror}") from error
            if found != wanted:
                raise StoreError(f"{version}: {name} is damaged ({found.bytes} bytes, {wanted.bytes} were written)")
        if _DENSE not in manifest.files:
            raise StoreError(f"{version}: the manifest names no {_DENSE}")
        return manifest

    def _next_version(self, line: str) -> str:
        before = self.versions(line)
        version = fresh_id("v")
        while before and version <= before[-1]:
            # the same millisecond, or a clock set back: sort after the newest all the same
            version = f"v-{int(before[-1][2:14], 16) + 1:012x}{version[14:]}"
        return version

    def _folder(self, line: str) -> Path:
        if not _LINE.fullmatch(line):
            raise ValueError(f"{line!r} is no model line: a-z, then a-z, 0-9, _ and -")
        return self.root / line

    @contextmanager
    def _writing(self, line: str) -> Iterator[Path]:
        folder = self._folder(line)
        folder.mkdir(parents=True, exist_ok=True)
        with (folder / ".writer").open("ab") as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise StoreError(f"model line {line!r} is being written by another process or thread") from None
            _clear(folder)
            yield folder


def open(url: str) -> Snapshots:
    """Snapshots at `file:///absolute/path`, `file:relative/path` or a plain path; else ConfigError."""
    parts = urlsplit(url)
    if parts.scheme not in ("", "file") or parts.netloc not in ("", "localhost"):
        raise ConfigError(f"storage.weights: {url!r} is not known; write file:///path/to/folder")
    path = unquote(parts.path) if parts.scheme else url
    if not path:
        raise ConfigError(f"storage.weights: {url!r} names no folder; write file:///path/to/folder")
    return Snapshots(Path(path))


def _known(version: str) -> str:
    if not _VERSION.fullmatch(version):
        raise ValueError(f"{version!r} is no snapshot version")
    return version


def _seal(manifest: Manifest) -> bytes:
    return _sealed(msgspec.json.format(msgspec.json.encode(manifest), indent=2))


def _sealed(body: bytes) -> bytes:
    return b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"manifest": ' + body + b"}\n"


def _unseal(data: bytes, name: str) -> Manifest:
    try:
        body = msgspec.json.decode(data, type=_Sealed).manifest
        # every byte counts, those outside the body too
        if data != _sealed(bytes(body)):
            raise StoreError(f"{name} is damaged")
        return msgspec.json.decode(body, type=Manifest)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise StoreError(f"{name} is damaged: {error}") from error


def _parsed(data: bytes, name: str) -> dict[str, NDArray[Any]]:
    try:
        return {key: np.array(array) for key, array in safetensors.numpy.load(data).items()}
    except (SafetensorError, ValueError, KeyError) as error:
        raise StoreError(f"{name} is damaged: {error}") from error


def _contiguous(arrays: Arrays) -> dict[str, NDArray[Any]]:
    # np.ascontiguousarray would turn a scalar into [1]; np.require keeps its shape
    return {name: np.require(array, requirements="C") for name, array in arrays.items()}


def _described(data: bytes) -> _File:
    return _File(hashlib.sha256(data).hexdigest(), len(data))


def _hash_file(path: Path) -> _File:
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256")
        return _File(digest.hexdigest(), file.tell())


def _write(path: Path, data: bytes) -> _File:
    with path.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    return _described(data)


def _flush(folder: Path) -> None:
    """Make the names in `folder` durable."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _clear(folder: Path) -> None:
    """Remove what killed writers left; only the holder of the line's lock may."""
    for entry in folder.iterdir():
        if entry.name.startswith((".new-", ".gone-")):
            shutil.rmtree(entry)
