"""The rows of a file in columns, some at a time: Parquet, CSV and JSON lines, the latter two also gzipped."""

from __future__ import annotations

import csv
import gzip
import itertools
import re
import zlib
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol, cast

import msgspec
import pyarrow as pa
import pyarrow.parquet as pq

from mainstem.schema.errors import ConfigError, DatasetError

__all__ = ["Chunk", "Milliseconds", "chunks"]


class Rows(Protocol):
    """What `csv.reader` gives: rows, and the number of the line last read."""

    @property
    def line_num(self) -> int: ...

    def __next__(self) -> list[str]: ...


_SURROGATE = re.compile("[\ud800-\udfff]")
_DELIMITERS = (",", "\t", ";", "|")
_SUFFIXES = ".parquet, .csv, .tsv, .jsonl, .ndjson (all but the first also with .gz)"


@dataclass(slots=True)
class Chunk:
    """Some rows of a file. columns: name -> values [n]; rows: line (text) or row (Parquet) number [n], from 1.

    `bad` are rows that could not even be split into columns: (number, reason, what was found).
    """

    columns: dict[str, list[Any]]
    rows: list[int]
    bad: list[tuple[int, str, object]] = field(default_factory=list)
    done: int = 0
    total: int = 0


def chunks(path: Path, batch: int) -> Iterator[Chunk]:
    """The rows of `path`, `batch` at a time. Raises ConfigError for an unknown suffix, DatasetError for damage."""
    suffixes = [suffix.lower() for suffix in path.suffixes]
    packed = suffixes[-1:] == [".gz"]
    form = suffixes[-2] if packed and len(suffixes) > 1 else suffixes[-1] if suffixes else ""
    if form == ".parquet" and not packed:
        yield from _parquet(path, batch)
        return
    if form not in (".csv", ".tsv", ".jsonl", ".ndjson"):
        raise ConfigError(f"{path.name}: its suffix does not say what it is; allowed: {_SUFFIXES}")
    total = path.stat().st_size
    with ExitStack() as opened:
        raw = opened.enter_context(path.open("rb"))
        lines: IO[bytes] = cast("IO[bytes]", opened.enter_context(gzip.GzipFile(fileobj=raw))) if packed else raw
        read = _csv if form in (".csv", ".tsv") else _jsonl
        try:
            for chunk in read(lines, batch):
                chunk.done, chunk.total = (raw.tell() if packed else lines.tell()), total
                yield chunk
        except DatasetError as error:
            raise DatasetError(f"{path}: {error}") from error
        except (EOFError, gzip.BadGzipFile, zlib.error) as error:
            raise DatasetError(f"{path}: the file is damaged or cut off: {error}") from error


def _parquet(path: Path, batch: int) -> Iterator[Chunk]:
    try:
        with pq.ParquetFile(path) as file:
            total, done = file.metadata.num_rows, 0
            if not total:
                yield Chunk({name: [] for name in file.schema_arrow.names}, [])
            for part in file.iter_batches(batch_size=batch):
                columns = {name: _plain(part.column(i)) for i, name in enumerate(part.schema.names)}
                rows = list(range(done + 1, done + len(part) + 1))
                done += len(part)
                yield Chunk(columns, rows, done=done, total=total)
    except (pa.ArrowException, OSError) as error:
        raise DatasetError(f"{path}: the file is damaged or no Parquet: {error}") from error


def _plain(column: pa.Array) -> list[Any]:
    """A column as Python values; dates and timestamps as datetimes in UTC (whole microseconds)."""
    if pa.types.is_timestamp(column.type) or pa.types.is_date(column.type):
        # Naive timestamps are taken as UTC; integers are built faster than datetimes, and marked as what they are.
        numbers = column.cast(pa.timestamp("ms"), safe=False).cast(pa.int64())
        return [None if ms is None else Milliseconds(ms) for ms in numbers.to_pylist()]
    return column.to_pylist()  # type: ignore[no-any-return]


class Milliseconds(int):
    """A time that is known to be in ms since 1970, whatever its size."""


def _csv(lines: IO[bytes], batch: int) -> Iterator[Chunk]:
    text = (line.decode("utf-8", "surrogateescape") for line in lines)
    head = next(text, "").removeprefix("\ufeff")
    delimiter = max(_DELIMITERS, key=head.count)
    source = _UntilTheEnd(itertools.chain([head], text))
    reader = csv.reader(source, delimiter=delimiter)
    names = _header(reader, source)
    width = len(names)
    while True:
        rows: list[list[str]] = []
        numbers: list[int] = []
        bad: list[tuple[int, str, object]] = []
        while len(rows) + len(bad) < batch:
            start = reader.line_num + 1
            try:
                row = next(reader, None)
            except csv.Error as error:
                bad.append((start, _not_csv(error, start, reader.line_num), None))
                continue
            if row is None:
                break
            if source.ended:
                bad.append((start, _never_closed(row, start, reader.line_num), row))
            elif len(row) == width:
                joined = "".join(row)
                if joined.isascii() or not _SURROGATE.search(joined):
                    rows.append(row)
                    numbers.append(reader.line_num)
                    continue
                bad.append((reader.line_num, "is not UTF-8", row))
            elif row:
                bad.append((reader.line_num, f"has {len(row)} fields where the header names {width}", row))
        columns = [list(column) for column in zip(*rows, strict=True)] if rows else [[] for _ in names]
        yield Chunk(dict(zip(names, columns, strict=True)), numbers, bad)
        if row is None:
            return


class _UntilTheEnd:
    """Lines, and whether the reader asked for one more than there are: it does so only in the middle of a quote."""

    def __init__(self, lines: Iterator[str]) -> None:
        self._lines, self.ended = lines, False

    def __iter__(self) -> Iterator[str]:
        return self

    def __next__(self) -> str:
        line = next(self._lines, None)
        if line is None:
            self.ended = True
            raise StopIteration
        return line


def _header(reader: Rows, source: _UntilTheEnd) -> list[str]:
    try:
        names = next(reader, [])
    except csv.Error as error:
        raise DatasetError(f"the header {_not_csv(error, 1, reader.line_num)}") from error
    if source.ended:
        raise DatasetError(f"the header is not CSV: {_never_closed(names, 1, reader.line_num)}")
    return names


def _never_closed(row: list[str], start: int, end: int) -> str:
    """What is wrong with a row in whose last field the file ended. Its lines were taken for that field's text."""
    opened = end - row[-1].removesuffix("\n").count("\n")
    return f"a quote opened on line {opened} is never closed; lines {start} to {end} are set aside with it"


def _not_csv(error: csv.Error, start: int, end: int) -> str:
    if start == end:
        return f"is not CSV: {error}"
    lines = f"a quote opened from line {start} on is not closed by line {end}; these lines are set aside with it"
    return f"is not CSV: {error}: {lines}"


def _jsonl(lines: IO[bytes], batch: int) -> Iterator[Chunk]:
    decode = msgspec.json.Decoder().decode
    numbered = enumerate(lines, start=1)
    while part := list(itertools.islice(numbered, batch)):
        rows: list[dict[str, Any]] = []
        numbers: list[int] = []
        bad: list[tuple[int, str, object]] = []
        for number, line in part:
            if not line.strip():
                continue
            try:
                row = decode(line)
            except (msgspec.DecodeError, UnicodeDecodeError) as error:
                bad.append((number, f"is not JSON: {error}", line.decode("utf-8", "replace")))
                continue
            if isinstance(row, dict):
                rows.append(row)
                numbers.append(number)
            else:
                bad.append((number, "is not a JSON object", row))
        names = dict.fromkeys(name for row in rows for name in row)
        yield Chunk({name: [row.get(name) for row in rows] for name in names}, numbers, bad)
