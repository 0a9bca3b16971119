"""The ranker's forward pass in numpy: what serving runs for one request on one thread.

It skips torch's dispatch and graph bookkeeping and works in place in buffers that it keeps. The torch module stays
the oracle: tests hold the two within 1e-4.
"""

from __future__ import annotations

import threading

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mainstem.models.numpy_heads import numpy_head
from mainstem.models.numpy_layers import array, sigmoid
from mainstem.models.numpy_sharing import numpy_sharing
from mainstem.models.ranker import CLIP, LowRankCross, Ranker

__all__ = ["NumpyScorer", "numpy_scorer"]

Floats = NDArray[np.float32]


class NumpyScorer:
    """A frozen copy of a ranker's weights; safe to call from several threads. Matrix products use numpy's
    BLAS, so its thread count (OPENBLAS_NUM_THREADS) is the caller's to set."""

    def __init__(self, ranker: Ranker) -> None:
        self.config = ranker.config
        self._mean, self._inverse = array(ranker.mean), array(1.0 / ranker.scale)
        self._cross = [
            (array(layer.inner.weight.T), array(layer.outer.weight.T), array(layer.outer.bias))
            for layer in ranker.cross
            if isinstance(layer, LowRankCross)
        ]
        self._slope, self._shift = array(ranker.slope), array(ranker.shift)
        self._binary = all(head.kind == "binary" for head in ranker.config.heads)
        levels = zip(ranker.task_list(), self._slope, self._shift, strict=True)
        self._heads = [numpy_head(task, slope, shift) for task, slope, shift in levels]
        self._ends = np.cumsum(ranker.sizes)[:-1]
        linears = [layer for layer in ranker.deep if isinstance(layer, nn.Linear)]
        self._deep = [(array(layer.weight.T), array(layer.bias)) for layer in linears]
        self._wide, self._bias = array(ranker.wide.weight.T), array(ranker.wide.bias)
        joint = array(ranker.heads.weight.T) if ranker.heads is not None else None
        self._sharing = numpy_sharing(ranker.sharing)
        self._own = [array(own.weight.T) for own in ranker.own if isinstance(own, nn.Linear)]
        split = ranker.config.width if self._cross else 0
        self._cross_head = joint[:split] if joint is not None else None
        self._deep_head = joint[split:] if joint is not None else None
        self._buffers = threading.local()

    def __call__(
        self, x: Floats, dot: Floats | None = None, embeddings: Floats | None = None, crossed: Floats | None = None
    ) -> Floats:
        """`Ranker.scores` for x float32 [n, features] (and dot [n], embeddings [n, e], crossed [n, outputs] as
        configured): [n, heads]."""
        raw = self.logits(x, dot, embeddings, crossed)
        if self._binary:
            return sigmoid(raw * self._slope + self._shift)
        parts = np.split(raw, self._ends, axis=1)
        return np.stack([head(part) for head, part in zip(self._heads, parts, strict=True)], axis=1)

    def logits(
        self, x: Floats, dot: Floats | None = None, embeddings: Floats | None = None, crossed: Floats | None = None
    ) -> Floats:
        """`Ranker.forward`: [n, outputs]."""
        if (crossed is not None) != self.config.crossed:
            raise ValueError(f"pass crossed: {self.config.crossed}, as the model was built")
        x0 = self._inputs(x, dot, embeddings)
        out: Floats = x0 @ self._wide
        out += self._bias
        if crossed is not None:
            out += crossed
        paths = self._paths(x0)
        if self._sharing is not None:
            shared = self._sharing(np.concatenate(list(paths.values()), axis=1))
            out += np.concatenate([part @ own for part, own in zip(shared, self._own, strict=True)], axis=1)
            return out
        for name, head in (("cross", self._cross_head), ("deep", self._deep_head)):
            if head is not None and name in paths:
                out += paths[name] @ head
        return out

    def _paths(self, x0: Floats) -> dict[str, Floats]:
        """The parts of the joint layer, in its order."""
        paths: dict[str, Floats] = {}
        if self._cross:
            crossed = x0
            for inner, outer, bias in self._cross:
                step = self._product("cross", crossed @ inner, outer)
                step += bias
                step *= x0
                crossed = np.add(step, crossed, out=self._buffer("crossed", *x0.shape))
            paths["cross"] = crossed
        if self._deep:
            h = x0
            for i, (weight, bias) in enumerate(self._deep):
                h = self._product(f"deep{i}", h, weight)
                h += bias
                np.maximum(h, 0.0, out=h)
            paths["deep"] = h
        return paths

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


def numpy_scorer(ranker: Ranker) -> NumpyScorer:
    """A numpy scorer with the ranker's weights as they are now."""
    return NumpyScorer(ranker)
