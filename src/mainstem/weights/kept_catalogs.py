"""Catalogues that trainers keep beside their snapshots, so that a start needs not read the whole log for one.

ROOT/LINE/catalog/SHA256.safetensors    named by the SHA-256 of its bytes; several snapshots may name one

What is in it is `catalog.kept`'s to say. It is a copy of what the log holds: whoever cannot read it reads the log.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from typing import Any

import msgspec
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.weights import arrays
from mainstem.weights.files import TEMPORARY, Files, FileSum, summed
from mainstem.weights.manifests import Manifest, line_folder
from mainstem.weights.table import Arrays

__all__ = ["KeptCatalog", "KeptCatalogs"]

_EXTRA = "catalog"
_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")


class KeptCatalog(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What the extras of a snapshot say of the catalogue that is kept beside it.

    sha256, bytes: of its file; position: the log that it has seen; fingerprint: of the rule by which it was made;
    created: wall-clock time in ms at which it was right.
    """

    sha256: str
    bytes: int
    position: str
    fingerprint: str
    created: int

    @classmethod
    def of(cls, manifest: Manifest) -> KeptCatalog | None:
        """That of a snapshot; None where none is kept, or where it says something else than this release."""
        try:
            return msgspec.convert(manifest.extras[_EXTRA], cls)
        except (KeyError, msgspec.ValidationError):
            return None

    def extras(self) -> dict[str, Any]:
        """For the extras of a snapshot."""
        return {_EXTRA: msgspec.to_builtins(self)}


class KeptCatalogs:
    """Reads, writes and lists them; `Snapshots.keep` lets go of those that no snapshot names."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def put(self, line: str, contents: Arrays) -> FileSum:
        """Write one, durable on return, unless the line has it. Raises StoreError where it cannot be written."""
        found = summed(arrays.encode(contents))
        name = _name(line, found.sha256)
        try:
            if not self.files.exists(name):
                self.files.put(name, arrays.encode(contents))
        except FileExistsError:  # written by another at this moment: it is the same
            return found
        except OSError as error:
            raise StoreError(f"catalog of {line!r} cannot be written: {error.strerror or error}") from error
        return found

    def load(self, line: str, kept: KeptCatalog) -> dict[str, NDArray[Any]]:
        """The arrays. Raises StoreError where it is not what was written, is missing or cannot be read now."""
        shown = f"catalog/{kept.sha256}.safetensors"
        if not _FILE.fullmatch(f"{kept.sha256}.safetensors"):
            raise StoreError(f"{kept.sha256!r} is no name of a kept catalogue")
        try:
            data = self.files.get(_name(line, kept.sha256), kept.bytes)
        except FileNotFoundError:
            raise StoreError(f"{shown} is missing") from None
        except OSError as error:
            raise StoreError(f"{shown} cannot be read: {error.strerror or error}") from error
        if FileSum.of(data) != FileSum(kept.sha256, kept.bytes):
            raise StoreError(f"{shown} is damaged")
        return arrays.decode(data, shown)

    def drop(self, line: str, named: Collection[str]) -> None:
        """Delete all but those of these SHA-256, and what killed writers left."""
        folder = f"{line_folder(line)}/catalog"
        names = self.files.list(folder)
        matches = (_FILE.fullmatch(name) for name in names)
        old = [match[0] for match in matches if match and match[1] not in named]
        left = [name for name in names if name.startswith(TEMPORARY)]
        self.files.delete(*(f"{folder}/{name}" for name in (*old, *left)))


def _name(line: str, sha256: str) -> str:
    return f"{line_folder(line)}/catalog/{sha256}.safetensors"
