"""The catalogue in memory: columns for filters and features, whole entities on demand."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.catalog.columns import CategoryColumn, Column, Mask, NumberColumn, Rows, TagsColumn, as_text
from mainstem.catalog.kept import State
from mainstem.catalog.lookup import RowTable
from mainstem.catalog.revisions import Revision, apply, decode_revision, encode_revision, same_content
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import NO_KEY, Keys, key64
from mainstem.schema.position import START, Position
from mainstem.schema.records import Attribute, Entity, EntityDelete, EntityPatch, Erase, LogRecord

__all__ = ["MemoryCatalog"]

_FOREVER = np.iinfo(np.int64)


class MemoryCatalog:
    """A `Catalog` (see schema/protocols.py). One thread writes; any number read, without locks.

    Of two records about one entity the later in time wins, of equal times the later arrival
    (`revisions.py`); a patch to an entity that is not known changes nothing and is counted in
    `ignored_patches`. A deleted entity keeps its row, which its key gets back if it returns.
    """

    def __init__(self, entities: Mapping[str, EntityTypeConfig]) -> None:
        self.ignored_patches = 0
        """Patches that met no entity since this object was made."""
        self._types = dict(entities)
        self._writing = threading.Lock()
        self._clear()
        self._table.find(np.zeros(0, np.uint64), self._keys)  # compiles here, not in the first request

    def _clear(self) -> None:
        self._position = START
        self._blobs: dict[int, bytes] = {}
        self._table = RowTable()
        self._tenants: dict[str, None] = {}
        self._capacity, self._count, self._live = 1024, 0, 0
        self._keys = np.zeros(self._capacity, np.uint64)
        self._type_codes: dict[str, int] = {}
        self._type = Column(np.int16, -1, self._capacity)
        self._from = Column(np.int64, _FOREVER.min, self._capacity)
        self._until = Column(np.int64, _FOREVER.max, self._capacity)
        self._stock = Column(np.float64, np.inf, self._capacity)
        self._categories: dict[str, CategoryColumn] = {"group": CategoryColumn(self._capacity)}
        self._numbers: dict[str, NumberColumn] = {}
        self._tags: dict[str, TagsColumn] = {}
        for kind in self._types.values():
            for attribute, form in kind.attributes.items():
                if form == "category":
                    self._categories.setdefault(attribute, CategoryColumn(self._capacity))
                elif form == "number":
                    self._numbers.setdefault(attribute, NumberColumn(self._capacity))
                elif form == "tags":
                    self._tags.setdefault(attribute, TagsColumn(self._capacity))

    # ---- writing ---------------------------------------------------------------------------------

    def write(self, records: Sequence[LogRecord], position: Position) -> list[Entity]:
        """Apply the catalogue's records, in order; the entities whose content changed, as they now are."""
        with self._writing:
            changed, before, ignored = self._fold(records)
            self._commit(changed, position)
            self._publish(changed)
            self._position = position
            self.ignored_patches += ignored
        return [
            revision.entity
            for key, revision in changed.items()
            if revision.entity is not None and not same_content(before[key], revision.entity)
        ]

    def _fold(self, records: Iterable[LogRecord]) -> tuple[dict[int, Revision], dict[int, Entity | None], int]:
        """Revisions after `records` and entities before them, of the keys that any of them touched; patches ignored."""
        changed: dict[int, Revision] = {}
        before: dict[int, Entity | None] = {}
        ignored = 0
        for record in records:
            if not isinstance(record, Entity | EntityPatch | EntityDelete | Erase) or record.entity is None:
                continue
            key = key64(record.entity_type, record.entity, record.tenant)
            old = changed[key] if key in changed else self._revision(key)
            new = apply(old, record)
            if isinstance(record, EntityPatch) and (old is None or old.entity is None):
                ignored += 1
            if new is None or new is old:
                continue
            before.setdefault(key, old.entity if old else None)
            changed[key] = new
        return changed, before, ignored

    def _revision(self, key: int) -> Revision | None:
        blob = self._blobs.get(key)
        return None if blob is None else decode_revision(blob)

    def _commit(self, changed: Mapping[int, Revision], position: Position) -> None:
        """Keep the revisions; a durable catalogue does it on disk, with the position, in one transaction."""
        self._blobs.update((key, encode_revision(revision)) for key, revision in changed.items())

    def _publish(self, changed: Mapping[int, Revision]) -> None:
        """Make the revisions visible to readers: cells first, then keys."""
        alive = {key: revision.entity for key, revision in changed.items() if revision.entity is not None}
        gone = self.rows(np.fromiter(changed.keys() - alive.keys(), np.uint64))
        gone = gone[gone >= 0]
        self._keys[gone] = NO_KEY
        self._live -= len(gone)
        if not alive:
            return
        keys = np.fromiter(alive, np.uint64, len(alive))
        self._live += int((self.rows(keys) < 0).sum())
        rows = self._rows_for(keys)
        self._set_cells(rows, list(alive.values()))
        self._keys[rows] = keys

    def _rows_for(self, keys: Keys) -> Rows:
        """Row of each key, deleted ones included; new keys get new rows, which nobody finds before their key is set."""
        rows = self._table.find_any(keys)
        new = rows < 0
        count = self._count + int(new.sum())
        if count > self._capacity:
            self._grow(max(count, 2 * self._capacity))
        rows[new] = np.arange(self._count, count, dtype=np.int32)
        self._table.insert(keys[new], rows[new])
        self._count = count
        return rows

    def _plain(self) -> dict[str, Column]:
        """The columns of one cell a row, by the names under which they are kept."""
        fixed = {"type": self._type, "from": self._from, "until": self._until, "stock": self._stock}
        categories = {f"category.{name}": column for name, column in self._categories.items()}
        return {**fixed, **categories, **{f"number.{name}": column for name, column in self._numbers.items()}}

    def _grow(self, capacity: int) -> None:
        columns: list[Column | TagsColumn] = [*self._plain().values(), *self._tags.values()]
        for column in columns:
            column.grow(capacity)
        keys = np.zeros(capacity, np.uint64)
        keys[: len(self._keys)] = self._keys
        self._keys = keys
        self._capacity = capacity

    def _set_cells(self, rows: Rows, entities: Sequence[Entity]) -> None:
        for entity in entities:
            self._tenants.setdefault(entity.tenant)
            self._type_codes.setdefault(entity.entity_type, len(self._type_codes))
        self._type.set(rows, [self._type_codes[e.entity_type] for e in entities])
        self._from.set(rows, [_FOREVER.min if e.available_from is None else e.available_from for e in entities])
        self._until.set(rows, [_FOREVER.max if e.available_until is None else e.available_until for e in entities])
        self._stock.set(rows, [np.inf if e.stock is None else e.stock for e in entities])
        code, number, codes = CategoryColumn.code, NumberColumn.number, TagsColumn.codes
        self._categories["group"].set(rows, [code(f"{e.entity_type}.group", e.group, e.tenant) for e in entities])
        for name, category in self._categories.items():
            if name != "group":
                of, family = self._values(name, "category", entities)
                category.set(
                    rows, [code(family[e.entity_type], v, e.tenant) for e, v in zip(entities, of, strict=True)]
                )
        for name, numbers in self._numbers.items():
            numbers.set(rows, [number(v) for v in self._values(name, "number", entities)[0]])
        for name, tags in self._tags.items():
            of, family = self._values(name, "tags", entities)
            tags.set(rows, [codes(family[e.entity_type], v, e.tenant) for e, v in zip(entities, of, strict=True)])

    def _values(self, attribute: str, form: str, entities: Sequence[Entity]) -> tuple[list[Attribute], dict[str, str]]:
        """The attribute's value [n], None where the entity's type has it in another form; key family per type."""
        has = {name for name, kind in self._types.items() if kind.attributes.get(attribute) == form}
        values = [e.attributes.get(attribute) if e.entity_type in has else None for e in entities]
        return values, {name: f"{name}.{attribute}" for name in self._type_codes}

    # ---- as a whole ------------------------------------------------------------------------------

    def state(self) -> State:
        """A copy of everything, for `load`. Of the writing thread alone."""
        rows = np.flatnonzero(self._keys[: self._count]).astype(np.int32)
        columns = {"rows": self._keys[rows]} | {name: column.take(rows) for name, column in self._plain().items()}
        for name, tags in self._tags.items():
            columns[f"tags.{name}.lengths"], columns[f"tags.{name}.codes"] = tags.lists(rows)
        return State(self._revisions(), columns, list(self._type_codes), list(self._tenants), self._position)

    def _revisions(self) -> dict[int, bytes]:
        return dict(self._blobs)

    def load(self, state: State) -> None:
        """Take up what `state` of a catalogue with the same `entities` gave, instead of what is here; in memory only.

        Raises StoreError, and then knows nothing, where it does not fit.
        """
        with self._writing:
            self._clear()
            self._type_codes = {name: code for code, name in enumerate(state.types)}
            self._tenants = dict.fromkeys(state.tenants)
            try:
                self._fill(state.columns)
            except (KeyError, ValueError, IndexError) as error:
                self._clear()
                raise StoreError(f"a kept catalogue does not fit the configured one: {error!r}") from error
            self._blobs = dict(state.revisions)
            self._position = state.position

    def _fill(self, columns: Mapping[str, NDArray[Any]]) -> None:
        keys, plain = columns["rows"], self._plain()
        tags = {f"tags.{name}.{part}" for name in self._tags for part in ("lengths", "codes")}
        if columns.keys() != {"rows", *plain, *tags}:
            raise ValueError(f"it has the columns {', '.join(sorted(columns))}")
        rows = self._rows_for(keys)
        for name, column in plain.items():
            if columns[name].dtype != column.cells.dtype:
                raise ValueError(f"its {name} is of {columns[name].dtype}")
            column.set(rows, columns[name])
        for name, lists in self._tags.items():
            lists.put(rows, columns[f"tags.{name}.lengths"], columns[f"tags.{name}.codes"])
        self._keys[rows] = keys
        self._live = len(keys)

    # ---- reading ---------------------------------------------------------------------------------

    def position(self) -> Position:
        return self._position

    def __len__(self) -> int:
        """Entities that exist; rows of deleted ones are not counted."""
        return self._live

    def rows(self, keys: Keys) -> Rows:
        return self._table.find(keys, self._keys)

    def unheard(self, keys: Keys) -> Mask:
        """Mask [n] of the keys that no record was ever about: not known, and not deleted or erased either."""
        mask: Mask = self.rows(keys) < 0
        missing = np.flatnonzero(mask)
        mask[missing] = [self._revision(key) is None for key in keys[missing].tolist()]
        return mask

    def keys(self) -> Keys:
        return self._keys[: self._count].copy()

    def entity(self, key: int) -> Entity | None:
        revision = self._revision(int(key))
        return None if revision is None else revision.entity

    def attributes(self, key: int) -> dict[str, Attribute]:
        """Empty where the key is not known."""
        entity = self.entity(key)
        return {} if entity is None else entity.attributes

    def text(self, key: int) -> str:
        """What content vectors are made of: the entity's text, then its configured text attributes, by blanks."""
        entity = self.entity(key)
        if entity is None:
            return ""
        kind = self._types.get(entity.entity_type)
        parts = [entity.text, *(as_text(entity.attributes.get(name)) for name in (kind.text if kind else ()))]
        return " ".join(part for part in parts if part)

    def available(self, rows: Rows, time: int, entity_type: str = "item") -> Mask:
        wanted = self._type_codes.get(entity_type)
        if wanted is None:
            return np.zeros(len(rows), np.bool_)
        mask: Mask = (
            self._known(rows)
            & (self._type.take(rows) == wanted)
            & (self._from.take(rows) <= time)
            & (self._until.take(rows) > time)
            & (self._stock.take(rows) > 0)
        )
        return mask

    def _known(self, rows: Rows) -> Mask:
        mask: Mask = (rows >= 0) & (self._keys[np.maximum(rows, 0)] != NO_KEY)
        return mask

    def codes(self, attribute: str, rows: Rows) -> Keys:
        column = self._categories.get(attribute)
        return np.zeros(len(rows), np.uint64) if column is None else column.take(rows)

    def numbers(self, attribute: str, rows: Rows) -> NDArray[np.float64]:
        column = self._numbers.get(attribute)
        return np.full(len(rows), np.nan) if column is None else column.take(rows)

    def matches(self, rows: Rows, wanted: Mapping[str, object]) -> Mask:
        """Mask [n]: for every attribute of `wanted`, the row has the value or, for a list, one of the values.

        A category and a number must equal it, tags must contain it; `group` is the variant group. An
        attribute that is not configured (or is of form `text`) matches no row; nothing wanted matches
        every row that is known.
        """
        mask = self._known(rows)
        for attribute, value in wanted.items():
            values = list(value) if isinstance(value, list | tuple | set | frozenset) else [value]
            hit = np.zeros(len(rows), np.bool_)
            if column := self._categories.get(attribute):
                hit |= column.among(rows, self._wanted(attribute, values))
            if tags := self._tags.get(attribute):
                hit |= tags.among(rows, self._wanted(attribute, values))
            if numbers := self._numbers.get(attribute):
                hit |= numbers.among(rows, _floats(values))
            mask &= hit
        return mask

    def _wanted(self, attribute: str, values: Sequence[object]) -> Keys:
        """The codes of `values` in every type and tenant there is; a code names both, so none is mistaken."""
        texts = [
            v if isinstance(v, str) else as_text(v) for v in values if isinstance(v, str | float | int) and v != ""
        ]
        # `list` first: the writing thread may be adding a type at this moment.
        families = [
            (f"{name}.{attribute}", tenant) for name in list(self._type_codes) for tenant in list(self._tenants)
        ]
        return np.array([key64(family, text, tenant) for family, tenant in families for text in texts], np.uint64)

    def refresh(self) -> int:
        """Catch up with the process that writes; entities read again. Nothing to do in memory."""
        return 0

    def close(self) -> None:
        """Nothing is held."""


def _floats(values: Sequence[object]) -> list[float]:
    found = []
    for value in values:
        if isinstance(value, str | float | int):
            try:
                found.append(float(value))
            except ValueError:
                continue
    return found
