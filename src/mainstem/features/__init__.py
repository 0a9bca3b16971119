"""Features: events -> state -> values, one definition each, used at join time and at request time.

A file per feature; `store.py` composes them over a state (`memory.py`, `lmdb.py`), `offline.py` says the same
in Ibis over the Parquet history.
"""

from __future__ import annotations

from pathlib import Path

from mainstem.features.memory import MemoryBackend
from mainstem.features.store import Store
from mainstem.features.view import View
from mainstem.schema.config import Config
from mainstem.schema.errors import ConfigError, StoreError
from mainstem.schema.protocols import Catalog

__all__ = ["Store", "View", "open"]


def open(url: str, config: Config, catalog: Catalog, *, readonly: bool = False) -> Store:
    """The feature store at `url`: `lmdb:///dir` (one writing process, many reading ones) or `memory://`.

    Raises ConfigError for another URL, StoreError where it cannot be opened, Incompatible where the state was
    made by another definition of the features (law 11).
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return Store(MemoryBackend(), config, catalog)
    if scheme == "lmdb" and rest:
        from mainstem.features.lmdb import LmdbBackend
        from mainstem.features.packing import Packing

        folder = Path(rest)
        if readonly and not folder.is_dir():
            raise StoreError(f"there is no feature state in {folder}")
        return Store(LmdbBackend(folder, Packing(config), readonly=readonly), config, catalog)
    raise ConfigError(f"storage.state: {url!r} is not a feature state; use lmdb:///DIR or memory://")
