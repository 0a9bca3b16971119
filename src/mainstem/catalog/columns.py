"""Columns: what filters and features read of all entities, one growing array per attribute.

One thread writes, any number read without locks. Cells are written in place (each is one aligned
8-byte store); a column that must grow is replaced by a longer copy before any row that needs it can
be found. A reader that runs during a write sees each cell as it was before or after it.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import NO_KEY, Keys, key64
from mainstem.schema.records import Attribute

__all__ = ["CategoryColumn", "Column", "NumberColumn", "TagsColumn", "as_text"]

Rows = NDArray[np.int32]
Mask = NDArray[np.bool_]


def as_text(value: Attribute) -> str:
    """The text that stands for a value in codes and in content: 42.0 is `42`, True is `true`."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float | int):
        return str(int(value)) if float(value).is_integer() else repr(value)
    if isinstance(value, list):
        return " ".join(value)
    return value or ""


def _grown(array: NDArray[Any], size: int, fill: object) -> NDArray[Any]:
    longer = np.full(size, fill, array.dtype)
    longer[: len(array)] = array
    return longer


class Column:
    """A plain column. cells [capacity] of `dtype`, `fill` where there is no value."""

    def __init__(self, dtype: type[np.generic], fill: float, capacity: int) -> None:
        self.fill = fill
        self.cells: NDArray[Any] = np.full(capacity, fill, dtype)

    def grow(self, capacity: int) -> None:
        if capacity > len(self.cells):
            self.cells = _grown(self.cells, capacity, self.fill)

    def set(self, rows: Rows, values: Sequence[object] | NDArray[Any]) -> None:
        self.cells[rows] = np.array(values, self.cells.dtype)

    def take(self, rows: Rows) -> NDArray[Any]:
        """Values [n]; `fill` at rows -1."""
        taken = self.cells[np.maximum(rows, 0)]
        taken[rows < 0] = self.fill
        return taken


class CategoryColumn(Column):
    """uint64 [capacity] codes key64("type.attribute", value); 0 where there is none."""

    def __init__(self, capacity: int) -> None:
        super().__init__(np.uint64, NO_KEY, capacity)

    @staticmethod
    def code(family: str, value: Attribute, tenant: str) -> int:
        """A list, an empty text and None have no code: a category has one value."""
        if value is None or value == "" or isinstance(value, list):
            return NO_KEY
        return key64(family, value if isinstance(value, str) else as_text(value), tenant)

    def among(self, rows: Rows, wanted: Keys) -> Mask:
        """Mask [n]: the row's code is one of `wanted`."""
        return np.isin(self.take(rows), wanted) & (rows >= 0)


class NumberColumn(Column):
    """float64 [capacity]; NaN where there is none."""

    def __init__(self, capacity: int) -> None:
        super().__init__(np.float64, np.nan, capacity)

    @staticmethod
    def number(value: object) -> float:
        """bool and numbers as they are, anything else NaN."""
        return float(value) if isinstance(value, float | int) else np.nan

    def among(self, rows: Rows, wanted: Iterable[float]) -> Mask:
        """Mask [n]: the row's number equals one of `wanted`."""
        return np.isin(self.take(rows), np.array(list(wanted), np.float64)) & (rows >= 0)


class TagsColumn:
    """Several codes per row: spans into one arena of codes.

    spans int64 [capacity], start << 16 | length in one cell so that a reader never sees half of it;
    arena uint64 [used ...]. Both are replaced together when the arena grows, and then packed.
    """

    LONGEST = (1 << 16) - 1
    """Tags kept per entity; the rest is left out of the column."""

    def __init__(self, capacity: int) -> None:
        self._state: tuple[NDArray[np.int64], Keys] = (np.zeros(capacity, np.int64), np.zeros(1024, np.uint64))
        self._used = 0

    def grow(self, capacity: int) -> None:
        spans, arena = self._state
        if capacity > len(spans):
            self._state = (_grown(spans, capacity, 0), arena)

    @staticmethod
    def codes(family: str, value: Attribute, tenant: str) -> list[int]:
        """A single text counts as a list of one."""
        if value is None or value == "":
            return []
        texts = value if isinstance(value, list) else [as_text(value)]
        return [key64(family, text, tenant) for text in texts[: TagsColumn.LONGEST] if text]

    def set(self, rows: Rows, values: Sequence[list[int]]) -> None:
        lengths = np.fromiter((len(v) for v in values), np.int64, len(values))
        self.put(
            rows, lengths, np.fromiter((code for codes in values for code in codes), np.uint64, int(lengths.sum()))
        )

    def put(self, rows: Rows, lengths: NDArray[np.int64], flat: Keys) -> None:
        """`set` of lists that lie one after the other in `flat`."""
        if self._used + len(flat) > len(self._state[1]):
            self._pack(rows, len(flat))
        spans, arena = self._state
        arena[self._used : self._used + len(flat)] = flat
        spans[rows] = (self._used + np.cumsum(lengths) - lengths) << 16 | lengths
        self._used += len(flat)

    def _pack(self, replaced: Rows, extra: int) -> None:
        """Make room for `extra` codes: copy what is in use to a new arena, but for the rows to be replaced."""
        spans, arena = self._state
        live = spans.copy()
        live[replaced] = 0
        lengths = live & 0xFFFF
        total = int(lengths.sum())
        packed = np.zeros(2 * (total + extra) + 1024, np.uint64)
        starts = np.cumsum(lengths) - lengths
        packed[:total] = arena[_ragged(live >> 16, lengths)]
        fresh = starts << 16 | lengths
        # Readers must keep finding the old tags of the replaced rows until `set` writes the new ones.
        old = (spans[replaced] >> 16, spans[replaced] & 0xFFFF)
        kept = arena[_ragged(*old)]
        packed = np.concatenate([packed[:total], kept, packed[total:]])
        fresh[replaced] = (total + np.cumsum(old[1]) - old[1]) << 16 | old[1]
        self._state = (fresh, packed)
        self._used = total + len(kept)

    def lists(self, rows: Rows) -> tuple[NDArray[np.int64], Keys]:
        """(lengths, flat) of these rows, none of them -1, as `put` takes them."""
        spans, arena = self._state
        taken = spans[rows]
        lengths = taken & 0xFFFF
        return lengths, arena[_ragged(taken >> 16, lengths)]

    def among(self, rows: Rows, wanted: Keys) -> Mask:
        """Mask [n]: one of the row's tags is one of `wanted`."""
        spans, arena = self._state
        taken = np.where(rows >= 0, spans[np.maximum(rows, 0)], 0)
        lengths = taken & 0xFFFF
        hits = np.isin(arena[_ragged(taken >> 16, lengths)], wanted)
        owner = np.repeat(np.arange(len(rows)), lengths)
        return np.bincount(owner[hits], minlength=len(rows)).astype(np.bool_)


def _ragged(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> NDArray[np.int64]:
    """Indices of all spans, one after the other: [sum(lengths)]."""
    offsets = np.cumsum(lengths) - lengths
    places: NDArray[np.int64] = np.arange(int(lengths.sum())) + np.repeat(starts - offsets, lengths)
    return places
