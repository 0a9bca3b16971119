"""One training run: towers on the past, examples replayed from what came after, ranking network, snapshot.

    log:   |---- towers learn here ----|---- ranking examples ----|-- validation --| end
                                        then the towers go on to the end

The towers score the ranking examples, so they must not have learned from them: a vector that has seen
the answer would teach the network to trust it too much. Checkpoints (line `LINE-training`) let a killed
run go on after its last finished epoch of the towers; replay and ranking are short and start over.

A short log is split in proportion: the towers get its first half, the ranking examples come from the next four
tenths, validation from the last tenth.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from mainstem.catalog import MemoryCatalog
from mainstem.index import Neighbourhood
from mainstem.models import Ranker
from mainstem.schema.batch import EventBatch
from mainstem.schema.canvases import CanvasPlaces
from mainstem.schema.config import Config, TrainConfig
from mainstem.schema.errors import NotReady
from mainstem.schema.examples import Examples
from mainstem.schema.position import Position
from mainstem.schema.settings import SlateSettings
from mainstem.schema.time import iso, parse_duration
from mainstem.text.kept import KeptTexts
from mainstem.train.guard import Guard
from mainstem.train.interactions import Positives
from mainstem.train.neighbourhoods import keep, neighbourhoods
from mainstem.train.networks import new_ranker, new_towers, new_wide
from mainstem.train.online import OnlineLearner
from mainstem.train.published import save_state, state_of
from mainstem.train.ranking import RankingFit, fit_ranker
from mainstem.train.ranking_online import RankingLearner
from mainstem.train.retrieval import RetrievalTrainer
from mainstem.train.threads import torch_threads
from mainstem.train.towers import TABLE, Towers
from mainstem.train.wide import Wide
from mainstem.weights import SnapshotMeta, Snapshots
from mainstem.weights.checkpoints import flatten, random_states, restore_random, unflatten

__all__ = ["ExampleSource", "Trainer", "TrainingReport", "time_split"]

# The least that says anything: with fewer examples the network would learn noise.
LEAST_SLATES = 20
# Shares of the events that the validation and the ranking stretch hold at least.
LEAST_VALIDATION, LEAST_RANKING = 0.01, 0.05
RECALL_SAMPLE = 2_000


class ExampleSource(Protocol):
    """What the join offers to training (handed in by `assemble`)."""

    position: Position
    fingerprint: str
    inputs: tuple[str, ...]
    events: EventBatch
    catalog: MemoryCatalog
    slates: SlateSettings

    def session_starts(self, events: EventBatch, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Mask along `order`, in which a session's events stand together by time: where a session begins."""
        ...

    def examples(
        self, towers: Towers, start: int, cut: int, progress: Callable[[int, int], None]
    ) -> tuple[Examples, Examples]:
        """Examples of requests in [start, cut) and from `cut` on; `towers` answer the retrieval."""
        ...


@dataclass(slots=True)
class TrainingReport:
    """What a run did. `metrics` go into the snapshot's manifest."""

    version: str
    metrics: dict[str, float] = field(default_factory=dict)
    ranking: RankingFit = field(default_factory=RankingFit)
    seconds: dict[str, float] = field(default_factory=dict)


Progress = Callable[[str, int, int], None]


class Trainer:
    """Runs training of one model line and publishes its snapshots.

    extras: what these say besides. expect: the base that must still be the newest when one is published, else
    Superseded; None: whatever there is. kept: the encoder that `model.text` names.
    """

    def __init__(
        self, config: Config, catalog: MemoryCatalog, snapshots: Snapshots, line: str = "main",
        extras: Mapping[str, str] | None = None, expect: str | None = None, kept: KeptTexts | None = None,
    ) -> None:  # fmt: skip
        self.config, self.catalog, self.snapshots, self.line = config, catalog, snapshots, line
        self.extras, self.expect, self.kept = dict(extras or {}), expect, kept

    def run(self, source: ExampleSource, progress: Progress = lambda stage, done, total: None) -> TrainingReport:
        """Train on what `source` has and publish. Raises NotReady where there is too little to learn from."""
        config = self.config.train
        torch.manual_seed(config.seed)
        report = TrainingReport("")
        places = CanvasPlaces(tuple(self.config.canvases), self.config.tenant)
        length = self.config.history_length()
        positives = Positives.of(source.events, self.config.interest(), source.session_starts, places, length)
        if len(positives) < 2:
            raise NotReady(
                "there are no events of interest to learn from yet: ingest some, or check `events` in the file"
            )
        start, cut = time_split(positives.time, config)
        towers = new_towers(self.config, self.catalog, self.kept)
        retrieval = RetrievalTrainer(towers, positives, self.config.model, config)
        clock = time.monotonic()
        threads = config.threads
        with torch_threads(threads):
            self._train_towers(source, retrieval, np.flatnonzero(positives.time < start), progress)
            later = np.flatnonzero(positives.time >= cut)
            sample = np.random.default_rng(config.seed).permutation(later)[:RECALL_SAMPLE]
            report.metrics["retrieval_recall@100"] = retrieval.recall(sample)
        clock = _lap(report, "towers", clock)
        with torch_threads(1):  # a request's matrices are small
            train, valid = source.examples(towers, start, cut, lambda done, total: progress("replay", done, total))
        clock = _lap(report, "replay", clock)
        _enough(train, valid, start, cut)
        ranker, wide = self._train_ranker(source, towers, train, valid, report, progress)
        clock = _lap(report, "ranking", clock)
        rest = np.flatnonzero(positives.time >= start)
        rng = np.random.default_rng(config.seed + 1)
        with torch_threads(threads):
            done = 0
            for _, count in retrieval.epoch(rest, rng, config.retrieval_epochs):
                done = min(done + count, len(rest))
                progress("towers, to the end", done, len(rest))
        clock = _lap(report, "towers to the end", clock)
        between = neighbourhoods(self.config, source.events, source.catalog)
        if between:
            _lap(report, "weights between items", clock)
        report.version = self.publish(retrieval, ranker, source, report.metrics, between, wide)
        return report

    def _train_ranker(
        self, source: ExampleSource, towers: Towers, train: Examples, valid: Examples, report: TrainingReport,
        progress: Progress,
    ) -> tuple[Ranker, Wide | None]:  # fmt: skip
        ranker, wide = self.new_ranker(len(source.inputs)), new_wide(self.config, self.catalog, source.inputs)
        heads = list(self.config.heads.values())
        report.ranking = fit_ranker(
            ranker, train, valid, heads, self.config.train,
            on_step=lambda done, total: progress("ranking", done, total),
            vectors=None if ranker.interest is None else towers.known_vectors,
            wide=wide,
        )  # fmt: skip
        report.metrics["ranking_loss"] = report.ranking.validation[report.ranking.best_epoch]
        return ranker, wide

    def new_ranker(self, inputs: int) -> Ranker:
        """An untrained ranking network for so many input columns."""
        return new_ranker(self.config, inputs)

    def publish(
        self, retrieval: RetrievalTrainer, ranker: Ranker, source: ExampleSource, metrics: dict[str, float],
        between: Mapping[str, Neighbourhood], wide: Wide | None = None,
    ) -> str:  # fmt: skip
        """Write a snapshot that serving can load and online training can go on from; its version.

        between: weights between items by the source that reads them, kept beside it.
        """
        towers = retrieval.towers
        ranking = RankingLearner(ranker, [*self.config.heads.values()], self.config.train, towers.known_vectors, wide)
        learner = OnlineLearner(self.config, towers, ranking, source.catalog)
        learner.retrieval, learner.slates = retrieval.learner, source.slates
        learner.prime(source.events)
        state = state_of(learner, Guard(self.config.train.online))
        meta = SnapshotMeta(
            fingerprint=source.fingerprint,
            position=source.position,
            metrics=metrics,
            extras={
                "inputs": list(source.inputs),
                "attributes": list(towers.attributes),
                "heads": list(self.config.heads),
                "state": state.tree,
                **keep(self.snapshots.neighbours, self.line, between),
                **self.extras,
            },
        )
        version = save_state(self.snapshots, self.line, state, meta, self.config, self.expect)
        self.snapshots.keep(self.line, self.config.train.online.keep)
        return version

    # ---- towers, with checkpoints ----------------------------------------------------------------

    def _train_towers(
        self, source: ExampleSource, retrieval: RetrievalTrainer, rows: NDArray[np.int64], progress: Progress
    ) -> None:
        config = self.config.train
        rng = np.random.default_rng(config.seed)
        anywhere = config.model_copy(update={"device": "cpu"})  # where it computes is no part of what is learned
        run = f"{source.fingerprint} {source.position} {anywhere!r} {self.config.model!r}"
        done_epochs = self._resume(run, retrieval, rng)
        total = config.retrieval_epochs * len(rows)
        for epoch in range(done_epochs, config.retrieval_epochs):
            done = epoch * len(rows)
            for _, count in retrieval.epoch(rows, rng, epoch):
                done = min(done + count, (epoch + 1) * len(rows))
                progress("towers", done, total)
            self._checkpoint(run, epoch + 1, retrieval, rng)

    def _checkpoint(self, run: str, epochs: int, retrieval: RetrievalTrainer, rng: np.random.Generator) -> None:
        towers = retrieval.towers
        state = {
            "run": run,
            "epochs": epochs,
            "module": towers.module.state_dict(),
            "adam": retrieval.learner.adam.state_dict(),
            "random": random_states(rng),
        }
        arrays, tree = flatten(state)
        line = f"{self.line}-training"
        self.snapshots.save(line, arrays, {TABLE: towers.table}, SnapshotMeta(extras={"state": tree}))
        self.snapshots.keep(line, 1)

    def _resume(self, run: str, retrieval: RetrievalTrainer, rng: np.random.Generator) -> int:
        """Take up the checkpoint of this very run, if there is one; how many epochs it had finished."""
        line = f"{self.line}-training"
        newest = self.snapshots.latest(line)
        if newest.version is None:
            return 0
        snapshot = self.snapshots.load(line, newest.version, training=True)
        state: dict[str, Any] = unflatten(snapshot.tensors, snapshot.manifest.extras["state"])
        if state["run"] != run:
            return 0
        retrieval.towers.module.load_state_dict(state["module"])
        retrieval.towers.table.load(snapshot.tables[TABLE])
        retrieval.learner.adam.load_state_dict(state["adam"])
        restore_random(state["random"], rng)
        return int(state["epochs"])


def time_split(times: NDArray[np.int64], config: TrainConfig) -> tuple[int, int]:
    """(start, cut): ranking examples come from [start, cut), validation from `cut` on; towers learn before start.

    times int64 [n], ms: of the events of interest, n >= 1. The configured stretches count back from the newest one.
    Short logs are split in proportion, and so are logs with a gap: where a stretch holds hardly any events (a few
    of today after an import of old ones, say), it is widened to a share of the events.
    """
    times = np.sort(times)
    first, last = int(times[0]), int(times[-1]) + 1
    tenth = (last - first) // 10

    def held(begin: int, end: int) -> float:
        return float(np.diff(np.searchsorted(times, [begin, end]))[0]) / len(times)

    cut = last - min(parse_duration(config.validation), tenth)
    if held(cut, last) < LEAST_VALIDATION:
        cut = int(times[int(0.9 * len(times))])
    start = cut - min(parse_duration(config.ranking_span), max(tenth, 1) * 4)
    if held(start, cut) < LEAST_RANKING:
        start = int(times[int(0.5 * len(times))])
    return start, cut


def _enough(train: Examples, valid: Examples, start: int, cut: int) -> None:
    """Raises NotReady, saying what is missing and where it was looked for."""
    if len(train) < LEAST_SLATES:
        raise NotReady(
            f"only {len(train)} visits from {iso(start)[:10]} to {iso(cut)[:10]} had a candidate that was taken, "
            f"and at least {LEAST_SLATES} requests are needed to learn from: ingest more events of the kinds that "
            "`heads` names, about entities that the catalogue has, or set a longer `train.ranking_span`"
        )
    if not len(valid):
        raise NotReady(
            f"no visits to validate on from {iso(cut)[:10]} on: ingest newer events of the kinds that `heads` names, "
            "or set a longer `train.validation`"
        )


def _lap(report: TrainingReport, stage: str, clock: float) -> float:
    now = time.monotonic()
    report.seconds[stage] = round(now - clock, 2)
    return now
