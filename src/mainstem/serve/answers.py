"""Bytes in, bytes out: every endpoint's work, without HTTP. All of it blocks; it runs in lanes.

A request is decoded and checked whole before the engine hears of it, so what is refused was never
written in part.
"""

from __future__ import annotations

import re
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, TypeVar

import msgspec

from mainstem.schema.errors import InvalidRecord, LogError
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import EntityDelete, Erase, Event, LogRecord, SlateRequest
from mainstem.schema.time import now_ms
from mainstem.serve import wire
from mainstem.serve.body import Shape, first_byte, path_id, query_of
from mainstem.serve.convert import entity_id, entity_out, notes_on, slate_out, to_entity, to_event, to_patch, to_request
from mainstem.serve.engine import Engine, SharesCommits
from mainstem.serve.faults import Fault, TooFarBehind
from mainstem.serve.lanes import Backlog
from mainstem.serve.metrics import Metrics

__all__ = ["Answers"]

A = TypeVar("A")
R = TypeVar("R")

_EVENT = Shape[wire.EventIn](wire.EventIn, "", {"": wire.EventIn})
_EVENT_LIST = Shape[list[wire.EventIn]](list[wire.EventIn], "events", {"[]": wire.EventIn})
_EVENTS = Shape[wire.EventsIn](wire.EventsIn, "", {"": wire.EventsIn, ".events[]": wire.EventIn})
_ENTITY = Shape[wire.EntityIn](wire.EntityIn, "", {"": wire.EntityIn})
_ENTITY_LIST = Shape[list[wire.EntityIn]](list[wire.EntityIn], "entities", {"[]": wire.EntityIn})
_ENTITIES = Shape[wire.EntitiesIn](wire.EntitiesIn, "", {"": wire.EntitiesIn, ".entities[]": wire.EntityIn})
_PATCH = Shape[wire.EntityPatchIn](wire.EntityPatchIn, "", {"": wire.EntityPatchIn})
_SLATE = Shape[wire.SlateIn](wire.SlateIn, "", {"": wire.SlateIn, ".context": wire.ContextIn, ".show": wire.ShowIn})

# Seconds that an entity may take from the log to the catalogue before a change of it is said to be of none.
_ARRIVAL_S = 0.05

_ENTITY_TYPE = re.compile(r"[a-z][a-z0-9_-]{0,63}")


class _Keys(msgspec.Struct):
    """Which of the forms of a body this is: it names what the forms do not share."""

    events: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET
    entities: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_KEYS = Shape[_Keys](_Keys, "", {})


class _Posted(NamedTuple):
    """Events of one body. `prefix` is what the log calls the only event of a body that is that event."""

    records: list[Event]
    prefix: str | None
    notes: list[str]


class Answers:
    """The endpoints over one engine. Thread-safe."""

    def __init__(self, engine: Engine, metrics: Metrics) -> None:
        self.engine = engine
        self.metrics = metrics
        self._backlog = Backlog(engine.lag, engine.config.serve.max_lag)

    # ---- writes --------------------------------------------------------------------------------

    def events(self, raw: bytes) -> bytes:
        """One event, a list, or `{"events": [...]}`."""
        posted = self._posted(raw)
        return self._append("event", posted.records, posted.prefix, posted.notes)

    def events_each(self, raws: Sequence[bytes]) -> list[bytes | Exception]:
        """`events` of every body, in one commit: for each the answer, or what its `events` would have raised."""
        assert isinstance(self.engine, SharesCommits)
        read = [_attempt(self._posted, raw) for raw in raws]
        batches = [posted.records for posted in read if isinstance(posted, _Posted) and posted.records]
        appended = self.engine.append_each(batches) if batches else []
        if len(appended) != len(batches):
            raise LogError(f"the log said what became of {len(appended)} batches, not of {len(batches)}")
        outcomes = iter(appended)
        answers: list[bytes | Exception] = []
        for posted in read:
            if isinstance(posted, Exception):
                answers.append(posted)
            elif not posted.records:
                answers.append(self._nothing())
            elif isinstance(outcome := next(outcomes), Appended):
                answers.append(self._accepted("event", outcome, posted.notes))
            else:
                answers.append(_by_its_own_name(outcome, posted.prefix))
        return answers

    def _posted(self, raw: bytes) -> _Posted:
        self._keeps_up()
        config, now = self.engine.config, now_ms()
        match first_byte(raw):
            case b"[":
                given, single = _EVENT_LIST.decode(raw), False
            case b"{" if _KEYS.decode(raw).events is not msgspec.UNSET:
                given, single = _EVENTS.decode(raw).events, False
            case _:
                given, single = [_EVENT.decode(raw)], True
        self._not_too_many(len(given), "events")
        path = "" if single else "events[{}]."
        events = [to_event(event, config, now, path.format(place)) for place, event in enumerate(given)]
        return _Posted(events, "events[0]." if single else None, notes_on(events, config))

    def entities(self, raw: bytes) -> bytes:
        """One entity, a list, or `{"entities": [...]}`."""
        self._keeps_up()
        config, now = self.engine.config, now_ms()
        match first_byte(raw):
            case b"[":
                given, single = _ENTITY_LIST.decode(raw), False
            case b"{" if _KEYS.decode(raw).entities is not msgspec.UNSET:
                given, single = _ENTITIES.decode(raw).entities, False
            case _:
                given, single = [_ENTITY.decode(raw)], True
        self._not_too_many(len(given), "entities")
        path = "" if single else "entities[{}]."
        entities = [to_entity(entity, config, now, path.format(place)) for place, entity in enumerate(given)]
        return self._append("entity", entities, "entities[0]." if single else None)

    def patch(self, entity_type: str, entity: str, raw: bytes) -> bytes:
        self._keeps_up()
        key = _key(entity_type, entity)
        patch = to_patch(_PATCH.decode(raw), *key, self.engine.config, now_ms())
        return self._append("patch", [patch], "entities[0].", self._unknown(*key))

    def delete(self, entity_type: str, entity: str) -> bytes:
        self._keeps_up()
        kind, name = _key(entity_type, entity)
        now = now_ms()
        record = EntityDelete(
            record_id=fresh_id("record"),
            time=now,
            entity=name,
            entity_type=kind,
            received_at=now,
            tenant=self.engine.config.tenant,
        )
        return self._append("delete", [record], "entities[0].", self._unknown(kind, name))

    def _unknown(self, kind: str, name: str) -> list[str]:
        """A note where the catalogue knows no such entity. It may merely lag behind the log: that is no refusal, and
        what was put a moment ago gets a moment to arrive."""
        until = time.monotonic() + _ARRIVAL_S
        while self.engine.entity(kind, name) is None:
            behind = max(self.engine.lag().values(), default=0.0)
            if behind <= 0 and self.engine.entity(kind, name) is None:
                return [f"the catalogue knows no {kind} {name[:80]!r}: this changes nothing"]
            if time.monotonic() >= until:
                late = f"yet, and is {behind:.0f} records behind the log: unless it is among them, this changes nothing"
                return [f"the catalogue knows no {kind} {name[:80]!r} {late}"]
            time.sleep(_ARRIVAL_S / 10)
        return []

    def erase(self, user: str) -> bytes:
        """Forget the user (law 10). Never refused for a state that lags: few come, and none may be lost."""
        now = now_ms()
        record = Erase(
            record_id=fresh_id("erase"),
            time=now,
            user=entity_id(path_id(user), "id"),
            received_at=now,
            tenant=self.engine.config.tenant,
        )
        return self._append("erase", [record], "erasures[0].")

    def _keeps_up(self) -> None:
        """Raises TooFarBehind, before anything is read or written."""
        try:
            self._backlog.check()
        except TooFarBehind:
            self.metrics.refused()
            raise

    def _not_too_many(self, count: int, field: str) -> None:
        most = self.engine.config.serve.max_batch
        if count > most:
            raise Fault(field, f"has {count} entries; at most {most} are accepted in one request", status=413)

    def _append(self, kind: str, records: Sequence[LogRecord], prefix: str | None, notes: Sequence[str] = ()) -> bytes:
        """`prefix` is what the log calls the only record of a request whose body is that record."""
        if not records:
            return self._nothing()
        try:
            appended = self.engine.append(records)
        except InvalidRecord as error:
            raise _by_its_own_name(error, prefix) from error
        return self._accepted(kind, appended, notes)

    def _nothing(self) -> bytes:
        return _encode(wire.Accepted(position=str(self.engine.end()), accepted=0, duplicates=0))

    def _accepted(self, kind: str, appended: Appended, notes: Sequence[str]) -> bytes:
        self.metrics.appended(kind, appended)
        return _encode(
            wire.Accepted(
                position=str(appended.position),
                accepted=appended.accepted,
                duplicates=appended.duplicates,
                erased=appended.erased or msgspec.UNSET,
                notes=list(notes) or msgspec.UNSET,
            )
        )

    # ---- reads ---------------------------------------------------------------------------------

    def entity(self, entity_type: str, entity: str) -> bytes:
        kind, name = _key(entity_type, entity)
        found = self.engine.entity(kind, name)
        if found is None:
            raise Fault("id", f"the catalogue knows no {kind} {name!r}", status=404)
        return _encode(entity_out(found))

    def slate(self, raw: bytes) -> bytes:
        """A whole question; an empty body asks the home canvas for a visitor nobody knows."""
        asked = _SLATE.decode(raw) if first_byte(raw) else wire.SlateIn()
        return self._slate(to_request(asked, self.engine.config, now_ms()))

    def user_slate(self, user: str, query: bytes) -> bytes:
        asked = query_of(query, wire.SlateQuery)
        context = wire.ContextIn(
            canvas=asked.canvas,
            user=entity_id(path_id(user), "id"),
            time=_moment_in(asked.time),
            session=asked.session,
            query=asked.query,
        )
        return self._short(asked, context)

    def similar(self, item: str, query: bytes) -> bytes:
        asked = query_of(query, wire.SimilarQuery)
        context = wire.ContextIn(
            canvas="similar", user=asked.user, time=_moment_in(asked.time), sources=[entity_id(path_id(item), "id")]
        )
        return self._short(asked, context)

    def _short(self, asked: wire.SlateQuery | wire.SimilarQuery, context: wire.ContextIn) -> bytes:
        whole = wire.SlateIn(
            context=context,
            show=wire.ShowIn(new_only=asked.new_only),
            limit=asked.limit,
            deadline_ms=asked.deadline_ms,
            after=asked.after,
            explain=asked.explain,
        )
        try:
            request = to_request(whole, self.engine.config, now_ms())
        except InvalidRecord as error:
            # The short form has no `context`: its fields stand in the query by their bare names.
            hint = error.hint if isinstance(error, Fault) else None
            raise Fault(error.field.removeprefix("context."), error.reason, hint=hint) from error
        return self._slate(request)

    def _slate(self, request: SlateRequest) -> bytes:
        if request.after is not None and not Position.parse(request.after, "after") <= self.engine.end():
            raise Fault("after", f"{request.after[:80]!r} lies beyond the end of the log")
        slate = self.engine.slate(request)
        self.metrics.slate(slate)
        return _encode(slate_out(slate))

    # ---- state of the process ------------------------------------------------------------------

    def ready(self) -> tuple[bool, bytes]:
        ready, parts = self.engine.ready()
        return ready, _encode(wire.Ready(ready, parts))

    def metrics_text(self) -> bytes:
        return self.metrics.text(self.engine.lag(), self.engine.figures())


def _attempt(call: Callable[[A], R], argument: A) -> R | Exception:
    try:
        return call(argument)
    except Exception as error:  # noqa: BLE001 - one request's failure is its own, whatever it is
        return error


def _by_its_own_name(error: Exception, prefix: str | None) -> Exception:
    """An InvalidRecord of a body that is one record names its field as the client wrote it."""
    if prefix and isinstance(error, InvalidRecord) and error.field.startswith(prefix):
        return Fault(error.field.removeprefix(prefix), error.reason)
    return error


def _key(entity_type: str, entity: str) -> tuple[str, str]:
    kind = path_id(entity_type, "type")
    if not _ENTITY_TYPE.fullmatch(kind):
        raise Fault("type", f"{kind[:80]!r} is no entity type; lower-case letters, digits, _ and - name one")
    return kind, entity_id(path_id(entity), "id")


def _moment_in(text: str | None) -> str | int | None:
    """A time of the query string: digits are ms; the + of a zone has become a space on the way."""
    if text is None:
        return None
    if re.fullmatch(r"-?[0-9]{1,18}", text):
        return int(text)
    return text.replace(" ", "+") if "T" in text else text


def _encode(value: Any) -> bytes:
    return _encoder.encode(value)


_encoder = msgspec.json.Encoder(enc_hook=str)
