"""Files beside the versions of a line, named by their contents: what several snapshots may share.

ROOT/LINE/FOLDER/SHA256.safetensors    arrays, named by the SHA-256 of the file's bytes

A snapshot names in its extras those that it needs. They are written before the manifest that names them, and
`Snapshots.keep` lets go of those that no snapshot names.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from typing import Any, Protocol

from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.weights import arrays
from mainstem.weights.files import TEMPORARY, Files, FileSum, Part, summed
from mainstem.weights.manifests import line_folder
from mainstem.weights.table import Arrays

__all__ = ["Beside", "Named"]

_FILE = re.compile(r"([0-9a-f]{64})\.safetensors")


class Named(Protocol):
    """What names a file: its SHA-256 in hex, and its length."""

    @property
    def sha256(self) -> str: ...

    @property
    def bytes(self) -> int: ...


class Beside:
    """Reads, writes and lists those in one folder of each line."""

    def __init__(self, files: Files, folder: str) -> None:
        self.files, self.folder = files, folder

    def put(self, line: str, contents: Arrays) -> FileSum:
        """Write one, durable on return, unless the line has it whole. Raises StoreError where it cannot be written."""
        found = summed(arrays.encode(contents))
        self._write(line, found, arrays.encode(contents))
        return found

    def load(self, line: str, named: Named) -> dict[str, NDArray[Any]]:
        """The arrays. Raises StoreError where it is not what was written, is missing or cannot be read now; the cause
        of the last is an OSError, which may pass."""
        return arrays.decode(self._bytes(line, named), self._shown(named))

    def copy(self, line: str, named: Named, to: str) -> None:
        """Let the line `to` have it too, checked on the way. Raises StoreError as `load` and `put` do."""
        self._write(to, named, [self._bytes(line, named)])

    def drop(self, line: str, named: Collection[str]) -> None:
        """Delete all but those of these SHA-256, and what killed writers left."""
        folder = f"{line_folder(line)}/{self.folder}"
        names = self.files.list(folder)
        matches = (_FILE.fullmatch(name) for name in names)
        old = [match[0] for match in matches if match and match[1] not in named]
        left = [name for name in names if name.startswith(TEMPORARY)]
        self.files.delete(*(f"{folder}/{name}" for name in (*old, *left)))

    def _write(self, line: str, named: Named, parts: Iterable[Part]) -> None:
        name = self._name(line, named.sha256)
        try:
            if self.files.exists(name):
                if self.files.digest(name) == FileSum(named.sha256, named.bytes):
                    return
                self.files.delete(name)  # damaged: whoever trains again mends it
            try:
                self.files.put(name, parts)
            except FileExistsError:
                if not self.files.exists(name):  # something else is in the way
                    raise
                # written by another at this moment: it is the same
        except OSError as error:
            raise StoreError(f"{self.folder} of {line!r} cannot be written: {error.strerror or error}") from error

    def _bytes(self, line: str, named: Named) -> bytearray:
        shown = self._shown(named)
        if not _FILE.fullmatch(f"{named.sha256}.safetensors"):
            raise StoreError(f"{named.sha256!r} is no name of a file in {self.folder}")
        try:
            data = self.files.get(self._name(line, named.sha256), named.bytes)
        except FileNotFoundError:
            raise StoreError(f"{shown} is missing") from None
        except OSError as error:
            raise StoreError(f"{shown} cannot be read: {error.strerror or error}") from error
        if FileSum.of(data) != FileSum(named.sha256, named.bytes):
            raise StoreError(f"{shown} is damaged")
        return data

    def _shown(self, named: Named) -> str:
        return f"{self.folder}/{named.sha256}.safetensors"

    def _name(self, line: str, sha256: str) -> str:
        return f"{line_folder(line)}/{self.folder}/{sha256}.safetensors"
