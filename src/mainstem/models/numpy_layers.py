"""The layers that forms of our models without torch are made of: frozen copies of torch's weights."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

__all__ = ["Linear", "Norm", "array", "sigmoid"]

Floats = NDArray[np.float32]


def array(tensor: Tensor) -> Floats:
    """A copy, float32 and contiguous."""
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))


def sigmoid(x: Floats) -> Floats:
    """Of any shape."""
    # tanh is stable on both sides, where 1 / (1 + exp(-x)) overflows
    out: Floats = np.tanh(x * np.float32(0.5)).astype(np.float32)
    out += 1.0
    out *= 0.5
    return out


class Linear:
    """x [..., width] -> [..., out]"""

    def __init__(self, layer: nn.Linear) -> None:
        self._weight = array(layer.weight.T)
        self._bias = None if layer.bias is None else array(layer.bias)

    def __call__(self, x: Floats) -> Floats:
        out: Floats = x @ self._weight
        return out if self._bias is None else np.add(out, self._bias, out=out)


class Norm:
    """Layer norm of x [n, width]."""

    def __init__(self, norm: nn.LayerNorm) -> None:
        self._weight, self._bias, self._eps = array(norm.weight), array(norm.bias), np.float32(norm.eps)

    def __call__(self, x: Floats) -> Floats:
        x = x - x.mean(axis=1, keepdims=True)
        x /= np.sqrt(np.einsum("nd,nd->n", x, x)[:, None] / x.shape[1] + self._eps)
        x *= self._weight
        x += self._bias
        return x
