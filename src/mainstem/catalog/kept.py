"""A whole catalogue as plain arrays, to be kept beside what was learned with it, and back.

revision.keys      uint64 [m]   of all that was ever heard of, in the order in which it was
revision.sizes     uint32 [m]   bytes of each one's revision
revision.bytes     uint8 [..]   MessagePack (`revisions.py`), one after the other; also of what was deleted
column.rows        uint64 [n]   keys of the entities that exist; the other columns are by their side
column.NAME        what `columns.py` holds of them, so that no record needs be decoded at a start
names              uint8 [..]   JSON: [entity types by their code, tenants]
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import digest128
from mainstem.schema.position import Position

__all__ = ["State", "columns_fingerprint", "from_arrays", "to_arrays"]


@dataclass(frozen=True, slots=True)
class State:
    """What `MemoryCatalog.state` gives: revisions by key, columns by name, entity types by code, tenants."""

    revisions: dict[int, bytes]
    columns: dict[str, NDArray[Any]]
    types: list[str]
    tenants: list[str]
    position: Position


def columns_fingerprint(entities: Mapping[str, EntityTypeConfig]) -> str:
    """Of what the columns are made by."""
    made_by = {name: sorted(kind.attributes.items()) for name, kind in sorted(entities.items())}
    return digest128(repr(made_by)).hex()


def to_arrays(state: State) -> dict[str, NDArray[Any]]:
    """The arrays of a state, its position aside."""
    revisions = state.revisions
    return {
        "revision.keys": np.fromiter(revisions, np.uint64, len(revisions)),
        "revision.sizes": np.fromiter(map(len, revisions.values()), np.uint32, len(revisions)),
        "revision.bytes": np.frombuffer(b"".join(revisions.values()), np.uint8),
        "names": np.frombuffer(msgspec.json.encode([state.types, state.tenants]), np.uint8),
        **{f"column.{name}": column for name, column in state.columns.items()},
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]], position: Position) -> State:
    """Inverse of `to_arrays`. Raises StoreError where the arrays do not fit each other."""
    try:
        types, tenants = msgspec.json.decode(arrays["names"].tobytes(), type=tuple[list[str], list[str]])
        revisions = _revisions(arrays["revision.keys"], arrays["revision.sizes"], arrays["revision.bytes"])
    except (KeyError, ValueError, msgspec.MsgspecError) as error:
        raise StoreError(f"a kept catalogue is no catalogue: {error!r}") from error
    columns = {name.removeprefix("column."): array for name, array in arrays.items() if name.startswith("column.")}
    return State(revisions, columns, types, tenants, position)


def _revisions(keys: NDArray[Any], sizes: NDArray[Any], data: NDArray[Any]) -> dict[int, bytes]:
    found = [(array.dtype, array.ndim) for array in (keys, sizes, data)]
    if found != [(np.dtype(np.uint64), 1), (np.dtype(np.uint32), 1), (np.dtype(np.uint8), 1)]:
        raise ValueError(f"its revisions are {found}")
    ends = np.cumsum(sizes, dtype=np.int64).tolist()
    if len(keys) != len(ends) or len(data) != (ends[-1] if ends else 0):
        raise ValueError("its revisions do not fit each other")
    whole, start, out = data.tobytes(), 0, dict[int, bytes]()
    for key, end in zip(keys.tolist(), ends, strict=True):
        out[key] = whole[start:end]
        start = end
    return out
