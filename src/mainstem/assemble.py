"""Turns configuration into wired parts; the only place that does.

    parts = assemble(config)            everything that serving needs, open and handed to whom it concerns
    parts.follower.catch_up()           the state reflects the log
    parts.pipeline.answer(request)      a slate

What training needs is put together from the same pieces in `curriculum.py`.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from mainstem import catalog as catalogs
from mainstem import eventlog, features, index, slates, text, weights
from mainstem.catalog import EventEntities, MemoryCatalog
from mainstem.eventlog.connections import lock_writer
from mainstem.live import LiveModel, LiveModels
from mainstem.rank import ModelVersion, Pipeline
from mainstem.rank.categories import Categories, PopularInCategory
from mainstem.rank.question import Question
from mainstem.rank.retrieve import DEFAULT_MIX
from mainstem.rank.sources import Content, Cooccurrence, Neighbours, Owned, Popular, Source, TwoTower
from mainstem.refresh import Follower, ModelKeeper
from mainstem.refresh.follower import Sink
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls
from mainstem.schema.errors import MainstemError, StoreError
from mainstem.schema.ids import key64
from mainstem.schema.protocols import Catalog, FeatureStore, Log, VectorIndex
from mainstem.schema.records import Entity, Served, Slate
from mainstem.schema.time import DAY
from mainstem.slates import SlateStore
from mainstem.slates.recorder import Recorder
from mainstem.text.kept import KeptTexts
from mainstem.train.neighbourhoods import NEIGHBOURHOODS
from mainstem.weights import LineReader, Snapshots

__all__ = [
    "BackfillReport",
    "ContentVectors",
    "Parts",
    "assemble",
    "backfill",
    "open_log",
    "open_texts",
    "sources_of",
]

# Width of the content vectors: hashed words and word parts.
CONTENT_DIM = 128
# Kept slates answer for so long.
KEPT_FOR = 7 * DAY


@dataclass(frozen=True, slots=True)
class Parts:
    """Everything that serving needs, wired."""

    config: Config
    log: Log
    catalog: Catalog
    features: FeatureStore
    snapshots: Snapshots
    kept: SlateStore
    follower: Follower
    keepers: dict[str, ModelKeeper[LiveModel]]
    pipeline: Pipeline
    recorder: Recorder
    pool: ThreadPoolExecutor

    @property
    def keeper(self) -> ModelKeeper[LiveModel]:
        """That of the line which answers unless a request names another."""
        return self.keepers["main"]

    def close(self) -> None:
        with ExitStack() as stack:  # the last named goes first; one that fails keeps no other open
            for part in (self.log, self.kept, self.catalog, self.features):
                stack.callback(part.close)
            stack.callback(self.pool.shutdown, wait=True)
            stack.callback(self.follower.stop)
            for keeper in self.keepers.values():
                stack.callback(keeper.stop)
            stack.callback(self.recorder.close)


def assemble(config: Config, base: Path = Path(), *, claim: bool = False) -> Parts:
    """Open every store that `config` names (relative paths count from `base`) and wire what works on them.

    `claim`: be the log's writer from the start, so that a second server fails here and not at its first event.
    """
    with ExitStack() as undo:
        parts = _wire(config, base, claim, undo)
        undo.pop_all()
    return parts


def _wire(config: Config, base: Path, claim: bool, undo: ExitStack) -> Parts:
    """The parts; `undo` closes what was opened, should a later step fail."""
    urls = storage_urls(config, base)
    log = undo.enter_context(closing(open_log(config, base, claim=claim)))
    catalog, store = _open_state(config, urls.state, undo)
    kept = undo.enter_context(closing(slates.open(_part_of(urls.state, "slates"))))
    snapshots = weights.open(urls.weights)
    # One search runs in the request's own thread, the others beside it as far as there are cores.
    pool = ThreadPoolExecutor(max_workers=max(os.cpu_count() or 1, 2), thread_name_prefix="search")
    undo.callback(pool.shutdown)
    texts = open_texts(config, base)
    keepers = {
        line: ModelKeeper(LineReader(snapshots, line), LiveModels(config, catalog, store, line, texts, snapshots))
        for line in dict.fromkeys(("main", *config.serve.lines))
    }
    lines = {line: partial(_answers, keeper) for line, keeper in keepers.items()}
    current = lines["main"]
    content, categories = ContentVectors.open(config, catalog), Categories.open(config, catalog)
    sources = sources_of(config, current, content, categories)
    last_good = partial(_last_good, kept)
    pipeline = Pipeline(config, catalog, store, sources, current, last_good, _pool_of(pool), lines)
    sinks: list[Sink] = [keeper.entities_changed for keeper in keepers.values()]
    if content:
        sinks.append(content.entities_changed)
    if categories:
        sinks.append(categories.entities_changed)
    follower = Follower(
        log, catalog, store, sinks, forget=[kept.forget], sweeps=[kept.expire], entities=EventEntities.of(config),
        place_extra=config.features.place,
    )  # fmt: skip

    def keep(served: Served) -> None:
        if served.slate.model_line != "main":
            return
        kept.keep(served.tenant, served.slate.canvas, served.user, served.slate, served.time)

    recorder = Recorder(log.append, keep, config.serve.served_sample, config.serve.pool_sample)
    return Parts(config, log, catalog, store, snapshots, kept, follower, keepers, pipeline, recorder, pool)


def _answers(keeper: ModelKeeper[LiveModel]) -> ModelVersion:
    return keeper.current().answers


def open_log(config: Config, base: Path = Path(), *, claim: bool = False) -> Log:
    """The log alone: a reader until its first append, unless it claims to be the writer at once."""
    urls = storage_urls(config, base)
    return eventlog.open(urls.log, history=urls.history, config=config.log, claim=claim)


def open_texts(config: Config, base: Path = Path()) -> KeptTexts | None:
    """The encoder that `model.text` names with what it has encoded; None where it names none."""
    return text.keep(config.model.text.encoder, storage_urls(config, base).text)


@dataclass(frozen=True, slots=True)
class BackfillReport:
    """What a backfill did. `restart_needed`: a process that writes the log runs, on the state that was replaced."""

    records: int
    restart_needed: bool


def backfill(config: Config, base: Path, progress: Callable[[int, int], None]) -> BackfillReport:
    """Rebuild catalogue and feature state from the log beside the ones in use, then switch; slates are kept.

    A server that runs goes on with the old state until it is restarted (law 11). Raises StoreError where another
    backfill runs, or where the log cannot be read to its end; the state in use then stays as it is.
    """
    urls = storage_urls(config, base)
    scheme, _, path = urls.state.partition("://")
    if scheme != "lmdb":
        raise MainstemError(f"backfill rebuilds state in a folder (lmdb://); {urls.state} is not one")
    state, new, old = Path(path), Path(path + ".new"), Path(path + ".old")
    with _alone(Path(path + ".backfill.lock")):
        shutil.rmtree(new, ignore_errors=True)
        erased: list[tuple[str, str]] = []
        with ExitStack() as opened:
            log = opened.enter_context(closing(open_log(config, base)))
            catalog, store = _open_state(config, f"lmdb://{new}", opened)
            follower = Follower(
                log, catalog, store, forget=[lambda user, tenant: erased.append((user, tenant))],
                entities=EventEntities.of(config), place_extra=config.features.place, name="backfill",
            )  # fmt: skip
            opened.callback(log.unfollow, follower.name)
            follower.catch_up(progress)
        _switch(state, new, old)
        if erased and (state / "slates").exists():
            # The state that was replaced may not have come as far as these erasures, the new one is past them.
            with closing(slates.open(_part_of(urls.state, "slates"))) as kept:
                for user, tenant in dict.fromkeys(erased):
                    kept.forget(user, tenant)
        return BackfillReport(follower.position.offset(), _is_written(urls.log))


def _switch(state: Path, new: Path, old: Path) -> None:
    """`new` becomes the state, with the slates of the one that it replaces."""
    shutil.rmtree(old, ignore_errors=True)
    if state.exists():
        state.rename(old)
    new.rename(state)
    if (old / "slates").exists():
        (old / "slates").rename(state / "slates")
    shutil.rmtree(old, ignore_errors=True)


@contextmanager
def _alone(lock: Path) -> Iterator[None]:
    """Hold `lock`, which goes with the process. Raises StoreError where it is held."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    with lock.open("a") as held:
        try:
            fcntl.flock(held, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise StoreError(f"another backfill is running ({lock} is held): wait for it, or stop it") from None
        yield


def _is_written(url: str) -> bool:
    """Does a process hold the writer's lock of the log?"""
    if not url.startswith("sqlite:"):
        return False
    try:
        held = lock_writer(eventlog.path_of(url, "sqlite"))
    except StoreError:
        return True
    os.close(held)
    return False


def _open_state(config: Config, url: str, undo: ExitStack) -> tuple[MemoryCatalog, FeatureStore]:
    """Catalogue and features; `undo` closes them."""
    catalog = undo.enter_context(closing(catalogs.open(_part_of(url, "catalog"), entities=config.entities)))
    return catalog, undo.enter_context(closing(features.open(_part_of(url, "features"), config, catalog)))


def _part_of(state: str, name: str) -> str:
    """The url of one of the stores under `storage.state`."""
    return state if state == "memory://" else f"{state}/{name}"


def _pool_of(pool: ThreadPoolExecutor) -> Executor | None:
    """Threads for the index searches, where there is more than one core to run them on."""
    return pool if (os.cpu_count() or 1) > 1 else None


def _last_good(kept: SlateStore, question: Question) -> Slate | None:
    return kept.get(question.tenant, question.context.canvas, question.context.user, KEPT_FOR, question.time)


def _key(entity: Entity) -> int:
    return key64(entity.entity_type, entity.entity, entity.tenant)


# ---- sources ------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class ContentVectors:
    """The content index with what fills it: a follower's sink."""

    index: VectorIndex
    encoder: text.TextEncoder
    catalog: Catalog

    @classmethod
    def open(cls, config: Config, catalog: Catalog) -> ContentVectors | None:
        """Over the whole catalogue; None where no canvas asks the content source."""
        if not any("content" in (canvas.sources or DEFAULT_MIX) for canvas in config.canvases.values()):
            return None
        encoder = text.open(f"hashing://{CONTENT_DIM}")
        made = cls(index.open("auto://", CONTENT_DIM, version=encoder.version), encoder, catalog)
        known = catalog.keys()
        made.embed(known[known != 0].tolist())
        return made

    def embed(self, keys: Sequence[int]) -> None:
        for start in range(0, len(keys), 20_000):
            some = keys[start : start + 20_000]
            vectors = self.encoder.encode([self.catalog.text(key) for key in some])
            self.index.upsert(np.array(some, np.uint64), vectors)

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        self.embed([_key(entity) for entity in changed])
        self.index.delete(np.array(left, np.uint64))


def sources_of(
    config: Config, current: Callable[[], ModelVersion], content: ContentVectors | None, categories: Categories | None
) -> tuple[Source, ...]:
    """Every source there is; canvases choose among them by limit."""
    week = min(1, len(config.features.popularity_windows) - 1)
    sources: list[Source] = [
        Owned(),
        Popular("popular", week),
        Popular("popular_here", week, here=True),
        Popular("popular_new", week, fresh=True),
        Cooccurrence(),
        TwoTower(current),
    ]
    interest = config.interest()
    strengths = np.array([interest.get(kind, 0.0) for kind in config.events] or [0.0], np.float32)
    sources += [Neighbours(name, current, strengths) for name in NEIGHBOURHOODS if config.asks(name)]
    if content:
        sources.append(Content(content.index, content.encoder.encode))
    if categories:
        sources.append(PopularInCategory(categories, week))
    return tuple(sources)
