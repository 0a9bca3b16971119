"""Memory of exact combinations: crosses of categorical fields, one weight each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mainstem.models.jagged import bag
from mainstem.schema.ids import NO_KEY, Keys

__all__ = ["cross_keys", "crossed"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def cross_keys(fields: Keys, crosses: Sequence[tuple[int, ...]]) -> Keys:
    """Keys of crossed fields: uint64 [n, fields] -> uint64 [n, crosses].

    crosses: which columns each cross joins, (0, 2) say "category of the last purchase" x "category of the candidate";
    one column alone is remembered value by value.
    The key stands for the cross and for its values in their places, so no two crosses share weights. Where a field is
    missing (key 0) so is the cross. Mixed by the finaliser of splitmix64 (Steele et al. 2014, "Fast Splittable
    Pseudorandom Number Generators"): no buckets, so that two crosses meet only as any two 64-bit keys may.

    Raises ValueError on a cross of no column.
    """
    out = np.empty((len(fields), len(crosses)), np.uint64)
    for i, columns in enumerate(crosses):
        if not columns:
            raise ValueError("a cross joins at least one column")
        key = np.full(len(fields), _mixed_number(columns), np.uint64)
        for column in columns:
            key = _mixed(key + _GOLDEN ^ fields[:, column])
        key[key == NO_KEY] = 1
        key[(fields[:, list(columns)] == NO_KEY).any(axis=1)] = NO_KEY
        out[:, i] = key
    return out


def _mixed_number(columns: tuple[int, ...]) -> np.uint64:
    """One number for a tuple of columns, in order."""
    key = np.array([len(columns)], np.uint64)
    for column in columns:
        key = _mixed(key + _GOLDEN ^ np.uint64(column))
    return np.uint64(key[0])


def _mixed(key: Keys) -> Keys:
    key = (key ^ key >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
    key = (key ^ key >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
    return key ^ key >> np.uint64(31)


def crossed(rows: Tensor, places: Tensor) -> Tensor:
    """The wide part of Wide & Deep: what the crosses of each candidate say of it, summed. [n, outputs]

    rows [u, outputs]: a weight for each raw output of the ranking network; places int64 [n, crosses] into them. A cross
    that has no row has the place of the default row, zeros.

    Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", section 3.1. The rows are to learn by FTRL
    (McMahan et al. 2013, "Ad Click Prediction: a View from the Trenches", section 3): most crosses are seen too rarely
    to deserve a weight, and L1 leaves them at 0. The bias is the network's.
    """
    n, width = places.shape
    return bag(rows, places.reshape(-1), torch.arange(n + 1, device=places.device) * width)
