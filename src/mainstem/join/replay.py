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

Retrieve = Callable[[Context, FeatureView], Keys]
Inputs = Callable[[Context, FeatureView, Keys], Floats]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A visit with the context that stands for its request."""

    visit: Visit
    context: Context


class Replay:
    """Makes Examples of requests, in time order, folding the events between them into `features`.

    `events` are all events in log order, by time; `features` is private and may already hold a prefix.
    `retrieve(context, view)` gives the candidates, `inputs(context, view, keys)` the matrix [n, f]; both are
    serving's own. All positives among the candidates are kept and at most `negatives` others: two fifths of
    them from what the user had before, the rest from what is new to them, each drawn evenly.
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
        candidates = self.retrieve(request.context, view)
        labels = self._labels(request.visit, candidates)
        positive: NDArray[np.bool_] = np.any(np.nan_to_num(labels) != 0, axis=1)
        if not positive.any():
            return None
        fresh = ~np.isin(candidates, view.counts().keys)
        chosen, rate = self._draw(positive, fresh)
        return Examples(
            inputs=self.inputs(request.context, view, candidates[chosen]),
            labels=labels[chosen],
            negative_rate=rate,
            fresh=fresh[chosen],
            weight=np.ones(len(chosen), np.float32),
            keys=candidates[chosen],
            offsets=np.array([0, len(chosen)], np.int64),
            time=np.array([request.visit.time], np.int64),
            user=np.array([request.visit.user], np.uint64),
        )

    def _draw(self, positive: NDArray[np.bool_], fresh: NDArray[np.bool_]) -> tuple[NDArray[np.int64], Floats]:
        """Places of all positives and of the negatives drawn, and which share of its stratum's negatives was kept."""
        rate = np.ones(len(positive), np.float32)
        chosen = [np.flatnonzero(positive)]
        for stratum, most in ((~fresh, self.negatives * 2 // 5), (fresh, self.negatives - self.negatives * 2 // 5)):
            others = np.flatnonzero(stratum & ~positive)
            kept = min(most, len(others))
            chosen.append(np.sort(self._rng.choice(others, kept, replace=False)))
            rate[stratum] = kept / len(others) if kept else 1.0
        places = np.concatenate(chosen)
        return places, rate[places]

    def _labels(self, visit: Visit, keys: Keys) -> Floats:
        """Labels [n, h] of `keys` from the user's events within each head's window after the visit's start."""
        user = np.uint64(visit.user)  # a Python int would turn the whole column into floats
        first, last = np.searchsorted(self._users, user, "left"), np.searchsorted(self._users, user, "right")
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
