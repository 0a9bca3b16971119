"""Weights between items beside snapshots: what the sources `item_knn` and `ease` read, one file each.

ROOT/LINE/neighbours/SHA256.safetensors    see `beside`

What is in it is `index.neighbourhood`'s to say. It is made by a training from the whole log, and is the same in every
snapshot that goes on from that one.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import msgspec

from mainstem.weights.beside import Beside
from mainstem.weights.files import Files, FileSum

__all__ = ["KeptNeighbours"]

_EXTRA = "neighbours"


class KeptNeighbours(Beside):
    """Those of every line."""

    def __init__(self, files: Files) -> None:
        super().__init__(files, "neighbours")

    @staticmethod
    def named(extras: Mapping[str, Any]) -> dict[str, FileSum]:
        """By source, what the extras of a snapshot name; none where they say something else than this release."""
        try:
            return msgspec.convert(extras.get(_EXTRA, {}), dict[str, FileSum])
        except msgspec.ValidationError:
            return {}

    @staticmethod
    def extras(files: Mapping[str, FileSum]) -> dict[str, Any]:
        """For the extras of a snapshot: what `named` reads."""
        return {_EXTRA: msgspec.to_builtins(dict(files))} if files else {}
