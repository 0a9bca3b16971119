"""The files of one version: how its arrays are laid out, written, checked and read."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.position import Position
from mainstem.schema.time import DAY, now_ms
from mainstem.weights import arrays
from mainstem.weights.files import TEMPORARY, Files, FileSum, LocalFiles
from mainstem.weights.manifests import (
    NAME,
    Manifest,
    Place,
    TableShape,
    is_version,
    line_folder,
    seal,
    unseal,
    version_folder,
)
from mainstem.weights.table import SERVED, Arrays

__all__ = ["Snapshot", "VersionFiles"]

_MANIFEST, _DENSE, _TRAINING = "manifest.json", "dense.safetensors", "training.safetensors"
_MOST_MANIFEST = 1 << 28


class Snapshot(msgspec.Struct, frozen=True, kw_only=True):
    """A loaded snapshot: every array is private and writable.

    tables: name -> what `Table.load` takes: keys and values, and all the rest where it was loaded for training;
    training: the arrays that the trainer added; empty where it was not loaded for training.
    """

    manifest: Manifest
    tensors: dict[str, NDArray[Any]]
    tables: dict[str, dict[str, NDArray[Any]]]
    training: dict[str, NDArray[Any]]

    @property
    def position(self) -> Position:
        return Position.parse(self.manifest.position)

    @property
    def place(self) -> Place:
        """Where deltas go on from here."""
        return self.manifest.place


class VersionFiles:
    """Reads and writes the folder of a version; who may, `Snapshots` decides."""

    def __init__(self, files: Files) -> None:
        self.files = files

    # ---- which there are -------------------------------------------------------------------------

    def folders(self, line: str) -> list[str]:
        """Folders named like a version, oldest first, with a manifest or without."""
        return [name for name in self.files.list(line_folder(line)) if is_version(name)]

    def listed(self, line: str) -> list[str]:
        """Versions, oldest first."""
        return [version for version in self.folders(line) if self.exists(line, version)]

    def exists(self, line: str, version: str) -> bool:
        return self.files.exists(f"{line}/{version}/{_MANIFEST}")

    # ---- reading ---------------------------------------------------------------------------------

    def manifest(self, line: str, version: str) -> Manifest:
        """See `Snapshots.manifest`."""
        shown = f"{version_folder(version)}/{_MANIFEST}"
        try:
            manifest = unseal(self.files.get(f"{line_folder(line)}/{shown}", _MOST_MANIFEST), shown)
        except FileNotFoundError:
            raise NotReady(f"model line {line!r} has no snapshot {version}") from None
        except OSError as error:
            raise _unreadable(shown, error) from error
        if (manifest.line, manifest.version) != (line, version):
            raise StoreError(f"{version}: its manifest is that of {manifest.line}/{manifest.version}")
        wanted = {_DENSE, *(_table_file(table) for table in manifest.tables)}
        odd = (manifest.files.keys() - {_TRAINING}) ^ wanted
        if odd:
            raise StoreError(f"{version}: its manifest is damaged, it should not lack or name {', '.join(sorted(odd))}")
        return manifest

    def load(self, line: str, version: str, training: bool) -> Snapshot:
        """See `Snapshots.load`."""
        manifest = self.manifest(line, version)
        tensors = self._arrays(manifest, _DENSE)
        tables: dict[str, dict[str, NDArray[Any]]] = {}
        for name, shape in manifest.tables.items():
            tables[name] = self._arrays(manifest, _table_file(name))
            _fits(tables[name], shape, f"{version}/{_table_file(name)}")
        own: dict[str, NDArray[Any]] = {}
        if training and _TRAINING in manifest.files:
            for path, array in self._arrays(manifest, _TRAINING).items():
                kind, _, name = path.partition(".")
                table, _, part = name.partition(".")
                if kind == "run":
                    own[name] = array
                elif kind == "table" and table in tables and part not in SERVED:
                    tables[table][part] = array
                else:
                    raise StoreError(f"{version}/{_TRAINING} is damaged: {path!r} does not belong there")
        return Snapshot(manifest=manifest, tensors=tensors, tables=tables, training=own)

    def check(self, line: str, version: str) -> None:
        """Raises StoreError unless every byte is what was written, NotReady where the version is absent."""
        manifest = self.manifest(line, version)
        for name, wanted in manifest.files.items():
            try:
                found = self.files.digest(f"{line}/{version}/{name}")
            except OSError as error:
                raise self._lost(manifest, name, error) from _passing(error)
            _same(found, wanted, f"{version}/{name}")

    # ---- writing ---------------------------------------------------------------------------------

    @contextmanager
    def whole_or_none(self, line: str, version: str) -> Iterator[None]:
        """What was written of a version is removed where its writing fails."""
        try:
            yield
        except BaseException:
            self.delete(line, version)
            raise

    def put(
        self, line: str, version: str, tensors: Arrays, states: Mapping[str, Arrays], training: Arrays
    ) -> tuple[dict[str, TableShape], dict[str, FileSum]]:
        """Write all but the manifest, for which it returns what `tables` and `files` shall be."""
        contents: dict[str, Arrays] = {_DENSE: tensors}
        own = {f"run.{name}": array for name, array in training.items()}
        shapes = {}
        for name, state in states.items():
            if not NAME.fullmatch(name):
                raise ValueError(f"{name!r} is no name of a table: a-z, then a-z, 0-9, _ and -")
            contents[_table_file(name)] = {part: state[part] for part in SERVED}
            own |= {f"table.{name}.{part}": array for part, array in state.items() if part not in SERVED}
            shapes[name] = TableShape(state["values"].shape[1], len(state["keys"]))
        if own:
            contents[_TRAINING] = own
        files = {name: self.files.put(f"{line}/{version}/{name}", arrays.encode(a)) for name, a in contents.items()}
        return shapes, files

    def copy(self, source: Manifest, version: str) -> None:
        """Write all but the manifest as it is in `source`, each file checked on the way."""
        for name in source.files:
            self.files.put(f"{source.line}/{version}/{name}", [self._bytes(source, name)])

    def put_manifest(self, manifest: Manifest) -> None:
        self.files.put(f"{manifest.line}/{manifest.version}/{_MANIFEST}", [seal(manifest)])

    def delete(self, line: str, version: str) -> None:
        """The manifest first: what is left of a killed deletion is no version."""
        self.files.delete(f"{line}/{version}/{_MANIFEST}")
        self.files.delete(f"{line}/{version}")

    def clear(self, line: str) -> None:
        """Remove what killed writers left; only the holder of the line's writing lock may.

        Without locks a folder without manifest may be another's work going on: it goes a day after it was begun.
        """
        folder = line_folder(line)
        for name in self.files.list(folder):
            if name.startswith(TEMPORARY):
                self.files.delete(f"{folder}/{name}")
            elif is_version(name) and not self.exists(line, name):
                begun = int(name[2:14], 16)
                if isinstance(self.files, LocalFiles) or now_ms() - begun > DAY:
                    self.files.delete(f"{folder}/{name}")

    # ---- one file --------------------------------------------------------------------------------

    def _bytes(self, manifest: Manifest, name: str) -> bytearray:
        """What is checked is what is parsed: the file is read once."""
        wanted, shown = manifest.files[name], f"{manifest.version}/{name}"
        try:
            data = self.files.get(f"{manifest.line}/{shown}", wanted.bytes)
        except OSError as error:
            raise self._lost(manifest, name, error) from _passing(error)
        _same(FileSum.of(data), wanted, shown)
        return data

    def _arrays(self, manifest: Manifest, name: str) -> dict[str, NDArray[Any]]:
        return arrays.decode(self._bytes(manifest, name), f"{manifest.version}/{name}")

    def _lost(self, manifest: Manifest, name: str, error: OSError) -> StoreError | NotReady:
        """What to raise for a file of a manifest that was read."""
        if not isinstance(error, FileNotFoundError):
            return _unreadable(f"{manifest.version}/{name}", error)
        if self.exists(manifest.line, manifest.version):
            return StoreError(f"{manifest.version}/{name} is missing")
        return NotReady(f"model line {manifest.line!r} has no snapshot {manifest.version} any more")


def _table_file(name: str) -> str:
    return f"table-{name}.safetensors"


def _unreadable(name: str, error: OSError) -> StoreError:
    return StoreError(f"{name} cannot be read: {error.strerror or error}")


def _passing(error: OSError) -> OSError | None:
    """The cause to name: an absent file is no passing trouble."""
    return None if isinstance(error, FileNotFoundError) else error


def _same(found: FileSum, wanted: FileSum, name: str) -> None:
    if found != wanted:
        raise StoreError(f"{name} is damaged ({found.bytes} bytes, {wanted.bytes} were written)")


def _fits(state: Arrays, shape: TableShape, name: str) -> None:
    found = {part: (array.dtype, array.shape) for part, array in state.items()}
    keys, values = (np.dtype(np.uint64), (shape.rows,)), (np.dtype(np.float32), (shape.rows, shape.dim))
    if found != {"keys": keys, "values": values}:
        raise StoreError(f"{name} is damaged: it does not hold keys and values of {shape.rows} rows of {shape.dim}")
