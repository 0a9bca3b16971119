"""The strongest of dense weights, sparse."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

__all__ = ["strongest"]

# Rows looked at at once.
BLOCK = 256


def strongest(weights: NDArray[np.float32], most: int) -> csr_matrix:
    """The `most` weights of each row that are furthest from 0, of equal ones those of the first columns; zeros are
    none: float32 [n, m] -> [n, m], columns ascending.

    Of all choices of `most` weights a row it leaves the least sum of squares out.
    """
    rows, columns = weights.shape
    most = min(most, columns)
    places, counts = [np.zeros(0, np.int32)], [np.zeros(1, np.int64)]
    for start in range(0, rows, BLOCK):
        size = np.abs(weights[start : start + BLOCK])
        least = np.partition(size, columns - most, axis=1)[:, columns - most, None] if most else np.inf
        kept = size > least
        equal = (size == least) & (size > 0)
        # of those at the bound as many as there is room for, from the left
        kept |= equal & (np.cumsum(equal, axis=1) <= most - kept.sum(axis=1, keepdims=True))
        places.append(np.nonzero(kept)[1].astype(np.int32))
        counts.append(kept.sum(axis=1))
    indices, indptr = np.concatenate(places), np.cumsum(np.concatenate(counts))
    data = weights[np.repeat(np.arange(rows), np.diff(indptr)), indices]
    return csr_matrix((data, indices, indptr), shape=weights.shape)
