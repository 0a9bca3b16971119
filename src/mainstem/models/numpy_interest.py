"""The interest of one request's candidates in numpy: what serving runs beside `NumpyScorer`.

Target attention as one product. With an event h fixed, what the activation unit makes of a candidate c is linear in c:

    W [h, c, h - c, h * c] + b  =  (W_p diag(h) + W_c - W_d) c  +  (W_h + W_d) h + b

so the matrices of all events, side by side [dim, m * hidden], take all candidates at once; no pair is laid out before
its hidden layer. Half of that layer's output is linear too: v . PReLU(x) = slope v . x + (1 - slope) v . max(x, 0).

The torch modules stay the oracle: tests hold the two within 1e-4.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mainstem.models.interest import BehaviorTransformer, InterestBlock, TargetAttention
from mainstem.models.interest.behavior_transformer import Block
from mainstem.models.numpy_layers import Norm, array

__all__ = ["NumpyInterest"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Actions = NDArray[np.integer[Any]]

# Candidates whose pairs are laid out at once: their hidden layers stay in the cache.
ROWS = 128


class NumpyInterest:
    """A frozen copy of a block's weights; safe to call from several threads."""

    def __init__(self, block: InterestBlock) -> None:
        self.config = block.config
        self._scale = np.float32(np.sqrt(block.config.dim))
        self._actions, self._out = array(block.actions.weight), array(block.out.weight.T)
        self._attention: Callable[[Floats, Floats], Floats]
        if isinstance(block.attention, TargetAttention):
            assert block.ages is not None
            self._ages, self._attention = array(block.ages.weight), _TargetAttention(block.attention)
        else:
            self._ages, self._attention = array(block.attention.positions.weight), _Transformer(block.attention)

    def __call__(self, candidates: Floats, events: Floats, actions: Actions, gaps: Floats) -> Floats:
        """`InterestBlock` of one request: [n, width]. candidates [n, dim]; events [m, dim]; actions, gaps (s) [m]."""
        candidates = candidates * self._scale
        events = events * self._scale + self._actions[actions] + self._ages[_buckets(gaps, len(self._ages))]
        interest = self._attention(candidates, events)
        dim = self.config.dim
        out: Floats = interest @ self._out[:dim]
        out += candidates @ self._out[dim : 2 * dim]
        interest *= candidates
        out += interest @ self._out[2 * dim :]
        return out


def _buckets(gaps: Floats, buckets: int) -> Ints:
    """As `gap_buckets`."""
    doublings = np.log2(1 + np.maximum(gaps, np.float32(0))).astype(np.int64)
    found: Ints = np.minimum(1 + doublings, buckets - 1)
    return found


class _TargetAttention:
    def __init__(self, module: TargetAttention) -> None:
        of_event, of_candidate, of_difference, of_product = np.split(array(module.unit.weight), 4, axis=1)
        self._event = np.ascontiguousarray((of_event + of_difference).T)  # [dim, hidden]
        self._candidate = np.ascontiguousarray((of_candidate - of_difference).T)
        self._product, self._bias = np.ascontiguousarray(of_product.T), array(module.unit.bias)
        self._slope = np.float32(module.activation.weight.item())
        self._last, self._last_bias = array(module.out.weight)[0], np.float32(module.out.bias.item())
        self._buffers = threading.local()

    def __call__(self, candidates: Floats, events: Floats) -> Floats:
        """[n, dim] of candidates [n, dim] and events [m, dim]."""
        n, (m, dim), hidden = len(candidates), events.shape, len(self._bias)
        if not m:
            return np.zeros((n, dim), np.float32)
        matrices = np.empty((dim + 1, m, hidden), np.float32)
        np.multiply(events.T[:, :, None], self._product[:, None, :], out=matrices[:dim])
        matrices[:dim] += self._candidate[:, None, :]
        matrices[dim] = events @ self._event
        matrices[dim] += self._bias
        asked = np.ones((n, dim + 1), np.float32)  # the last column brings in the last row
        asked[:, :dim] = candidates
        weights: Floats = asked @ (matrices @ (self._last * self._slope))  # [n, m], the linear half
        flat, bent = matrices.reshape(dim + 1, m * hidden), self._last * (1 - self._slope)
        for start in range(0, n, ROWS):
            some = asked[start : start + ROWS]
            unit = np.matmul(some, flat, out=self._buffer(len(some), m * hidden))
            np.maximum(unit, 0.0, out=unit)
            weights[start : start + ROWS] += (unit.reshape(-1, hidden) @ bent).reshape(len(some), m)
        weights += self._last_bias
        out: Floats = weights @ events
        return out

    def _buffer(self, rows: int, columns: int) -> Floats:
        """A scratch array of this thread, kept between calls."""
        kept: Floats | None = getattr(self._buffers, "unit", None)
        if kept is None or kept.size < rows * columns:
            kept = self._buffers.unit = np.empty(rows * columns, np.float32)
        return kept[: rows * columns].reshape(rows, columns)


class _Transformer:
    """Of one layer, as `InterestBlock` has it."""

    def __init__(self, module: BehaviorTransformer) -> None:
        (block,) = module.blocks
        assert isinstance(block, Block)
        self._own, self._heads = array(module.positions.weight)[0], block.heads
        self._query, self._key, self._value, self._joined = (
            array(layer.weight.T) for layer in (block.query, block.key, block.value, block.joined)
        )
        first, _, _, last = block.network
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._network = array(first.weight.T), array(first.bias), array(last.weight.T), array(last.bias)
        self._first, self._second = Norm(block.first), Norm(block.second)

    def __call__(self, candidates: Floats, events: Floats) -> Floats:
        """Each candidate [n, dim] looks at the events [m, dim] and at itself: [n, dim]."""
        x = candidates + self._own
        n, m, heads = len(x), len(events), self._heads
        query, key, value = x @ self._query, events @ self._key, events @ self._value
        width = query.shape[1] // heads
        query *= np.float32(width**-0.5)
        shares = np.empty((heads, n, m + 1), np.float32)
        for h in range(heads):
            columns = slice(h * width, (h + 1) * width)
            np.matmul(query[:, columns], key[:, columns].T, out=shares[h, :, :m])
        shares[:, :, m] = (query * (x @ self._key)).reshape(n, heads, width).sum(axis=2).T
        shares -= shares.max(axis=2, keepdims=True)
        np.exp(shares, out=shares)
        shares /= shares.sum(axis=2, keepdims=True)
        seen = x @ self._value
        for h in range(heads):
            columns = slice(h * width, (h + 1) * width)
            seen[:, columns] *= shares[h, :, m:]
            seen[:, columns] += shares[h, :, :m] @ value[:, columns]
        x += seen @ self._joined
        return self._after(self._first(x))

    def _after(self, x: Floats) -> Floats:
        """norm(x + network(x))"""
        first, first_bias, last, last_bias = self._network
        hidden = x @ first
        hidden += first_bias
        np.maximum(hidden, np.float32(0.01) * hidden, out=hidden)  # LeakyReLU
        out: Floats = (hidden @ last).astype(np.float32, copy=False)
        out += last_bias
        out += x
        return self._second(out)
