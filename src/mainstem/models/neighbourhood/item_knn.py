"""Item-based nearest neighbours: cosine with shrinkage."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix, vstack

__all__ = ["item_knn"]

# Entries of the product of a block of items with all items, at most: some 50 MB. One item may need as many as there
# are items.
BLOCK = 4_000_000


def item_knn(interactions: csr_matrix, *, shrink: float, neighbours: int) -> csr_matrix:
    """Weights between items by the users they share: float32 [items, items], at most `neighbours` in a row.

    What it is
        w[i, j] = x_i . x_j / (|x_i| |x_j| + shrink), x_i the column of item i: the cosine, lowered where it rests on
        little. Row i keeps its largest entries above 0, of equal ones those of the first items; the diagonal is 0.
    Inputs
        interactions [users, items], how much each user took each item, none of it negative; shrink >= 0, in the unit of
        a product of two columns (with ones: of users); neighbours >= 1.
    Requirements
        time: for each user the square of the number of their items. Memory beside input and result: 12 bytes for each
        of 4 million entries, or for each item where those are more. Raises ValueError.
    Relations
        a user's scores are their row of interactions times the weights. `ease` also knows what its neighbours know of
        each other, and does not count the same reason twice.
    Reference
        Deshpande & Karypis 2004, "Item-Based Top-N Recommendation Algorithms", section 4: a model of the k most similar
        of each item. With shrinkage it is the baseline "ItemKNN" of Ferrari Dacrema et al. 2019, "Are We Really Making
        Much Progress?", RecSys.
    """
    if not (shrink >= 0 and neighbours >= 1):
        raise ValueError(f"shrink {shrink} must be at least 0, neighbours {neighbours} at least 1")
    users = csr_matrix(interactions, dtype=np.float64, copy=True)
    users.sum_duplicates()
    if users.nnz and not users.data.min() >= 0:
        raise ValueError("interactions must not be negative, or not a number")
    of_items = users.T.tocsr()
    norms = np.sqrt(np.asarray(of_items.multiply(of_items).sum(axis=1))).ravel()
    items = len(norms)
    found = [
        _nearest(of_items[start:stop] @ users, start, norms, shrink, neighbours)
        for start, stop in _blocks(users, of_items)
    ]
    return vstack([*found, csr_matrix((0, items), dtype=np.float32)], format="csr", dtype=np.float32)


def _blocks(users: csr_matrix, of_items: csr_matrix) -> Iterator[tuple[int, int]]:
    """Runs of items whose products with all items have at most `BLOCK` entries, or one item."""
    items = of_items.shape[0]
    taken = csr_matrix((np.ones(of_items.nnz), of_items.indices, of_items.indptr), shape=of_items.shape)
    entries = np.minimum(taken @ np.diff(users.indptr).astype(np.float64), items)
    until = np.cumsum(entries)
    start = 0
    while start < items:
        before = until[start - 1] if start else 0.0
        stop = max(int(np.searchsorted(until, before + BLOCK, side="right")), start + 1)
        yield start, stop
        start = stop


def _nearest(
    products: csr_matrix, start: int, norms: NDArray[np.float64], shrink: float, neighbours: int
) -> csr_matrix:
    """The largest weights of each row of `products` [b, items], whose first row is that of item `start`."""
    rows = np.repeat(np.arange(products.shape[0]), np.diff(products.indptr))
    columns, data = products.indices, products.data
    kept = (columns != rows + start) & (data > 0)
    rows, columns, data = rows[kept], columns[kept], data[kept]
    weights = (data / (norms[rows + start] * norms[columns] + shrink)).astype(np.float32)
    ends = np.searchsorted(rows, np.arange(products.shape[0] + 1))
    chosen = np.ones(len(rows), np.bool_)
    for row in np.flatnonzero(np.diff(ends) > neighbours).tolist():
        at = slice(ends[row], ends[row + 1])
        chosen[at] = _largest(weights[at], columns[at], neighbours)
    rows, columns, weights = rows[chosen], columns[chosen], weights[chosen]
    nearest = csr_matrix((weights, (rows, columns)), shape=products.shape)
    nearest.sort_indices()
    return nearest


def _largest(weights: NDArray[np.float32], columns: NDArray[np.int32], most: int) -> NDArray[np.bool_]:
    """Mask of the `most` largest, of equal ones those of the first columns: [n], n > most."""
    least = np.partition(weights, len(weights) - most)[len(weights) - most]
    mask: NDArray[np.bool_] = weights > least
    equal = np.flatnonzero(weights == least)
    first = np.argsort(columns[equal], kind="stable")[: most - int(mask.sum())]
    mask[equal[first]] = True
    return mask
