"""The catalogue: entities by key, with attributes, text and availability; a view of the log (law 1).

`memory.py` is the columnar view that every read uses and the oracle of the others; `lmdb.py` keeps
the same entities on disk; `revisions.py` says which of two records about one entity wins;
`bare.py` makes the entities that only events know of; `kept.py` turns a whole catalogue into arrays and back.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mainstem.catalog.bare import EventEntities
from mainstem.catalog.kept import State, columns_fingerprint, from_arrays, to_arrays
from mainstem.catalog.memory import MemoryCatalog
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.errors import ConfigError

__all__ = ["EventEntities", "MemoryCatalog", "State", "columns_fingerprint", "from_arrays", "open", "to_arrays"]


def open(url: str, *, entities: Mapping[str, EntityTypeConfig], readonly: bool = False) -> MemoryCatalog:
    """The catalogue at `url`: `memory://`, or `lmdb:///absolute/folder` (`lmdb://folder` is relative).

    `entities` says which attributes are columns; changing it needs no rebuild, columns are made at
    opening. `readonly` opens a durable catalogue beside the one process that writes it; call
    `refresh()` to catch up. Raises ConfigError for another scheme, StoreError for a damaged store.
    """
    scheme, _, rest = url.partition("://")
    if scheme == "memory":
        return MemoryCatalog(entities)
    if scheme == "lmdb" and rest:
        from mainstem.catalog.lmdb import LmdbCatalog

        folder = Path("/" + rest.lstrip("/")) if rest.startswith("/") else Path(rest)
        return LmdbCatalog(folder, entities, readonly=readonly)
    raise ConfigError(f"{url!r} is not a catalogue; allowed: memory://, lmdb:///folder")
