"""The ranker's forward pass in numpy: what serving runs for one request on one thread.

It skips torch's dispatch and graph bookkeeping and works in place in buffers that it keeps. The torch module stays
the oracle: tests hold the two within 1e-4.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from torch import Tensor, nn

from mainstem.models.ranker import CLIP, VALUE_CAP, LowRankCross, Ranker

__all__ = ["NumpyScorer", "numpy_scorer"]

Floats = NDArray[np.float32]


def _array(tensor: Tensor) -> Floats:
    return np.ascontiguousarray(tensor.detach().cpu().numpy().astype(np.float32))


class NumpyScorer:
    """A frozen copy of a ranker's weights; safe to call from several threads. Matrix products use numpy's
    BLAS, so its thread count (OPENBLAS_NUM_THREADS) is the caller's to set."""

    def __init__(self, ranker: Ranker) -> None:
        self.config = ranker.config
        self._mean, self._inverse = _array(ranker.mean), _array(1.0 / ranker.scale)
        self._value = np.array([head.kind == "value" for head in ranker.config.heads])
        self._cross = [
            (_array(layer.inner.weight.T), _array(layer.outer.weight.T), _array(layer.outer.bias))
            for layer in ranker.cross
            if isinstance(layer, LowRankCross)
        ]
        self._slope, self._shift = _array(ranker.slope), _array(ranker.shift)
        linears = [layer for layer in ranker.deep if isinstance(layer, nn.Linear)]
        self._deep = [(_array(layer.weight.T), _array(layer.bias)) for layer in linears]
        self._wide, self._bias = _array(ranker.wide.weight.T), _array(ranker.wide.bias)
        joint = _array(ranker.heads.weight.T) if ranker.heads is not None else None
        split = ranker.config.width if self._cross else 0
        self._cross_head = joint[:split] if joint is not None else None
        self._deep_head = joint[split:] if joint is not None else None
        self._buffers = threading.local()

    def __call__(self, x: Floats, dot: Floats | None = None, embeddings: Floats | None = None) -> Floats:
        """`Ranker.scores` for x float32 [n, features] (and dot [n], embeddings [n, e] as configured): [n, heads]."""
        logits = self.logits(x, dot, embeddings)
        if self._value.any():
            sizes = np.expm1(np.clip(logits, 0.0, VALUE_CAP))
            return np.where(self._value, sizes, self._chance(logits)).astype(np.float32)
        return self._chance(logits)

    def _chance(self, logits: Floats) -> Floats:
        return _sigmoid(logits * self._slope + self._shift)

    def logits(self, x: Floats, dot: Floats | None = None, embeddings: Floats | None = None) -> Floats:
        """`Ranker.forward`: [n, heads]."""
        x0 = self._inputs(x, dot, embeddings)
        out: Floats = x0 @ self._wide
        out += self._bias
        if self._cross and self._cross_head is not None:
            crossed = x0
            for inner, outer, bias in self._cross:
                step = self._product("cross", crossed @ inner, outer)
                step += bias
                step *= x0
                crossed = np.add(step, crossed, out=self._buffer("crossed", *x0.shape))
            out += crossed @ self._cross_head
        if self._deep and self._deep_head is not None:
            h = x0
            for i, (weight, bias) in enumerate(self._deep):
                h = self._product(f"deep{i}", h, weight)
                h += bias
                np.maximum(h, 0.0, out=h)
            out += h @ self._deep_head
        return out

    def _inputs(self, x: Floats, dot: Floats | None, embeddings: Floats | None) -> Floats:
        config = self.config
        if (dot is None) == config.dot or (embeddings is None) == bool(config.embeddings):
            raise ValueError(f"pass dot: {config.dot}, embeddings: {bool(config.embeddings)}, as the model was built")
        if x.ndim != 2 or x.shape[1] != config.features:
            raise ValueError(f"x must be [n, {config.features}], not {list(x.shape)}")
        numeric = config.features + int(config.dot)
        x0 = self._buffer("x0", len(x), config.width)
        x0[:, : config.features] = x
        if dot is not None:
            x0[:, config.features] = dot
        columns = x0[:, :numeric]
        columns -= self._mean
        columns *= self._inverse
        np.clip(columns, -CLIP, CLIP, out=columns)
        if embeddings is not None:
            x0[:, numeric:] = embeddings
        return x0

    def _product(self, name: str, left: Floats, right: Floats) -> Floats:
        return np.matmul(left, right, out=self._buffer(name, len(left), right.shape[1]))

    def _buffer(self, name: str, rows: int, columns: int) -> Floats:
        """A scratch array [rows, columns] of this thread, kept between calls: fresh pages cost more than the sums."""
        kept: Floats | None = getattr(self._buffers, name, None)
        if kept is None or len(kept) < rows:
            kept = np.empty((rows, columns), np.float32)
            setattr(self._buffers, name, kept)
        return kept[:rows]


def _sigmoid(x: Floats) -> Floats:
    # tanh is stable on both sides, where 1 / (1 + exp(-x)) overflows
    out: Floats = np.tanh(x * np.float32(0.5)).astype(np.float32)
    out += 1.0
    out *= 0.5
    return out


def numpy_scorer(ranker: Ranker) -> NumpyScorer:
    """A numpy scorer with the ranker's weights as they are now."""
    return NumpyScorer(ranker)
