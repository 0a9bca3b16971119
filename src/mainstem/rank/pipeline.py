"""The four stages in a row. Degradation is visible, never silent; the answer always comes (law 12)."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from mainstem.rank.filter import keep_allowed
from mainstem.rank.order import arrange, combine
from mainstem.rank.question import Question, resolve
from mainstem.rank.retrieve import Candidates, fill_up, merge, retrieve
from mainstem.rank.score import RELATION, ModelVersion, rank_inputs
from mainstem.rank.sources import Allowed, Popular, Source
from mainstem.schema.config import Config
from mainstem.schema.errors import InvalidRecord, NotReady
from mainstem.schema.ids import Keys, fresh_id, key64
from mainstem.schema.pasts import pack_past
from mainstem.schema.protocols import Catalog, FeatureStore, FeatureView, Floats
from mainstem.schema.records import Degraded, Past, Slate, SlateItem, SlateRequest

__all__ = ["Answer", "Pipeline"]

_log = logging.getLogger(__name__)

# Sources that say how close a candidate is to given source entities, and to a query.
_NEAR_ENTITIES = ("cooccurrence", "item_knn", "ease", "content", "two_tower")
_NEAR_QUERY = ("content",)


@dataclass(frozen=True, slots=True)
class Answer:
    """A slate, for the record with the network's inputs: `values` [len(slate.items), len(inputs)] of what it shows, and
    `pool` of all that it was chosen from: keys [n], inputs [n, len(inputs)]; None where no network was asked. past:
    what the network read of the history, if it reads any."""

    slate: Slate
    inputs: tuple[str, ...]
    values: Floats
    pool: tuple[Keys, Floats] | None = None
    past: Past | None = None


@dataclass(slots=True)
class _Trail:
    """What happened on the way to one slate."""

    clock: float
    timings: dict[str, float] = field(default_factory=dict)
    degraded: list[Degraded] = field(default_factory=list)

    def lap(self, stage: str) -> None:
        now = time.monotonic()
        self.timings[stage] = round((now - self.clock) * 1000, 3)
        self.clock = now

    def left_out(self, stage: str, what: str, why: str) -> None:
        self.degraded.append(Degraded(stage=stage, what=what, why=why))

    @contextmanager
    def guarded(self, stage: str, what: str) -> Iterator[None]:
        """What fails inside is left out: reported, and logged unless it is merely not ready."""
        try:
            yield
        except NotReady as reason:
            self.left_out(stage, what, str(reason))
        except Exception as error:  # noqa: BLE001 - the answer always comes; what failed is in it and in the log
            _log.exception("%s: %s failed and was left out", stage, what)
            self.left_out(stage, what, f"failed: {type(error).__name__}: {error}")


@dataclass(frozen=True, slots=True)
class _Scores:
    """Scores per head [n, h], how the heads are weighed, and where the network was asked its inputs [n, f] and past."""

    heads: tuple[str, ...]
    scores: Floats
    weights: Mapping[str, float]
    values: Floats
    model: ModelVersion | None = None
    past: Past | None = None

    @property
    def inputs(self) -> tuple[str, ...]:
        return self.model.inputs if self.model else ()


class Pipeline:
    """Answers requests from the state, the catalogue and the model in use. Safe to call from several threads.

    `current` gives the model in use or raises NotReady, `lines` those of other model lines that requests may name;
    `kept` the last good slate for a request, if any.
    """

    def __init__(
        self,
        config: Config,
        catalog: Catalog,
        features: FeatureStore,
        sources: Sequence[Source],
        current: Callable[[], ModelVersion],
        kept: Callable[[Question], Slate | None] = lambda question: None,
        pool: Executor | None = None,
        lines: Mapping[str, Callable[[], ModelVersion]] | None = None,
    ) -> None:
        self.config, self.catalog, self.features = config, catalog, features
        self.sources, self.current, self.kept, self.pool = sources, current, kept, pool
        self.lines = {"main": current, **(lines or {})}

    def answer(self, request: SlateRequest) -> Answer:
        """The slate for `request`.

        Raises InvalidRecord for a request that breaks the contract, and what the state raises where it cannot be
        read at all (StoreError); everything else that fails is left out of the slate, which says so.
        """
        model, why = self._in_use(request)
        question = resolve(request, self.config, model)
        trail = _Trail(question.started, degraded=list(question.left_out))
        with self.features.view(question.context, question.tenant) as view:
            if not view.exact:
                trail.left_out("freshness", "state", "it holds events at or after the request's time already")
            forbidden = question.forbidden(view)
            trail.lap("state")

            def allowed(keys: Keys) -> NDArray[np.bool_]:
                return question.allowed(self.catalog, forbidden, keys)

            found, left_out = retrieve(question, view, self.sources, allowed, self.pool)
            trail.degraded += left_out
            if question.left() > 0:
                found = fill_up(question, self.catalog, allowed, found)
            trail.lap("retrieve")
            found = keep_allowed(question, self.catalog, forbidden, found)
            trail.lap("filter")
            if question.left() <= 0:
                return self._fall_back(question, view, allowed, found, trail)
            if model is None:
                trail.left_out("score", "model", why)
            scores = self._score(question, view, found, trail)
            trail.lap("score")
            return self._order(question, view, found, scores, trail, request.explain)

    def candidates(self, request: SlateRequest, view: FeatureView) -> Candidates:
        """Stages 1 and 2 alone, on a view of one's own: what training's replay draws its examples from.

        Raises what a source raises, and knows no deadline: examples must not depend on what was late, on a machine
        that slept meanwhile neither.
        """
        question = resolve(request, self.config, self._in_use(request)[0], replay=True)
        forbidden = question.forbidden(view)

        def allowed(keys: Keys) -> NDArray[np.bool_]:
            return question.allowed(self.catalog, forbidden, keys)

        found, _ = retrieve(question, view, self.sources, allowed, self.pool, strict=True)
        found = fill_up(question, self.catalog, allowed, found)
        return keep_allowed(question, self.catalog, forbidden, found)

    def _in_use(self, request: SlateRequest) -> tuple[ModelVersion | None, str]:
        """The version that answers the whole request, or why there is none."""
        if request.model_line not in self.lines:
            raise InvalidRecord("model_line", f"{request.model_line!r} is not among {', '.join(self.lines)}")
        try:
            return self.lines[request.model_line](), ""
        except NotReady as reason:
            return None, str(reason)

    def _score(self, question: Question, view: FeatureView, found: Candidates, trail: _Trail) -> _Scores:
        """The model's heads. Where the question starts from entities or a query and its canvas has not learned from
        such, or there is no model, the relation to those orders the slate."""
        relation = self._relation(question, found, trail)
        if question.model is not None:
            known = question.canvas.learns_from == ("previous" if len(question.sources) else "query")
            with trail.guarded("score", "model"):
                return self._by_model(question, question.model, view, found, None if known else relation)
        name, score = ("fused", found.fused()) if relation is None else (RELATION, relation)
        return _Scores((name,), score[:, None], {}, np.zeros((len(found), 0), np.float32))

    @staticmethod
    def _by_model(
        question: Question, model: ModelVersion, view: FeatureView, found: Candidates, relation: Floats | None
    ) -> _Scores:
        asked = rank_inputs(model, question.context, view, question.tenant, found.keys)
        values, scores = asked.values, model.scores(asked)
        if not np.isfinite(scores).all():
            raise ValueError(f"{model.version} gave scores that are not finite")
        past = pack_past(asked.met.past, model.reads.kinds) if asked.met and model.reads else None
        if relation is None:
            return _Scores(model.heads, scores, question.canvas.order, values, model, past)
        scores = np.column_stack([scores, relation]).astype(np.float32, copy=False)
        return _Scores((*model.heads, RELATION), scores, {RELATION: 1.0}, values, model, past)

    @staticmethod
    def _relation(question: Question, found: Candidates, trail: _Trail) -> Floats | None:
        """How strongly the similarity sources tie each candidate to the source entities (or the query), fused; what
        they did not bring comes after all of that. None where nothing is asked for, or nothing is tied."""
        names = _NEAR_ENTITIES if len(question.sources) else _NEAR_QUERY if question.context.query else ()
        if not names:
            return None
        near = found.fused(names)
        if not near.any():
            what = "context.sources" if len(question.sources) else "context.query"
            trail.left_out("retrieve", what, "nothing that may be shown is known to be close: ordered as without it")
            return None
        return np.where(near > 0, near, 1e-3 * found.fused()).astype(np.float32)

    def _order(
        self,
        question: Question,
        view: FeatureView,
        found: Candidates,
        scores: _Scores,
        trail: _Trail,
        explain: bool,
    ) -> Answer:
        score = combine(scores.scores, scores.heads, scores.weights)
        chosen = arrange(found.keys, score, question.limit, self.catalog, question.canvas.diversity)
        items, shown = self._items(found, chosen, score, scores, explain)
        trail.lap("order")
        slate = self._slate(question, view, items, scores.model, trail, found)
        pool = (found.keys, scores.values) if scores.inputs else None
        return Answer(slate, scores.inputs, scores.values[shown], pool, scores.past)

    def _items(
        self, found: Candidates, chosen: NDArray[np.int64], score: Floats, scores: _Scores, explain: bool = False
    ) -> tuple[list[SlateItem], NDArray[np.int64]]:
        """The items of the chosen places, and the places that became items: an entity may be deleted meanwhile."""
        items: list[SlateItem] = []
        shown: list[int] = []
        explained = explain and bool(scores.inputs)
        columns = zip(
            chosen.tolist(), found.keys[chosen].tolist(), score[chosen].tolist(), scores.scores[chosen].tolist(),
            found.source[chosen].tolist(), strict=True,
        )  # fmt: skip
        for at, key, total, heads, brought in columns:
            entity = self.catalog.entity(key)
            if entity is None:
                continue
            features = dict(zip(scores.inputs, scores.values[at].tolist(), strict=True)) if explained else None
            items.append(
                SlateItem(
                    entity=entity.entity,
                    entity_type=entity.entity_type,
                    score=total,
                    scores=dict(zip(scores.heads, heads, strict=True)),
                    sources=[name for name, did in zip(found.names, brought, strict=True) if did],
                    features=features,
                )
            )
            shown.append(at)
        return items, np.array(shown, np.int64)

    def _fall_back(
        self, question: Question, view: FeatureView, allowed: Allowed, found: Candidates, trail: _Trail
    ) -> Answer:
        """The deadline is gone: the last good slate, then what sells, then whatever was found; all filtered, and
        one way fills the places that the way before it left empty."""
        trail.left_out("score", "model", "the deadline passed before scoring")
        ways: dict[str, Callable[[], list[SlateItem]]] = {
            "kept": lambda: self._last_good(question, allowed),
            "popular": lambda: self._popular(question, view, allowed),
            "found": lambda: self._found(question, fill_up(question, self.catalog, allowed, found)),
        }
        items: dict[int, SlateItem] = {}
        for way in (*question.canvas.fallback, "found"):
            if len(items) >= question.limit:
                break
            with trail.guarded("order", f"fallback {way}"):
                more = {key: item for item in ways[way]() if (key := self._key(question, item)) not in items}
                if more:
                    trail.left_out("order", f"fallback {way}", f"answered instead, {len(more)} entities")
                items |= more
        keys = np.fromiter(items, np.uint64, len(items))
        falling = -np.arange(len(items), dtype=np.float32)
        chosen = arrange(keys, falling, question.limit, self.catalog, question.canvas.diversity)
        arranged = [items[key] for key in keys[chosen].tolist()]
        trail.lap("order")
        slate = self._slate(question, view, arranged, None, trail, found)
        return Answer(slate, (), np.zeros((len(arranged), 0), np.float32))

    @staticmethod
    def _key(question: Question, item: SlateItem) -> int:
        return key64(item.entity_type, item.entity, question.tenant)

    def _last_good(self, question: Question, allowed: Allowed) -> list[SlateItem]:
        """What may still be shown of the kept slate. It is the user's on this canvas, so it knows nothing of the
        source entities or the query of this request."""
        if len(question.sources) or question.context.query:
            return []
        slate = self.kept(question)
        if slate is None:
            return []
        mask = allowed(np.array([self._key(question, item) for item in slate.items], np.uint64))
        return [item for item, ok in zip(slate.items, mask.tolist(), strict=True) if ok]

    def _popular(self, question: Question, view: FeatureView, allowed: Allowed) -> list[SlateItem]:
        search = Popular("popular", 1).prepare(question, view, question.limit, allowed)
        return self._found(question, merge({"popular": search()}, question.limit))

    def _found(self, question: Question, found: Candidates) -> list[SlateItem]:
        """The best of `found` in fused order."""
        fused = found.fused()
        scores = _Scores(("fused",), fused[:, None], {}, np.zeros((len(found), 0), np.float32))
        chosen = arrange(found.keys, fused, question.limit, self.catalog, question.canvas.diversity)
        return self._items(found, chosen, fused, scores)[0]

    def _slate(
        self,
        question: Question,
        view: FeatureView,
        items: list[SlateItem],
        model: ModelVersion | None,
        trail: _Trail,
        found: Candidates,
    ) -> Slate:
        trail.timings["total"] = round((time.monotonic() - question.started) * 1000, 3)
        return Slate(
            request_id=fresh_id("slate"),
            canvas=question.context.canvas,
            time=question.time,
            items=items,
            model_line=model.line if model else "main",
            dense_version=model.version if model else None,
            sparse_version=model.sparse_version if model else None,
            index_version=model.index.version if model else None,
            position=str(view.position),
            timings_ms=trail.timings,
            candidates=found.counts(),
            degraded=trail.degraded,
        )
