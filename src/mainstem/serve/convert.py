"""Wire structs -> the schema's records, with every check that the types alone cannot make, and back.

Raises Fault (an InvalidRecord) naming the field. Nothing here reads a clock or touches the engine:
`now` (ms) is the arrival time at the edge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import TypeVar

from msgspec import UNSET, UnsetType

from mainstem.schema.config import Config
from mainstem.schema.errors import TooFarAhead
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import Position
from mainstem.schema.records import Context, Entity, EntityPatch, Event, Show, Slate, SlateItem, SlateRequest
from mainstem.schema.time import iso, parse_duration, parse_time
from mainstem.serve import wire
from mainstem.serve.faults import Fault, nearest

__all__ = ["entity_id", "entity_out", "notes_on", "slate_out", "to_entity", "to_event", "to_patch", "to_request"]

T = TypeVar("T")

_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff\ufffd]")
_NO_TEXT = re.compile(r"[\x00\ud800-\udfff]")
_LONGEST_ID = 512
_MOST_IDS = 10_000
_BUILT_IN = ("alias", "hide")
# 1990-01-01: nothing that is asked about happened before.
_EARLIEST = 631_152_000_000


# ---- fields ------------------------------------------------------------------------------------


def entity_id(value: str | int, field: str) -> str:
    """An id as text: not empty, at most 512 characters, no control characters."""
    text = value if isinstance(value, str) else str(value)
    if not text or text.isspace():
        raise Fault(field, "must not be empty")
    if len(text) > _LONGEST_ID:
        raise Fault(field, f"has {len(text)} characters; at most {_LONGEST_ID} are accepted")
    # Most ids are plain printable ASCII, which one C call each can tell.
    if not (text.isascii() and text.isprintable()) and (bad := _CONTROL.search(text)):
        raise Fault(field, f"holds the character U+{ord(bad[0]):04X}, which is not accepted in ids")
    return text


def _optional_id(value: str | int | None, field: str) -> str | None:
    return None if value is None else entity_id(value, field)


def _ids(values: Sequence[str | int], field: str) -> list[str]:
    if len(values) > _MOST_IDS:
        raise Fault(field, f"has {len(values)} ids; at most {_MOST_IDS} are accepted")
    return [entity_id(value, f"{field}[{place}]") for place, value in enumerate(values)]


def _free(value: str | None, field: str) -> str | None:
    return None if value is None else _text(value, field)


def _text(value: str, field: str) -> str:
    if bad := _NO_TEXT.search(value):
        raise Fault(field, f"holds the character U+{ord(bad[0]):04X}, which is not text")
    return value


def _moment(value: str | int, field: str) -> int:
    moment = parse_time(value, field)
    # A zone can carry the last hours of the year 9999 over its end; the second look refuses that.
    return moment if moment is value else parse_time(moment, field)


def _happened(value: str | int | None, field: str, now: int) -> int:
    """A moment at which something happened; now where nothing is said. What lies before 1990 is a mistake: most
    often seconds, which as milliseconds lie in January 1970."""
    moment = now if value is None else _moment(value, field)
    if moment < _EARLIEST:
        hint = "whole numbers are milliseconds, not seconds" if isinstance(value, int) else None
        raise Fault(field, f"lies before {iso(_EARLIEST)[:10]}", hint=hint)
    return moment


def _not_ahead(time: int, field: str, config: Config, now: int) -> int:
    if time > now and time - now > (skew := parse_duration(config.log.skew)):
        raise TooFarAhead(field, f"lies {time - now} ms ahead of now; at most {skew} ms are accepted")
    return time


def _optional_moment(value: str | int | None, field: str) -> int | None:
    return None if value is None else _moment(value, field)


def _extras(extras: Mapping[str, str | float | bool], field: str) -> dict[str, str | float | bool]:
    for name, value in extras.items():
        entity_id(name, field)
        if isinstance(value, str):
            _text(value, f"{field}.{name}")
    return dict(extras)


# ---- events ------------------------------------------------------------------------------------


def to_event(event: wire.EventIn, config: Config, now: int, path: str = "") -> Event:
    """`path` starts the name of each field, as in `events[3].`."""
    user = entity_id(event.user, f"{path}user")
    entity = _optional_id(event.entity, f"{path}entity")
    if entity is None and event.kind in _BUILT_IN:
        raise Fault(f"{path}entity", f"is required for kind {event.kind!r}")
    if entity is None and (why := _about_an_entity(event.kind, config)):
        hint = f"only kinds with events.{event.kind}.interest 0, not owned and of no head, may do without"
        raise Fault(f"{path}entity", f"is required for kind {event.kind!r}, which {why}", hint=hint)
    # The log checks the skew too; here it costs nothing and names the field as the client wrote it.
    time = _not_ahead(_happened(event.time, f"{path}time", now), f"{path}time", config, now)
    if event.kind == "alias" and entity == user and event.entity_type in (None, "user"):
        raise Fault(f"{path}entity", f"is the user {user[:80]!r} itself: an alias joins two of them")
    return Event(
        event_id=fresh_id("event") if event.event_id is None else entity_id(event.event_id, f"{path}event_id"),
        time=time,
        user=user,
        kind=event.kind,
        entity=entity,
        entity_type=event.entity_type or ("user" if event.kind == "alias" else "item"),
        value=event.value,
        received_at=now,
        session=_optional_id(event.session, f"{path}session"),
        request_id=_optional_id(event.request_id, f"{path}request_id"),
        place=event.place,
        canvas=_optional_id(event.canvas, f"{path}canvas"),
        query=_free(event.query, f"{path}query"),
        extras=_extras(event.extras, f"{path}extras") if event.extras else {},
        tenant=config.tenant,
    )


def _about_an_entity(kind: str, config: Config) -> str | None:
    """What events of this kind count for that is lost without an entity; None where nothing is."""
    if (head := next((name for name, head in config.heads.items() if head.event == kind), None)) is not None:
        return f"labels the head {head!r}"
    event = config.events.get(kind)
    if event is None:
        return None
    return "makes the entity the user's" if event.owned else "counts as interest" if event.interest > 0 else None


def notes_on(events: Sequence[Event], config: Config) -> list[str]:
    """One line per event kind that is not configured: it is kept on record but counts for nothing."""
    known = config.events.keys() | set(_BUILT_IN)
    strange = {event.kind for event in events} - known
    return [
        f"kind {kind!r} is not among events ({', '.join(sorted(known))}): kept on record, counts for nothing"
        for kind in sorted(strange)[:20]
    ]


# ---- entities ----------------------------------------------------------------------------------


def to_entity(entity: wire.EntityIn, config: Config, now: int, path: str = "") -> Entity:
    start = _optional_moment(entity.available_from, f"{path}available_from")
    until = _optional_moment(entity.available_until, f"{path}available_until")
    _window(start, until, path)
    _among(entity.entity_type, config.entities, f"{path}entity_type", "entity type")
    return Entity(
        record_id=_record_id(entity.record_id, path),
        time=_happened(entity.time, f"{path}time", now),
        entity=entity_id(entity.entity, f"{path}entity"),
        entity_type=entity.entity_type,
        attributes=_attributes(entity.attributes, entity.entity_type, config, path),
        text=_text(entity.text, f"{path}text"),
        group=_optional_id(entity.group, f"{path}group"),
        available_from=start,
        available_until=until,
        stock=entity.stock,
        received_at=now,
        tenant=config.tenant,
    )


def to_patch(patch: wire.EntityPatchIn, entity_type: str, entity: str, config: Config, now: int) -> EntityPatch:
    fields = ("text", "group", "available_from", "available_until", "stock")
    if not patch.attributes and all(getattr(patch, name) is UNSET for name in fields):
        raise Fault("body", f"changes nothing; name at least one of attributes, {', '.join(fields)}")
    start = patch.available_from if patch.available_from is UNSET else _patched_moment(patch, "available_from")
    until = patch.available_until if patch.available_until is UNSET else _patched_moment(patch, "available_until")
    if isinstance(start, int) and isinstance(until, int):
        _window(start, until, "")
    return EntityPatch(
        record_id=_record_id(patch.record_id, ""),
        time=_happened(patch.time, "time", now),
        entity=entity,
        entity_type=entity_type,
        attributes=_attributes(patch.attributes, entity_type, config, ""),
        text=patch.text if isinstance(patch.text, UnsetType) else _text(patch.text, "text"),
        group=patch.group if isinstance(patch.group, UnsetType) else _optional_id(patch.group, "group"),
        available_from=start,
        available_until=until,
        stock=patch.stock,
        received_at=now,
        tenant=config.tenant,
    )


def _patched_moment(patch: wire.EntityPatchIn, field: str) -> int | None:
    return _optional_moment(getattr(patch, field), field)


def _record_id(value: str | int | None, path: str) -> str:
    return fresh_id("record") if value is None else entity_id(value, f"{path}record_id")


def _window(start: int | None, until: int | None, path: str) -> None:
    if start is not None and until is not None and start >= until:
        raise Fault(f"{path}available_until", "must lie after available_from")


def _attributes(
    given: Mapping[str, wire.AttributeIn], entity_type: str, config: Config, path: str
) -> dict[str, wire.AttributeIn]:
    """Attributes as sent; those that the configuration types must be of that type."""
    typed = config.entities[entity_type].attributes if entity_type in config.entities else {}
    for name, value in given.items():
        field = f"{path}attributes.{name[:80]}"
        entity_id(name, f"{path}attributes")
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                _text(text, field)
        form = typed.get(name)
        if form is None or value is None:
            continue
        if form == "number" and (isinstance(value, bool) or not isinstance(value, int | float)):
            raise Fault(field, "must be a number, as configured")
        if form == "text" and not isinstance(value, str):
            raise Fault(field, "must be text, as configured")
        if form == "category" and isinstance(value, list):
            raise Fault(field, "must be one value, as configured", hint="make the attribute `tags` to hold several")
        if form == "tags" and not isinstance(value, list):
            raise Fault(field, "must be a list of text, as configured")
    return dict(given)


def entity_out(entity: Entity) -> wire.EntityOut:
    return wire.EntityOut(
        entity=entity.entity,
        entity_type=entity.entity_type,
        time=entity.time,
        attributes=entity.attributes,
        text=entity.text,
        group=entity.group,
        available_from=entity.available_from,
        available_until=entity.available_until,
        stock=entity.stock,
    )


# ---- slates ------------------------------------------------------------------------------------


def to_request(slate: wire.SlateIn, config: Config, now: int) -> SlateRequest:
    """The question as the ranking takes it; its time is stamped here where the client gave none (law 4)."""
    if slate.after is not None:
        Position.parse(slate.after, "after")
    return SlateRequest(
        context=_context(slate.context, config, now),
        show=_show(slate.show, slate.context.canvas, config),
        limit=slate.limit,
        deadline_ms=slate.deadline_ms,
        after=slate.after,
        shown=slate.shown,
        explain=slate.explain,
        pool=slate.pool,
        model_line=slate.model_line,
        tenant=config.tenant,
    )


def _context(context: wire.ContextIn, config: Config, now: int) -> Context:
    _among(context.canvas, config.canvases, "context.canvas", "canvas")
    return Context(
        canvas=context.canvas,
        user=_optional_id(context.user, "context.user"),
        time=_not_ahead(_happened(context.time, "context.time", now), "context.time", config, now),
        session=_optional_id(context.session, "context.session"),
        query=_free(context.query, "context.query"),
        sources=_ids(context.sources, "context.sources"),
        source_type=context.source_type,
        category=_free(context.category, "context.category"),
        country=_free(context.country, "context.country"),
        language=_free(context.language, "context.language"),
        device=_free(context.device, "context.device"),
        extras=_extras(context.extras, "context.extras") if context.extras else {},
    )


def _show(show: wire.ShowIn, canvas: str, config: Config) -> Show:
    entity_type = show.entity_type or config.canvases[canvas].entity_type
    _among(entity_type, config.entities, "show.entity_type", "entity type")
    # An attribute that is not configured matches nothing: the slate would be empty and nobody would know why.
    filterable = {n: 1 for n, form in config.entities[entity_type].attributes.items() if form != "text"} | {"group": 1}
    for name, value in show.filter.items():
        _among(name, filterable, f"show.filter.{name[:80]}", "attribute to filter by")
        if isinstance(value, list) and len(value) > _MOST_IDS:
            raise Fault(f"show.filter.{name}", f"has {len(value)} values; at most {_MOST_IDS} are accepted")
        for text in value if isinstance(value, list) else (value,):
            if isinstance(text, str):
                _text(text, f"show.filter.{name}")
    return Show(
        entity_type=entity_type,
        only=None if show.only is None else _ids(show.only, "show.only"),
        exclude=_ids(show.exclude, "show.exclude"),
        filter=show.filter,
        new_only=show.new_only,
    )


def _among(name: str, known: Mapping[str, object], field: str, what: str) -> None:
    if name not in known:
        raise Fault(field, f"{name[:80]!r} is not a configured {what}; there are: {', '.join(known)}",
                    hint=nearest(name, known))  # fmt: skip


def _item_out(item: SlateItem) -> wire.SlateItemOut:
    return wire.SlateItemOut(
        entity=item.entity,
        entity_type=item.entity_type,
        score=item.score,
        scores=item.scores,
        sources=item.sources,
        propensity=_or_unset(item.propensity),
        features=_or_unset(item.features),
    )


def _or_unset(value: T | None) -> T | UnsetType:
    return UNSET if value is None else value


def slate_out(slate: Slate) -> wire.SlateOut:
    """Every field by name: what the records leave out as default is spelled out on the wire."""
    fields = {name: getattr(slate, name) for name in wire.SlateOut.__struct_fields__ if name != "items"}
    return wire.SlateOut(items=[_item_out(item) for item in slate.items], **fields)
