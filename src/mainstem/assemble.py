"""Turns configuration into wired parts; the only place that does.

parts = assemble(config)            everything open and handed to whom it concerns
parts.follower.catch_up()           the state reflects the log
parts.pipeline.answer(request)      a slate
examples_of(parts)                  what training learns from
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem import eventlog, features, index, slates, text, weights
from mainstem.join import Replay, StoredRequest, Visit, visits
from mainstem.join.sessions import session_starts
from mainstem.models import numpy_scorer
from mainstem.rank import ModelVersion, Pipeline
from mainstem.rank.question import Question
from mainstem.rank.score import rank_inputs
from mainstem.rank.sources import Content, Cooccurrence, Owned, Popular, Source, TwoTower
from mainstem.refresh import Follower, ModelKeeper
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls
from mainstem.schema.errors import Incompatible, NotReady
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys, digest128, key64
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Catalog, FeatureStore, FeatureView, Floats, Log, VectorIndex
from mainstem.schema.records import Context, Entity, Event, Served, Slate, SlateRequest
from mainstem.schema.time import DAY
from mainstem.slates import SlateStore
from mainstem.slates.recorder import Recorder
from mainstem.train import Towers, Trainer
from mainstem.train.trainer import restore
from mainstem.weights import Snapshots

__all__ = ["Parts", "ReplayedExamples", "assemble", "examples_of"]

# Width of the content vectors: hashed words and word parts.
CONTENT_DIM = 128
# Kept slates answer for so long.
KEPT_FOR = 7 * DAY
# What the network sees beside the features (rank_inputs appends them in this order).
EXTRA_INPUTS = ("two_tower",)


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything, wired. `close` in any state."""

    config: Config
    log: Log
    catalog: Catalog
    features: FeatureStore
    snapshots: Snapshots
    kept: SlateStore
    follower: Follower
    keeper: ModelKeeper[ModelVersion]
    pipeline: Pipeline
    trainer: Trainer
    content: VectorIndex
    recorder: Recorder
    pool: ThreadPoolExecutor

    def close(self) -> None:
        self.recorder.close()
        self.keeper.stop()
        self.follower.stop()
        self.pool.shutdown(wait=True)
        for part in (self.features, self.catalog, self.kept, self.log):
            part.close()


def assemble(config: Config, base: Path = Path()) -> Parts:
    """Open every store that `config` names (relative paths count from `base`) and wire what works on them."""
    urls = storage_urls(config, base)
    log = eventlog.open(urls.log, history=urls.history, config=config.log)
    catalog = catalogs.open(f"{urls.state}/catalog", entities=config.entities)
    store = features.open(f"{urls.state}/features", config, catalog)
    kept = slates.open(f"{urls.state}/slates")
    snapshots = weights.open(urls.weights)
    pool = ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="search")
    encoder = text.open(f"hashing://{CONTENT_DIM}")
    content = index.open("auto://", CONTENT_DIM, version=encoder.version)

    def load(version: str) -> ModelVersion:
        return _load(config, catalog, store, snapshots, version)

    keeper = ModelKeeper(snapshots, load, _touch)

    def content_changed(changed: Sequence[Entity], left: Sequence[int]) -> None:
        _embed_text(content, catalog, encoder, [_key(entity) for entity in changed])
        content.delete(np.array(left, np.uint64))

    sources = _sources(keeper.current, content, encoder, catalog)
    pipeline = Pipeline(config, catalog, store, sources, keeper.current, partial(_last_good, kept), pool)
    sinks = (content_changed, keeper.entities_changed)
    follower = Follower(log, catalog, store, sinks, place_extra=config.features.place)
    known = catalog.keys()
    _embed_text(content, catalog, encoder, known[known != 0].tolist())
    trainer = Trainer(config, catalog, snapshots)

    def keep(served: Served) -> None:
        kept.keep(served.tenant, served.slate.canvas, served.user, served.slate, served.time)

    recorder = Recorder(log.append, keep, config.serve.served_sample)
    return Parts(
        config, log, catalog, store, snapshots, kept, follower, keeper, pipeline, trainer, content, recorder, pool
    )  # fmt: skip


def _key(entity: Entity) -> int:
    return key64(entity.entity_type, entity.entity, entity.tenant)


def _embed_text(content: VectorIndex, catalog: Catalog, encoder: text.TextEncoder, keys: Sequence[int]) -> None:
    for start in range(0, len(keys), 20_000):
        some = keys[start : start + 20_000]
        content.upsert(np.array(some, np.uint64), encoder.encode([catalog.text(key) for key in some]))


def _sources(
    current: Callable[[], ModelVersion], content: VectorIndex, encoder: text.TextEncoder, catalog: Catalog
) -> tuple[Source, ...]:
    return (
        Owned(),
        Popular("popular", window=1),
        Popular("popular_here", window=1, here=True),
        Popular("popular_new", window=1, fresh=True),
        Cooccurrence(),
        TwoTower(current),
        Content(content, lambda texts: encoder.encode(texts), catalog),
    )


def _last_good(kept: SlateStore, question: Question) -> Slate | None:
    return kept.get(question.tenant, question.context.canvas, question.context.user, KEPT_FOR, question.time)


# ---- the model in use --------------------------------------------------------------------------


def fingerprint(config: Config, store: FeatureStore) -> str:
    """Of everything a snapshot's networks depend on (law 11)."""
    definition = f"{store.fingerprint} {config.heads!r} {config.model!r} {config.entities!r}"
    return digest128(definition).hex()


def _model(
    towers: Towers, config: Config, kinds: Sequence[str], inputs: tuple[str, ...], version: str, catalog: Catalog
) -> ModelVersion:
    """Towers and their index over the whole catalogue; `scores` still to come."""
    keys = catalog.keys()
    keys = keys[keys != 0]
    vectors = index.open("auto://", config.model.dim, version=version)
    vectors.upsert(keys, towers.entity_vectors(keys))
    interest = np.array([config.interest().get(kind, 0.0) for kind in kinds], np.float32)

    memo: WeakKeyDictionary[FeatureView, Floats] = WeakKeyDictionary()  # retrieval and scoring both ask

    def user_vector(context: Context, view: FeatureView, tenant: str) -> Floats:
        if view in memo:
            return memo[view]
        history = view.history()
        user = 0 if context.user is None else key64("user", context.user, tenant)
        memo[view] = towers.user_vector(user, history, interest[history.kind], view.time)
        return memo[view]

    def no_scores(x: Floats) -> Floats:
        raise NotReady("these towers have no ranking network yet")

    heads = tuple(config.heads)
    return ModelVersion("main", version, heads, inputs, vectors, user_vector, no_scores, towers.entity_vectors)


def _load(config: Config, catalog: Catalog, store: FeatureStore, snapshots: Snapshots, version: str) -> ModelVersion:
    snapshot = snapshots.load("main", version)
    if snapshot.manifest.fingerprint != fingerprint(config, store):
        raise Incompatible(
            f"{version} was trained with other features, heads, entity types or sizes than configured now: "
            "run `mainstem train`"
        )
    towers, ranker = restore(snapshot, config, catalog)
    model = _model(towers, config, store.kinds, tuple(snapshot.manifest.extras["inputs"]), version, catalog)
    scores = numpy_scorer(ranker)
    return ModelVersion(
        model.line, version, model.heads, model.inputs, model.index, model.user_vector, scores, model.embed
    )  # fmt: skip


def _touch(model: ModelVersion, changed: Sequence[Entity], left: Sequence[int]) -> None:
    """Between versions only touched entities are embedded anew (law 8)."""
    if changed:
        keys = np.array([_key(entity) for entity in changed], np.uint64)
        model.index.upsert(keys, model.embed(keys))
    model.index.delete(np.array(left, np.uint64))


# ---- what training learns from -----------------------------------------------------------------


class ReplayedExamples:
    """The log replayed on private state with serving's own retrieval: training's source (`ExampleSource`)."""

    def __init__(self, parts: Parts, progress: Callable[[str, int, int], None]) -> None:
        self.parts, self.config = parts, parts.config
        self.position: Position = parts.log.end()
        self.fingerprint = fingerprint(parts.config, parts.features)
        self.inputs = (*parts.features.names, *EXTRA_INPUTS)
        self.users: dict[int, str] = {}
        events = self._read(progress)
        events = events.take(np.argsort(events.time, kind="stable"))
        # Replay writes into a state of its own, whose positions count along this order.
        self.events = replace(events, offset=np.arange(len(events)))

    def _read(self, progress: Callable[[str, int, int], None]) -> EventBatch:
        """All events of the log up to `position`, in columns."""
        seen, end, parts = START, self.position.offset(), []
        while seen.offset() < end:
            batch = self.parts.log.read(seen, 50_000)
            if not batch.records:
                break
            pairs = [(r, o) for r, o in zip(batch.records, batch.offsets, strict=True) if isinstance(r, Event)]
            events = [record for record, _ in pairs]
            place = self.config.features.place
            columns = EventBatch.of(events, [offset for _, offset in pairs], place_extra=place)
            self.users |= dict(zip(columns.user.tolist(), (event.user for event in events), strict=True))
            parts.append(columns)
            seen = batch.next
            progress("reading the log", min(seen.offset(), end), end)
        return EventBatch.concat(parts)

    def session_starts(self, events: EventBatch, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        return session_starts(events, order)

    def examples(
        self, towers: Towers, start: int, cut: int, progress: Callable[[int, int], None]
    ) -> tuple[Examples, Examples]:
        """Examples of requests in [start, cut) and from `cut` on."""
        requests = self._requests(start, cut)
        private = features.open("memory://", self.config, self.parts.catalog)
        try:
            made = self._replay(private, towers, requests, progress)
        finally:
            private.close()
        empty = _no_examples(len(self.inputs), len(self.config.heads))
        train = [examples for examples in made if examples.time[0] < cut]
        valid = [examples for examples in made if examples.time[0] >= cut]
        return Examples.concat(train or [empty]), Examples.concat(valid or [empty])

    def _requests(self, start: int, cut: int) -> list[StoredRequest]:
        """A sample of the visits, as requests on the first canvas."""
        found = [visit for visit in visits(self.events.take(self._wanted())) if visit.time >= start]
        rng = np.random.default_rng(self.config.train.seed)
        train = [visit for visit in found if visit.time < cut]
        valid = [visit for visit in found if visit.time >= cut]
        most = self.config.train.ranking_slates
        kept = _sample(train, most, rng) + _sample(valid, max(most // 4, 1), rng)
        canvas = next(iter(self.config.canvases))
        return [
            StoredRequest(visit, Context(canvas=canvas, user=self.users[visit.user], time=visit.time)) for visit in kept
        ]

    def _wanted(self) -> NDArray[np.bool_]:
        return self.events.where([head.event for head in self.config.heads.values()])

    def _replay(
        self,
        private: FeatureStore,
        towers: Towers,
        requests: Sequence[StoredRequest],
        progress: Callable[[int, int], None],
    ) -> list[Examples]:
        parts, config = self.parts, self.config
        model = _model(towers, config, private.kinds, self.inputs, "training", parts.catalog)
        sources = [source for source in parts.pipeline.sources if source.name != "two_tower"]
        sources.append(TwoTower(lambda: model))
        pipeline = Pipeline(config, parts.catalog, private, sources, lambda: model, pool=parts.pool)

        def retrieve(context: Context, view: FeatureView) -> Keys:
            request = SlateRequest(context=context, deadline_ms=60_000, tenant=config.tenant)
            return pipeline.candidates(request, view).keys

        def inputs(context: Context, view: FeatureView, keys: Keys) -> Floats:
            return rank_inputs(model, context, view, config.tenant, keys)

        replay = Replay(
            self.events, private, config.heads, retrieve, inputs,
            negatives=config.train.negatives, seed=config.train.seed,
        )  # fmt: skip
        made = []
        for done, examples in enumerate(replay.examples(requests), 1):
            made.append(examples)
            progress(done, len(requests))
        progress(len(requests), len(requests))
        return made


def examples_of(parts: Parts, progress: Callable[[str, int, int], None]) -> ReplayedExamples:
    """What training learns from, as of now."""
    return ReplayedExamples(parts, progress)


def _sample(found: list[Visit], most: int, rng: np.random.Generator) -> list[Visit]:
    """At most so many, evenly, order kept."""
    if len(found) <= most:
        return found
    return [found[i] for i in np.sort(rng.choice(len(found), most, replace=False))]


def _no_examples(inputs: int, heads: int) -> Examples:
    none = np.zeros(0, np.float32)
    return Examples(
        inputs=np.zeros((0, inputs), np.float32),
        labels=np.zeros((0, heads), np.float32),
        negative_rate=none,
        fresh=np.zeros(0, np.bool_),
        weight=none,
        keys=np.zeros(0, np.uint64),
        offsets=np.zeros(1, np.int64),
        time=np.zeros(0, np.int64),
        user=np.zeros(0, np.uint64),
    )
