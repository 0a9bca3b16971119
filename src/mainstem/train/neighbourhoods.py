"""Weights between items for the sources that read such: made where a canvas asks, kept beside snapshots, loaded.

How they are computed `item_weights` says. It is loaded on use: a server never needs it, nor its scipy.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

from mainstem.index import Neighbourhood
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, SourceName
from mainstem.schema.errors import StoreError
from mainstem.schema.protocols import Catalog
from mainstem.weights import KeptNeighbours, Manifest

__all__ = ["NEIGHBOURHOODS", "bring", "keep", "load", "neighbourhoods"]

_log = logging.getLogger(__name__)

NEIGHBOURHOODS: tuple[SourceName, ...] = ("item_knn", "ease")
"""The sources that read weights between items."""


def neighbourhoods(config: Config, events: EventBatch, catalog: Catalog) -> dict[str, Neighbourhood]:
    """From `events`, those that a canvas names; where none is named nothing is computed."""
    named = [name for name in NEIGHBOURHOODS if config.asks(name)]
    if not named:
        return {}
    from mainstem.train.item_weights import item_weights

    return item_weights(named, config, events, catalog)


def keep(store: KeptNeighbours, line: str, found: Mapping[str, Neighbourhood]) -> dict[str, Any]:
    """Keep them beside the snapshots of `line`; what the extras of one say of them. Raises StoreError."""
    return store.extras({name: store.put(line, one.arrays()) for name, one in found.items()})


def load(store: KeptNeighbours, manifest: Manifest, config: Config) -> dict[str, Neighbourhood | str]:
    """Those that a canvas names, of a snapshot: each, or why there is none.

    A damaged or missing file costs that source alone. Raises StoreError where one cannot be read now (a disk that is
    away): the snapshot lies in the same store, and is tried again.
    """
    named = store.named(manifest.extras)
    found: dict[str, Neighbourhood | str] = {}
    for name in NEIGHBOURHOODS:
        if not config.asks(name):
            continue
        if name not in named:
            found[name] = f"{manifest.version} was trained without it: run `mainstem train`"
            continue
        try:
            found[name] = Neighbourhood.of(store.load(manifest.line, named[name]), f"neighbours/{named[name].sha256}")
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise
            _log.error("source %s of %s is left out: %s", name, manifest.version, error)
            found[name] = f"{error}: run `mainstem train`"
    return found


def bring(store: KeptNeighbours, extras: Mapping[str, Any], line: str, to: str) -> None:
    """Let the line `to` have what the extras of a snapshot of `line` name. What is damaged or missing is left behind,
    with a word in the log; raises StoreError where the store cannot be used now."""
    for name, file in store.named(extras).items():
        try:
            store.copy(line, file, to)
        except StoreError as error:
            if isinstance(error.__cause__, OSError):
                raise
            _log.error("source %s is left out of %r: %s", name, to, error)
