"""What every index shares: checks at the border, all inner products of a query, and the true top of them.

One query's scores come from faiss's `fvec_inner_products_ny`: one thread, no interpreter lock held, and
the same kernel for each row, so equal vectors score equal up to the last bit wherever they lie. On 92k x 64 it takes as
long as numpy's product on one thread (0.83 ms) and less than `IndexFlatIP` (1.0 ms); the products that spread
over threads win only on an idle machine, and lose tenfold when the threads are wanted elsewhere. So no
thread setting is touched here: a server gets its parallelism from answering several slates at once.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import NO_KEY, Keys
from mainstem.schema.protocols import Floats, Scored

__all__ = ["Allowed", "best", "checked_batch", "checked_query", "engine", "inner_products"]

# What SWIG generates is mostly missing from faiss's stubs.
engine: Any = faiss

Allowed = Callable[[Keys], NDArray[np.bool_]]

# Beyond this a product of two vectors may overflow float32, and an infinite score cannot be ordered.
LARGEST = 1e15


def checked_query(query: Floats, dim: int) -> Floats:
    """float32 [dim], contiguous. Raises ValueError where it has another shape or is not finite."""
    query = np.ascontiguousarray(query, np.float32)
    if query.shape != (dim,):
        raise ValueError(f"query has shape {query.shape}, must be ({dim},)")
    if not np.abs(query).max() <= LARGEST:
        raise ValueError(f"query must be finite, and below {LARGEST:g}")
    return query


def checked_batch(keys: Keys, vectors: Floats, dim: int) -> tuple[Keys, Floats]:
    """uint64 [n] and float32 [n, dim]; of a key that comes twice the last vector stays. Raises ValueError."""
    keys = np.ascontiguousarray(keys, np.uint64)
    vectors = np.ascontiguousarray(vectors, np.float32)
    if keys.ndim != 1 or vectors.shape != (len(keys), dim):
        raise ValueError(f"keys {keys.shape} and vectors {vectors.shape} must be (n,) and (n, {dim})")
    if not len(keys):
        return keys, vectors
    if (keys == NO_KEY).any():
        raise ValueError(f"key {NO_KEY} means none and cannot be indexed")
    if not np.abs(vectors).max() <= LARGEST:
        raise ValueError(f"vectors must be finite, and below {LARGEST:g}")
    last = len(keys) - 1 - np.unique(keys[::-1], return_index=True)[1]
    if len(last) < len(keys):
        last.sort()
        keys, vectors = keys[last], vectors[last]
    return keys, vectors


def inner_products(matrix: Floats, query: Floats) -> Floats:
    """matrix [n, d] (contiguous), query [d] -> [n]."""
    scores = np.empty(len(matrix), np.float32)
    if len(matrix):
        pointer = engine.swig_ptr
        engine.fvec_inner_products_ny(pointer(scores), pointer(query), pointer(matrix), matrix.shape[1], len(matrix))
    return scores


def best(keys: Keys, scores: Floats, limit: int, allowed: Allowed | None = None) -> Scored:
    """The `limit` best of keys [n], scores [n], that `allowed` lets pass; equal scores by ascending key.

    Exact also when filtered: `allowed` sees the best first, and more of them only while too few have passed.
    """
    rows = _top(scores, limit) if allowed is None else _top_allowed(keys, scores, limit, allowed)
    order = np.lexsort((keys[rows], -scores[rows]))[:limit]
    return Scored(keys[rows[order]], scores[rows[order]])


def _top(scores: Floats, size: int) -> NDArray[np.intp]:
    """Rows of the `size` largest scores [n], and of all that equal the smallest of them."""
    if size >= len(scores):
        return np.arange(len(scores))
    return np.flatnonzero(scores >= np.partition(scores, len(scores) - size)[len(scores) - size])


def _top_allowed(keys: Keys, scores: Floats, limit: int, allowed: Allowed) -> NDArray[np.intp]:
    # Whatever lies outside of _top scores strictly less than all of it: once `limit` of it have passed, the
    # best that pass are among them.
    size = max(2 * limit, 256)
    while True:
        rows = _top(scores, size)
        passed = rows[allowed(keys[rows])]
        if len(passed) >= limit or len(rows) == len(scores):
            return passed[_top(scores[passed], limit)]
        expected = 2 * limit * len(rows) // (len(passed) + 1)
        size = expected if expected < len(scores) // 4 else len(scores)
