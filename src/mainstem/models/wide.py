"""Memory of exact combinations: crosses of categorical fields, one weight each."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from mainstem.models.jagged import bag
from mainstem.schema.ids import NO_KEY, Keys

__all__ = ["Wide", "cross_keys"]

_GOLDEN = np.uint64(0x9E3779B97F4A7C15)


def cross_keys(fields: Keys, crosses: Sequence[tuple[int, ...]]) -> Keys:
    """Keys of crossed fields: uint64 [n, fields] -> uint64 [n, crosses].

    crosses: which columns each cross joins, (0, 2) say "category of the last purchase" x "category of the candidate".
    The key stands for the cross and for its values in their places, so no two crosses share weights. Where a field is
    missing (key 0) so is the cross. Mixed by the finaliser of splitmix64 (Steele et al. 2014, "Fast Splittable
    Pseudorandom Number Generators"): no buckets, so that two crosses meet only as any two 64-bit keys may.

    Raises ValueError on a cross of fewer than two columns.
    """
    out = np.empty((len(fields), len(crosses)), np.uint64)
    for i, columns in enumerate(crosses):
        if len(columns) < 2:
            raise ValueError(f"a cross joins at least two columns, not {columns}")
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


class Wide(nn.Module):
    """The wide part of Wide & Deep: Cheng et al. 2016, "Wide & Deep Learning for Recommender Systems", section 3.1.

    The weights are rows of an embedding table, of width 1, that learn by FTRL (McMahan et al. 2013, "Ad Click
    Prediction: a View from the Trenches", section 3): most crosses are seen too rarely to deserve a weight, and L1
    leaves them at 0. What is here sums the gathered rows; the bias is its only parameter.
    """

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(1))

    def forward(self, rows: Tensor, places: Tensor, offsets: Tensor) -> Tensor:
        """Logits [n]. rows [m, 1]; places int64 [total] into rows, offsets int64 [n + 1]: the crosses of each example.

        A cross that has no row has the place of the default row (zeros), or none.
        """
        return bag(rows, places, offsets)[:, 0] + self.bias
