"""Ratings of films: the MovieLens sets and MovieTweetings, in their publishers' form and in Parquet."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv as pacsv
import pyarrow.parquet as pq

from mainstem.datasets.dataset import Records
from mainstem.schema.errors import DatasetError
from mainstem.schema.records import Attribute, Entity, Event

__all__ = ["config", "lines", "records", "table", "timed", "untimed"]

MINUTE = 60
_BATCH = 65_536
_YEAR = re.compile(r"\((\d{4})(?:-\d{4})?\)\s*$")

Columns = dict[str, Any]
"""user, entity (text), value (number), time (s) -> arrays [n]."""


def config(name: str, kind: str = "rating") -> dict[str, object]:
    """The configuration that fits ratings of films: everything rated is had, so slates show what is new."""
    return {
        "name": name,
        "events": {kind: {"owned": True}},
        "heads": {kind: {"event": kind, "window": "1d"}},
        "entities": {"item": {"attributes": {"genres": "tags", "year": "number"}, "text": ["genres"]}},
        "canvases": {"home": {"repeat": "new_only"}, "similar": {"repeat": "new_only", "learns_from": "previous"}},
    }


def table(path: Path, names: Sequence[str]) -> Columns:
    """Columns `names` of a Parquet or CSV file with a header."""
    try:
        found = pq.read_table(path, columns=list(names)) if path.suffix == ".parquet" else pacsv.read_csv(path)
        return {name: found[name] for name in names}
    except (pa.ArrowException, KeyError) as error:
        raise DatasetError(f"{path} cannot be read: {error}; delete it and get the set again") from error


def lines(path: Path, names: Sequence[str], separator: str, encoding: str = "latin-1") -> Columns:
    """Columns `names` of a file of lines without header, all text; fields beyond `names` are left out."""
    with path.open(encoding=encoding, newline="\n") as file:
        rows = [line.rstrip("\r\n").split(separator) for line in file if line.strip()]
    short = next((i for i, row in enumerate(rows) if len(row) < len(names)), None)
    if short is not None:
        raise DatasetError(f"{path}:{short + 1}: {len(names)} fields parted by {separator!r} are wanted")
    return {name: pa.array([row[i] for row in rows], pa.string()) for i, name in enumerate(names)}


def _numbers(column: Any) -> Any:
    if pa.types.is_string(column.type):
        column = column.cast(pa.float64())
    return column.to_numpy()


def _texts(column: Any) -> Any:
    return column.cast(pa.string()).to_pylist()


def timed(found: Columns) -> Columns:
    """Columns user, entity, value, time of ratings that have a time in seconds."""
    columns = dict(zip(("user", "entity", "value", "time"), found.values(), strict=True))
    return {
        "user": _texts(columns["user"]),
        "entity": _texts(columns["entity"]),
        "value": _numbers(columns["value"]),
        "time": _numbers(columns["time"]).astype(np.int64),
    }


def untimed(user: Any, entity: Any, value: Any, rank: Any, last: Callable[[Any], Any]) -> Columns:
    """Ratings of which only the order within a user is known: the newest at `last(users)` s, the others a minute
    apart before it. `rank` [n] float is any number that sorts a user's ratings by time."""
    users = np.asarray(user)
    order = np.lexsort((rank, users))
    sizes = np.unique(users[order], return_counts=True)[1]
    after = np.concatenate([np.arange(size - 1, -1, -1) for size in sizes]) if len(sizes) else np.zeros(0, np.int64)
    behind = np.empty(len(users), np.int64)
    behind[order] = after
    time = np.asarray(last(users), np.int64) - MINUTE * behind
    entities = np.asarray(entity).astype(str).tolist()
    return {"user": users.astype(str).tolist(), "entity": entities, "value": np.asarray(value), "time": time}


def records(prefix: str, events: Callable[[], Columns], films: Callable[[], Iterator[dict[str, Any]]]) -> Records:
    """Records from columns of ratings and from films {id, title, genres, ...}; ids start with `prefix`."""
    return Records(lambda: _entities(prefix, events(), films()), lambda: _events(prefix, events()))


def _events(prefix: str, columns: Columns) -> Iterator[Event]:
    """In the order of (time, user, entity); ids by user and entity, numbered where a pair comes again."""
    users, entities = np.array(columns["user"], str), np.array(columns["entity"], str)
    order = np.lexsort((entities, users, columns["time"]))
    seen: dict[tuple[str, str], int] = {}
    for start in range(0, len(order), _BATCH):
        rows = order[start : start + _BATCH]
        values, times = columns["value"][rows].astype(np.float64).tolist(), (columns["time"][rows] * 1000).tolist()
        for row, value, time in zip(rows.tolist(), values, times, strict=True):
            user, entity = columns["user"][row], columns["entity"][row]
            again = seen[user, entity] = seen.get((user, entity), -1) + 1
            event_id = f"{prefix}-{user}-{entity}-{again}" if again else f"{prefix}-{user}-{entity}"
            yield Event(event_id=event_id, time=time, user=user, kind="rating", entity=entity, value=value)


def _entities(prefix: str, columns: Columns, films: Iterator[dict[str, Any]]) -> Iterator[Entity]:
    """Known from the first event on. A film listed twice under one id is taken once."""
    time = int(columns["time"].min()) * 1000 if len(columns["time"]) else 0
    for _, same in groupby(films, key=lambda film: film["id"]):
        film = next(same)
        attributes: dict[str, Attribute] = dict(film.get("attributes", {}))
        genres = [genre for genre in str(film.get("genres") or "").split("|") if genre and genre[0] != "("]
        if genres:
            attributes["genres"] = list[str](genres)
        if year := _YEAR.search(film["title"]):
            attributes["year"] = float(year[1])
        name = str(film["id"])
        yield Entity(
            record_id=f"{prefix}-item-{name}", time=time, entity=name, attributes=attributes, text=film["title"].strip()
        )
