"""A whole catalogue as plain arrays, to be kept beside what was learned with it, and back.

keys       uint64 [n]   in the order in which they were first heard of
sizes      uint32 [n]   bytes of each key's revision
revisions  uint8 [sum(sizes)]   MessagePack (`revisions.py`), one after the other; also of what was deleted
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError

__all__ = ["from_arrays", "to_arrays"]

_DTYPES = {"keys": np.dtype(np.uint64), "sizes": np.dtype(np.uint32), "revisions": np.dtype(np.uint8)}


def to_arrays(revisions: Mapping[int, bytes]) -> dict[str, NDArray[Any]]:
    """The arrays of what `MemoryCatalog.revisions` gave."""
    return {
        "keys": np.fromiter(revisions, np.uint64, len(revisions)),
        "sizes": np.fromiter(map(len, revisions.values()), np.uint32, len(revisions)),
        "revisions": np.frombuffer(b"".join(revisions.values()), np.uint8),
    }


def from_arrays(arrays: Mapping[str, NDArray[Any]]) -> dict[int, bytes]:
    """What `MemoryCatalog.load` takes. Raises StoreError where the arrays do not fit each other."""
    found = {name: array.dtype for name, array in arrays.items() if array.ndim == 1}
    if found != _DTYPES or len(arrays) != len(_DTYPES):
        raise StoreError(f"a kept catalogue holds {', '.join(sorted(arrays)) or 'nothing'}: it is no catalogue")
    ends = np.cumsum(arrays["sizes"], dtype=np.int64)
    total = int(ends[-1]) if len(ends) else 0
    if len(arrays["keys"]) != len(ends) or len(arrays["revisions"]) != total:
        raise StoreError("a kept catalogue's arrays do not fit each other")
    data, start, out = arrays["revisions"].tobytes(), 0, dict[int, bytes]()
    for key, end in zip(arrays["keys"].tolist(), ends.tolist(), strict=True):
        out[key] = data[start:end]
        start = end
    return out
