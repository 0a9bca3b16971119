"""What training learns from: the log, read once, and replayed on private state with serving's own retrieval.

It needs the log and nothing else, so `mainstem train` runs beside a server without touching its stores.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from copy import copy
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem import features, weights
from mainstem.assemble import ContentVectors, open_texts, sources_of
from mainstem.join import Attribution, CanvasRequests, Replay, StoredRequest, Visit, visits
from mainstem.join.sessions import session_starts
from mainstem.live import fingerprint, model_of
from mainstem.rank import ModelVersion, Pipeline
from mainstem.rank.categories import Categories
from mainstem.rank.score import extra_inputs, rank_inputs
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls
from mainstem.schema.errors import StoreError
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys, key64
from mainstem.schema.pasts import Pasts
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import FeatureStore, FeatureView, Floats, Log
from mainstem.schema.records import Context, Erase, Event, Served, SlateRequest
from mainstem.schema.settings import SlateSettings
from mainstem.schema.time import parse_duration
from mainstem.train import Towers, Trainer, TrainingReport, kinds_read
from mainstem.train.canvases import WITHHELD
from mainstem.train.neighbourhoods import neighbourhoods
from mainstem.train.rebuilt import BEGUN_ON

__all__ = ["Curriculum", "train"]

# Share of the requests that are asked as by a stranger.
STRANGERS = 0.05
# Records of the log read at once.
READ = 50_000
# The input that says whether the user had the entity before.
HAD = "user_item_count"
Progress = Callable[[str, int, int], None]


def train(
    config: Config, log: Log, base: Path, progress: Progress, line: str = "main", *, owner: bool = False
) -> TrainingReport:
    """Learn from the log as it is now and publish a snapshot of `line`.

    Where an online trainer keeps the line (and the caller is not it, `owner`), the snapshot goes to `LINE-rebuilt`: the
    trainer brings it up to date and switches, unless somebody rolls back meanwhile. Where nobody else trains the line,
    a rollback meanwhile stands too: what was trained is then not published, and Superseded raised.
    """
    store = weights.open(storage_urls(config, base).weights)
    begun_on, expect = max(store.versions(line), default=""), None
    with ExitStack() as held:
        try:
            if not owner:
                held.enter_context(store.trainer_lock(line))
            expect = store.newest_base(line)
        except StoreError:
            line = f"{line}-rebuilt"
        source = held.enter_context(closing(Curriculum(config, log, progress)))
        kept = open_texts(config, base)
        trainer = Trainer(config, source.catalog, store, line, {BEGUN_ON: begun_on}, expect, kept)
        return trainer.run(source, progress)


class Curriculum:
    """The log in columns, a catalogue as of its end, and examples by replay (`train.ExampleSource`)."""

    def __init__(self, config: Config, log: Log, progress: Progress) -> None:
        self.config = config
        self.position: Position = log.end()
        self.catalog = catalogs.open("memory://", entities=config.entities)
        self.users: dict[int, str] = {}
        self.recorded: list[Examples] = []
        self.slates = SlateSettings()
        with closing(self._private()) as private:
            self.kinds, self.fingerprint = private.kinds, fingerprint(config, private)
            self.inputs = (*private.names, *extra_inputs(tuple(config.canvases)))
        events = self._read(log, progress)
        events = events.take(np.argsort(events.time, kind="stable"))
        # Replay writes into a state of its own, whose positions count along this order.
        self.events = replace(events, offset=np.arange(len(events)))
        self.content, self.categories = ContentVectors.open(config, self.catalog), Categories.open(config, self.catalog)

    def before(self, cut: int) -> Curriculum:
        """The same with the events before `cut` (ms) alone, for an evaluation that holds the rest back."""
        past = copy(self)
        past.events = self.events.take(self.events.time < cut)
        # A slate's labels come from the time after it: those that may reach over the cut are left out.
        window = max(parse_duration(head.window) for head in self.config.heads.values() if not head.delayed)
        past.recorded = [examples for examples in self.recorded if examples.time[0] < cut - window]
        return past

    def close(self) -> None:
        self.catalog.close()

    def _private(self) -> FeatureStore:
        """An empty state that is nobody else's."""
        return features.open("memory://", self.config, self.catalog)

    def _read(self, log: Log, progress: Progress) -> EventBatch:
        """All events of the log up to `position`, in columns; entities go into the catalogue, and slates on record
        that were shown are joined with what followed them, once there are any. What an erased user did before the
        erasure is not learned from."""
        join: Attribution | None = None
        erased: dict[int, int] = {}  # user -> offset of the erasure
        seen, end, parts = START, self.position.offset(), list[EventBatch]()
        place, known = self.config.features.place, catalogs.EventEntities.of(self.config)
        # no further than `position`, however the log grows meanwhile: from there on the online trainer learns
        while (left := end - seen.offset()) > 0 and (batch := log.read(seen, min(READ, left))).records:
            self.catalog.write(known.records(batch.records, self.catalog), batch.next)
            pairs = [(r, o) for r, o in zip(batch.records, batch.offsets, strict=True) if isinstance(r, Event)]
            events = [record for record, _ in pairs]
            settings = self.slates.follow(batch.records)
            columns = EventBatch.of(events, [offset for _, offset in pairs], place_extra=place, settings=settings)
            for record, offset in zip(batch.records, batch.offsets, strict=True):
                if isinstance(record, Erase) and record.user is not None:
                    erased[key64("user", record.user, record.tenant)] = offset
            self.users |= dict(zip(columns.user.tolist(), (event.user for event in events), strict=True))
            parts.append(columns)
            if join is None and any(isinstance(r, Served) and r.shown is not False for r in batch.records):
                join = Attribution(
                    self.config.heads, self.inputs, reads=kinds_read(self.config), had=HAD,
                    served_is_seen=self.config.train.served_is_seen,
                )  # fmt: skip
            if join is not None:
                join.add(batch.records)
                self.recorded += join.ready()
            seen = batch.next
            progress("reading the log", min(seen.offset(), end), end)
        found = EventBatch.concat(parts)
        gone = np.zeros(len(found), np.bool_)
        for user, offset in erased.items():
            gone |= (found.user == np.uint64(user)) & (found.offset < offset)
        return found.take(~gone) if gone.any() else found

    def session_starts(self, events: EventBatch, order: NDArray[np.int64]) -> NDArray[np.bool_]:
        """The join's definition of where sessions begin."""
        return session_starts(events, order)

    def examples(
        self, towers: Towers, start: int, cut: int, progress: Callable[[int, int], None]
    ) -> tuple[Examples, Examples]:
        """Examples of requests in [start, cut) and from `cut` on, by replay."""
        requests = self._requests(start, cut)
        model = model_of(towers, self.config, self.kinds, self.inputs, "training", self.catalog)
        # as with the towers: weights that had seen the answers would bring candidates as serving never will
        past = self.events.take(self.events.time < start)
        model = replace(model, neighbourhoods=neighbourhoods(self.config, past, self.catalog))
        made = [examples for examples in self.recorded if examples.time[0] >= start]
        with closing(self._private()) as private:
            for done, examples in enumerate(self.replay(private, model).examples(requests), 1):
                made.append(examples)
                progress(done, len(requests))
        progress(len(requests), len(requests))
        made.sort(key=lambda examples: int(examples.time[0]))
        empty = Examples.none(len(self.inputs), len(self.config.heads))
        train = [examples for examples in made if examples.time[0] < cut]
        valid = [examples for examples in made if examples.time[0] >= cut]
        return Examples.concat(train or [empty]), Examples.concat(valid or [empty])

    def pipeline(self, store: FeatureStore, model: ModelVersion) -> Pipeline:
        """Serving's four stages on `store` with `model`."""
        sources = sources_of(self.config, lambda: model, self.content, self.categories)
        return Pipeline(self.config, self.catalog, store, sources, lambda: model)

    def _requests(self, start: int, cut: int) -> list[StoredRequest]:
        """Samples of the visits that had one of the heads' events, as requests on every canvas, by time: so many on the
        first one that learns from events, and of them `share` on each other one."""
        wanted = self.events.where([head.event for head in self.config.heads.values()])
        events = self.events.take(wanted)
        found = [visit for visit in visits(events) if visit.time >= start]
        stretches = [visit for visit in found if visit.time < cut], [visit for visit in found if visit.time >= cut]
        rng, train = np.random.default_rng(self.config.train.seed), self.config.train
        asking = CanvasRequests(self.config.canvases, events, self.users, self.catalog)
        feeds = [name for name, canvas in self.config.canvases.items() if canvas.learns_from == "events"]
        made: list[StoredRequest] = []
        for name, canvas in self.config.canvases.items():
            share = 1.0 if name in feeds[:1] else canvas.share
            for visits_, most in zip(stretches, (train.ranking_slates, max(train.ranking_slates // 4, 1)), strict=True):
                kept = _sample(visits_, round(most * share), rng)
                # Some are asked as by a stranger: of users without a past the log's own visits say next to nothing.
                strangers = rng.random(len(kept)) < (STRANGERS if name in feeds else WITHHELD)
                for visit, stranger in zip(kept, strangers.tolist(), strict=True):
                    request = asking.of(visit, name, rng, stranger=stranger)
                    made += [request] if request is not None else []
        return sorted(made, key=lambda request: request.visit.time)

    def replay(self, store: FeatureStore, model: ModelVersion) -> Replay:
        """The events, folded into `store` on the way, with serving's candidates and inputs."""
        config, pipeline = self.config, self.pipeline(store, model)

        def retrieve(context: Context, view: FeatureView) -> Keys:
            request = SlateRequest(context=context, tenant=config.tenant)
            return pipeline.candidates(request, view).keys

        def inputs(context: Context, view: FeatureView, keys: Keys) -> tuple[Floats, Pasts | None]:
            found = rank_inputs(model, context, view, config.tenant, keys)
            return found.values, None if found.met is None else found.met.past

        seed, negatives = config.train.seed, config.train.negatives
        return Replay(
            self.events, store, config.heads, retrieve, inputs, negatives=negatives, seed=seed, tenant=config.tenant
        )


def _sample(found: Sequence[Visit], most: int, rng: np.random.Generator) -> list[Visit]:
    """At most so many, drawn evenly, order kept."""
    if len(found) <= most:
        return list(found)
    return [found[i] for i in np.sort(rng.choice(len(found), most, replace=False))]
