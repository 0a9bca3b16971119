"""The request side's forward pass in numpy, for one request on one thread: what serving runs before it can search.

A few vectors of `dim` numbers go through two small layers; torch's dispatch alone costs several times the arithmetic.
The torch module stays the oracle: a test holds the two within 1e-5.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mainstem.models.numpy_history import Correction, Past, numpy_history
from mainstem.models.numpy_layers import array
from mainstem.models.unified import Unified

__all__ = ["NumpyRequests"]

Floats = NDArray[np.float32]


class NumpyRequests:
    """A frozen copy of the request side of `module`. Safe to call from several threads.

    Raises ValueError where the module's encoder has no form without torch.
    """

    def __init__(self, module: Unified) -> None:
        self._encode, self._empty = numpy_history(module.encoder), array(module.encoder.empty)
        self._history = array(module.history.weight.T) if isinstance(module.history, nn.Linear) else None
        self._sentinels, self._mix = array(module.sentinels), array(module.mix)
        self._canvas, self._correct = array(module.canvas.weight), Correction(module.request_correction)
        if module.config.text:
            self._text, self._no_text = array(module.text.weight.T), array(module.no_text)

    def told(self, texts: Floats) -> Floats:
        """What texts add, as `Unified.told`: [n, dim] from [n, text]."""
        return np.where(texts.any(axis=1, keepdims=True), texts @ self._text, self._no_text)

    def history(self, past: Past) -> Floats:
        """What the user did, as it enters the request: [dim]."""
        state = self._encode(past) if len(past.bodies) else self._empty
        return state if self._history is None else state @ self._history

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
