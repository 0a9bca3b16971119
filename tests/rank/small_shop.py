"""A shop small enough to know every right answer: real holders in memory, and a model whose score is each item's
quality."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Executor

import numpy as np

from mainstem import catalog as catalogs
from mainstem import features, index
from mainstem.rank import ModelVersion, Pipeline
from mainstem.rank.categories import Categories, PopularInCategory
from mainstem.rank.question import Question, resolve
from mainstem.rank.score import extra_inputs
from mainstem.rank.sources import Allowed, Content, Cooccurrence, Owned, Popular, Source, TwoTower
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, HeadConfig
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.position import Position
from mainstem.schema.protocols import FeatureView, Floats, Scored
from mainstem.schema.records import Context, Entity, EntityDelete, Event, LogRecord, Show, Slate, SlateRequest
from mainstem.schema.time import DAY

T0 = 1_500_000_000_000 // DAY * DAY
NOW = T0 + 10 * DAY

# A deadline that has passed before the first source is asked.
GONE = 1e-6


def config_of(canvases: Mapping[str, CanvasConfig] | None = None) -> Config:
    attributes = {"category": "category", "price": "number", "tags": "tags", "note": "text"}
    return Config(
        entities={"item": EntityTypeConfig(attributes=attributes), "genre": EntityTypeConfig()},
        heads={"purchase": HeadConfig(event="purchase"), "click": HeadConfig(event="click")},
        canvases={"home": CanvasConfig(order={"purchase": 1.0}), "similar": CanvasConfig(), **(canvases or {})},
    )


def ids(slate: Slate) -> list[str]:
    return [item.entity for item in slate.items]


def why(slate: Slate) -> dict[tuple[str, str], str]:
    return {(one.stage, one.what): one.why for one in slate.degraded}


class Shop:
    """Items are named by numbers; `quality[name]` is what the model thinks of them (default: the number)."""

    def __init__(self, config: Config | None = None) -> None:
        self.config = config or config_of()
        self.catalog = catalogs.open("memory://", entities=self.config.entities)
        self.features = features.open("memory://", self.config, self.catalog)
        self.index = index.open("exact://", 2, version="v-1")
        self.content = index.open("exact://", 4, version="words")
        self.offset = 0
        canvases = tuple(self.config.canvases)
        inputs = (*self.features.names, *extra_inputs(canvases))
        near = inputs.index("two_tower")
        self.model = ModelVersion(
            line="main",
            version="v-1",
            heads=("purchase", "click"),
            inputs=inputs,
            canvases=canvases,
            index=self.index,
            request_vector=lambda context, view, tenant: np.array([1, 0], np.float32),
            scores=lambda x: np.column_stack([x.values[:, near], -x.values[:, near]]).astype(np.float32),
            embed=self.index.vectors,
        )

    def add(self, *entities: Entity | EntityDelete) -> None:
        self.offset += len(entities)
        self.catalog.write(list[LogRecord](entities), Position.at(self.offset))

    def item(self, name: int | str, quality: float | None = None, **fields: object) -> None:
        """An item in the catalogue, in the model's index and (by its number) in the content index."""
        self.offset += 1
        entity = Entity(record_id=f"e{self.offset}", time=T0, entity=str(name), **fields)  # type: ignore[arg-type]
        self.catalog.write([entity], Position.at(self.offset))
        key = np.array([key64(entity.entity_type, entity.entity)], np.uint64)
        self.index.upsert(key, np.array([[float(name) if quality is None else quality, 0]], np.float32))
        angle = float(int(name) if str(name).isdigit() else 0) / 100
        self.content.upsert(key, np.array([[np.cos(angle), np.sin(angle), 0, 0]], np.float32))

    def items(self, count: int, **fields: object) -> None:
        for name in range(count):
            self.item(name, **fields)

    def happen(self, user: str, *entities: int | str, kind: str = "purchase", day: float = 1, **fields: object) -> None:
        """The user's events, one second apart, `day` days after T0."""
        events = [
            Event(
                event_id=f"x{self.offset + i}", time=T0 + int(day * DAY) + 1000 * i, user=user, kind=kind,
                entity=str(entity), session=f"{user}-{day}", **fields,  # type: ignore[arg-type]
            )
            for i, entity in enumerate(entities)
        ]  # fmt: skip
        offsets = range(self.offset, self.offset + len(events))
        self.offset += len(events)
        self.features.write(EventBatch.of(events, list(offsets)), Position.at(self.offset))

    def sources(self) -> list[Source]:
        return [
            Owned(),
            Popular("popular", window=1),
            Popular("popular_here", window=1, here=True),
            Popular("popular_new", window=1, fresh=True),
            Cooccurrence(),
            TwoTower(lambda: self.model),
            Content(self.content, self.encode),
            PopularInCategory(Categories(self.catalog), window=1),
        ]

    @staticmethod
    def encode(texts: list[str]) -> Floats:
        """A query is the number of the item that is meant."""
        angles = np.array([float(text) for text in texts]) / 100
        return np.column_stack([np.cos(angles), np.sin(angles), 0 * angles, 0 * angles]).astype(np.float32)

    def untrained(self) -> ModelVersion:
        raise NotReady("no trained model yet")

    def pipeline(
        self,
        *more: Source,
        trained: bool = True,
        kept: Callable[[Question], Slate | None] = lambda question: None,
        pool: Executor | None = None,
    ) -> Pipeline:
        current = (lambda: self.model) if trained else self.untrained
        sources = [source for source in self.sources() if source.name not in {one.name for one in more}]
        if not trained:
            sources = [source for source in sources if source.name != "two_tower"] + [TwoTower(current)]
        return Pipeline(self.config, self.catalog, self.features, [*sources, *more], current, kept, pool)

    def ask(self, pipeline: Pipeline | None = None, **fields: object) -> Slate:
        return (pipeline or self.pipeline()).answer(request(**fields)).slate

    def question(self, **fields: object) -> Question:
        return resolve(request(**fields), self.config, self.model)

    def view(self, question: Question) -> FeatureView:
        return self.features.view(question.context, question.tenant)


def request(**fields: object) -> SlateRequest:
    """A SlateRequest from the fields of it, of its Context and of its Show, at NOW with time to spare."""
    parts = []
    for kind in (Context, Show):
        mine = {name: fields.pop(name) for name in kind.__struct_fields__ if name in fields}
        parts.append(mine)
    context = Context(**{"time": NOW, **parts[0]})  # type: ignore[arg-type]
    return SlateRequest(context=context, show=Show(**parts[1]), **{"deadline_ms": 60_000, **fields})  # type: ignore[arg-type]


def names_of(keys: Keys, count: int = 2000) -> list[str]:
    known = dict(zip(keys64("item", map(str, range(count))).tolist(), map(str, range(count)), strict=True))
    return [known[key] for key in keys.tolist()]


class Made:
    """A source named like one of the default mix that does what it is told."""

    def __init__(self, name: str, search: Callable[[], Scored], concurrent: bool = True) -> None:
        self.name, self.run, self.concurrent = name, search, concurrent

    def prepare(self, question: object, view: object, limit: int, allowed: Allowed) -> Callable[[], Scored]:
        return self.run
