"""Sealed ranges of the log as Parquet: for analysis with DuckDB, Ibis or Spark, and for reading on from a Position.

One file `range-FIRST-LAST.parquet` holds the records of offsets FIRST to LAST (exclusive), in order, without
gaps; a record that is erased leaves a row of tag `erased`, empty but for its tenant. A file is written under a
temporary name, synced and renamed, so one that matches `range-*.parquet` is always whole. Columns (null where a
record has no such field; times int64 ms since 1970 UTC):

    offset int64, tag, time int64, received_at int64, tenant, user, entity_type, entity, kind, value double,
    session, request_id, place int32, canvas, query, extras (JSON text), body (MessagePack, lossless)

In DuckDB: `SELECT kind, count(*) FROM 'history/*.parquet' GROUP BY kind`.
"""

from __future__ import annotations

import os
import re
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, NamedTuple

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mainstem.eventlog.admission import decode_many
from mainstem.eventlog.dedup import publish, sync_folder
from mainstem.schema.errors import StoreError
from mainstem.schema.records import Erase, Erased, Event, LogRecord, Served

__all__ = ["ROW_GROUP", "SCHEMA", "History", "Range", "table_of"]

ROW_GROUP = 8192
_NAME = re.compile(r"^range-(\d{20})-(\d{20})\.parquet$")
_CACHED_GROUPS = 8
_WORDS = ("tag", "tenant", "user", "entity_type", "entity", "kind", "session", "request_id", "canvas", "query")

SCHEMA = pa.schema(
    [
        pa.field("offset", pa.int64(), nullable=False),
        pa.field("tag", pa.string(), nullable=False),
        pa.field("time", pa.int64(), nullable=False),
        pa.field("received_at", pa.int64(), nullable=False),
        pa.field("tenant", pa.string(), nullable=False),
        pa.field("user", pa.string()),
        pa.field("entity_type", pa.string()),
        pa.field("entity", pa.string()),
        pa.field("kind", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("session", pa.string()),
        pa.field("request_id", pa.string()),
        pa.field("place", pa.int32()),
        pa.field("canvas", pa.string()),
        pa.field("query", pa.string()),
        pa.field("extras", pa.string()),
        pa.field("body", pa.binary(), nullable=False),
    ]
)


class _Row(NamedTuple):
    """The columns of a record that is not an event, under the names that an event has."""

    time: int
    received_at: int
    tenant: str
    user: str | None = None
    entity_type: str | None = None
    entity: str | None = None
    kind: str | None = None
    value: float | None = None
    session: str | None = None
    request_id: str | None = None
    place: int | None = None
    canvas: str | None = None
    query: str | None = None
    extras: dict[str, str | float | bool] | None = None


def _row(record: LogRecord) -> Event | _Row:
    if isinstance(record, Event):
        return record
    if isinstance(record, Served):
        asked = record.request.context
        return _Row(
            record.time, record.received_at, record.tenant, record.user, session=asked.session, query=asked.query,
            request_id=record.slate.request_id, canvas=record.slate.canvas, extras=asked.extras,
        )  # fmt: skip
    if isinstance(record, Erased):
        return _Row(record.time, record.received_at, record.tenant)
    user = record.user if isinstance(record, Erase) else None
    kind = record.entity_type if record.entity is not None else None
    return _Row(record.time, record.received_at, record.tenant, user, kind, record.entity)


def table_of(first: int, bodies: Sequence[bytes]) -> pa.Table:
    """The encoded records at offsets `first` ... as a table of SCHEMA."""
    records = decode_many(bodies)
    rows = [_row(record) for record in records]
    columns: dict[str, Iterable[Any]] = {
        name: [getattr(row, name) for row in rows]
        for name in SCHEMA.names
        if name not in ("offset", "tag", "extras", "body")
    }
    json = msgspec.json.encode
    columns["offset"] = range(first, first + len(rows))
    columns["tag"] = [record.__struct_config__.tag for record in records]
    columns["extras"] = [json(row.extras).decode() if row.extras else None for row in rows]
    columns["body"] = bodies
    return pa.table([pa.array(columns[field.name], field.type) for field in SCHEMA], schema=SCHEMA)


@dataclass(frozen=True, slots=True, order=True)
class Range:
    """One sealed file: offsets `first` to `last` (exclusive)."""

    first: int
    last: int
    path: Path


class History:
    """The folder of sealed ranges. Reading is safe from several threads and processes; one process writes."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._ranges: list[Range] = []
        self._groups: OrderedDict[tuple[Path, int], list[bytes]] = OrderedDict()
        self._lock = Lock()

    def ranges(self) -> list[Range]:
        """All files, by offset, as the folder stands now."""
        if not self.folder.is_dir():
            return []
        found = ((_NAME.match(path.name), path) for path in self.folder.iterdir())
        self._ranges = sorted(Range(int(m[1]), int(m[2]), path) for m, path in found if m)
        return self._ranges

    def bodies(self, start: int, limit: int) -> list[bytes]:
        """Up to `limit` encoded records from offset `start`, all of one file; empty where no file has `start`."""
        try:
            return self._bodies(start, limit)
        except FileNotFoundError:  # what was known of the folder is out of date
            self.ranges()
            return self._bodies(start, limit)

    def _bodies(self, start: int, limit: int) -> list[bytes]:
        span = self._find(start)
        if span is None:
            return []
        found: list[bytes] = []
        upto = min(span.last, start + limit)
        while (at := start + len(found)) < upto:
            group, skip = divmod(at - span.first, ROW_GROUP)
            found += self._group(span, group)[skip : skip + upto - at]
        return found

    def write(self, first: int, chunks: Iterable[list[bytes]]) -> Range:
        """Write one range of chunks of ROW_GROUP encoded records (the last may be shorter); durable on return."""
        self.folder.mkdir(parents=True, exist_ok=True)
        sync_folder(self.folder.parent)
        temp = self.folder / f"range-{first:020d}.parquet.tmp"
        last = first
        with temp.open("wb") as file:
            with pq.ParquetWriter(
                file, SCHEMA, compression="zstd", compression_level=1, use_dictionary=[*_WORDS, "place", "extras"],
                column_encoding={"offset": "DELTA_BINARY_PACKED"},
            ) as writer:  # fmt: skip
                for chunk in chunks:
                    writer.write_table(table_of(last, chunk), row_group_size=ROW_GROUP)
                    last += len(chunk)
            file.flush()
            os.fsync(file.fileno())
        path = self.folder / f"range-{first:020d}-{last:020d}.parquet"
        publish(temp, path)
        return Range(first, last, path)

    def replace(self, span: Range, changed: Mapping[int, bytes]) -> None:
        """Write the file anew, with other records at the offsets of `changed`, beside the old one; then swap."""

        def chunks() -> Iterator[list[bytes]]:
            with pq.ParquetFile(span.path) as file:
                for group in range(file.num_row_groups):
                    first = span.first + group * ROW_GROUP
                    bodies = file.read_row_group(group, columns=["body"]).column(0).to_pylist()
                    yield [changed.get(first + place, body) for place, body in enumerate(bodies)]

        if self.write(span.first, chunks()).path != span.path:
            raise StoreError(f"{span.path} does not hold the records that its name says")
        with self._lock:
            for key in [key for key in self._groups if key[0] == span.path]:
                del self._groups[key]

    def tidy(self, sealed: int) -> None:
        """Remove what a crash left: temporary files, and ranges past `sealed` (their records are still in SQLite)."""
        if self.folder.is_dir():
            for path in self.folder.glob("range-*.parquet.tmp"):
                path.unlink(missing_ok=True)
        for span in self.ranges():
            if span.last > sealed:
                span.path.unlink(missing_ok=True)

    def _find(self, offset: int) -> Range | None:
        for ranges in (self._ranges, None):
            for span in reversed(self.ranges() if ranges is None else ranges):
                if span.first <= offset < span.last:
                    return span
        return None

    def _group(self, span: Range, group: int) -> list[bytes]:
        """The encoded records of one row group; the latest few are kept, since followers read on in small steps."""
        key = (span.path, group)
        with self._lock:
            if key in self._groups:
                self._groups.move_to_end(key)
                return self._groups[key]
        try:
            with pq.ParquetFile(span.path) as file:
                bodies: list[bytes] = file.read_row_group(group, columns=["body"]).column(0).to_pylist()
        except FileNotFoundError:
            raise
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{span.path} cannot be read: {error}") from error
        with self._lock:
            self._groups[key] = bodies
            while len(self._groups) > _CACHED_GROUPS:
                self._groups.popitem(last=False)
        return bodies
