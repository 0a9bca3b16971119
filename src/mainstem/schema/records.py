"""The records that cross borders. The type is the schema.

What is written to the log (`LogRecord`) is a tagged union: each struct carries its tag under `"r"` and
its schema version under `v`; readers accept every earlier version (tests/schema/golden proves it).
Times are ms since 1970 UTC. `None` is the explicit "not known".
"""

from __future__ import annotations

from typing import Literal

import msgspec

from mainstem.schema.ids import DEFAULT_TENANT

__all__ = [
    "Attribute",
    "Context",
    "Degraded",
    "Entity",
    "EntityDelete",
    "EntityPatch",
    "Erase",
    "Erased",
    "Event",
    "LogRecord",
    "Past",
    "Pool",
    "Served",
    "Show",
    "Slate",
    "SlateItem",
    "SlateRequest",
    "decode_record",
    "encode_record",
    "record_id",
]

Attribute = str | float | bool | list[str] | None
Canvas = str


class Event(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="event"):
    """Something happened to one user and (mostly) one entity.

    `value` is what the kind measures: units bought, seconds watched, stars given; 1.0 for plain kinds.
    Kind `alias` says that guest `entity` (with entity_type "user") is `user` from now on; kind `hide`
    that the user never wants to see the entity again. `request_id` and `place` say which served slate,
    and which place in it (0-based), the event answers.
    """

    event_id: str
    time: int
    user: str
    kind: str
    entity: str | None = None
    entity_type: str = "item"
    value: float = 1.0
    received_at: int = 0
    session: str | None = None
    request_id: str | None = None
    place: int | None = None
    canvas: str | None = None
    query: str | None = None
    extras: dict[str, str | float | bool] = {}
    tenant: str = DEFAULT_TENANT
    v: int = 1


class Entity(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="entity"):
    """What the catalogue knows of (entity_type, entity); a newer record replaces the older one whole.

    `group` joins variants (sizes, colours) of one thing. Available from `available_from` (inclusive) to
    `available_until` (exclusive); None leaves that side open. `stock` None means not counted; 0 is sold out.
    """

    record_id: str
    time: int
    entity: str
    entity_type: str = "item"
    attributes: dict[str, Attribute] = {}
    text: str = ""
    group: str | None = None
    available_from: int | None = None
    available_until: int | None = None
    stock: float | None = None
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


class EntityPatch(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="patch"):
    """A partial update: only the fields that are named change; UNSET fields stay as they are.

    `attributes` is merged key by key; a key set to None is removed.
    """

    record_id: str
    time: int
    entity: str
    entity_type: str = "item"
    attributes: dict[str, Attribute] = {}
    text: str | msgspec.UnsetType = msgspec.UNSET
    group: str | msgspec.UnsetType | None = msgspec.UNSET
    available_from: int | msgspec.UnsetType | None = msgspec.UNSET
    available_until: int | msgspec.UnsetType | None = msgspec.UNSET
    stock: float | msgspec.UnsetType | None = msgspec.UNSET
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


class EntityDelete(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="delete"):
    """The entity leaves the catalogue. Events about it stay."""

    record_id: str
    time: int
    entity: str
    entity_type: str = "item"
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


class Erase(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="erase"):
    """Forget a user or an entity (law 10). Exactly one of `user` and `entity` is set."""

    record_id: str
    time: int
    user: str | None = None
    entity: str | None = None
    entity_type: str = "item"
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


class Erased(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="erased"):
    """Stands in the log where a record was that is erased (law 10). Only the log itself writes it; readers skip it.

    `digest`: the 16 bytes by which the log knows the id of the record that was here, so that it stays refused.
    """

    digest: bytes
    time: int = 0
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


class Context(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """The unified request context: the union of what any canvas knows. None is the sentinel "lacks it".

    `time` None becomes the arrival time at the edge. `sources` are the entities a related-items canvas
    starts from. `user` None is a visitor of whom nothing is known.
    """

    canvas: str = "home"
    user: str | None = None
    time: int | None = None
    session: str | None = None
    query: str | None = None
    sources: list[str] = []
    source_type: str = "item"
    category: str | None = None
    country: str | None = None
    language: str | None = None
    device: str | None = None
    extras: dict[str, str | float | bool] = {}


class Show(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What may be shown.

    `filter` maps an attribute to the value or the values it must have (any of them). `new_only` leaves
    out what the user has had before (events of the kinds that the configuration calls `owned`).
    `only`, if given, is the whole list of entity ids to choose from.
    """

    entity_type: str = "item"
    only: list[str] | None = None
    exclude: list[str] = []
    filter: dict[str, str | float | bool | list[str]] = {}
    new_only: bool = False


class SlateRequest(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A question. `after` is a Position's text: the slate must reflect the log up to there (law 3). `model_line`: which
    of the model lines that the server holds answers. `pool`: put all candidates on record, whatever the share."""

    context: Context = msgspec.field(default_factory=Context)
    show: Show = msgspec.field(default_factory=Show)
    limit: int | None = None
    deadline_ms: float | None = None
    after: str | None = None
    shown: bool | None = None
    explain: bool = False
    pool: bool = False
    model_line: str = "main"
    tenant: str = DEFAULT_TENANT


class SlateItem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One place of a slate. `scores` per head are the model's outputs; `score` is what ordered it."""

    entity: str
    entity_type: str = "item"
    score: float
    scores: dict[str, float] = {}
    sources: list[str] = []
    propensity: float | None = None
    features: dict[str, float] | None = None


class Degraded(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What was left out, and why. `stage` is one of retrieve, filter, score, order, freshness."""

    stage: str
    what: str
    why: str


class Slate(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """A ranked answer. `timings_ms` per stage; `position`: the log up to which it reflects events."""

    request_id: str
    canvas: str
    time: int
    items: list[SlateItem]
    model_line: str = "main"
    dense_version: str | None = None
    sparse_version: str | None = None
    index_version: str | None = None
    position: str = "p"
    timings_ms: dict[str, float] = {}
    candidates: dict[str, int] = {}
    degraded: list[Degraded] = []
    environment: str = "default"
    arms: dict[str, str] = {}


class Pool(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """All candidates of a slate with the network's inputs, returned or not; see `pools.py` for its making.

    keys: uint64 [n], little-endian bytes; inputs: float32 [f, n], little-endian, one input after the other, in zlib.
    """

    keys: bytes
    inputs: bytes


class Past(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """What the ranking network read of the user's history, oldest event first; see `pasts.py` for its making.

    kinds: of events, which actions number. entities: uint64 [m], little-endian bytes; actions: uint8 [m]; times: int64
    [m], little-endian, ms.
    """

    kinds: list[str]
    entities: bytes
    actions: bytes
    times: bytes


class Served(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, tag_field="r", tag="served"):
    """A slate put on record, with the feature values of what it returned (float32, row-major bytes).

    `shown`: True, False (replay, shadow: never a negative) or None (unknown: the client says what was
    seen by events of kind `impression`). `features` is [len(slate.items), len(feature_names)]. `pool`, of a sampled
    share of slates: what the items were chosen from. `past`: what the network read of the history, for all candidates
    alike; None where it reads none.
    """

    record_id: str
    time: int
    user: str | None
    request: SlateRequest
    slate: Slate
    shown: bool | None = None
    feature_names: list[str] = []
    features: bytes = b""
    pool: Pool | None = None
    past: Past | None = None
    received_at: int = 0
    tenant: str = DEFAULT_TENANT
    v: int = 1


LogRecord = Event | Entity | EntityPatch | EntityDelete | Erase | Erased | Served
RecordTag = Literal["event", "entity", "patch", "delete", "erase", "erased", "served"]

_encoder = msgspec.msgpack.Encoder()
_decoder: msgspec.msgpack.Decoder[LogRecord] = msgspec.msgpack.Decoder(LogRecord)


def encode_record(record: LogRecord) -> bytes:
    """MessagePack, tag included: what the log stores."""
    return _encoder.encode(record)


def decode_record(data: bytes) -> LogRecord:
    """Inverse of `encode_record`; accepts every earlier schema version."""
    return _decoder.decode(data)


def record_id(record: LogRecord) -> str:
    """The idempotency key: appending a second record with the same id changes nothing."""
    if isinstance(record, Erased):
        return record.digest.hex()
    return record.event_id if isinstance(record, Event) else record.record_id
