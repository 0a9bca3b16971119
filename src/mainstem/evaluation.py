"""`mainstem evaluate`: train on all but the end of the log, then replay the end against baselines.

A model of its own is trained on what lies before the cut, so it has not learned from what it is asked
(the published one has). Features stay live: each request sees every event strictly before it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from mainstem import features
from mainstem import weights as snapshots
from mainstem.calibration_evaluation import CalibrationEvaluation
from mainstem.canvas_evaluation import CanvasEvaluation
from mainstem.curriculum import Curriculum
from mainstem.evaluate import Basket, Evaluation, Replay, Results, default_baselines
from mainstem.join import Visit, visits
from mainstem.live import model_of, scores_of
from mainstem.rank import Pipeline
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.errors import NotReady
from mainstem.schema.protocols import Log
from mainstem.schema.records import Context, Event, Show, SlateRequest
from mainstem.schema.time import DAY, iso
from mainstem.text.kept import KeptTexts
from mainstem.train import Trainer, neighbourhoods, restore

__all__ = ["evaluate_log"]

Progress = Callable[[str, int, int], None]


class _HeldOut:
    """`ReplayClient` in process: folds every event before a request's time, then answers."""

    def __init__(self, pipeline: Pipeline, fold_until: Callable[[int], None], canvas: str, k: int) -> None:
        self.pipeline, self.fold_until, self.canvas, self.k = pipeline, fold_until, canvas, k

    def slate(self, user: str, time: int, new_only: bool) -> list[str]:
        self.fold_until(time)
        context = Context(canvas=self.canvas, user=user, time=time)
        asked = SlateRequest(context=context, show=Show(new_only=new_only), limit=self.k, deadline_ms=60_000)
        return [item.entity for item in self.pipeline.answer(asked).slate.items]

    def post(self, events: Sequence[Event]) -> None:
        """Events come by time, through `fold_until`."""

    def lags_ms(self) -> list[float]:
        return []


def evaluate_log(
    config: Config, log: Log, *, days: float, most: int, k: int = 10, progress: Progress, texts: KeptTexts | None = None
) -> tuple[Evaluation, Results]:
    """Hold back the last `days` of the log; at most `most` of their visits, evenly drawn, are asked and scored.

    texts: the encoder that `model.text` names.

    Raises NotReady where either side of the cut is too short.
    """
    source = Curriculum(config, log, progress)
    try:
        if not len(source.events):
            raise NotReady("the log has no events yet: ingest some first")
        cut = int(source.events.time[-1]) + 1 - round(days * DAY)
        past = source.before(cut)
        baskets, visits_, asked = _held_out(source, cut)
        if not baskets:
            raise NotReady(f"nobody came in the last {days:g} days of the log: try more --days")
        with tempfile.TemporaryDirectory() as folder:
            kept = snapshots.open(f"file://{folder}")
            trained = Trainer(config, source.catalog, kept, "evaluation", kept=texts).run(past, progress)
            snapshot = kept.load("evaluation", trained.version)
            towers, ranker, wide = restore(snapshot, config, source.catalog, texts)
            between = neighbourhoods.load(kept.neighbours, snapshot.manifest, config)
        model = model_of(towers, config, source.kinds, source.inputs, trained.version, source.catalog)
        model = replace(model, scores=scores_of(ranker, wide), neighbourhoods=between)
        store = features.open("memory://", config, source.catalog)
        folding = source.replay(store, model)
        canvas = next(iter(config.canvases))
        client = _HeldOut(source.pipeline(store, model), folding.fold_until, canvas, k)
        canvases = CanvasEvaluation(source, model, store, asked, k)
        calibration = CalibrationEvaluation(source, model, folding, asked)
        replay = Replay(client, default_baselines(), k=k)
        replay.teach(_held_out(source, int(source.events.time[0]), cut)[0])
        numbers = set(np.linspace(0, len(baskets) - 1, min(most, len(baskets))).round().astype(int).tolist())
        for number, (basket, visit) in enumerate(zip(baskets, visits_, strict=True)):
            if number in numbers:
                replay.step(basket)
                canvases.ask(visit)
                calibration.ask(visit)
            else:
                replay.teach([basket])
            progress("evaluation", number + 1, len(baskets))
        store.close()
    finally:
        source.close()
    summary = _summary(replay.results, canvases, days, cut, trained.metrics)
    return replace(summary, calibration=tuple(calibration.found())), replay.results


def _held_out(source: Curriculum, since: int, until: int | None = None) -> tuple[list[Basket], list[Visit], EventBatch]:
    """Visits as baskets of ids, with the visits and the events that these name; entities that the catalogue does not
    know cannot be shown and are left out."""
    events = source.events
    inside = (events.time >= since) & (events.time < until if until is not None else True)
    events = events.take(inside & events.where(list(source.config.interest())))
    known = {int(key): source.catalog.entity(int(key)) for key in np.unique(events.entity)}
    baskets, found = list[Basket](), list[Visit]()
    for visit in visits(events):
        entities = [known[int(key)] for key in events.entity[visit.rows]]
        items = [entity.entity for entity in entities if entity is not None]
        if items:
            baskets.append(Basket(source.users[visit.user], visit.time, items))
            found.append(visit)
    return baskets, found, events


def _summary(
    results: Results, canvases: CanvasEvaluation, days: float, cut: int, trained: dict[str, float]
) -> Evaluation:
    rows: dict[str, dict[str, float | None]] = {
        system: {
            f"{metric}@{results.k} {which}": getattr(results.score(system, which), metric)
            for which in ("all", "new")
            for metric in ("ndcg", "recall")
        }
        for system in results.systems
    }
    for system, row in canvases.rows().items():
        rows.setdefault(system, {}).update(row)
    protocol = (
        f"The last {days:g} days (from {iso(cut)[:16]}Z) held back from training; each visit asked for before it is "
        "learned, unrestricted (all) and for what the user never had (new); full ranking of the catalogue. "
        "Each canvas besides: asked as such a visit can have begun there, beside the same canvas without a model."
    )
    facts = {"visits": results.baskets, "slates": results.slates, **{f"training {k}": v for k, v in trained.items()}}
    return Evaluation(protocol, rows, facts, tuple(canvases.failures()))
