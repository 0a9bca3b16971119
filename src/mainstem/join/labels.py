"""What a head's label is, given the events that followed: one definition for visits, recorded slates and pools.

| head | label of a candidate | where no event followed |
|---|---|---|
| `binary` | 1 | 0 |
| `value` | the sum of the values | not known |
| `ordinal` | the level nearest to the last value | not known |
| `weighted_logistic` | the sum of the values | 0 |
| `lifetime_value` | the sum of the values; not known before the whole window is over | 0 |

Not known is NaN. Of several last events at one moment the one of the greatest value counts, so that a label depends on
which events there are, not on the order in which they came.
"""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.ids import Keys

__all__ = ["grades", "label_of", "labels_of"]


def grades(head: HeadConfig, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest of the head's levels for each value [n], of two equally near ones the lower."""
    levels = np.array(head.levels)
    found: NDArray[np.float64] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return found


def label_of(head: HeadConfig, answers: Iterable[tuple[int, float]]) -> float:
    """The label by (time, value) of the events that followed: one at least, and those in the head's window alone."""
    if head.type == "binary":
        return 1.0
    if head.type == "ordinal":
        return float(grades(head, np.array([max(answers)[1]]))[0])
    return sum(value for _, value in answers)


def labels_of(head: HeadConfig, window: EventBatch, keys: Keys) -> NDArray[np.float32]:
    """The labels of `keys` by the events in the head's window: float32 [n]."""
    answers = window.take(window.where([head.event]))
    if head.type == "binary":
        return np.isin(keys, answers.entity).astype(np.float32)
    unanswered = np.full(len(keys), head.unanswered, np.float32)
    if not len(answers):
        return unanswered
    if head.type == "ordinal":
        newest = np.lexsort((answers.value, answers.time))[::-1]
        wanted, first = np.unique(answers.entity[newest], return_index=True)
        label = grades(head, answers.value[newest][first])
    else:
        wanted, place = np.unique(answers.entity, return_inverse=True)
        label = np.bincount(place, answers.value, len(wanted)).astype(np.float64)
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return np.where(wanted[at] == keys, label[at], unanswered).astype(np.float32)
