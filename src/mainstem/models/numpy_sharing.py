"""Ways of sharing in numpy: their forward pass with the weights as they were, for `NumpyScorer`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from torch import nn

from mainstem.models.numpy_layers import array
from mainstem.models.sharing import MultiGate, ProgressiveExtraction, SharedBottom, SharingModule
from mainstem.models.sharing.experts import Experts
from mainstem.models.sharing.ple import Extraction

__all__ = ["numpy_sharing"]

Floats = NDArray[np.float32]
Share = Callable[[Floats], Floats]
"""[n, width] -> [tasks, n, out]"""

# Slope of torch's LeakyReLU below 0.
LEAK = np.float32(0.01)


def numpy_sharing(module: SharingModule | None) -> Share | None:
    """The forward pass of `module`, tasks first."""
    if module is None:
        return None
    if isinstance(module, SharedBottom):
        bottom, towers = _experts(module.bottom), _experts(module.towers)
        return lambda x: towers(bottom(x)[0])
    if isinstance(module, MultiGate):
        return _multi_gate(module)
    return _progressive(module)


def _experts(module: Experts) -> Share:
    layers = [(array(w), array(b)) for w, b in zip(module.weights, module.biases, strict=True)]

    def experts(x: Floats) -> Floats:
        h = x
        for weight, bias in layers:
            h = np.matmul(h, weight)  # one input for all, or one for each
            h += bias
            h = np.maximum(h, h * LEAK)
        return h

    return experts


def _multi_gate(module: MultiGate) -> Share:
    experts, towers, gates = _experts(module.experts), _experts(module.towers), array(module.gates.weight.T)
    tasks = module.config.tasks

    def multi_gate(x: Floats) -> Floats:
        found, logits = experts(x), np.split(x @ gates, tasks, axis=1)
        return towers(np.stack([_mixed(each, found) for each in logits]))

    return multi_gate


def _progressive(module: ProgressiveExtraction) -> Share:
    layers = [_extraction(layer) for layer in module.layers if isinstance(layer, Extraction)]
    towers, tasks = _experts(module.towers), module.config.tasks

    def progressive(x: Floats) -> Floats:
        inputs: Sequence[Floats] = [x] * (tasks + 1)
        for layer in layers:
            inputs = layer(inputs)
        return towers(np.stack(inputs[:tasks]))

    return progressive


def _extraction(module: Extraction) -> Callable[[Sequence[Floats]], Sequence[Floats]]:
    own_experts, shared_experts = _experts(module.own_experts), _experts(module.shared_experts)
    gates = [array(gate.weight.T) for gate in module.gates if isinstance(gate, nn.Linear)]
    shared_gate = None if module.shared_gate is None else array(module.shared_gate.weight.T)
    tasks, each = module.tasks, module.own

    def extraction(inputs: Sequence[Floats]) -> Sequence[Floats]:
        own = own_experts(np.repeat(np.stack(inputs[:tasks]), each, axis=0))
        shared = shared_experts(inputs[-1])
        mixed = [
            _mixed(x @ gate, np.concatenate([own[k * each : (k + 1) * each], shared]))
            for k, (x, gate) in enumerate(zip(inputs[:tasks], gates, strict=True))
        ]
        if shared_gate is not None:
            mixed.append(_mixed(inputs[-1] @ shared_gate, np.concatenate([own, shared])))
        return mixed

    return extraction


def _mixed(logits: Floats, experts: Floats) -> Floats:
    """logits [n, e], experts [e, n, d] -> sum of experts by softmax of logits [n, d]."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    out: Floats = experts[0] * shares[:, :1]
    for i in range(1, len(experts)):  # a few large products beat one of many small ones
        out += experts[i] * shares[:, i : i + 1]
    return out
