"""Goes through the log once more, in order, on private state: inputs as of each request (laws 4 and 5).

The same feature definitions and the same retrieval as in serving, so what is learned from is what will
be asked. Serving's state is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.join.sessions import Visit
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys
from mainstem.schema.position import Position
from mainstem.schema.protocols import FeatureStore, FeatureView, Floats
from mainstem.schema.records import Context
from mainstem.schema.time import parse_duration

__all__ = ["Replay", "StoredRequest"]

Retrieve = Callable[[Context, FeatureView, bool], Keys]
Inputs = Callable[[Context, FeatureView, Keys, bool], Floats]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A visit with the context that stands for its request, and whether it asked for new entities only."""

    visit: Visit
    context: Context
    new_only: bool = False


class Replay:
    """Makes Examples of requests, in time order, folding the events between them into `features`.

    `events` are all events in log order, by time; `features` is private and may already hold a prefix.
    `retrieve(context, view, new_only)` gives the candidates, `inputs(context, view, keys, new_only)` the
    matrix [n, f]; both are serving's own.
    """

    def __init__(
        self,
        events: EventBatch,
        features: FeatureStore,
        heads: Mapping[str, HeadConfig],
        retrieve: Retrieve,
        inputs: Inputs,
        *,
        negatives: int = 100,
        seed: int = 0,
        width: int = 50_000,
    ) -> None:
        self.events, self.features, self.heads = events, features, heads
        self.retrieve, self.inputs = retrieve, inputs
        self.negatives, self.width = negatives, width
        self._rng = np.random.default_rng(seed)
        self._done = 0
        self._by_user = np.lexsort((events.time, events.user))
        self._users = events.user[self._by_user]

    def fold_until(self, time: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Fold all events strictly before `time`."""
        end = int(np.searchsorted(self.events.time, time, side="left"))
        while self._done < end:
            stop = min(self._done + self.width, end)
            self.features.write(self.events.take(slice(self._done, stop)), Position.at(stop))
            self._done = stop
            if progress:
                progress(stop, end)

    def examples(self, requests: Sequence[StoredRequest]) -> Iterator[Examples]:
        """One group per request that has a positive among its candidates. `requests` by time."""
        for request in requests:
            self.fold_until(request.visit.time)
            with self.features.view(request.context) as view:
                made = self._one(request, view)
            if made is not None:
                yield made

    def _one(self, request: StoredRequest, view: FeatureView) -> Examples | None:
        candidates = self.retrieve(request.context, view, request.new_only)
        labels = self._labels(request.visit, candidates)
        positive = np.nan_to_num(labels).any(axis=1)
        if not positive.any():
            return None
        others = np.flatnonzero(~positive)
        kept = min(self.negatives, len(others))
        chosen = np.concatenate([np.flatnonzero(positive), self._rng.choice(others, kept, replace=False)])
        rate = kept / len(others) if kept else 1.0
        keys = candidates[chosen]
        return Examples(
            inputs=self.inputs(request.context, view, keys, request.new_only),
            labels=labels[chosen],
            negative_rate=np.full(len(chosen), rate, np.float32),
            weight=np.ones(len(chosen), np.float32),
            keys=keys,
            offsets=np.array([0, len(chosen)], np.int64),
            time=np.array([request.visit.time], np.int64),
            user=np.array([request.visit.user], np.uint64),
        )

    def _labels(self, visit: Visit, keys: Keys) -> Floats:
        """Labels [n, h] of `keys` from the user's events within each head's window after the visit's start."""
        first = np.searchsorted(self._users, visit.user, side="left")
        last = np.searchsorted(self._users, visit.user, side="right")
        rows = self._by_user[first:last]
        time = self.events.time[rows]
        labels = np.empty((len(keys), len(self.heads)), np.float32)
        for column, head in enumerate(self.heads.values()):
            # The request came just before its session's first event, so an event at its very time answers it.
            window = rows[slice(*np.searchsorted(time, [visit.time, visit.time + parse_duration(head.window)]))]
            labels[:, column] = _label(head, self.events.take(window), keys)
        return labels


def _label(head: HeadConfig, window: EventBatch, keys: Keys) -> NDArray[np.float32]:
    """Binary: 1 where the event happened. Value: its sum, NaN where it did not happen."""
    answers = window.take(window.where([head.event]))
    if head.type == "binary":
        return np.isin(keys, answers.entity).astype(np.float32)
    wanted, place = np.unique(answers.entity, return_inverse=True)
    total = np.bincount(place, answers.value, len(wanted))
    if not len(wanted):
        return np.full(len(keys), np.nan, np.float32)
    at = np.minimum(np.searchsorted(wanted, keys), len(wanted) - 1)
    return np.where(wanted[at] == keys, total[at], np.nan).astype(np.float32)
