"""Every canvas by itself: its slates against those that it would show without a model.

A model that is good for the home feed may have been made so at the cost of search. So each canvas is asked as it would
have been on held-out visits (`join.canvases`), and `canvases.NAME.gate` says how much better than without a model its
slates must be.
"""

from __future__ import annotations

import numpy as np

from mainstem.assemble import sources_of
from mainstem.curriculum import Curriculum
from mainstem.evaluate.metrics import ndcg_at_k
from mainstem.join import CanvasRequests, Visit
from mainstem.rank import ModelVersion, Pipeline
from mainstem.schema.batch import EventBatch
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.protocols import FeatureStore
from mainstem.schema.records import Context, SlateRequest

__all__ = ["PLAIN", "CanvasEvaluation"]

# The system beside the model: the same canvas, ordered by how close candidates are, or by their sources' order.
PLAIN = "without a model"


def _untrained() -> ModelVersion:
    raise NotReady("asked without a model")


class CanvasEvaluation:
    """Asks visits to `events` on every canvas, of `store` as it stands: whoever folds events into it calls `ask`."""

    def __init__(
        self, source: Curriculum, model: ModelVersion, store: FeatureStore, events: EventBatch, k: int = 10
    ) -> None:
        self.config, self.catalog, self.events, self.k = source.config, source.catalog, events, k
        self.requests = CanvasRequests(source.config.canvases, events, source.users, source.catalog)
        plain = sources_of(source.config, _untrained, source.content, source.categories)
        self.pipelines = {
            "mainstem": source.pipeline(store, model),
            PLAIN: Pipeline(source.config, source.catalog, store, plain, _untrained),
        }
        self.scores: dict[str, dict[str, list[float]]] = {
            canvas: {system: [] for system in self.pipelines} for canvas in self.config.canvases
        }

    def ask(self, visit: Visit) -> None:
        """Score both systems on what the visit took, on each canvas that it can have begun on."""
        rng = np.random.default_rng((visit.user, visit.time % (1 << 63)))
        for canvas in self.config.canvases:
            request = self.requests.of(visit, canvas, rng)
            if request is None:
                continue
            wanted = self._wanted(visit, request.context)
            if not len(wanted):
                continue
            for system, pipeline in self.pipelines.items():
                shown = self._shown(pipeline, request.context)
                self.scores[canvas][system].append(float(ndcg_at_k(shown[None], [wanted], self.k)[0]))

    def _wanted(self, visit: Visit, context: Context) -> Keys:
        """What answers: what was taken, known, beside the sources, of the category."""
        taken = np.unique(self.events.entity[visit.rows])
        taken = taken[self.catalog.rows(taken) >= 0]
        taken = taken[~np.isin(taken, keys64(context.source_type, context.sources, self.config.tenant))]
        if context.category is None:
            return taken
        rows = self.catalog.rows(taken)
        return taken[self.catalog.matches(rows, {"category": context.category})]

    def _shown(self, pipeline: Pipeline, context: Context) -> Keys:
        """Keys of the slate, 0 after its end: uint64 [k]."""
        slate = pipeline.answer(SlateRequest(context=context, limit=self.k, deadline_ms=60_000)).slate
        keys = [key64(item.entity_type, item.entity, self.config.tenant) for item in slate.items]
        return np.array(keys + [0] * (self.k - len(keys)), np.uint64)

    def rows(self) -> dict[str, dict[str, float | None]]:
        """`ndcg@k CANVAS` of each system; None where no visit could be asked there."""
        return {
            system: {
                f"ndcg@{self.k} {canvas}": float(np.mean(scores[system])) if scores[system] else None
                for canvas, scores in self.scores.items()
            }
            for system in self.pipelines
        }

    def failures(self) -> list[str]:
        """Canvases below their gate, each with what was found."""
        found = []
        for name, canvas in self.config.canvases.items():
            scores = self.scores[name]
            if canvas.gate is None or not scores[PLAIN]:
                continue
            ours, plain = (float(np.mean(scores[system])) for system in self.pipelines)
            if ours < canvas.gate * plain:
                found.append(
                    f"canvases.{name}: NDCG@{self.k} {ours:.4f}, and {plain:.4f} without a model; "
                    f"the gate asks for {canvas.gate:g} times that"
                )
        return found
