"""Where candidates come from. Each source answers (question, view) with at most `limit` scored keys.

A source that reads the view runs in the request's own thread (views are not shared between threads);
one that only searches an index (`concurrent`) runs beside it: the searches release the interpreter lock.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.rank.question import Question
from mainstem.rank.score import ModelVersion
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import FeatureView, Floats, Scored, VectorIndex
from mainstem.schema.time import DAY

__all__ = ["Allowed", "Content", "Cooccurrence", "Neighbours", "Owned", "Popular", "Search", "Source", "TwoTower"]

Allowed = Callable[[Keys], NDArray[np.bool_]]
Search = Callable[[], Scored]

# How many of the user's latest entities speak for what they want now.
RECENT = 20

# Candidates before the filter beyond which a source does not widen.
WIDEST = 10_000
# Vectors up to which a search is over (about 1 ms) before another thread has taken it up on a busy machine.
BRIEF = 20_000


class Source(Protocol):
    """One source of candidates."""

    name: str

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        """Read what is needed from the view and return the search itself.

        The search must not touch the view if `concurrent` is true. Raises NotReady.
        """
        ...

    @property
    def concurrent(self) -> bool:
        """Whether the search is worth a thread of its own, beside the other sources."""
        ...


def _permitted(found: Scored, allowed: Allowed, limit: int) -> Scored:
    rows = np.flatnonzero(allowed(found.keys))[:limit]
    return Scored(found.keys[rows], found.scores[rows])


def _widening(fetch: Callable[[int], Scored], asked: int, allowed: Allowed, limit: int) -> Scored:
    """The first `limit` of `fetch(n)` that may be shown, n growing from `asked` until they are enough, there is no
    more, or n is past `WIDEST`: a heavy user owns much that is popular."""
    while True:
        found = fetch(asked)
        kept = _permitted(found, allowed, limit)
        if len(kept) == limit or len(found) < asked or asked >= WIDEST:
            return kept
        asked *= 4


def recent(view: FeatureView) -> tuple[Keys, Floats]:
    """The user's latest distinct entities, newest first, with weights 1/sqrt(rank): keys [m], weights [m]."""
    newest_first = dict.fromkeys(view.history().entity[::-1].tolist())
    keys = np.array(list(newest_first)[:RECENT], np.uint64)
    return keys, (1.0 / np.sqrt(1.0 + np.arange(len(keys)))).astype(np.float32)


class Popular:
    """What sells lately: `window` indexes `features.popularity_windows`; `here`: in the user's usual place;
    `fresh`: what people newly take up.

    Where nobody did anything within the window, the longest window speaks; where that is empty too, it is NotReady
    and says so. A place without events is no news: the user's may not even be known.
    """

    concurrent = False

    def __init__(self, name: str, window: int, here: bool = False, fresh: bool = False) -> None:
        self.name, self.window, self.here, self.fresh = name, window, here, fresh

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        widest, span = question.widest

        def search() -> Scored:
            for window in dict.fromkeys((self.window, widest)):
                sold = False

                def fetch(n: int, window: int = window) -> Scored:
                    nonlocal sold
                    found = view.popular(n, window, self.here, self.fresh)
                    sold = sold or len(found) > 0
                    return found

                kept = _widening(fetch, limit, allowed, limit)
                if sold:
                    return kept
            if self.here:
                return Scored.none()
            raise NotReady(f"nobody did anything {'new ' if self.fresh else ''}in the last {span}")

        return search


class Owned:
    """What the user had before, by recency-weighted counts (half-life 60 days)."""

    name = "owned"
    concurrent = False
    half_life = 60 * DAY

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        def search() -> Scored:
            if question.new_only:
                return Scored.none()
            counts = view.counts()
            age = np.maximum(question.time - counts.last, 0)
            scores = (counts.count * np.exp2(-age / self.half_life)).astype(np.float32)
            best = np.argsort(-scores, kind="stable")
            return _permitted(Scored(counts.keys[best], scores[best]), allowed, limit)

        return search


class Cooccurrence:
    """Neighbours in the co-occurrence graph of the source entities, or of the user's latest ones."""

    name = "cooccurrence"
    concurrent = False

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        def search() -> Scored:
            if len(question.sources):
                keys, weights = question.sources, np.ones(len(question.sources), np.float32)
            else:
                keys, weights = recent(view)
            # All neighbours are scored whatever is asked for: asking for more at once is nearly free.
            return _widening(lambda n: view.neighbours(keys, weights, n), 2 * limit, allowed, limit)

        return search


class Neighbours:
    """What the weights between items say of the source entities, or of the user: each entity of the history counts as
    much as the event of most interest with it, whenever that was. The history is read now, so a new event counts in
    the next slate; the weights are those of the version that the question carries, else of `current`.

    interest float32 [kinds]: of an event, by `History.kind`. Raises NotReady where the version has no such weights.
    """

    concurrent = False

    def __init__(self, name: str, current: Callable[[], ModelVersion], interest: Floats) -> None:
        self.name, self.current, self.interest = name, current, interest

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        known = (question.model or self.current()).neighbourhood(self.name)

        def search() -> Scored:
            if len(question.sources):
                keys, strengths = question.sources, np.ones(len(question.sources), np.float32)
            else:
                keys, strengths = self._taken(view)
            near = known.near(keys, strengths, WIDEST)
            return _widening(lambda n: Scored(near.keys[:n], near.scores[:n]), 2 * limit, allowed, limit)

        return search

    def _taken(self, view: FeatureView) -> tuple[Keys, Floats]:
        """The user's entities [m] and how strongly each was taken: the row that the weights are made for."""
        history = view.history()
        keys, at = np.unique(history.entity, return_inverse=True)
        strengths = np.zeros(len(keys), np.float32)
        np.maximum.at(strengths, at, self.interest[history.kind])
        return keys, strengths


class TwoTower:
    """Nearest entity vectors to the request's in the model's index.

    It searches with the version that the question carries; `current` is asked where it carries none.
    """

    name = "two_tower"

    def __init__(self, current: Callable[[], ModelVersion]) -> None:
        self.current = current

    @property
    def concurrent(self) -> bool:
        try:
            return len(self.current().index) > BRIEF
        except NotReady:  # which `prepare` says too, where it can be reported
            return False

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        model = question.model or self.current()
        if len(question.sources) and not model.index.vectors(question.sources).any():
            return Scored.none  # what is asked beside is not known here; the user alone is another question
        query = model.request_vector(question.context, view, question.tenant)
        if not query.any():
            return Scored.none
        return lambda: model.index.search(query, limit, allowed)


class Content:
    """Nearest texts to the query, the source entities, or the user's latest entities: works from an
    entity's first second, before anybody has touched it."""

    name = "content"

    def __init__(self, index: VectorIndex, encode: Callable[[list[str]], Floats]) -> None:
        self.index, self.encode = index, encode

    @property
    def concurrent(self) -> bool:
        return len(self.index) > BRIEF

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        if question.context.query:
            query = self.encode([question.context.query])[0]
        elif len(question.sources):
            query = self.index.vectors(question.sources).mean(axis=0)
        else:
            keys, weights = recent(view)
            query = weights @ self.index.vectors(keys) if len(keys) else np.zeros(0, np.float32)
        if not query.any():
            return Scored.none
        return lambda: self.index.search(query, limit, allowed)
