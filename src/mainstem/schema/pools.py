"""Candidate pools as bytes for the log, and back.

Input by input and compressed: many inputs of a request are the user's and the same in every row, so a pool of 500
candidates with 119 inputs takes some 100 KB, two fifths of its plain size. (Shuffling bytes, as for files of one
number each, made it a third larger.)
"""

from __future__ import annotations

import zlib

import numpy as np

from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.schema.records import Pool

__all__ = ["pack_pool", "unpack_pool"]

# Speed counts: higher levels gain a few percent here.
_LEVEL = 1


def pack_pool(keys: Keys, inputs: Floats) -> Pool:
    """keys uint64 [n]; inputs float32 [n, f]: what the ranking network ate of each."""
    columns = np.ascontiguousarray(inputs.T, "<f4")
    return Pool(keys=keys.astype("<u8").tobytes(), inputs=zlib.compress(columns.tobytes(), _LEVEL))


def unpack_pool(pool: Pool, width: int) -> tuple[Keys, Floats]:
    """Keys uint64 [n] and inputs float32 [n, width]. Raises InvalidRecord where the bytes are not that."""
    keys = np.frombuffer(pool.keys, "<u8").astype(np.uint64) if len(pool.keys) % 8 == 0 else None
    try:
        values = zlib.decompress(pool.inputs)
    except zlib.error as error:
        raise InvalidRecord("pool", f"its inputs are damaged: {error}") from error
    if keys is None or len(values) != 4 * len(keys) * width:
        raise InvalidRecord(
            "pool", f"{len(pool.keys)} bytes of keys and {len(values)} of inputs do not fit {width} inputs"
        )
    return keys, np.ascontiguousarray(np.frombuffer(values, "<f4").reshape(width, len(keys)).T, np.float32)
