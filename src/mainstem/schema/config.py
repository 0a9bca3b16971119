"""The configuration: `mainstem.yaml` as typed, validated models. An empty file works for purchases.

Reading, error messages with line numbers and the commented template live in `config_file.py`.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from mainstem.schema.head_config import HeadConfig
from mainstem.schema.model_config import FamilyConfig, HistoryConfig, ModelConfig
from mainstem.schema.neighbourhood_config import NeighbourhoodConfig
from mainstem.schema.ranking_config import RankingConfig
from mainstem.schema.retrieval_config import RetrievalConfig
from mainstem.schema.section import Duration, Name, Section
from mainstem.schema.storage_config import StorageConfig
from mainstem.schema.time import MINUTE, parse_duration

__all__ = [
    "CanvasConfig",
    "Config",
    "EntityTypeConfig",
    "EventConfig",
    "FamilyConfig",
    "FeatureConfig",
    "HeadConfig",
    "HistoryConfig",
    "LogConfig",
    "Mismatch",
    "ModelConfig",
    "NeighbourhoodConfig",
    "OnlineConfig",
    "RankingConfig",
    "ServeConfig",
    "SourceConfig",
    "StorageConfig",
    "TrainConfig",
]


def _unknown(name: str, section: str, known: Iterable[str]) -> str:
    return f"{name!r} is not among {section}: {', '.join(known)}"


class Mismatch(ValueError):
    """Sections that do not fit each other: every problem as (path of keys and list places, what is wrong there)."""

    def __init__(self, problems: Iterable[tuple[tuple[str | int, ...], str]]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(f"{'.'.join(map(str, path))}: {text}" for path, text in self.problems))


SourceName = Literal[
    "two_tower",
    "content",
    "cooccurrence",
    "item_knn",
    "ease",
    "popular",
    "popular_here",
    "popular_new",
    "category",
    "owned",
]


class EventConfig(Section):
    """What one kind of event means."""

    owned: bool = False
    """The user has the entity after it (a purchase, a rating): `new_only` leaves it out."""
    interest: float = Field(default=1.0, ge=0.0)
    """How much one event says about taste, relative to the others; 0 keeps it out of features and training."""


class EntityTypeConfig(Section):
    """What the catalogue knows of one type of entity."""

    attributes: dict[str, Literal["category", "number", "text", "tags"]] = {}
    """Attributes that the model, filters and features use. Others are kept and returned, not learned from."""
    text: list[str] = []
    """Attributes that are joined with the entity's own text for the content vector."""
    from_events: bool = True
    """An entity that only events know of is shown too, without attributes, until it is described or deleted."""


class FeatureConfig(Section):
    """State kept per user and per item. Every bound is a hard bound on memory."""

    history: int = Field(default=100, ge=1, le=10_000)
    """Events kept per user, newest first out of bound."""
    items_per_user: int = Field(default=2048, ge=1)
    """Entities counted per user; the least recently used leave first."""
    half_lives: list[Duration] = ["7d", "30d", "90d"]
    """Half-lives of the recency-weighted user x item counts."""
    popularity_windows: list[Duration] = ["1d", "7d", "28d"]
    """Windows of the item popularity counts; whole days, the longest at most 56 days."""
    neighbours: int = Field(default=64, ge=1, le=512)
    """Co-occurring items kept per item."""
    cooccurrence_span: int = Field(default=16, ge=1, le=256)
    """With how many of the user's latest other items (of the session, where there are sessions) an event pairs."""
    by: list[str] = []
    """Item attributes whose values are counted per user too (category affinity), coarse to fine."""
    place: str | None = None
    """The event extra that says where it happened (a store, a country): popularity is also kept per place."""
    expire: Duration = "400d"
    """State of a user or an item not seen for this long, in event time, is dropped."""


class SourceConfig(Section):
    """One source of candidates."""

    limit: int = Field(default=100, ge=0, le=10_000)
    """Candidates asked of it at most."""


class CanvasConfig(Section):
    """One surface of the product, and its contract."""

    entity_type: Name = "item"
    limit: int = Field(default=20, ge=1, le=1000)
    deadline: Duration = "200ms"
    sources: dict[SourceName, SourceConfig] = {}
    """Candidates by source, no other is asked. Empty: a default mix, with `category` where the request names one."""
    candidates: int = Field(default=500, ge=1, le=10_000)
    """Candidates scored at most, taken in turn from the sources."""
    order: dict[str, float] = {}
    """Weight per head in the final score; empty: every head 1."""
    diversity: dict[str, int] = {}
    """At most so many entities per value of an attribute among the slate, as in {category: 3}."""
    repeat: Literal["allow", "new_only"] = "allow"
    """May what the user already had be shown? A request's `show.new_only` narrows it further."""
    fallback: list[Literal["kept", "popular"]] = ["kept", "popular"]
    """What answers when the deadline is missed, in this order."""
    learns_from: Literal["events", "previous", "category", "query"] = "events"
    """What teaches it: what users took at all, after another entity, of a category, or searching (see the-model.md)."""
    share: float = Field(default=0.25, ge=0, le=1)
    """Share of the events that teach it; all teach the first canvas that learns from `events`."""
    weight: float = Field(default=1.0, gt=0)
    """Of what it teaches retrieval against the other canvases: less for one that drowns them (see the-model.md)."""
    gate: float | None = Field(default=None, gt=0)
    """`mainstem evaluate` fails where its NDCG@10 is not so many times that of its slates without a model."""

    @field_validator("deadline")
    @classmethod
    def _deadline_can_be_met(cls, deadline: str) -> str:
        # The bounds of a request's own deadline_ms: every request without one would be refused.
        if not 0 < parse_duration(deadline) <= MINUTE:
            raise ValueError(f"{deadline!r} must be above 0 and at most 1m")
        return deadline


class OnlineConfig(Section):
    """Learning from the log as it grows: `mainstem train --online`, `mainstem run`."""

    batch: int = Field(default=512, ge=1, le=100_000)
    """Log records in one step at most: more learn faster where events are many, fewer forget less on the way."""
    publish_every: Duration = "500ms"
    """What was learned since goes to serving as a delta; the shorter, the fresher, and the more the work."""
    dense_every: Duration = "1m"
    """The networks' own weights go along so often; serving then embeds the whole catalogue anew."""
    snapshot_every: Duration = "5m"
    """A whole copy, from which training goes on after a crash and servers start."""
    keep: int = Field(default=3, ge=1)
    """Snapshots kept; deltas are kept as long as one of them needs them."""
    rebuild_every: Duration | None = None
    """Train anew from the whole history so often, beside the stream; null: only by `mainstem train`."""
    max_lag: int = Field(default=1_000_000, ge=1)
    """Records behind the log beyond which the oldest are noted in histories but not learned from; they are counted."""
    loss_jump: float = Field(default=0.5, gt=0)
    """The guard refuses an update whose loss is so much above its running reference: 0.5 is half more."""
    pools: int = Field(default=1_000, ge=0)
    """Candidate pools that wait for labels at most; one more lets the oldest go."""
    ranking_learning_rate: float = Field(default=3e-4, ge=0)
    """Of the ranking network, for a full batch of slates; 0 leaves it to rebuilds."""
    canary_overlap: float = Field(default=0.2, ge=0, le=1)
    """The guard refuses an update after which less than this share of the canary slates' items are still in them."""


class TrainConfig(Section):
    """How training reads the log."""

    seed: int = 0
    validation: Duration = "14d"
    """The last stretch of the log is kept for validation and early stopping."""
    retrieval_epochs: int = Field(default=2, ge=0)
    retrieval_batch: int = Field(default=1024, ge=16)
    retrieval_learning_rate: float = Field(default=0.05, gt=0)
    retrieval: RetrievalConfig = RetrievalConfig()
    neighbourhoods: NeighbourhoodConfig = NeighbourhoodConfig()
    ranking_span: Duration = "42d"
    """Ranking examples are made from the requests of this long before the validation stretch."""
    ranking_slates: int = Field(default=10_000, ge=1)
    """At most so many of them, evenly drawn; each takes some ms of replay."""
    ranking_epochs: int = Field(default=3, ge=1)
    ranking_batch: int = Field(default=64, ge=1)
    """Slates (groups of candidates) per step at most; fewer where there are few slates."""
    ranking_learning_rate: float = Field(default=2e-3, gt=0)
    """At the peak of its cycle."""
    negatives: int = Field(default=160, ge=1)
    """Sampled negatives per slate."""
    patience: int = Field(default=2, ge=1)
    """Epochs without a better validation loss before training stops."""
    served_is_seen: bool = False
    """Take every slate on record as seen; else only those shown, or with `impression` events, are learned from."""
    online: OnlineConfig = OnlineConfig()
    threads: int = Field(default=1, ge=1)
    """Threads of the retrieval training. More than one helps only where the cores have nothing else to do."""
    device: Literal["cpu", "cuda", "auto"] = "cpu"
    """Where the networks of the retrieval training compute; `auto`: on a GPU where torch sees one. Rows and their
    optimizer stay in host memory, and all that serves or learns from the stream is on the CPU."""
    nice: int = Field(default=10, ge=0, le=19)
    """How much a process that trains gives way to those that answer, where the system knows that (Unix `nice`)."""

    def looks_back(self) -> int:
        """How long before the end of the log the first ranking examples lie, ms."""
        return parse_duration(self.ranking_span) + parse_duration(self.validation)


class LogConfig(Section):
    """The event log."""

    skew: Duration = "10m"
    """An event further ahead of its arrival than this is refused."""
    seal_rows: int = Field(default=500_000, ge=1_000)
    """A range of this many records is sealed and moves to Parquet history."""
    keep_rows: int = Field(default=1_000_000, ge=1_000)
    """Records that stay in SQLite although sealed, unless `keep_age` says otherwise."""
    keep_age: Duration | None = None
    """Records older than this, by arrival, are sealed even if their range is not full, and leave SQLite; 1m or more."""
    keep_erasures: Duration = "30d"
    """How long the record of an erasure names its user, at least: a model older than that learns of it no more."""

    @field_validator("keep_age")
    @classmethod
    def _age_is_worth_a_file(cls, age: str | None) -> str | None:
        if age is not None and parse_duration(age) < MINUTE:
            raise ValueError(f"{age!r} is too short, a minute is the least: every half of it may become a file")
        return age


class ServeConfig(Section):
    host: str = "127.0.0.1"
    """Loopback unless told otherwise: there is no authentication yet."""
    port: int = Field(default=8080, ge=0, le=65535)
    freshness_wait: Duration = "500ms"
    """How long a request with `after` waits for the log to be followed so far."""
    max_batch: int = Field(default=10_000, ge=1)
    """Events accepted in one POST."""
    served_sample: float = Field(default=1.0, ge=0.0, le=1.0)
    """Share of slates put on record."""
    pool_sample: float = Field(default=0.05, ge=0.0, le=1.0)
    """Share of slates put on record with all their candidates, some 100 KB each: what the ranking network learns
    from online. A request's `pool` asks for it too."""
    lines: list[Name] = []
    """Model lines in the weights store, beside `main`, that requests may ask by `model_line`: to compare."""
    max_lag: int = Field(default=500_000, ge=1)
    """Writes are refused (503) while the state is more records than this behind the log."""


class Config(Section):
    """The whole of `mainstem.yaml`."""

    version: Literal[1] = 1
    name: str = "mainstem"
    tenant: Name = "main"
    data: str = "./mainstem-data"
    """The data directory; relative to the file's own folder."""
    storage: StorageConfig = StorageConfig()
    events: dict[Name, EventConfig] = Field(
        default={
            "purchase": EventConfig(owned=True, interest=1.0),
            "rating": EventConfig(owned=True, interest=1.0),
            "like": EventConfig(interest=1.0),
            "click": EventConfig(interest=0.3),
            "view": EventConfig(interest=0.1),
            "watch": EventConfig(interest=1.0),
            "impression": EventConfig(interest=0.0),
        },
        max_length=255,
    )
    """Kinds of events. `alias` and `hide` are built in and need no entry."""
    heads: dict[Name, HeadConfig] = Field(default={"purchase": HeadConfig(event="purchase")}, min_length=1)
    entities: dict[Name, EntityTypeConfig] = {"item": EntityTypeConfig()}
    canvases: dict[Name, CanvasConfig] = Field(
        default={"home": CanvasConfig(), "similar": CanvasConfig(learns_from="previous")}, min_length=1, max_length=255
    )
    features: FeatureConfig = FeatureConfig()
    model: ModelConfig = ModelConfig()
    train: TrainConfig = TrainConfig()
    log: LogConfig = LogConfig()
    serve: ServeConfig = ServeConfig()

    @model_validator(mode="after")
    def _names_fit(self) -> Self:
        fits = (self._heads_fit, self._canvases_fit, self._features_fit, self._crosses_fit, self._history_fits)
        if problems := [problem for fit in fits for problem in fit()]:
            raise Mismatch(problems)
        return self

    def _heads_fit(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for name, head in self.heads.items():
            if head.event not in self.events:
                yield ("heads", name, "event"), _unknown(head.event, "events", self.events)
            if head.delayed and parse_duration(head.window) >= self.train.looks_back():
                yield (
                    ("heads", name, "window"),
                    f"{head.window!r} must be less than train.ranking_span and train.validation together "
                    f"({self.train.ranking_span} and {self.train.validation}): no label would be known in time",
                )
        if all(head.delayed for head in self.heads.values()):
            yield ("heads",), "one at least must be of another type than lifetime_value: something to learn from soon"

    def _canvases_fit(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for name, canvas in self.canvases.items():
            at = ("canvases", name)
            for ordered in canvas.order:
                if ordered not in self.heads:
                    yield (*at, "order", ordered), _unknown(ordered, "heads", self.heads)
            if canvas.entity_type not in self.entities:
                yield (*at, "entity_type"), _unknown(canvas.entity_type, "entities", self.entities)
                continue
            attributes = self.entities[canvas.entity_type].attributes
            categories = [key for key, kind in attributes.items() if kind == "category"]
            for key in canvas.diversity:
                if key not in categories:
                    what = f"category attributes of entities.{canvas.entity_type}: {', '.join(categories) or 'none'}"
                    yield (*at, "diversity", key), f"{key!r} is not among the {what}"

    def _features_fit(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for place, key in enumerate(self.features.by):
            if not any(key in kind.attributes for kind in self.entities.values()):
                yield ("features", "by", place), f"{key!r} is not an attribute of any entity type"

    def _crosses_fit(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        for path, text in self.model.ranking.wide.unknown(self.categories()):
            yield ("model", "ranking", "wide", *path), text

    def _history_fits(self) -> Iterator[tuple[tuple[str | int, ...], str]]:
        dim, history = self.model.dim, self.model.history
        # rotary positions turn numbers in pairs
        step = {"pooling": 1, "transformer": 2 * history.heads, "hstu": history.heads}[history.encoder]
        if dim % step:
            said = f"model.dim is {dim}, for {history.encoder} it must be a multiple of {step}"
            yield ("model", "history", "heads"), said

    def categories(self) -> tuple[str, ...]:
        """The category attributes of every entity type, each once."""
        kinds = [attribute for entity in self.entities.values() for attribute in entity.attributes.items()]
        return tuple(dict.fromkeys(name for name, kind in kinds if kind == "category"))

    def asks(self, source: SourceName) -> bool:
        """Does a canvas name this source?"""
        return any(source in canvas.sources and canvas.sources[source].limit for canvas in self.canvases.values())

    def owned_kinds(self) -> tuple[str, ...]:
        """Kinds of events after which the user has the entity."""
        return tuple(kind for kind, event in self.events.items() if event.owned)

    def history_length(self) -> int:
        """Events of a history that training and serving read."""
        return min(self.model.history.length, self.features.history)

    def interest(self) -> dict[str, float]:
        """Kinds that count as interest, with their weight; kinds that are not configured count nothing."""
        return {kind: event.interest for kind, event in self.events.items() if event.interest > 0}
