"""Users' actions as sparse matrices: which items, 1 each, however often."""

from __future__ import annotations

import numpy as np
from scipy.sparse import csr_matrix

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask

__all__ = ["histories", "interactions"]


def interactions(data: LeaveOneOut, learned: Mask) -> csr_matrix:
    """What each user did of what is learned from: float32 [users, items]."""
    user = np.repeat(np.arange(data.users), np.diff(data.offsets))
    return _ones(user[learned], data.item[learned], (data.users, data.items))


def histories(data: LeaveOneOut, places: Ints) -> csr_matrix:
    """What each of these places' user did before it: float32 [b, items]."""
    return _ones(*data.before(places), (len(places), data.items))


def _ones(rows: Ints, items: Ints, shape: tuple[int, int]) -> csr_matrix:
    pairs = np.unique(rows * shape[1] + items)
    ones = np.ones(len(pairs), np.float32)
    return csr_matrix((ones, (pairs // shape[1], pairs % shape[1])), shape=shape)
