"""The four stages in a row. Degradation is visible, never silent; the answer always comes (law 12)."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from mainstem.rank.filter import keep_allowed
from mainstem.rank.order import arrange, combine
from mainstem.rank.question import Question, resolve
from mainstem.rank.retrieve import Candidates, retrieve
from mainstem.rank.score import RELATION, ModelVersion, rank_inputs
from mainstem.rank.sources import Popular, Source
from mainstem.schema.config import Config
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys, fresh_id
from mainstem.schema.protocols import Catalog, FeatureStore, FeatureView, Floats
from mainstem.schema.records import Degraded, Slate, SlateItem, SlateRequest

__all__ = ["Answer", "Pipeline"]

# Sources that say how close a candidate is to given source entities.
_SIMILARITY = ("cooccurrence", "content", "two_tower")


@dataclass(frozen=True, slots=True)
class Answer:
    """A slate and the feature values of what it shows: [len(slate.items), len(inputs)], for the record."""

    slate: Slate
    inputs: tuple[str, ...]
    values: Floats


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


class Pipeline:
    """Answers requests from the state, the catalogue and the model in use. Safe to call from several threads.

    `current` gives the model in use or raises NotReady; `kept` the last good slate for a request, if any.
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
    ) -> None:
        self.config, self.catalog, self.features = config, catalog, features
        self.sources, self.current, self.kept, self.pool = sources, current, kept, pool

    def answer(self, request: SlateRequest) -> Answer:
        """The slate for `request`. Raises InvalidRecord for a request that breaks the contract, nothing else."""
        question = resolve(request, self.config)
        trail = _Trail(question.started)
        with self.features.view(question.context, question.tenant) as view:
            trail.lap("state")
            forbidden = question.forbidden(view)
            candidates = self._retrieve(question, view, forbidden, trail)
            trail.lap("retrieve")
            candidates = keep_allowed(question, self.catalog, forbidden, candidates)
            trail.lap("filter")
            if question.left() <= 0:
                return self._fall_back(question, view, forbidden, candidates, trail)
            model, scores, heads, inputs = self._score(question, view, candidates, trail)
            trail.lap("score")
            return self._order(question, view, candidates, model, scores, heads, inputs, trail, request.explain)

    def candidates(self, request: SlateRequest, view: FeatureView) -> Candidates:
        """Stages 1 and 2 alone, on a view of one's own: what training's replay draws its examples from."""
        question = resolve(request, self.config)
        forbidden = question.forbidden(view)
        found = self._retrieve(question, view, forbidden, _Trail(question.started))
        return keep_allowed(question, self.catalog, forbidden, found)

    def _retrieve(self, question: Question, view: FeatureView, forbidden: Keys, trail: _Trail) -> Candidates:
        def allowed(keys: Keys) -> np.typing.NDArray[np.bool_]:
            return question.allowed(self.catalog, forbidden, keys)

        candidates, degraded = retrieve(question, view, self.sources, allowed, self.pool)
        trail.degraded += degraded
        if len(candidates) < question.limit:
            candidates = self._fill_up(question, candidates, allowed)
        return candidates

    def _fill_up(
        self, question: Question, candidates: Candidates, allowed: Callable[[Keys], np.typing.NDArray[np.bool_]]
    ) -> Candidates:
        """Nothing known of the user, or a narrow filter: anything of the catalogue that may be shown."""
        keys = self.catalog.keys()
        keys = keys[keys != 0]
        keys = keys[allowed(keys)]
        keys = keys[~np.isin(keys, candidates.keys)][: question.limit]
        names = (*candidates.names, "catalog")
        brought = np.zeros((len(candidates) + len(keys), len(names)), np.bool_)
        brought[: len(candidates), : len(candidates.names)] = candidates.source
        brought[len(candidates) :, -1] = True
        fused = np.concatenate([candidates.fused, np.zeros(len(keys), np.float32)])
        return Candidates(np.concatenate([candidates.keys, keys]), brought, fused, names)

    def _score(
        self, question: Question, view: FeatureView, candidates: Candidates, trail: _Trail
    ) -> tuple[ModelVersion | None, Floats, tuple[str, ...], Floats]:
        """Scores [n, h], the heads' names, and the network's inputs [n, f]."""
        relation = len(question.sources) > 0
        try:
            model = self.current()
        except NotReady as reason:
            trail.degraded.append(Degraded(stage="score", what="model", why=str(reason)))
            name = RELATION if relation else "fused"
            return None, candidates.fused[:, None], (name,), np.zeros((len(candidates), 0), np.float32)
        values = rank_inputs(model, question.context, view, question.tenant, candidates.keys)
        scores, heads = model.scores(values), model.heads
        if relation:
            tie = self._relation(candidates)
            scores, heads = np.column_stack([scores, tie]).astype(np.float32), (*heads, RELATION)
        return model, scores, heads, values

    @staticmethod
    def _relation(candidates: Candidates) -> Floats:
        """Fused rank where a similarity source brought the candidate, else nearly nothing."""
        similar = [i for i, name in enumerate(candidates.names) if name in _SIMILARITY]
        brought = candidates.source[:, similar].any(axis=1)
        return np.where(brought, candidates.fused, 1e-3 * candidates.fused).astype(np.float32)

    def _order(
        self,
        question: Question,
        view: FeatureView,
        candidates: Candidates,
        model: ModelVersion | None,
        scores: Floats,
        heads: tuple[str, ...],
        values: Floats,
        trail: _Trail,
        explain: bool,
    ) -> Answer:
        weights = {RELATION: 1.0} if RELATION in heads else dict(question.canvas.order) if model else {}
        score = combine(scores, heads, weights)
        canvas = question.canvas
        chosen = arrange(
            candidates.keys, score, question.limit, self.catalog, question.show.entity_type, canvas.diversity
        )
        inputs = model.inputs if model else ()
        items = []
        for at in chosen.tolist():
            entity = self.catalog.entity(int(candidates.keys[at]))
            if entity is None:  # deleted between filter and now
                continue
            items.append(
                SlateItem(
                    entity=entity.entity,
                    entity_type=entity.entity_type,
                    score=float(score[at]),
                    scores={head: float(scores[at, i]) for i, head in enumerate(heads)},
                    sources=[name for i, name in enumerate(candidates.names) if candidates.source[at, i]],
                    features=dict(zip(inputs, values[at].tolist(), strict=True)) if explain and inputs else None,
                )
            )
        trail.lap("order")
        slate = self._slate(question, view, items, model, trail, candidates)
        return Answer(slate, inputs, values[chosen])

    def _fall_back(
        self, question: Question, view: FeatureView, forbidden: Keys, candidates: Candidates, trail: _Trail
    ) -> Answer:
        """The deadline is gone: the last good slate, else what sells, filtered all the same."""
        trail.degraded.append(Degraded(stage="score", what="model", why="the deadline passed before scoring"))
        items: list[SlateItem] = []
        for way in question.canvas.fallback:
            if way == "kept" and (slate := self.kept(question)) is not None:
                from_kept = Candidates(
                    np.array([self._key(question, item) for item in slate.items], np.uint64),
                    np.zeros((len(slate.items), 0), np.bool_), np.zeros(len(slate.items), np.float32), (),
                )  # fmt: skip
                mask = question.allowed(self.catalog, forbidden, from_kept.keys)
                items = [item for item, ok in zip(slate.items, mask, strict=True) if ok]
            elif way == "popular":
                items = self._popular(question, view, forbidden)
            if items:
                trail.degraded.append(Degraded(stage="order", what=f"fallback {way}", why="answered instead"))
                break
        trail.lap("order")
        slate = self._slate(question, view, items[: question.limit], None, trail, candidates)
        return Answer(slate, (), np.zeros((len(slate.items), 0), np.float32))

    def _key(self, question: Question, item: SlateItem) -> int:
        from mainstem.schema.ids import key64

        return key64(item.entity_type, item.entity, question.tenant)

    def _popular(self, question: Question, view: FeatureView, forbidden: Keys) -> list[SlateItem]:
        source = Popular("popular", 1)
        found = source.prepare(
            question, view, question.limit, lambda keys: question.allowed(self.catalog, forbidden, keys)
        )()
        items = []
        for key, score in zip(found.keys.tolist(), found.scores.tolist(), strict=True):
            entity = self.catalog.entity(key)
            if entity is not None:
                items.append(
                    SlateItem(entity=entity.entity, entity_type=entity.entity_type, score=score, sources=[source.name])
                )
        return items

    def _slate(
        self,
        question: Question,
        view: FeatureView,
        items: list[SlateItem],
        model: ModelVersion | None,
        trail: _Trail,
        candidates: Candidates,
    ) -> Slate:
        trail.timings["total"] = round((time.monotonic() - question.started) * 1000, 3)
        version = model.version if model else None
        return Slate(
            request_id=fresh_id("slate"),
            canvas=question.context.canvas,
            time=question.time,
            items=items,
            model_line=model.line if model else "main",
            dense_version=version,
            sparse_version=version,
            index_version=model.index.version if model else None,
            position=str(view.position),
            timings_ms=trail.timings,
            candidates=candidates.counts(),
            degraded=trail.degraded,
        )
