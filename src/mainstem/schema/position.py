"""A place in the log: opaque to callers, comparable, one offset per partition."""

from __future__ import annotations

from collections.abc import Mapping

from mainstem.schema.errors import InvalidRecord

__all__ = ["START", "Position"]


class Position:
    """How far a reader has come: for each partition the offset of the next record to read.

    Partially ordered: `a <= b` when b has read, in every partition, at least what a has. A partition
    that is not named counts as 0. Immutable and hashable. The text form (`str`, `Position.parse`) is
    for the wire; callers must not take it apart.
    """

    __slots__ = ("_offsets",)

    def __init__(self, offsets: Mapping[int, int] | None = None) -> None:
        self._offsets = {p: o for p, o in sorted((offsets or {}).items()) if o}

    @classmethod
    def at(cls, offset: int, partition: int = 0) -> Position:
        """The position just before `offset` of one partition (the next record read is `offset`)."""
        return cls({partition: offset})

    @classmethod
    def parse(cls, text: str, field: str = "position") -> Position:
        """Inverse of `str`. Raises InvalidRecord."""
        try:
            pairs = (part.split(":") for part in text.removeprefix("p").split(",") if part)
            offsets = {int(p): int(o) for p, o in pairs}
        except ValueError:
            offsets = {-1: -1}
        if not text.startswith("p") or any(p < 0 or o < 0 for p, o in offsets.items()):
            raise InvalidRecord(field, f"{text!r} is not a position; pass one back exactly as it was returned")
        return cls(offsets)

    def offset(self, partition: int = 0) -> int:
        """The next offset to read in `partition`."""
        return self._offsets.get(partition, 0)

    def merge(self, other: Position) -> Position:
        """The least position that has read all that either has."""
        names = self._offsets.keys() | other._offsets.keys()
        return Position({p: max(self.offset(p), other.offset(p)) for p in names})

    def __str__(self) -> str:
        return "p" + ",".join(f"{p}:{o}" for p, o in self._offsets.items())

    def __repr__(self) -> str:
        return f"Position({self!s})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Position) and self._offsets == other._offsets

    def __hash__(self) -> int:
        return hash(tuple(self._offsets.items()))

    def __le__(self, other: Position) -> bool:
        return all(o <= other.offset(p) for p, o in self._offsets.items())

    def __lt__(self, other: Position) -> bool:
        return self <= other and self != other

    def __ge__(self, other: Position) -> bool:
        return other <= self

    def __gt__(self, other: Position) -> bool:
        return other < self


START = Position()
