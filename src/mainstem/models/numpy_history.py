"""History encoders in numpy, for one user on one thread: what serving runs before it can search.

Torch's dispatch costs much beside the arithmetic of one history. And only the newest state is asked for, so the last
block of a transformer makes queries, mixes and feeds forward for that one alone. The torch modules stay the oracle: a
test holds the two within 1e-4.
"""

from __future__ import annotations

import math
from typing import NamedTuple, Protocol, cast

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mainstem.models.history import HistoryEncoder, Pooling, Transformer
from mainstem.models.history.event_input import EventInput
from mainstem.models.history.rotary import turns
from mainstem.models.history.transformer import Block
from mainstem.models.numpy_layers import Linear, Norm, array, sigmoid

__all__ = ["Correction", "NumpyHistory", "Past", "has_numpy", "numpy_history"]

Floats = NDArray[np.float32]
Ints = NDArray[np.int64]
Turns = NDArray[np.complex64]


class Past(NamedTuple):
    """The m > 0 events of a user, oldest first, as `Histories` has them. bodies float32 [m, dim]; action, canvas int64
    [m]; value float32 [m]; time int64 [m], ms; asked: ms at which what follows is asked for."""

    bodies: Floats
    action: Ints
    canvas: Ints
    value: Floats
    time: Ints
    asked: int


class NumpyHistory(Protocol):
    """A frozen copy of an encoder; safe to call from several threads."""

    def __call__(self, past: Past) -> Floats:
        """The newest state: [width]."""
        ...


def has_numpy(encoder: HistoryEncoder) -> bool:
    """Whether `numpy_history` takes it."""
    return isinstance(encoder, Pooling | Transformer)


def numpy_history(encoder: HistoryEncoder) -> NumpyHistory:
    """The encoder without torch. Raises ValueError for one that has no such form."""
    match encoder:
        case Pooling():
            return NumpyPooling(encoder)
        case Transformer():
            return NumpyTransformer(encoder)
    raise ValueError(f"{type(encoder).__name__} has no form without torch")


class Correction:
    """A copy of one residual network: width -> hidden -> dim."""

    def __init__(self, network: nn.Sequential) -> None:
        first, last = network[0], network[2]
        assert isinstance(first, nn.Linear)
        assert isinstance(last, nn.Linear)
        self._first, self._last = Linear(first), Linear(last)

    def __call__(self, x: Floats) -> Floats:
        return self._last(np.maximum(self._first(x), 0.0))


class NumpyPooling:
    """`Pooling`."""

    def __init__(self, encoder: Pooling) -> None:
        self._half_lives = np.array(encoder.config.half_lives, np.float64)
        self._interest, self._blend = array(encoder.log_interest.exp()), array(encoder.blend)
        self._correction = Correction(encoder.correction)

    def __call__(self, past: Past) -> Floats:
        age = (past.time[-1] - past.time)[:, None] / self._half_lives
        weights = (self._interest[past.action][:, None] * np.exp2(-age)).astype(np.float32)
        means = (weights.T @ past.bodies) / weights.sum(axis=0)[:, None]
        out: Floats = self._blend @ means + self._correction(means.ravel())
        return out


class NumpyTransformer:
    """`Transformer`."""

    def __init__(self, encoder: Transformer) -> None:
        self._input = _Input(encoder.input)
        self._blocks = [_Block(cast(Block, block)) for block in encoder.blocks]
        self._head = encoder.config.width // encoder.config.heads

    def __call__(self, past: Past) -> Floats:
        x, m = self._input(past), len(past.bodies)
        by = turns(m, self._head).astype(np.complex64)
        for block in self._blocks[:-1]:
            x = block(x, m, by)
        newest: Floats = self._blocks[-1](x, 1, by)[0] if self._blocks else x[-1]
        return newest


class _Input:
    """`EventInput`."""

    def __init__(self, module: EventInput) -> None:
        self._project = Linear(module.project) if isinstance(module.project, nn.Linear) else None
        self._action, self._canvas = array(module.action.weight), array(module.canvas.weight)
        self._value, self._buckets = array(module.value), module.config.time_buckets
        self._before = None if module.before is None else array(module.before.weight)
        self._ahead = None if module.ahead is None else array(module.ahead.weight)

    def __call__(self, past: Past) -> Floats:
        rows = past.bodies if self._project is None else self._project(past.bodies)
        x: Floats = rows + self._action[past.action] + self._canvas[past.canvas]
        x += (np.sign(past.value) * np.log1p(np.abs(past.value)))[:, None] * self._value
        if self._before is not None:
            gaps = _log_bucket(np.diff(past.time), self._buckets)
            x += self._before[np.concatenate(([self._buckets], gaps))]
        if self._ahead is not None:
            ahead = np.append(past.time[1:], past.asked) - past.time
            x += self._ahead[_log_bucket(ahead, self._buckets)]
        return x


class _Block:
    """One block of `Transformer`."""

    def __init__(self, block: Block) -> None:
        self._heads = block.heads
        self._attention_norm, self._attention_gate = Norm(block.attention_norm), Linear(block.attention_gate)
        self._query_key_value, self._attention_out = Linear(block.query_key_value), Linear(block.attention_out)
        self._forward_norm, self._forward_gate = Norm(block.forward_norm), Linear(block.forward_gate)
        self._forward_in, self._forward_out = Linear(block.forward_in), Linear(block.forward_out)

    def __call__(self, x: Floats, newest: int, by: Turns) -> Floats:
        """What the `newest` last events become: [newest, width], from x [m, width]; by: `turns` of m places."""
        mixed = self._attention_out(self._attend(self._attention_norm(x), newest, by))
        x = x[-newest:]
        x = x + sigmoid(self._attention_gate(x)) * mixed
        gate, content = np.split(self._forward_in(self._forward_norm(x)), 2, axis=-1)
        branch = self._forward_out(sigmoid(gate) * gate * content)
        out: Floats = x + sigmoid(self._forward_gate(x)) * branch
        return out

    def _attend(self, x: Floats, newest: int, by: Turns) -> Floats:
        m, width = x.shape
        shape = (m, 3, self._heads, width // self._heads)
        made = self._query_key_value(x).reshape(shape)
        made.view(np.complex64)[:, :2] *= by[:, None, None]
        query, key, value = made.transpose(1, 2, 0, 3)  # [heads, m, d] each
        scores = query[:, -newest:] @ key.transpose(0, 2, 1) / np.float32(math.sqrt(shape[-1]))
        if newest > 1:
            scores[:, np.arange(m) > np.arange(m - newest, m)[:, None]] = -np.inf
        scores = np.exp(scores - scores.max(axis=-1, keepdims=True))
        mixed = (scores / scores.sum(axis=-1, keepdims=True)) @ value
        out: Floats = mixed.transpose(1, 0, 2).reshape(newest, width)
        return out


def _log_bucket(gaps: Ints, buckets: int) -> Ints:
    """`event_input.log_bucket`."""
    seconds = np.maximum(gaps, 0).astype(np.float32) / np.float32(1000)
    out: Ints = np.minimum(np.log2(1 + seconds), buckets - 1).astype(np.int64)
    return out
