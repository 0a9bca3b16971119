"""The wire: what clients send and get, as structs, and how they become the schema's records.

Clients may leave out what the edge can fill in (ids, times), may write ids as numbers and times as
ISO 8601 text. `tenant` and `received_at` are the edge's to say and are not on the wire.
"""

from __future__ import annotations

from typing import Annotated, Any

import msgspec
from msgspec import UNSET, Meta, UnsetType

from mainstem.schema.records import Degraded

__all__ = [
    "Accepted",
    "ContextIn",
    "EntitiesIn",
    "EntityIn",
    "EntityOut",
    "EntityPatchIn",
    "EventIn",
    "EventsIn",
    "Health",
    "Ready",
    "ShowIn",
    "SimilarQuery",
    "SlateIn",
    "SlateItemOut",
    "SlateOut",
    "SlateQuery",
]

Id = str | int
Moment = str | int
Named = Annotated[str, Meta(pattern="^[a-z][a-z0-9_-]*$", max_length=64)]
AttributeIn = str | float | bool | list[str] | None
Limit = Annotated[int, Meta(ge=1, le=1000)]
Milliseconds = Annotated[float, Meta(gt=0, le=60_000)]
Place = Annotated[int, Meta(ge=0, le=1_000_000)]


class _In(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    pass


class EventIn(_In, frozen=True, kw_only=True):
    """Something happened. Without `time` it happened now; without `event_id` a retry may count twice."""

    user: Id
    kind: Named
    event_id: Id | None = None
    time: Moment | None = None
    entity: Id | None = None
    entity_type: Named | None = None
    value: float = 1.0
    session: Id | None = None
    request_id: str | None = None
    place: Place | None = None
    canvas: str | None = None
    query: str | None = None
    extras: dict[str, str | float | bool] = {}


class EventsIn(_In, frozen=True, kw_only=True):
    """Several events: all are accepted or none."""

    events: list[EventIn]


class EntityIn(_In, frozen=True, kw_only=True):
    """What the catalogue shall know of (entity_type, entity); replaces what it knew, whole."""

    entity: Id
    entity_type: Named = "item"
    attributes: dict[str, AttributeIn] = {}
    text: str = ""
    group: Id | None = None
    available_from: Moment | None = None
    available_until: Moment | None = None
    stock: float | None = None
    time: Moment | None = None
    record_id: Id | None = None


class EntitiesIn(_In, frozen=True, kw_only=True):
    """Several entities: all are accepted or none."""

    entities: list[EntityIn]


class EntityPatchIn(_In, frozen=True, kw_only=True):
    """Only what is named changes; an attribute set to null is removed."""

    attributes: dict[str, AttributeIn] = {}
    text: str | UnsetType = UNSET
    group: Id | UnsetType | None = UNSET
    available_from: Moment | UnsetType | None = UNSET
    available_until: Moment | UnsetType | None = UNSET
    stock: float | UnsetType | None = UNSET
    time: Moment | None = None
    record_id: Id | None = None


class ContextIn(_In, frozen=True, kw_only=True):
    """Who asks, where, when. What is missing is taken as not known; a missing `time` is now."""

    canvas: str = "home"
    user: Id | None = None
    time: Moment | None = None
    session: Id | None = None
    query: str | None = None
    sources: list[Id] = []
    source_type: Named = "item"
    category: str | None = None
    country: str | None = None
    language: str | None = None
    device: str | None = None
    extras: dict[str, str | float | bool] = {}


class ShowIn(_In, frozen=True, kw_only=True):
    """What may be shown. Without `entity_type` it is the canvas's own."""

    entity_type: Named | None = None
    only: list[Id] | None = None
    exclude: list[Id] = []
    filter: dict[str, str | float | bool | list[str]] = {}
    new_only: bool = False


class SlateIn(_In, frozen=True, kw_only=True):
    """A question. `after`: a position that was returned before; the slate reflects the log up to there. `pool`: put
    all candidates on record."""

    context: ContextIn = ContextIn()
    show: ShowIn = ShowIn()
    limit: Limit | None = None
    deadline_ms: Milliseconds | None = None
    after: str | None = None
    shown: bool | None = None
    explain: bool = False
    pool: bool = False
    model_line: Named = "main"


class SlateQuery(_In, frozen=True, kw_only=True):
    """The short form of a question about one user."""

    canvas: str = "home"
    limit: Limit | None = None
    new_only: bool = False
    time: str | None = None
    session: str | None = None
    query: str | None = None
    after: str | None = None
    deadline_ms: Milliseconds | None = None
    explain: bool = False


class SimilarQuery(_In, frozen=True, kw_only=True):
    """The short form of the question what is like one item."""

    limit: Limit | None = None
    user: str | None = None
    new_only: bool = False
    time: str | None = None
    after: str | None = None
    deadline_ms: Milliseconds | None = None
    explain: bool = False


class Accepted(msgspec.Struct, frozen=True, kw_only=True):
    """What was written. Pass `position` as `after` to read your writes.

    `erased`, where there are any: records of an erased user or entity and not later than the erasure; they are not
    written. `notes` names what was accepted but will count for nothing (an event kind that is not configured).
    """

    position: str
    accepted: int
    duplicates: int
    erased: int | UnsetType = UNSET
    notes: list[str] | UnsetType = UNSET


class EntityOut(msgspec.Struct, frozen=True, kw_only=True):
    """What the catalogue knows; times in ms since 1970 UTC."""

    entity: str
    entity_type: str
    time: int
    attributes: dict[str, AttributeIn]
    text: str
    group: str | None
    available_from: int | None
    available_until: int | None
    stock: float | None


class SlateItemOut(msgspec.Struct, frozen=True, kw_only=True):
    """One place of a slate: `score` ordered it, `scores` are the model's outputs per head."""

    entity: str
    entity_type: str
    score: float
    scores: dict[str, float]
    sources: list[str]
    propensity: float | UnsetType = UNSET
    features: dict[str, float] | UnsetType = UNSET


class SlateOut(msgspec.Struct, frozen=True, kw_only=True):
    """A ranked answer. `degraded` says what was left out and why; empty where nothing was."""

    request_id: str
    canvas: str
    time: int
    items: list[SlateItemOut]
    position: str
    degraded: list[Degraded]
    model_line: str
    dense_version: str | None
    sparse_version: str | None
    index_version: str | None
    timings_ms: dict[str, float]
    candidates: dict[str, int]
    environment: str
    arms: dict[str, str]


class Health(msgspec.Struct, frozen=True):
    """The process is alive."""

    status: str = "alive"


class Ready(msgspec.Struct, frozen=True):
    """Whether to send traffic here, and how each part stands."""

    ready: bool
    parts: dict[str, Any]
