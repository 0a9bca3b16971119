"""What q4, q5 and recovery_age share: a data set in event order, a base trained on its beginning, models that are
served from what one learner learns on the rest, each at its own pace, all asked before each visit is learned.

Features are live for every arm: one state, folded once. Only parameters differ. The ranking network learns from the
candidate pools of a share of the visits, as a server puts them on record, and of what was taken then.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from bench import say
from mainstem import datasets, eventlog, features, weights
from mainstem.curriculum import Curriculum
from mainstem.join import visits
from mainstem.learning import learner_of
from mainstem.live import LiveModel, LiveModels, model_of, scores_of
from mainstem.rank import Pipeline
from mainstem.rank.score import rank_inputs
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys, key64
from mainstem.schema.pasts import pack_past
from mainstem.schema.pools import pack_pool
from mainstem.schema.position import START
from mainstem.schema.records import Context, Served, Show, Slate, SlateRequest
from mainstem.schema.time import DAY
from mainstem.train import OnlineLearner, Trainer, restore
from mainstem.weights import Changes, Delta, TableDelta
from mainstem.weights.checkpoints import unflatten

__all__ = ["Arm", "Scores", "Stage", "prequential"]

K = 10
# Events after which an arm also gets the networks' own weights with a sync: the catalogue is then embedded anew.
DENSE_EVERY = 3_000


class Stage:
    """A data set in columns with its catalogue; made once for all seeds."""

    def __init__(self, name: str, online: dict[str, Any] | None = None) -> None:
        """online: settings of `train.online` that differ from the defaults."""
        self.name, dataset = name, datasets.get(name)
        settings: dict[str, Any] = dict(dataset.config)
        train = {**settings.get("train", {}), "online": online or {}}
        self.config = Config.model_validate({**settings, "train": train})
        log = eventlog.open("memory://", history="file:///nowhere")
        count = datasets.ingest(dataset, log.append, lambda done, total: None)
        self.source = Curriculum(self.config, log, lambda stage, done, total: None)
        log.close()
        say(f"{name}: {count:,} records, {len(self.source.events):,} events")

    def cut(self, days: float, skip_days: float = 0.0) -> tuple[int, int]:
        """(cut, end) in ms: `days` of events, the last ones but `skip_days`."""
        end = int(self.source.events.time[-1]) + 1 - round(skip_days * DAY)
        return end - round(days * DAY), end


@dataclass(slots=True)
class Scores:
    """Per scored visit: NDCG@10 of any entity, of what is new (NaN where nothing is), logloss over a common pool."""

    ndcg: list[float] = field(default_factory=list)
    fresh: list[float] = field(default_factory=list)
    logloss: list[float] = field(default_factory=list)


@dataclass(slots=True)
class Arm:
    """A model that is brought up to date every `every` events; None: never."""

    name: str
    every: int | None
    live: LiveModel | None = None
    waiting: list[dict[str, Changes]] = field(default_factory=list)
    since: int = 0
    dense_since: int = 0
    sequence: int = 0
    scores: Scores = field(default_factory=Scores)


def prequential(
    stage: Stage, arms: Sequence[Arm], *, seed: int, cut: int, end: int, sample: int, batch: int = 300,
    pools: float = 0.15, on_events: Callable[[OnlineLearner, int], None] = lambda learner, done: None,
) -> None:  # fmt: skip
    """Train a base before `cut`, then go through the events up to `end`, scoring about `sample` visits in each arm.

    Every `batch` events are learned together, before the next visit that comes after all of them. pools: share of the
    visits whose candidates are put on record. on_events(learner, events so far) after each batch.
    """
    config = stage.config.model_copy(update={"train": stage.config.train.model_copy(update={"seed": seed})})
    source = stage.source
    source.config = config
    learner, lives = _start(source, config, cut, arms)
    store = features.open("memory://", config, source.catalog)
    models = LiveModels(config, source.catalog, store)
    folding = source.replay(store, lives[0].answers)
    pipelines = [_pipeline(source, store, arm) for arm in arms]
    rows = np.flatnonzero((source.events.time >= cut) & (source.events.time < end))
    events = source.events.take(rows)
    place, served = 0, list[Served]()
    for visit in _asked(source, events, sample, pools if pools and any(arm.every for arm in arms) else 0.0):
        upto = int(np.searchsorted(events.time, visit.time, side="left"))
        while place + batch <= upto:
            stop = place + batch
            learner.take(events.take(slice(place, stop)), served)
            served = []
            _pass_on(learner, models, arms, stop - place)
            on_events(learner, stop)
            place = stop
        folding.fold_until(visit.time)
        if visit.scored:
            _score(config, store, source, arms, pipelines, visit)
        if visit.recorded:
            served.append(_on_record(config, store, source, arms[-1], pipelines[-1], visit))
    store.close()


def _start(source: Curriculum, config: Config, cut: int, arms: Sequence[Arm]) -> tuple[OnlineLearner, list[LiveModel]]:
    """A learner at the cut, and for each arm a model of its own from the same snapshot."""
    past = source.before(cut)
    past.config = config
    with tempfile.TemporaryDirectory() as folder:
        kept = weights.open(f"file://{folder}")
        trained = Trainer(config, source.catalog, kept, "main").run(past)
        snapshot = kept.load("main", trained.version, training=True)
    learner = learner_of(config, source.catalog, source.inputs)
    for name, table in learner.tables().items():
        table.load(snapshot.tables[name])
    learner.load(unflatten(snapshot.training, snapshot.manifest.extras["state"])["learner"])
    lives = []
    with closing(features.open("memory://", config, source.catalog)) as store:
        kinds = store.kinds
    for arm in arms:
        towers, ranker, wide = restore(snapshot, config, source.catalog)
        answers = model_of(towers, config, kinds, source.inputs, arm.name, source.catalog)
        arm.live = LiveModel(towers, ranker, replace(answers, scores=scores_of(ranker, wide)), wide)
        lives.append(arm.live)
    return learner, lives


def _pipeline(source: Curriculum, store: Any, arm: Arm) -> Pipeline:
    from mainstem.assemble import sources_of

    def current() -> Any:
        assert arm.live is not None
        return arm.live.answers

    sources = sources_of(source.config, current, source.content, source.categories)
    return Pipeline(source.config, source.catalog, store, sources, current)


@dataclass(frozen=True, slots=True)
class Asked:
    """A visit that stands for a request; `wanted`: the entities taken. One that is scored may be on record too."""

    time: int
    user: int
    wanted: Keys
    scored: bool
    recorded: bool


def _asked(source: Curriculum, events: Any, sample: int, pools: float) -> list[Asked]:
    """Evenly drawn visits to score, and the share `pools` of all to put on record, by time."""
    taken = events.take(events.where([head.event for head in source.config.heads.values()]))
    found = visits(taken)
    scored = set(np.linspace(0, len(found) - 1, min(sample, len(found))).astype(int).tolist() if found else [])
    recorded = set(np.flatnonzero(np.random.default_rng(5).random(len(found)) < pools).tolist())
    return [
        Asked(found[i].time, found[i].user, np.unique(taken.entity[found[i].rows]), i in scored, i in recorded)
        for i in sorted(scored | recorded)
    ]


def _on_record(config: Config, store: Any, source: Curriculum, arm: Arm, pipeline: Pipeline, visit: Asked) -> Served:
    """What a server that answers with this arm would put on record of the visit's request, with its candidates."""
    assert arm.live is not None
    context = Context(canvas=next(iter(config.canvases)), user=source.users[visit.user], time=visit.time)
    request = SlateRequest(context=context, deadline_ms=60_000, tenant=config.tenant, shown=False)
    with store.view(context, config.tenant) as view:
        keys = pipeline.candidates(request, view).keys
        inputs = rank_inputs(arm.live.answers, context, view, config.tenant, keys)
    name = f"{visit.user}-{visit.time}"
    reads = arm.live.answers.reads
    past = pack_past(inputs.met.past, reads.kinds) if inputs.met and reads else None
    slate = Slate(request_id=name, canvas=context.canvas, time=visit.time, items=[])
    return Served(
        record_id=name, time=visit.time, user=context.user, request=request, slate=slate, shown=False,
        feature_names=list(source.inputs), pool=pack_pool(keys, inputs.values), past=past, tenant=config.tenant,
    )  # fmt: skip


def _pass_on(learner: OnlineLearner, models: LiveModels, arms: Sequence[Arm], events: int) -> None:
    """Hand what was learned to the arms whose time has come."""
    changes = learner.take_changes()
    for arm in arms:
        if arm.every is None:
            continue
        arm.waiting.append(changes)
        arm.since += events
        if arm.since >= arm.every:
            _sync(learner, models, arm)


def _sync(learner: OnlineLearner, models: LiveModels, arm: Arm) -> None:
    assert arm.live is not None
    tables = {}
    for name, table in learner.tables().items():
        changes = Changes.merged([each[name] for each in arm.waiting])
        tables[name] = TableDelta(changes.touched, table.read(changes.touched), changes.deleted)
    arm.sequence += 1
    delta = Delta(
        line="main", base="v-" + "0" * 32, sequence=arm.sequence, previous="", dense_version=str(arm.sequence),
        position=START, dense=learner.dense(), tables=tables,
    )  # fmt: skip
    arm.live, entities = models.apply(arm.live, delta)
    arm.dense_since += arm.since
    if arm.dense_since >= DENSE_EVERY:
        arm.live, arm.dense_since = models.renew(arm.live, delta), 0
    else:
        models.embed(arm.live, entities)
    arm.waiting, arm.since = [], 0


def _score(
    config: Config, store: Any, source: Curriculum, arms: Sequence[Arm], pipelines: Sequence[Pipeline], visit: Asked
) -> None:
    wanted = visit.wanted
    context = Context(canvas=next(iter(config.canvases)), user=source.users[visit.user], time=visit.time)
    with store.view(context, config.tenant) as view:
        had = view.counts().keys
        pool: Keys = pipelines[0].candidates(SlateRequest(context=context, tenant=config.tenant), view).keys
        label = np.isin(pool, wanted)
        for arm in arms:
            assert arm.live is not None
            chance = arm.live.answers.scores(rank_inputs(arm.live.answers, context, view, config.tenant, pool))[:, 0]
            chance = np.clip(chance.astype(np.float64), 1e-7, 1 - 1e-7)
            arm.scores.logloss.append(float(-np.where(label, np.log(chance), np.log1p(-chance)).mean()))
    fresh = np.setdiff1d(wanted, had)
    for arm, pipeline in zip(arms, pipelines, strict=True):
        for new_only, gold, out in ((False, wanted, arm.scores.ndcg), (True, fresh, arm.scores.fresh)):
            if not len(gold):
                out.append(float("nan"))
                continue
            asked = SlateRequest(context=context, show=Show(new_only=new_only), limit=K, deadline_ms=60_000)
            items = pipeline.answer(asked).slate.items
            keys = np.array([key64(item.entity_type, item.entity, config.tenant) for item in items], np.uint64)
            out.append(ndcg(np.isin(keys, gold), len(gold)))


def ndcg(hits: np.ndarray, wanted: int) -> float:
    """NDCG@K of binary gains: hits bool [n <= K] by place."""
    discount = 1 / np.log2(np.arange(2, K + 2))
    return float((hits * discount[: len(hits)]).sum() / discount[: min(wanted, K)].sum())
