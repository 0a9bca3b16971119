"""Catalogues that trainers keep beside their snapshots, so that a start needs not read the whole log for one.

ROOT/LINE/catalog/SHA256.safetensors    see `beside`

What is in it is `catalog.kept`'s to say. It is a copy of what the log holds: whoever cannot read it reads the log.
"""

from __future__ import annotations

from typing import Any

import msgspec

from mainstem.weights.beside import Beside
from mainstem.weights.files import Files
from mainstem.weights.manifests import Manifest

__all__ = ["KeptCatalog", "KeptCatalogs"]

_EXTRA = "catalog"


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


class KeptCatalogs(Beside):
    """Those of every line."""

    def __init__(self, files: Files) -> None:
        super().__init__(files, "catalog")
