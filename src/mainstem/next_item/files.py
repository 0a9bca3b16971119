"""Actions from a file of one's own: who, what, and when or in which order; a file of items beside it.

Parquet, CSV, TSV or JSON lines, the latter three also gzipped. Columns are found by their usual names (`COLUMNS`), or
named with a mapping. Times are read as `mainstem ingest` reads them. A file with an `order` alone (any numbers that
rise) gives times a minute apart, so nothing may be concluded about time. Rows of one user at one moment stay in the
order of the file.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem import catalog as catalogs
from mainstem.datasets.file_rows import chunks
from mainstem.datasets.files import existing, id_of, time_of
from mainstem.next_item.actions import Actions
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.errors import ConfigError, DatasetError, InvalidRecord
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.position import START
from mainstem.schema.records import Attribute, Entity
from mainstem.schema.time import MINUTE

__all__ = ["COLUMNS", "of_file"]

KIND = "action"
COLUMNS: dict[str, tuple[str, ...]] = {
    "user": ("user", "user_id", "userid", "customer", "customer_id", "reviewerid"),
    "item": ("item", "item_id", "itemid", "entity", "product", "product_id", "movie_id", "movieid", "asin"),
    "time": ("time", "timestamp", "datetime", "date", "unixreviewtime"),
    "order": ("order", "position", "pos", "rank", "time_rank"),
}
"""What a file must say, and the names, whatever their case, under which it is found; `order` where there is no time."""
TEXT = ("title", "name", "text", "description")
"""Columns of a file of items whose words are the items' text; text in any other one is a category."""
_BATCH = 50_000
_FIRST = 946_684_800_000  # 2000-01-01, of times that are made up
_NAME = re.compile(r"[^a-z0-9_-]+")


def of_file(
    path: Path, items: Path | None = None, *, mapping: Mapping[str, str] | None = None, users: float = 1.0,
    min_count: int = 1,
) -> Actions:  # fmt: skip
    """The actions in `path`. mapping: of `COLUMNS`' keys to the file's names; users: share of them.

    Raises DatasetError where a file is absent or damaged or a row cannot be read, ConfigError where columns are
    missing, naming those there are.
    """
    user, item, time = _rows(existing(path), mapping or {})
    entities, kinds = ([], {}) if items is None else _items(existing(items))
    config = Config.model_validate(
        {
            "name": path.name.partition(".")[0],
            "events": {KIND: {"owned": True}},
            "heads": {KIND: {"event": KIND}},
            "entities": {"item": {"attributes": kinds}},
        }
    )
    if users < 1:
        names = sorted(set(user))
        kept = set(names[: round(users * len(names))])
        rows = np.array([name in kept for name in user], np.bool_)
        user, item = ([each for each, keep in zip(column, rows, strict=True) if keep] for column in (user, item))
        time = time[rows]
    catalog = catalogs.open("memory://", entities=config.entities)
    catalog.write(entities, START)
    return Actions.of(path.name, config, catalog, _batch(user, item, time), min_count=min_count)


def _batch(user: list[str], item: list[str], time: NDArray[np.int64]) -> EventBatch:
    n = len(user)
    nothing = np.zeros(n, np.uint64)
    return EventBatch(
        time=time, user=_keys("user", user), entity=_keys("item", item), kind=np.zeros(n, np.int16),
        value=np.ones(n), session=nothing, place=nothing, offset=np.arange(n), canvas=nothing, query=nothing,
        setting=nothing, kinds=(KIND,),
    )  # fmt: skip


def _keys(family: str, names: list[str]) -> Keys:
    """uint64 [n], each name hashed once."""
    distinct, place = np.unique(np.array(names, object), return_inverse=True) if names else ((), np.zeros(0, np.int64))
    return keys64(family, distinct)[place]


# ---- actions -------------------------------------------------------------------------------------


def _rows(path: Path, mapping: Mapping[str, str]) -> tuple[list[str], list[str], NDArray[np.int64]]:
    user, item, at = list[str](), list[str](), list[Any]()
    found: dict[str, str] | None = None
    for chunk in chunks(path, _BATCH):
        for number, reason, _ in chunk.bad:
            raise DatasetError(f"{path.name}: row {number} {reason}")
        if not chunk.columns:
            continue
        found = found or _found(path, list(chunk.columns), mapping)
        timed = "time" in found
        given = [chunk.columns[found[name]] for name in ("user", "item", "time" if timed else "order")]
        for number, who, what, when in zip(chunk.rows, *given, strict=True):
            try:
                names = id_of(who), id_of(what)
                moment = time_of(when) if timed else float(when)
            except (ValueError, TypeError, OverflowError, InvalidRecord) as error:
                raise DatasetError(f"{path.name}: row {number}: {error}") from error
            if names[0] is None or names[1] is None or moment is None or moment != moment:
                column = "time" if timed else "order"
                raise DatasetError(f"{path.name}: row {number}: user, item and {column} are needed")
            user.append(names[0])
            item.append(names[1])
            at.append(moment)
    if found is None or not user:
        raise DatasetError(f"{path.name} holds no rows")
    return user, item, np.array(at, np.int64) if "time" in found else _made_up(user, np.array(at, np.float64))


def _found(path: Path, names: list[str], mapping: Mapping[str, str]) -> dict[str, str]:
    """Of `COLUMNS`' keys the file's columns. Raises ConfigError."""
    if unknown := set(mapping) - set(COLUMNS):
        raise ConfigError(f"--map: {', '.join(sorted(unknown))} is not among {', '.join(COLUMNS)}")
    small = {name.lower(): name for name in reversed(names)}
    found = {}
    for wanted, usual in COLUMNS.items():
        known = [mapping[wanted]] if wanted in mapping else [small[name] for name in usual if name in small]
        if known and known[0] in names:
            found[wanted] = known[0]
    missing = [name for name in ("user", "item") if name not in found]
    missing += [name for name in mapping if name not in found and name not in missing]
    if "time" not in found and "order" not in found and not {"time", "order"} & set(missing):
        missing.append("time")
    if missing:
        told = ", ".join(f"{name}={mapping[name]}" if name in mapping else name for name in missing)
        raise ConfigError(
            f"{path.name}: no column for {told}{' or order' if 'time' in missing else ''}\n"
            f"  columns found: {', '.join(names) or 'none'}\n  name the column with --map {missing[0]}=COLUMN"
        )
    return found


def _made_up(user: list[str], order: NDArray[np.float64]) -> NDArray[np.int64]:
    """Times of actions of which only the order is known: int64 [n], a minute apart within each user."""
    _, who = np.unique(np.array(user, object), return_inverse=True)
    rows = np.lexsort((np.arange(len(order)), order, who))
    begins = np.flatnonzero(np.append(True, np.diff(who[rows]) != 0))
    place = np.arange(len(rows)) - np.repeat(begins, np.diff(np.append(begins, len(rows))))
    time = np.empty(len(rows), np.int64)
    time[rows] = _FIRST + MINUTE * place
    return time


# ---- items ---------------------------------------------------------------------------------------


def _items(path: Path) -> tuple[list[Entity], dict[str, str]]:
    """Entities, and the kind of each attribute: numbers, lists of tags, all else categories; `TEXT` is text."""
    columns: dict[str, list[Any]] = {}
    for chunk in chunks(path, _BATCH):
        for number, reason, _ in chunk.bad:
            raise DatasetError(f"{path.name}: row {number} {reason}")
        for name, values in chunk.columns.items():
            columns.setdefault(name, []).extend(values)
    small = {name.lower(): name for name in reversed(columns)}
    key = next((small[name] for name in ("id", *COLUMNS["item"]) if name in small), None)
    if key is None:
        raise ConfigError(
            f"{path.name}: no column for item\n  columns found: {', '.join(columns) or 'none'}\n"
            f"  the column of item ids is found as one of: id, {', '.join(COLUMNS['item'])}"
        )
    texts = [name for name in columns if name.lower() in TEXT and name != key]
    rest = {name: _NAME.sub("_", name.lower()) for name in columns if name != key and name not in texts}
    kinds = {name: _kind(columns[column]) for column, name in rest.items()}
    entities = []
    for row, identifier in enumerate(columns[key]):
        try:
            entity = id_of(identifier)
        except ValueError as error:
            raise DatasetError(f"{path.name}: row {row + 1}: {key}: {error}") from error
        if entity is None:
            continue
        attributes: dict[str, Attribute | None] = {
            name: value for column, name in rest.items()
            if (value := _attribute(columns[column][row], kinds[name])) is not None
        }  # fmt: skip
        words = " ".join(str(columns[name][row]) for name in texts if columns[name][row] is not None)
        entities.append(Entity(record_id=f"item-{row}", time=_FIRST, entity=entity, attributes=attributes, text=words))
    return entities, kinds


def _kind(values: Iterable[Any]) -> str:
    held = [value for value in values if value is not None]
    if any(isinstance(value, list) for value in held):
        return "tags"
    numbers = bool(held) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in held)
    return "number" if numbers else "category"


def _attribute(value: Any, kind: str) -> Attribute | None:
    if value is None or value == "" or value != value:
        return None
    if kind == "tags":
        return [str(each) for each in value] if isinstance(value, list) else [str(value)]
    return float(value) if kind == "number" else str(value)
