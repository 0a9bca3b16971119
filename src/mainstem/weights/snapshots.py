"""Versions of model lines: snapshots and the deltas between them, written whole or not at all, checked when read.

    ROOT/LINE/VERSION/manifest.json             what it is, and the SHA-256 of everything else (and of itself)
                      dense.safetensors         the tensors of the network
                      table-NAME.safetensors    keys and rows of one table: what serving needs
                      training.safetensors      what only a trainer needs: optimizer state and whatever it adds
    ROOT/LINE/deltas/BASE/SEQUENCE.delta        what changed since; see `delta_store`, `deltas`
    ROOT/LINE/catalog/SHA256.safetensors        a trainer's catalogue as of a snapshot; see `kept_catalogs`
    ROOT/LINE/neighbours/SHA256.safetensors     weights between items; see `kept_neighbours`
    ROOT/LINE/.writer, .head, .trainer          locks, in local stores

A version exists if and only if its manifest does: it is written last and deleted first. So a writer killed at any
moment leaves the older versions as they were, and a folder without a manifest, which the next writer clears.
Tombstones of erased keys are not known here: whoever loads re-applies them (law 10).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

import msgspec

from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import Position
from mainstem.schema.time import now_ms
from mainstem.weights.delta_store import Deltas
from mainstem.weights.deltas import Delta
from mainstem.weights.files import Files, LocalFiles, open_files
from mainstem.weights.kept_catalogs import KeptCatalog, KeptCatalogs
from mainstem.weights.kept_neighbours import KeptNeighbours
from mainstem.weights.manifests import Manifest, Place, SnapshotMeta, line_folder
from mainstem.weights.table import Arrays, Table
from mainstem.weights.version_files import Snapshot, VersionFiles

__all__ = ["Manifest", "Newest", "Place", "Snapshot", "SnapshotMeta", "Snapshots", "Superseded", "open"]


class Superseded(StoreError):
    """The newest base of the line is not the writer's: somebody rolled back or published a full snapshot."""


class Newest(msgspec.Struct, frozen=True):
    """`version`: the newest that is whole, or None; `skipped`: newer ones -> why they are not."""

    version: str | None
    skipped: dict[str, str]


class Snapshots:
    """The versions of every model line in one store. Many readers; one writer per line at a time."""

    def __init__(self, files: Files | Path) -> None:
        self.files: Files = LocalFiles(files) if isinstance(files, Path) else files
        self.deltas = Deltas(self.files)
        self.catalogs = KeptCatalogs(self.files)
        self.neighbours = KeptNeighbours(self.files)
        self._versions = VersionFiles(self.files)

    @property
    def root(self) -> Path:
        """The folder of a local store."""
        if not isinstance(self.files, LocalFiles):
            raise StoreError("these weights rest in no local folder")
        return self.files.root

    # ---- reading ---------------------------------------------------------------------------------

    def versions(self, line: str) -> list[str]:
        """Every version in the store, oldest first, good or damaged."""
        return self._versions.listed(line)

    def manifest(self, line: str, version: str) -> Manifest:
        """The manifest alone, itself checked, its files not read. Raises StoreError, NotReady."""
        return self._versions.manifest(line, version)

    def manifests(self, line: str) -> list[Manifest]:
        """Manifests of all versions that are not damaged, newest first: the log must keep their positions.

        Raises StoreError where one cannot be read now: to go on as if it were not there would be wrong.
        """
        found: list[Manifest] = []
        for version in reversed(self._versions.folders(line)):
            try:
                found.append(self.manifest(line, version))
            except NotReady:  # being written, or deleted meanwhile
                continue
            except StoreError as error:
                if isinstance(error.__cause__, OSError):
                    raise
        return found

    def newest_base(self, line: str) -> str:
        """The base that `save` may be told to expect: of the versions that are not damaged; "" where there are none."""
        return max((manifest.base for manifest in self.manifests(line)), default="")

    def latest(self, line: str) -> Newest:
        """The newest version whose files are whole, and which newer ones were skipped and why. Reads all its bytes."""
        skipped: dict[str, str] = {}
        for version in reversed(self.versions(line)):
            try:
                self._versions.check(line, version)
            except StoreError as error:
                skipped[version] = str(error)
            except NotReady:  # deleted since it was listed
                continue
            else:
                return Newest(version, skipped)
        return Newest(None, skipped)

    def load(self, line: str, version: str, training: bool = False) -> Snapshot:
        """The snapshot; what only a trainer needs is read where `training`.

        Raises StoreError where a byte that is read is not what was written, NotReady where the version is absent. A
        StoreError whose cause is an OSError may pass; the others are for good.
        """
        return self._versions.load(line, version, training)

    def place(self, line: str) -> Place | None:
        """The newest place of the line: after the last delta of its newest base; None where it has no snapshot.

        Raises StoreError where that delta is damaged: the line then goes on with a new full snapshot.
        """
        newest: Place | None = None
        for manifest in self.manifests(line):
            if manifest.place.after(newest):
                newest = manifest.place
        if newest is None:
            return None
        numbers = self.deltas.sequences(line, newest.base)
        if numbers and numbers[-1] > newest.sequence:
            return self.deltas.load(line, newest.base, numbers[-1]).place
        return newest

    # ---- writing ---------------------------------------------------------------------------------

    def save(
        self,
        line: str,
        tensors: Arrays,
        tables: Mapping[str, Table | Arrays] | None = None,
        meta: SnapshotMeta | None = None,
        training: Arrays | None = None,
        *,
        expect: str | None = None,
    ) -> str:
        """Write a snapshot; its version, which sorts after all earlier ones. Durable on return.

        tables: by name, each a table or the arrays of its `state`; training: arrays that only a trainer needs;
        expect: the base that must be the newest in the store (`""`: no base at all), else Superseded. A snapshot that
        goes on with `meta.base` expects that one. Deltas may be published meanwhile, by another thread.

        Raises StoreError where another writer holds the line, where the store has no delta `meta.sequence`, or where
        nothing can be written; TypeError or ValueError, before anything is written, for what cannot be stored.
        """
        meta = meta or SnapshotMeta()
        msgspec.json.encode(meta.extras)
        if meta.base is not None:
            if expect not in (None, meta.base):
                raise ValueError(f"a snapshot that goes on with {meta.base} cannot expect {expect!r}")
            expect = meta.base
        states = {name: t if isinstance(t, Mapping) else t.state() for name, t in (tables or {}).items()}
        with self._writing(line):
            self._require(line, expect)
            chain = "" if meta.base is None else self._chain(line, meta.base, meta.sequence)
            version = self._next_version(line)
            with self._versions.whole_or_none(line, version):
                shapes, files = self._versions.put(line, version, tensors, states, training or {})
                manifest = Manifest(
                    line=line,
                    version=version,
                    base=meta.base or version,
                    sequence=meta.sequence if meta.base else 0,
                    chain=chain,
                    dense_version=meta.dense_version or version,
                    fingerprint=meta.fingerprint,
                    position=str(meta.position),
                    created=now_ms(),
                    metrics={name: float(value) for name, value in meta.metrics.items()},
                    extras=meta.extras,
                    tables=shapes,
                    files=files,
                )
            self._show(manifest, expect)
        return version

    def publish(self, line: str, delta: Delta) -> Place:
        """Add the next delta, durable on return; the place to go on from.

        Raises Superseded where its base is not the newest, StoreError where its number or its `previous` does not
        follow on, where it breaks what a delta promises, or where nothing can be written.
        """
        if delta.line != line:
            raise StoreError(f"a delta of line {delta.line!r} cannot be published in {line!r}")
        with self.deltas.head(line), _errors(line):
            self._require(line, delta.base)
            here = self.place(line)
            if here is None or (delta.sequence, delta.previous) != (here.sequence + 1, here.sha256):
                raise StoreError(
                    f"delta {delta.sequence} of {delta.base}, after {delta.previous[:12]}, does not follow on: the "
                    f"newest is {here.sequence if here else 0}, {here.sha256[:12] if here else 'none'}"
                )
            return self.deltas.add(line, delta).place

    def keep(self, line: str, snapshots: int, refused: int = 20) -> list[str]:
        """Delete what is older than the newest *good* `snapshots`; the versions deleted. Damaged newer ones stay.

        Of each base that is left, the deltas up to its oldest snapshot go too; kept catalogues and weights between
        items that no snapshot names; of refused deltas, all but the newest.
        """
        if snapshots < 1:
            raise ValueError("keep at least 1 snapshot")
        with self._writing(line):
            good = 0
            deleted: list[str] = []
            for version in reversed(self.versions(line)):
                if good >= snapshots:
                    self._versions.delete(line, version)
                    deleted.append(version)
                    continue
                try:
                    self._versions.check(line, version)
                    good += 1
                except StoreError as error:  # not counted, so that as many good ones remain
                    if isinstance(error.__cause__, OSError):
                        raise  # the store is away: what is good cannot be told now
            with self.deltas.head(line):
                self._drop_deltas(line)
                self.deltas.drop_refused(line, refused)
            manifests = self.manifests(line)
            kept = [KeptCatalog.of(manifest) for manifest in manifests]
            self.catalogs.drop(line, {catalog.sha256 for catalog in kept if catalog is not None})
            named = [self.neighbours.named(manifest.extras) for manifest in manifests]
            self.neighbours.drop(line, {file.sha256 for files in named for file in files.values()})
        return deleted

    def rollback(self, line: str, version: str, position: Position | None = None) -> str:
        """Publish a kept version again as a new base, for versions only move forward; the new version.

        position: of the log, from which training goes on; without it the kept one's. `extras["rolled_back"]` names the
        version gone back to, and the newest one before this. Raises StoreError, NotReady as `load` does.
        """
        with self._writing(line):
            source = self.manifest(line, version)
            newest = self.versions(line)[-1]
            new = self._next_version(line)
            with self._versions.whole_or_none(line, new):
                self._versions.copy(source, new)
            manifest = msgspec.structs.replace(
                source,
                version=new,
                base=new,
                sequence=0,
                chain="",
                position=source.position if position is None else str(position),
                created=now_ms(),
                extras={**source.extras, "rolled_back": {"to": version, "from": newest}},
            )
            self._show(manifest, None)
        return new

    def trainer_lock(self, line: str) -> AbstractContextManager[None]:
        """Be the line's one trainer. Raises StoreError, with its number, where another process is (local stores)."""
        held = f"model line {line!r} is being trained by another process or thread"
        return self.files.lock(f"{line_folder(line)}/.trainer", held)

    # ---- inside a write --------------------------------------------------------------------------

    @contextmanager
    def _writing(self, line: str) -> Iterator[None]:
        """Be the one who adds and deletes versions; held for as long as a snapshot takes."""
        held = f"model line {line!r} is being written by another process or thread"
        with self.files.lock(f"{line_folder(line)}/.writer", held), _errors(line):
            self._versions.clear(line)
            yield

    def _require(self, line: str, expect: str | None) -> None:
        if expect is None:
            return
        found = self.newest_base(line)
        if found != expect:
            raise Superseded(
                f"model line {line!r} has the newest base {found or 'none'}, and the writer's is {expect or 'none'}: "
                "start again from the newest snapshot"
            )

    def _show(self, manifest: Manifest, expect: str | None) -> None:
        """Write the manifest: from here on the version exists."""
        with self.deltas.head(manifest.line):
            with self._versions.whole_or_none(manifest.line, manifest.version):
                self._require(manifest.line, expect)
            # not taken back where it fails late: somebody may have seen it
            self._versions.put_manifest(manifest)

    def _chain(self, line: str, base: str, sequence: int) -> str:
        """SHA-256 of the place that a new snapshot of `base` stands at."""
        for manifest in self.manifests(line):
            if (manifest.base, manifest.sequence) == (base, sequence):
                return manifest.place.sha256
        try:
            return self.deltas.load(line, base, sequence).sha256
        except NotReady:
            raise StoreError(f"{base} has no delta {sequence}: publish it before a snapshot that holds it") from None

    def _next_version(self, line: str) -> str:
        before = self._versions.folders(line)
        version = fresh_id("v")
        while before and version <= before[-1]:
            # the same millisecond, or a clock set back: sort after the newest all the same
            version = f"v-{int(before[-1][2:14], 16) + 1:012x}{version[14:]}"
        return version

    def _drop_deltas(self, line: str) -> None:
        """Deltas that no snapshot needs: those that each base's oldest one holds, and those of bases without any."""
        oldest = dict.fromkeys(self.versions(line), 0)  # of one that cannot be read, in case that it is a base
        for manifest in self.manifests(line):
            if manifest.base != manifest.version:
                oldest.pop(manifest.version, None)
            oldest[manifest.base] = min(manifest.sequence, oldest.get(manifest.base, manifest.sequence))
        for base in self.deltas.bases(line):
            self.deltas.drop(line, base, oldest.get(base))


@contextmanager
def _errors(line: str) -> Iterator[None]:
    """A store that fails under a writer is a StoreError that names the line."""
    try:
        yield
    except OSError as error:
        raise StoreError(f"model line {line!r} cannot be written: {error.strerror or error}") from error


def open(url: str) -> Snapshots:
    """Snapshots at a plain path, `file:///absolute/path`, or any URL that fsspec knows (`s3://bucket/path`).

    Raises ConfigError where the URL is wrong, MissingExtra where the package that speaks its protocol is absent.
    """
    return Snapshots(open_files(url))
