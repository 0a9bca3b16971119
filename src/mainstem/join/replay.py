"""Goes through the log once more, in order, on private state: inputs as of each request (laws 4 and 5).

The same feature definitions and the same retrieval as in serving, so what is learned from is what will
be asked. Serving's state is never touched.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.join.labels import labels_of
from mainstem.join.sessions import Visit
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples, answered
from mainstem.schema.ids import DEFAULT_TENANT, Keys
from mainstem.schema.pasts import Pasts
from mainstem.schema.position import Position
from mainstem.schema.protocols import FeatureStore, FeatureView, Floats
from mainstem.schema.records import Context
from mainstem.schema.time import parse_duration

__all__ = ["Replay", "StoredRequest"]

Retrieve = Callable[[Context, FeatureView], Keys]
Inputs = Callable[[Context, FeatureView, Keys], tuple[Floats, Pasts | None]]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """A visit with the context that stands for its request."""

    visit: Visit
    context: Context


class Replay:
    """Makes Examples of requests, in time order, folding the events between them into `features`.

    `events` are all events by time, those of one moment in log order; `features` is private and may already hold
    a prefix. `retrieve(context, view)` gives the candidates, `inputs(context, view, keys)` the matrix [n, f] and what
    the network reads of the history, if any; both are serving's own. All positives among the candidates are kept and
    at most `negatives` others (at least one of each stratum): two fifths from what the user had before, the rest from
    what is new to them, each drawn evenly; what one stratum lacks the other may use. What is drawn depends on the
    seed, the user and the time alone.

    Raises ValueError where events or requests are out of order: features would see the future.
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
        tenant: str = DEFAULT_TENANT,
        width: int = 50_000,
    ) -> None:
        if np.any(events.time[1:] < events.time[:-1]):
            raise ValueError("events must be sorted by time")
        self.events, self.features, self.heads = events, features, heads
        self.retrieve, self.inputs = retrieve, inputs
        self.negatives, self.seed, self.tenant, self.width = negatives, seed, tenant, width
        self._done = features.position().offset()
        self._by_user = np.lexsort((events.time, events.user))
        self._users = events.user[self._by_user]

    def fold_until(self, time: int, progress: Callable[[int, int], None] | None = None) -> None:
        """Fold all events strictly before `time`. Raises ValueError where later ones are folded already."""
        end = int(np.searchsorted(self.events.time, time, side="left"))
        if end < self._done:
            raise ValueError(f"the state already holds events from {time} ms on: requests must come by time")
        while self._done < end:
            stop = min(self._done + self.width, end)
            self.features.write(self.events.take(slice(self._done, stop)), Position.at(stop))
            self._done = stop
            if progress:
                progress(stop, end)

    def examples(self, requests: Sequence[StoredRequest]) -> Iterator[Examples]:
        """One group per request that has a positive among its candidates. `requests` by time."""
        for request in requests:
            if request.context.time != request.visit.time:
                raise ValueError(f"a request at {request.context.time} ms cannot stand for one at {request.visit.time}")
            self.fold_until(request.visit.time)
            with self.features.view(request.context, self.tenant) as view:
                made = self._one(request, view)
            if made is not None:
                yield made

    def _one(self, request: StoredRequest, view: FeatureView) -> Examples | None:
        candidates = self.retrieve(request.context, view)
        labels = self.labels(request.visit, candidates)
        positive = answered(labels, list(self.heads.values()))
        if not positive.any():
            return None
        fresh = ~np.isin(candidates, view.counts().keys)
        rng = np.random.default_rng((self.seed, request.visit.user, request.visit.time % (1 << 63)))
        chosen, rate = self._draw(positive, fresh, rng)
        inputs, pasts = self.inputs(request.context, view, candidates[chosen])
        return Examples(
            inputs=inputs,
            labels=labels[chosen],
            negative_rate=rate,
            fresh=fresh[chosen],
            weight=np.ones(len(chosen), np.float32),
            keys=candidates[chosen],
            offsets=np.array([0, len(chosen)], np.int64),
            time=np.array([request.visit.time], np.int64),
            user=np.array([request.visit.user], np.uint64),
            pasts=pasts,
        )

    def _draw(
        self, positive: NDArray[np.bool_], fresh: NDArray[np.bool_], rng: np.random.Generator
    ) -> tuple[NDArray[np.int64], Floats]:
        """Places of all positives and of the negatives drawn, and which share of its stratum's negatives was kept."""
        old, new = np.flatnonzero(~fresh & ~positive), np.flatnonzero(fresh & ~positive)
        share = self.negatives * 2 // 5
        # A stratum of which nothing is kept could not be corrected for, hence at least one.
        most_old = max(share, self.negatives - len(new), 1)
        most_new = max(self.negatives - min(most_old, len(old)), 1)
        rate = np.ones(len(positive), np.float32)
        chosen = [np.flatnonzero(positive)]
        for stratum, others, most in ((~fresh, old, most_old), (fresh, new, most_new)):
            if len(others):
                kept = min(most, len(others))
                chosen.append(np.sort(rng.choice(others, kept, replace=False)))
                rate[stratum] = kept / len(others)
        places = np.concatenate(chosen)
        return places, rate[places]

    def labels(self, visit: Visit, keys: Keys) -> Floats:
        """Labels [n, h] of `keys` from the user's events within each head's window after the visit's start; NaN for
        delayed heads whose window is not over at the end of the events."""
        user = np.uint64(visit.user)  # a Python int would turn the whole column into floats
        first, last = np.searchsorted(self._users, user, "left"), np.searchsorted(self._users, user, "right")
        rows = self._by_user[first:last]
        time = self.events.time[rows]
        labels = np.empty((len(keys), len(self.heads)), np.float32)
        for column, head in enumerate(self.heads.values()):
            # The request came just before its session's first event, so an event at its very time answers it.
            until = visit.time + parse_duration(head.window)
            window = rows[slice(*np.searchsorted(time, [visit.time, until]))]
            labels[:, column] = labels_of(head, self.events.take(window), keys)
            if head.delayed and until > self.events.time[-1]:
                labels[:, column] = np.nan
        return labels
