"""The request side's forward pass in numpy, for one request on one thread: what serving runs before it can search.

A few vectors of `dim` numbers go through two small layers; torch's dispatch alone costs several times the arithmetic.
The torch module stays the oracle: a test holds the two within 1e-5. For histories that are pooled; a transformer's cost
is in its products, and runs in torch.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mainstem.models.history import Pooling
from mainstem.models.unified import Unified

__all__ = ["NumpyRequests"]

Floats = NDArray[np.float32]


def _array(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))


class _Correction:
    """A copy of one residual network: width -> hidden -> dim."""

    def __init__(self, network: nn.Sequential) -> None:
        first, last = network[0], network[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._first, self._first_bias = _array(first.weight.T), _array(first.bias)
        self._last, self._last_bias = _array(last.weight.T), _array(last.bias)

    def __call__(self, x: Floats) -> Floats:
        out: Floats = np.maximum(x @ self._first + self._first_bias, 0.0) @ self._last + self._last_bias
        return out


class NumpyRequests:
    """A frozen copy of the request side of `module`. Safe to call from several threads.

    Raises ValueError where the module's encoder is not `Pooling`.
    """

    def __init__(self, module: Unified) -> None:
        encoder = module.encoder
        if not isinstance(encoder, Pooling):
            raise ValueError("only pooled histories have a form without torch")
        self._half_lives = np.array(encoder.config.half_lives, np.float64)
        self._interest, self._blend = _array(encoder.log_interest.exp()), _array(encoder.blend)
        self._empty, self._encode = _array(encoder.empty), _Correction(encoder.correction)
        self._sentinels, self._mix = _array(module.sentinels), _array(module.mix)
        self._canvas, self._correct = _array(module.canvas.weight), _Correction(module.request_correction)
        if module.config.text:
            self._text, self._no_text = _array(module.text.weight.T), _array(module.no_text)

    def told(self, texts: Floats) -> Floats:
        """What texts add, as `Unified.told`: [n, dim] from [n, text]."""
        return np.where(texts.any(axis=1, keepdims=True), texts @ self._text, self._no_text)

    def history(self, bodies: Floats, action: NDArray[np.int64], time: NDArray[np.int64]) -> Floats:
        """The encoder's last state [dim] of events bodies [m, dim], action and time (ms) [m]."""
        if not len(bodies):
            return self._empty
        age = (time[-1] - time)[:, None] / self._half_lives
        weights = (self._interest[action][:, None] * np.exp2(-age)).astype(np.float32)
        means = (weights.T @ bodies) / weights.sum(axis=0)[:, None]
        out: Floats = self._blend @ means + self._encode(means.ravel())
        return out

    def __call__(self, canvas: int, history: Floats, parts: Sequence[Floats | None]) -> Floats:
        """Unit vector [dim]. parts: user, sources, query and each field [dim], None where the request lacks it."""
        user, sources, query, *fields = parts
        known = (user, history, sources, query, *fields)
        values = self._sentinels.copy()
        for at, value in enumerate(known):
            if value is not None:
                values[at] = value
        everything = np.concatenate([values.ravel(), self._canvas[canvas]])
        vector = self._mix[canvas] @ values + self._correct(everything)
        found: Floats = (vector / max(float(np.sqrt(vector @ vector)), 1e-12)).astype(np.float32)
        return found
