"""The user tower's forward pass in numpy, for one user: what serving runs before it can search.

A few vectors of `dim` numbers go through one small layer; torch's dispatch alone costs several times the
arithmetic. The torch module stays the oracle: a test holds the two within 1e-5.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mainstem.models.two_tower import TwoTower

__all__ = ["NumpyUserTower"]

Floats = NDArray[np.float32]


def _array(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))


class NumpyUserTower:
    """A frozen copy of the user side of `module`, which must have no dense context features."""

    def __init__(self, module: TwoTower) -> None:
        if module.config.context:
            raise ValueError("dense context features are not supported here")
        first, last = module.user_correction[0], module.user_correction[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._blend = _array(module.blend)
        self._first, self._first_bias = _array(first.weight.T), _array(first.bias)
        self._last, self._last_bias = _array(last.weight.T), _array(last.bias)

    def __call__(self, own: Floats, history: Floats, weights: Floats) -> Floats:
        """Unit vector [dim]. own [dim]: the user's row; history [m, dim]: rows of the latest events' entities;
        weights [m, channels] >= 0. As `TwoTower.user` for one user."""
        total = np.maximum(weights.sum(axis=0), 1e-12)
        pooled = (weights.T @ history) / total[:, None]
        hidden = np.maximum(np.concatenate([own, pooled.ravel()]) @ self._first + self._first_bias, 0.0)
        vector = own + self._blend @ pooled + hidden @ self._last + self._last_bias
        found: Floats = (vector / max(float(np.sqrt(vector @ vector)), 1e-12)).astype(np.float32)
        return found
