"""Users' actions as sparse matrices: which items, 1 each, however often."""

from __future__ import annotations

from typing import Any

import numpy as np

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask
from mainstem.schema.errors import MissingExtra

__all__ = ["EXTRA", "histories", "interactions"]

EXTRA = "peers"
"""The extra of Mainstem that installs what peers need."""


def _csr(rows: Ints, items: Ints, shape: tuple[int, int], needed_for: str) -> Any:
    try:
        from scipy.sparse import csr_matrix
    except ModuleNotFoundError as error:
        raise MissingExtra(EXTRA, needed_for) from error
    pairs = np.unique(rows * shape[1] + items)
    ones = np.ones(len(pairs), np.float32)
    return csr_matrix((ones, (pairs // shape[1], pairs % shape[1])), shape=shape)


def interactions(data: LeaveOneOut, learned: Mask, needed_for: str) -> Any:
    """What each user did of what is learned from: csr float32 [users, items]. Raises MissingExtra without scipy."""
    user = np.repeat(np.arange(data.users), np.diff(data.offsets))
    return _csr(user[learned], data.item[learned], (data.users, data.items), needed_for)


def histories(data: LeaveOneOut, places: Ints, needed_for: str) -> Any:
    """What each of these places' user did before it: csr float32 [b, items]."""
    rows, items = data.before(places)
    return _csr(rows, items, (len(places), data.items), needed_for)
