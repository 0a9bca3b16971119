"""EASE: a linear autoencoder whose diagonal is 0, in closed form."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import lapack
from scipy.sparse import csr_matrix

__all__ = ["MOST_ITEMS", "ease"]

MOST_ITEMS = 20_000
"""Items beyond which `ease` refuses: its memory would be above 4.8 GB."""

# Items whose rows are made at once.
BLOCK = 256


def ease(interactions: csr_matrix, *, l2: float) -> NDArray[np.float32]:
    """Weights between items that say each item best from the others: float32 [items, items], the diagonal 0.

    What it optimizes
        |X - X B|^2 + l2 |B|^2 over B with a diagonal of 0, X the interactions (squared Frobenius norms). The answer is
        B[i, j] = -P[i, j] / P[j, j] for i != j, P = (X'X + l2 I)^-1.
    Inputs
        interactions [users, items], how much each user took each item; l2 > 0, in the unit of a product of two columns
        (with ones: of users; hundreds are usual, the more the fewer events there are).
    Requirements
        memory: 12 bytes for each pair of items (0.3 GB for 5,000 items, 4.8 GB for `MOST_ITEMS`); time: about n^3
        multiplications, some seconds for 5,000 items on one core. Raises ValueError for more than `MOST_ITEMS`, and
        where l2 is too small against the interactions for the matrix to be inverted.
    Relations
        a user's scores are their row of interactions times the weights; of an item that nobody took they are 0.
        Weights may be negative: what is taken instead. `item_knn` scales to any number of items.
    Reference
        Steck 2019, "Embarrassingly Shallow Autoencoders for Sparse Data", WWW, equation 8.
    """
    items = interactions.shape[1]
    if not (l2 > 0 and np.isfinite(l2)):
        raise ValueError(f"l2 {l2} must be above 0, and finite")
    if items > MOST_ITEMS:
        raise ValueError(
            f"{items} items are more than {MOST_ITEMS}, for which the weights of every pair take 4.8 GB already: "
            "give fewer items, those that are taken most"
        )
    if not items:
        return np.zeros((0, 0), np.float32)
    return _weights(_inverse(_gram(csr_matrix(interactions, dtype=np.float64), l2)))


def _gram(users: csr_matrix, l2: float) -> NDArray[np.float64]:
    """X'X + l2 I [n, n], in the order of LAPACK so that it is inverted in place."""
    items, of_items = users.shape[1], users.T.tocsr()
    gram = np.empty((items, items), np.float64, order="F")
    for start in range(0, items, BLOCK):
        gram[:, start : start + BLOCK] = (of_items[start : start + BLOCK] @ users).toarray().T
    gram[np.diag_indices(items)] += l2
    return gram


def _inverse(gram: NDArray[np.float64]) -> NDArray[np.float64]:
    """The lower triangle of the inverse, where `gram` lay; the upper one is not to be read."""
    if not np.isfinite(gram.diagonal()).all():
        raise ValueError("interactions must be finite")
    factor, failed = lapack.dpotrf(gram, lower=1, clean=0, overwrite_a=1)
    if not failed:
        inverse, failed = lapack.dpotri(factor, lower=1, overwrite_c=1)
    if failed:
        raise ValueError("l2 is too small against these interactions: their matrix cannot be inverted")
    found: NDArray[np.float64] = inverse
    return found


def _weights(inverse: NDArray[np.float64]) -> NDArray[np.float32]:
    """-P[i, j] / P[j, j], from the lower triangle of P."""
    items, diagonal = len(inverse), inverse.diagonal().copy()
    weights = np.empty((items, items), np.float32)
    for start in range(0, items, BLOCK):
        stop = min(start + BLOCK, items)
        rows, square = inverse[start:stop].copy(), inverse[start:stop, start:stop]
        rows[:, start:stop] = np.tril(square) + np.tril(square, -1).T
        rows[:, stop:] = inverse[stop:, start:stop].T
        weights[start:stop] = rows / -diagonal
    np.fill_diagonal(weights, 0)
    return weights
