"""Predictions of heads in numpy: `TaskHead.predict` with the weights as they were, for `NumpyScorer`."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from mainstem.models.heads import (
    BinaryHead,
    LifetimeValueHead,
    OrdinalHead,
    TaskModule,
    ValueHead,
)
from mainstem.models.heads.lifetime_value import FLOOR
from mainstem.models.heads.protocol import VALUE_CAP
from mainstem.models.numpy_layers import array, sigmoid

__all__ = ["numpy_head"]

Floats = NDArray[np.float32]
Predict = Callable[[Floats], Floats]
"""raw [n, outputs of the head] -> [n]"""


def numpy_head(task: TaskModule, slope: float, shift: float) -> Predict:
    """The prediction of one head; slope, shift: the calibration of a binary one."""
    if isinstance(task, BinaryHead):
        return lambda raw: sigmoid(raw[:, 0] * np.float32(slope) + np.float32(shift))
    if isinstance(task, ValueHead):
        return _value(float(task.smearing), np.float32(task.largest.item()))
    if isinstance(task, OrdinalHead):
        return _ordinal(array(task.levels), array(task.thresholds))
    if isinstance(task, LifetimeValueHead):
        return _lifetime_value(np.float32(task.largest.item()), np.float32(task.scale.item()))
    unit, largest = np.float32(task.unit * task.scale.item()), np.float32(task.largest.item())
    return lambda raw: np.minimum(unit * np.exp(np.minimum(raw[:, 0], np.float32(VALUE_CAP))), largest)


def _value(smearing: float, largest: np.float32) -> Predict:
    def predict(raw: Floats) -> Floats:
        grown = np.exp(np.clip(raw[:, 0], 0.0, VALUE_CAP)) * np.float32(smearing)
        out: Floats = np.clip(grown - np.float32(1.0), np.float32(0.0), largest)
        return out

    return predict


def _ordinal(levels: Floats, thresholds: Floats) -> Predict:
    steps = np.diff(levels)

    def predict(raw: Floats) -> Floats:
        out: Floats = levels[0] + sigmoid(raw - thresholds) @ steps
        return out

    return predict


def _lifetime_value(largest: np.float32, scale: np.float32) -> Predict:
    def predict(raw: Floats) -> Floats:
        sigma = np.logaddexp(np.float32(0.0), raw[:, 2]) + np.float32(FLOOR)
        log_size = np.minimum(raw[:, 1] + np.float32(0.5) * sigma * sigma, np.float32(VALUE_CAP))
        out: Floats = np.minimum(scale * sigmoid(raw[:, 0]) * np.minimum(np.exp(log_size), largest), largest)
        return out

    return predict
