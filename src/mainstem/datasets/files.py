"""One's own events from a file: Parquet, CSV or JSON lines, the latter two also gzipped.

Columns are named as the fields of `Event`, or mapped (`mapping={"user": "household_id"}`); other columns become
extras. `user`, `time` and `kind` are needed, the last as a column or as the default for all rows.

Times are ISO 8601 text (UTC where no zone is given), date or timestamp columns, or numbers since 1970 UTC, also
as text: **below 10^11 they are seconds (which may have a fraction), from 10^11 on milliseconds.** So seconds work
up to the year 5138. Times before 1990 are set aside: they come of another unit, or of a default like 0.

Where there is no `event_id`, it is the 128-bit digest of (file name without folder, row number, the event's
fields), so that the same file may be ingested again, after a kill or after rows were added at its end, without
duplicates. A renamed file or another mapping makes other ids.
"""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import UTC, date, datetime
from decimal import Decimal
from math import isfinite, isnan
from pathlib import Path
from typing import IO, Any, Protocol

import msgspec

from mainstem.datasets.file_rows import Chunk, Milliseconds, chunks
from mainstem.schema.config import Config
from mainstem.schema.errors import ConfigError, DatasetError, InvalidRecord
from mainstem.schema.ids import DEFAULT_TENANT, digest128
from mainstem.schema.position import START
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Event
from mainstem.schema.time import iso, parse_time

__all__ = [
    "FIELDS",
    "IngestReport",
    "existing",
    "id_of",
    "ingest_file",
    "kinds_of_entities",
    "known_kinds",
    "time_of",
]

FIELDS = (
    "event_id", "time", "user", "kind", "entity", "entity_type", "value", "received_at", "session", "request_id",
    "place", "canvas", "query", "tenant",
)  # fmt: skip
"""Fields of Event that a column may fill."""

_SECONDS_BELOW = 10**11
# 1990, and 2100: where a wrong unit is suspected, what it should have been lies between.
_EARLIEST, _LATEST = 631_152_000_000, 4_102_444_800_000
_BUILT_IN = ("alias", "hide", "impression")
_NUMBER = re.compile(r"\s*[+-]?\d+(\.\d*)?\s*")

Extra = str | float | bool


class Append(Protocol):
    """`Log.append`, or what sends the same over HTTP."""

    def __call__(self, records: Sequence[Event], /) -> Appended: ...


@dataclass(frozen=True, slots=True)
class IngestReport:
    """Rows by what became of them; `reasons` are the first few rejects in words.

    `erased`: rows of users or entities that were erased at their time or after it; they are left out.
    `unknown_kinds`: good rows by kind, of the kinds that the configuration does not know (empty without one).
    """

    accepted: int
    duplicates: int
    rejected: int
    seconds: float
    reasons: tuple[str, ...] = ()
    erased: int = 0
    unknown_kinds: Mapping[str, int] = field(default_factory=dict)


def existing(path: Path) -> Path:
    """`path`, where it is a file. Raises DatasetError where it is not."""
    if path.is_dir():
        raise DatasetError(f"{path} is a folder; name a file in it")
    if not path.is_file():
        raise DatasetError(f"{path}: there is no such file")
    return path


def known_kinds(config: Config) -> tuple[str, ...]:
    """Kinds of events that mean something: those configured, and the built-in ones."""
    return tuple(dict.fromkeys((*config.events, *_BUILT_IN)))


def kinds_of_entities(config: Config) -> frozenset[str]:
    """Kinds that say nothing without an entity: what labels a head, is owned or counts as interest; `alias`, `hide`."""
    counting = {kind for kind, event in config.events.items() if event.owned or event.interest > 0}
    return frozenset(counting | {head.event for head in config.heads.values()} | {"alias", "hide"})


def ingest_file(
    path: Path | str,
    append: Append,
    *,
    mapping: Mapping[str, str] | None = None,
    kind: str | None = None,
    config: Config | None = None,
    rejects: Path | None = None,
    progress: Callable[[int, int], None] | None = None,
    batch: int = 10_000,
) -> IngestReport:
    """Append the events of the file at `path` in its order, `batch` at a time, and say what became of the rows.

    A bad row does not stop the others: it goes to the JSON lines file `rejects` (made anew, absent if all is well)
    as {"line" or "row": number from 1, "reason": text, "data": the row}. With `config`, rows of a kind that counts
    for an entity but names none are bad, and rows of kinds that it does not know are good, but told in the report.
    `progress(done, total)` counts rows of Parquet, bytes of text. Raises ConfigError where needed columns are
    missing or the suffix is unknown, DatasetError where the file is absent or damaged; what came before the damage
    is in the log.
    """
    started = time.monotonic()
    path = existing(Path(path))
    if unknown := set(mapping or {}) - set(FIELDS):
        raise ConfigError(
            f"mapping: {', '.join(sorted(unknown))} is not a field of an event; fields: {', '.join(FIELDS)}"
        )
    done = Appended(START, 0, 0)
    sources: dict[str, str] | None = None
    entities = kinds_of_entities(config) if config else frozenset()
    kinds: Counter[str] = Counter()
    with _Rejects(rejects, "row" if ".parquet" in path.suffixes else "line") as aside:
        for chunk in chunks(path, batch):
            for number, reason, data in chunk.bad:
                aside.add(number, reason, data)
            if chunk.columns:
                # Each time: JSON lines may bring other names later on.
                sources = _sources(path, list(chunk.columns), mapping or {}, kind, entities, first=sources is None)
                events = _events(path.name, chunk, sources, kind, entities, aside)
                kinds.update(event.kind for _, event in events)
                done = _sum(done, _append(append, events, aside))
            if progress:
                progress(chunk.done, chunk.total)
    known = known_kinds(config) if config else tuple(kinds)
    strange = {name: count for name, count in kinds.most_common() if name not in known}
    seconds, reasons = time.monotonic() - started, tuple(aside.first)
    return IngestReport(done.accepted, done.duplicates, aside.count, seconds, reasons, done.erased, strange)


class _Rejects:
    """The rows set aside: counted, and written to a file that is made when the first one comes."""

    def __init__(self, path: Path | None, unit: str) -> None:
        self._path, self._unit = path, unit
        self._file: IO[str] | None = None
        self.count = 0
        self.first: list[str] = []

    def add(self, number: int, reason: str, data: object) -> None:
        self.count += 1
        if len(self.first) < 5:
            self.first.append(f"{self._unit} {number}: {reason}")
        if self._path:
            self._file = self._file or self._path.open("w", encoding="utf-8")
            self._file.write(json.dumps({self._unit: number, "reason": reason, "data": data}, default=str) + "\n")

    def __enter__(self) -> _Rejects:
        if self._path:
            self._path.unlink(missing_ok=True)
        return self

    def __exit__(self, *exc: object) -> None:
        if self._file:
            self._file.close()


# ---- chunks to events ----------------------------------------------------------------------------


def _sources(
    path: Path, names: list[str], mapping: Mapping[str, str], kind: str | None, entities: Set[str], first: bool
) -> dict[str, str]:
    """Event field -> column, of the columns there are. The first chunk must have what is needed."""
    sources = {name: mapping.get(name, name) for name in FIELDS if mapping.get(name, name) in names}
    if not first:
        return sources
    needed = ["user", "time", *([] if kind else ["kind"])]
    if kind in entities and "kind" not in sources:
        needed.append("entity")
    missing = [name for name in needed if name not in sources]
    missing += [name for name in mapping if name not in sources and name not in missing]
    if missing:
        told = ", ".join(f"{name}={mapping[name]}" if name in mapping else name for name in missing)
        default = "" if kind or "kind" not in missing else ", or give one kind for all rows with --kind purchase"
        raise ConfigError(
            f"{path.name}: no column for {told}\n  columns found: {', '.join(names) or 'none'}\n"
            f"  name the column with --map {missing[0]}=COLUMN{default}"
        )
    return sources


def _events(
    name: str, chunk: Chunk, sources: Mapping[str, str], kind: str | None, entities: Set[str], aside: _Rejects
) -> list[tuple[int, Event]]:
    """The good rows of a chunk as (number, event), in order; the others are set aside."""
    count = len(chunk.rows)
    bad: dict[int, str] = {}
    columns: dict[str, list[Any]] = {}
    for target in FIELDS:
        given = chunk.columns[sources[target]] if target in sources else [None] * count
        default = {"kind": kind, "entity_type": "item", "tenant": DEFAULT_TENANT}.get(target)
        columns[target] = (
            _converted(target, given, default, bad) if target in sources else [_default(target, default)] * count
        )
    for place, (what, entity) in enumerate(zip(columns["kind"], columns["entity"], strict=True)):
        if entity is None and what in entities:
            bad.setdefault(place, f"entity: is missing, and kind {what!r} is about one (see `events` and `heads`)")
    extras = _extras(chunk, set(sources.values()), bad)
    found: list[tuple[int, Event]] = []
    for place, (number, extra, *row) in enumerate(zip(chunk.rows, extras, *columns.values(), strict=True)):
        if place in bad:
            aside.add(number, bad[place], {column: values[place] for column, values in chunk.columns.items()})
            continue
        key, at, user, what, entity, entity_type, value, received, session, request, spot, canvas, query, tenant = row
        key = key or digest128("\x1f".join(map(str, (name, number, *row[1:], extra or "")))).hex()
        found.append(
            (
                number,
                Event(
                    event_id=key, time=at, user=user, kind=what, entity=entity, entity_type=entity_type, value=value,
                    received_at=received, session=session, request_id=request, place=spot, canvas=canvas, query=query,
                    extras=extra, tenant=tenant,
                ),
            )
        )  # fmt: skip
    return found


def _default(target: str, default: str | None) -> Any:
    return {"value": 1.0, "received_at": 0}.get(target, default)


def _converted(target: str, values: list[Any], default: str | None, bad: dict[int, str]) -> list[Any]:
    """One column as its field's type; rows where that cannot be are noted in `bad`."""
    needed = target in ("user", "kind", "time")
    convert: Callable[[Any], Any] = _CONVERT.get(target, id_of)
    fallback = _default(target, default)
    out: list[Any] = []
    for place, value in enumerate(values):
        try:
            found = convert(value)
        except (ValueError, TypeError, OverflowError, OSError, InvalidRecord) as error:
            reason = error.reason if isinstance(error, InvalidRecord) else str(error)
            bad.setdefault(place, f"{target}: {reason}")
            found = None
        else:
            if found is None:
                found = fallback
                if needed and found is None:
                    bad.setdefault(place, f"{target}: is missing")
        out.append(found)
    return out


def id_of(value: Any) -> str | None:
    """Ids as text: 17 and 17.0 (what a data frame makes of 17 beside a missing value) are both "17"."""
    if type(value) is str:
        return value or None
    if value is None or (isinstance(value, float) and isnan(value)):
        return None
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal | bytes):
        raise ValueError(f"must be text or a number, not {type(value).__name__}")
    if isinstance(value, bytes):
        return value.decode() or None
    if isinstance(value, Milliseconds):
        return iso(value)
    return str(int(value)) if value == int(value) else str(value)


def time_of(value: Any) -> int | None:
    """A moment in ms since 1970, from any of the forms above; None where there is none. Raises ValueError."""
    if value is None or value == "" or (isinstance(value, float) and isnan(value)):
        return None
    if type(value) is str:
        if not _NUMBER.fullmatch(value):
            return parse_time(value.strip())
        return time_of(float(value) if "." in value else int(value))
    if isinstance(value, datetime):
        return round((value if value.tzinfo else value.replace(tzinfo=UTC)).timestamp() * 1000)
    if isinstance(value, date):
        return round(datetime(value.year, value.month, value.day, tzinfo=UTC).timestamp() * 1000)
    if isinstance(value, bool) or not isinstance(value, int | float | Decimal):
        raise ValueError("must be ISO 8601 text or a number since 1970")
    if isinstance(value, Milliseconds):
        return parse_time(int(value))
    number = value if isinstance(value, int) else float(value)
    return parse_time(round(number * 1000) if abs(number) < _SECONDS_BELOW else round(number))


def _event_time(value: Any) -> int | None:
    """No service's events are older than 1990; such times come of another unit, or of a default like 0."""
    at = time_of(value)
    if at is None or at >= _EARLIEST:
        return at
    hint = ""
    if _EARLIEST <= at * 1000 < _LATEST:
        hint = f"; milliseconds, not seconds? a thousand times as much is {iso(at * 1000)[:10]}"
    raise ValueError(f"{iso(at)[:10]} lies before 1990{hint}")


def _value(value: Any) -> float | None:
    if value is None or value == "":
        return None
    number = float(value)
    if isnan(number) and not isinstance(value, str):
        return None  # what a data frame writes for a missing number
    if not isfinite(number):
        raise ValueError("must be a finite number")
    return number


def _whole(value: Any) -> int | None:
    number = _value(value)
    if number is None:
        return None
    if number != int(number) or not 0 <= number < 2**31:
        raise ValueError("must be a whole number from 0 on")
    return int(number)


_CONVERT: dict[str, Callable[[Any], Any]] = {
    "time": _event_time,
    "received_at": time_of,
    "value": _value,
    "place": _whole,
}


def _extras(chunk: Chunk, used: set[str], bad: dict[int, str]) -> list[dict[str, Extra]]:
    """The other columns, row by row; missing values are left out. A column `extras` (objects) is taken in."""
    out: list[dict[str, Extra]] = [{} for _ in chunk.rows]
    for name, values in chunk.columns.items():
        if name in used:
            continue
        for place, value in enumerate(values):
            if value is None or value == "":
                continue
            if name == "extras" and isinstance(value, dict):
                out[place].update({str(k): v for k, v in ((k, _extra(v)) for k, v in value.items()) if v is not None})
            elif (kept := value if type(value) is str else _extra(value)) is not None:
                out[place][name] = kept
    return out


def _extra(value: Any) -> Extra | None:
    """A value as an extra may have it: whole numbers beyond 2^53 and everything structured become text."""
    if value is None or isinstance(value, str | bool):
        return value
    if isinstance(value, Milliseconds):
        return iso(value)
    if isinstance(value, int):
        return float(value) if abs(value) <= 2**53 else str(value)
    if isinstance(value, float):
        return value if isfinite(value) else None
    return json.dumps(value, default=str)


def _append(append: Append, events: list[tuple[int, Event]], aside: _Rejects) -> Appended:
    """What became of them. A log takes a batch whole or not at all, so a refused one is halved until the
    rows it objects to (too far ahead in time, for one) are alone and set aside."""
    if not events:
        return Appended(START, 0, 0)
    try:
        return append([event for _, event in events])
    except InvalidRecord as error:
        if len(events) == 1:
            number, event = events[0]
            aside.add(number, f"{error.field.rpartition('.')[2]}: {error.reason}", msgspec.to_builtins(event))
            return Appended(START, 0, 0)
        half = len(events) // 2
        return _sum(_append(append, events[:half], aside), _append(append, events[half:], aside))


def _sum(a: Appended, b: Appended) -> Appended:
    """Both, one after the other."""
    counts = a.accepted + b.accepted, a.duplicates + b.duplicates, a.erased + b.erased
    return Appended(a.position.merge(b.position), *counts)
