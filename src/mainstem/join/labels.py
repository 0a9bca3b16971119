"""What a head's label is, given the events that followed: one definition for visits, recorded slates and pools.

| head | label of a candidate | where no event followed |
|---|---|---|
| `binary` | 1, or its share by its place in the visit (`shares`) | 0 |
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

__all__ = ["grades", "label_of", "labels_of", "shares"]

# Places in a visit beyond which all count as this one: a long visit is not one candidate's alone.
MOST_PLACES = 30


def grades(head: HeadConfig, values: NDArray[np.float64]) -> NDArray[np.float64]:
    """The nearest of the head's levels for each value [n], of two equally near ones the lower."""
    levels = np.array(head.levels)
    found: NDArray[np.float64] = levels[np.searchsorted((levels[1:] + levels[:-1]) / 2, values)]
    return found


def shares(head: HeadConfig, taken: NDArray[np.int64]) -> NDArray[np.float32]:
    """How much each positive of a `binary` head counts in its visit: float32 [p], above 0 and 1 on average.

    taken int64 [p]: when each was taken first; those of one moment share a place, and each next place counts
    `HeadConfig.each_next` times the one before it. It depends on the moments alone, so that it is the same whenever and
    in whatever order events arrive.
    """
    if head.each_next == 1.0 or not len(taken):
        return np.ones(len(taken), np.float32)
    moments = np.unique(taken)
    counted = head.each_next ** np.minimum(np.searchsorted(moments, taken), MOST_PLACES)
    # summed by place, so that the order of the rows does not move the last digit
    found: NDArray[np.float32] = (counted / (np.sort(counted).sum() / len(taken))).astype(np.float32)
    return found


def label_of(head: HeadConfig, answers: Iterable[tuple[int, float]]) -> float:
    """The label by (time, value) of the events that followed: one at least, and those in the head's window alone. Of a
    `binary` head before its place in the visit counts, which the others' moments decide."""
    if head.type == "binary":
        return 1.0
    if head.type == "ordinal":
        return float(grades(head, np.array([max(answers)[1]]))[0])
    return sum(value for _, value in answers)


def labels_of(head: HeadConfig, window: EventBatch, keys: Keys) -> NDArray[np.float32]:
    """The labels of `keys` by the events in the head's window: float32 [n]."""
    answers = window.take(window.where([head.event]))
    if head.type == "binary":
        taken = np.isin(keys, answers.entity)
        counted = taken.astype(np.float32)
        if head.each_next != 1.0:
            counted[taken] = shares(head, _first(answers, keys[taken]))
        return counted
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


def _first(answers: EventBatch, keys: Keys) -> NDArray[np.int64]:
    """When each of these keys, which the events are about, was taken first: int64 [p]."""
    oldest = np.argsort(answers.time, kind="stable")
    entity, first = np.unique(answers.entity[oldest], return_index=True)
    found: NDArray[np.int64] = answers.time[oldest][first][np.searchsorted(entity, keys)]
    return found
