"""What every append checks before anything is written: a log that took a record can always read it back."""

from __future__ import annotations

import gc
import re
from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite

import msgspec

from mainstem.schema.errors import InvalidRecord, TooFarAhead
from mainstem.schema.ids import digest128
from mainstem.schema.records import Erase, Erased, Event, LogRecord, Served, encode_record, record_id

__all__ = ["Admitted", "admit", "check_skew", "decode_many", "id_digest"]

# Years 1 to 9999 in ms since 1970, as in schema.time: beyond it no calendar can print a time.
_EARLIEST, _LATEST = -62_135_596_800_000, 253_402_300_799_999
_decode_list = msgspec.msgpack.Decoder(list[LogRecord]).decode


@dataclass(frozen=True, slots=True)
class Admitted:
    """Records that may be written, in order: stamped, encoded, and the 16-byte digests of their ids."""

    records: list[LogRecord]
    bodies: list[bytes]
    digests: list[bytes]


def admit(records: Sequence[LogRecord], now: int, skew: int) -> Admitted:
    """Check all of `records` and stamp `received_at` = `now` (ms) where it is 0. Nothing is written here.

    Raises InvalidRecord (TooFarAhead for the skew, in ms) naming the first offending field as in
    `events[3].user`; the number is the place in this batch.
    """
    for place, record in enumerate(records):
        _check_fields(place, record)
    check_skew(records, now, skew)
    stamped = [r if r.received_at else msgspec.structs.replace(r, received_at=now) for r in records]
    bodies: list[bytes] = []
    digests: list[bytes] = []
    try:
        for record in stamped:
            bodies.append(encode_record(record))
            digests.append(id_digest(record))
    except (TypeError, UnicodeEncodeError, OverflowError, msgspec.MsgspecError) as error:
        raise InvalidRecord(path_of(len(digests), stamped[len(digests)]), f"cannot be written: {error}") from error
    try:
        decode_many(bodies)
    except msgspec.ValidationError as error:
        raise _unreadable(stamped, error) from error
    return Admitted(stamped, bodies, digests)


def check_skew(records: Sequence[LogRecord], now: int, skew: int) -> None:
    """Law 4: no event lies further ahead of its arrival (`received_at`, or `now` where it is 0) than `skew`, all in ms.

    Raises TooFarAhead naming `events[i].time`.
    """
    for place, record in enumerate(records):
        if isinstance(record, Event) and record.time > (record.received_at or now) + skew:
            ahead = record.time - (record.received_at or now)
            raise TooFarAhead(
                f"events[{place}].time", f"lies {ahead} ms ahead of its arrival; at most {skew} ms may be"
            )


def id_digest(record: LogRecord) -> bytes:
    """16 bytes that stand for (tenant, record id): the log's idempotency key."""
    if isinstance(record, Erased):
        return record.digest
    return digest128(f"{record.tenant}\x1f{record_id(record)}")


def decode_many(bodies: Sequence[bytes]) -> list[LogRecord]:
    """Inverse of `encode_record` over many records, as one MessagePack array (header array32, then the bodies)."""
    data = b"\xdd" + len(bodies).to_bytes(4, "big") + b"".join(bodies)
    # Thousands of new objects that all live on make the cyclic collector run dozens of times for nothing.
    paused = gc.isenabled()
    gc.disable()
    try:
        return _decode_list(data)
    finally:
        if paused:
            gc.enable()


def path_of(place: int, record: LogRecord) -> str:
    """`events[3]`, `entities[0]` ...: how errors name a record of a batch."""
    if isinstance(record, Event):
        return f"events[{place}]"
    if isinstance(record, Erase):
        return f"erasures[{place}]"
    return f"served[{place}]" if isinstance(record, Served) else f"entities[{place}]"


def _check_fields(place: int, record: LogRecord) -> None:
    wrong: tuple[str, str] | None = None
    if type(record) is Event:
        if record.event_id and record.user and record.kind and record.tenant and record.entity != "":
            # One comparison chain on the common path; the reasons are found below only where it fails.
            try:
                if (
                    isfinite(record.value)
                    and _EARLIEST <= record.time <= _LATEST
                    and 0 <= record.received_at <= _LATEST
                    and 0 <= (record.place or 0) < 2**31
                ):
                    return
            except (TypeError, OverflowError):
                wrong = ("value", "value, time, received_at and place must be numbers")
        wrong = wrong or _event_fault(record)
    else:
        wrong = _fault(record)
    if wrong:
        raise InvalidRecord(f"{path_of(place, record)}.{wrong[0]}", wrong[1])


def _event_fault(event: Event) -> tuple[str, str]:
    for name in ("event_id", "user", "kind", "tenant"):
        if not getattr(event, name):
            return name, "must not be empty"
    if event.entity == "":
        return "entity", "must not be empty; leave it out where there is none"
    if not isfinite(event.value):
        return "value", "must be a finite number"
    if not 0 <= (event.place or 0) < 2**31:
        return "place", "must be a whole number from 0 on"
    if not 0 <= event.received_at <= _LATEST:
        return "received_at", "lies outside the years 1970 to 9999"
    return "time", "lies outside the years 1 to 9999"


def _fault(record: LogRecord) -> tuple[str, str] | None:
    if isinstance(record, Erased):
        return "record", "stands for what is erased; only the log itself writes it"
    if not record_id(record):
        return "record_id", "must not be empty"
    if not record.tenant:
        return "tenant", "must not be empty"
    if not isinstance(record.time, int) or not _EARLIEST <= record.time <= _LATEST:
        return "time", "must be whole milliseconds within the years 1 to 9999"
    if not isinstance(record.received_at, int) or not 0 <= record.received_at <= _LATEST:
        return "received_at", "must be whole milliseconds within the years 1970 to 9999"
    if isinstance(record, Erase):
        if (record.user is None) == (record.entity is None):
            return "user", "exactly one of user and entity must be set"
        if not (record.user or record.entity):
            return ("user" if record.user == "" else "entity"), "must not be empty"
    elif isinstance(record, Served):
        if record.user == "":
            return "user", "must not be empty; leave it out where nobody is known"
    elif not isinstance(record, Event) and not record.entity:
        return "entity", "must not be empty"
    return None


def _unreadable(records: Sequence[LogRecord], error: msgspec.ValidationError) -> InvalidRecord:
    """`Expected str, got int - at $[3].user` -> InvalidRecord for `events[3].user`."""
    reason, _, where = str(error).partition(" - at `$[")
    place, _, field = where.rstrip("`").partition("]")
    if not re.fullmatch(r"\d+", place):
        return InvalidRecord("records", str(error))
    return InvalidRecord(path_of(int(place), records[int(place)]) + field, reason)
