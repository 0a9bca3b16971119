"""Stage 1: ask every source of the canvas, within the stage's share of the deadline, and merge."""

from __future__ import annotations

import logging
from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import Executor, Future, wait
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.rank.question import Question
from mainstem.rank.sources import Allowed, Search, Source
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, FeatureView, Floats, Scored
from mainstem.schema.records import Degraded

__all__ = ["DEFAULT_MIX", "RETRIEVAL_SHARE", "Candidates", "fill_up", "merge", "retrieve"]

_log = logging.getLogger(__name__)

# Share of the deadline after which retrieval goes on with what it has.
RETRIEVAL_SHARE = 0.5

# Candidates asked of each source where the canvas names none.
DEFAULT_MIX = {
    "owned": 250,
    "popular": 150,
    "popular_here": 100,
    "popular_new": 100,
    "cooccurrence": 100,
    "two_tower": 100,
    "content": 50,
}

# And where the request names a category.
CATEGORY_MIX = {**DEFAULT_MIX, "category": 150}

# The constant of reciprocal rank fusion.
_FUSION = 60

_LATE = "too late for its share of the deadline"


@dataclass(frozen=True, slots=True)
class Candidates:
    """The merged candidates, none twice.

    keys  uint64 [n]
    rank  int32  [n, s]  place (from 0) of each among what source `names[s]` brought, -1 where it did not
    """

    keys: Keys
    rank: NDArray[np.int32]
    names: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def source(self) -> NDArray[np.bool_]:
        """Which of `names` brought each: [n, s]."""
        return self.rank >= 0

    def fused(self, names: Collection[str] | None = None) -> Floats:
        """Reciprocal rank fusion over the sources (or those of them in `names`), the order where no model is at
        hand: the sum of 1 / (60 + rank), ranks from 1 (Cormack, Clarke, Buettcher, SIGIR 2009): float32 [n]."""
        rank = self.rank
        if names is not None:
            rank = rank[:, [i for i, name in enumerate(self.names) if name in names]]
        found: Floats = np.where(rank >= 0, 1.0 / (_FUSION + 1 + rank), 0.0).sum(axis=1).astype(np.float32)
        return found

    def take(self, rows: NDArray[np.int64]) -> Candidates:
        return Candidates(self.keys[rows], self.rank[rows], self.names)

    def counts(self) -> dict[str, int]:
        """How many candidates each source brought."""
        return dict(zip(self.names, self.source.sum(axis=0).tolist(), strict=True))


def merge(found: Mapping[str, Scored], most: int) -> Candidates:
    """Union of the sources, the first of each before the second of any, cut at `most`.

    Of equal best ranks the better fused one comes first, then the smaller key.
    """
    names = tuple(found)
    keys = np.concatenate([np.zeros(0, np.uint64), *(s.keys for s in found.values())])
    place = np.concatenate([np.zeros(0, np.uint32), *(np.arange(len(s), dtype=np.uint32) for s in found.values())])
    origin = np.repeat(np.arange(len(names)), [len(s) for s in found.values()])
    unique, row = np.unique(keys, return_inverse=True)
    # As unsigned, "did not bring it" (-1) is the largest rank; of a key that comes twice the first place stays.
    rank = np.full((len(unique), len(names)), np.iinfo(np.uint32).max, np.uint32)
    np.minimum.at(rank, (row, origin), place)
    first = rank.min(axis=1, initial=np.iinfo(np.uint32).max)
    merged = Candidates(unique, rank.view(np.int32), names)
    return merged.take(np.lexsort((unique, -merged.fused(), first))[:most])


def retrieve(
    question: Question,
    view: FeatureView,
    sources: Sequence[Source],
    allowed: Allowed,
    pool: Executor | None = None,
    *,
    strict: bool = False,
) -> tuple[Candidates, list[Degraded]]:
    """Candidates of all sources of the question's canvas, and what was left out.

    With a `pool`, index searches run beside the sources that read the view. A source that is late, not ready or
    fails is left out and reported; if `strict`, what failed raises instead: what is learned from must not depend
    on luck. A curated list (`only`) is a source of its own, in its own order.
    """
    asked = _Asked(question, view, allowed, strict)
    mix = DEFAULT_MIX if question.context.category is None else CATEGORY_MIX
    limits: dict[str, int] = {name: source.limit for name, source in question.canvas.sources.items()} or mix
    most = max(question.canvas.candidates, question.limit)
    if question.only is not None:
        limits = {name: min(limit, len(question.only)) for name, limit in limits.items()}
        asked.found["only"] = Scored(question.only[allowed(question.only)][:most], np.zeros(0, np.float32))
    mine = [(source, limit) for source in sources if (limit := limits.get(source.name, 0))]
    running: dict[Future[Scored], str] = {}
    if pool is not None:
        beside = [pair for pair in mine if pair[0].concurrent]
        mine = [pair for pair in mine if not pair[0].concurrent]
        for source, limit in beside:
            search = asked.prepare(source, limit)
            if search is not None:
                asked.submit(pool, source.name, search, running)
    for source, limit in mine:
        asked.search(source, limit)
    asked.collect(running)
    # In the order of `sources`, whichever came first: the fused sums must not depend on it.
    order = {name: i for i, name in enumerate(["only", *(source.name for source in sources)])}
    found = dict(sorted(asked.found.items(), key=lambda pair: order[pair[0]]))
    return merge(found, most), asked.degraded


class _Asked:
    """The sources asked so far: what they found, and which were left out why."""

    def __init__(self, question: Question, view: FeatureView, allowed: Allowed, strict: bool) -> None:
        self.question, self.view, self.allowed, self.strict = question, view, allowed, strict
        self.found: dict[str, Scored] = {}
        self.degraded: list[Degraded] = []

    def left(self) -> float:
        """Seconds left of the stage's share."""
        return self.question.left() - (1 - RETRIEVAL_SHARE) * self.question.deadline_s

    def prepare(self, source: Source, limit: int) -> Search | None:
        if self.left() <= 0:
            self._late(source.name)
            return None
        try:
            return source.prepare(self.question, self.view, limit, self.allowed)
        except Exception as error:  # noqa: BLE001 - one source must not take the slate with it
            self._failed(source.name, error)
            return None

    def submit(self, pool: Executor, name: str, search: Search, running: dict[Future[Scored], str]) -> None:
        try:
            running[pool.submit(search)] = name
        except RuntimeError as error:  # the pool is closing
            self._failed(name, error)

    def search(self, source: Source, limit: int) -> None:
        search = self.prepare(source, limit)
        if search is not None:
            try:
                self.found[source.name] = search()
            except Exception as error:  # noqa: BLE001 - as above
                self._failed(source.name, error)

    def collect(self, running: Mapping[Future[Scored], str]) -> None:
        """Take what is there when the share is used up."""
        done, _ = wait(running, timeout=max(self.left(), 0.0)) if running else (set[Future[Scored]](), None)
        for future, name in running.items():
            if future not in done:
                future.cancel()
                self._late(name)
            elif (error := future.exception()) is not None:
                self._failed(name, error)
            else:
                self.found[name] = future.result()

    def _late(self, name: str) -> None:
        self.degraded.append(Degraded(stage="retrieve", what=name, why=_LATE))

    def _failed(self, name: str, error: BaseException) -> None:
        if isinstance(error, NotReady):
            self.degraded.append(Degraded(stage="retrieve", what=name, why=str(error)))
            return
        if self.strict:
            raise error
        _log.error("source %s failed and was left out", name, exc_info=error)
        self.degraded.append(Degraded(stage="retrieve", what=name, why=f"failed: {type(error).__name__}: {error}"))


def fill_up(question: Question, catalog: Catalog, allowed: Allowed, candidates: Candidates) -> Candidates:
    """As many candidates as the slate has places, if the catalogue has them: nothing is known of the user, the
    filter is narrow, or variants share a place. What came last into the catalogue comes first."""
    groups: set[int] = set()
    missing = question.limit - int(_one_a_group(catalog, candidates.keys, groups).sum())
    found: list[Keys] = []
    keys = catalog.keys() if missing > 0 else candidates.keys[:0]
    at, step = len(keys), 1024
    while missing > 0 and at > 0:
        some = keys[max(at - step, 0) : at][::-1]
        at, step = at - step, 4 * step
        some = some[some != 0]
        some = some[allowed(some)]
        some = some[~np.isin(some, candidates.keys)]
        some = some[_one_a_group(catalog, some, groups)][:missing]
        missing -= len(some)
        found.append(some)
    more = np.concatenate([candidates.keys[:0], *found])
    if not len(more):
        return candidates
    n, s = candidates.rank.shape
    rank = np.full((n + len(more), s + 1), -1, np.int32)
    rank[:n, :s] = candidates.rank
    rank[n:, s] = np.arange(len(more))
    return Candidates(np.concatenate([candidates.keys, more]), rank, (*candidates.names, "catalog"))


def _one_a_group(catalog: Catalog, keys: Keys, groups: set[int]) -> NDArray[np.bool_]:
    """Mask [n] of the first of each variant group that is not in `groups` yet, to which it is added."""
    codes = catalog.codes("group", catalog.rows(keys))
    mask: NDArray[np.bool_] = codes == 0
    if not mask.all():
        for row in np.flatnonzero(~mask).tolist():
            code = int(codes[row])
            mask[row] = code not in groups
            groups.add(code)
    return mask
