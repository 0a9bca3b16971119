"""What siblings share: the protocols between the log, the state, the index, the weights and the movers.

Each holder offers `open(url, ...)` returning an implementation; `assemble.py` hands them on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import Keys
from mainstem.schema.position import Position
from mainstem.schema.records import Attribute, Context, Entity, LogRecord

__all__ = [
    "Appended",
    "Catalog",
    "Counts",
    "Erasures",
    "FeatureStore",
    "FeatureView",
    "Floats",
    "History",
    "Log",
    "LogBatch",
    "Scored",
    "VectorIndex",
]

Floats = NDArray[np.float32]


# ---- the log -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Appended:
    """What an append did: `position` covers every record of the batch, also those that were not written.

    `duplicates`: their id was known. `erased`: they are of a user or an entity erased at their time or after it.
    """

    position: Position
    accepted: int
    duplicates: int
    erased: int = 0


@dataclass(frozen=True, slots=True)
class Erasures:
    """How far erasures have come (law 10). `known`: users and entities erased; `pending`: steps of erasing (an
    erasure is one, and the end of its own record another) that have not reached every file of the log."""

    known: int
    pending: int


@dataclass(frozen=True, slots=True)
class LogBatch:
    """A run of records. `offsets[i]` is the place of `records[i]`; `next` is where to read on. An `Erased` stands
    at each place where a record is erased: offsets have no gaps."""

    records: list[LogRecord]
    offsets: list[int]
    next: Position

    def __len__(self) -> int:
        return len(self.records)


class Log(Protocol):
    """One log (law 1). Safe to use from several threads; one writing process, many reading ones."""

    def append(self, records: Sequence[LogRecord]) -> Appended:
        """All or nothing, durable on return; records whose id is known are skipped (and counted), and so is what is
        of an erased user or entity and not later than the erasure."""
        ...

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        """`append` of every batch by itself, in one commit where the log can: for each what `append` returns or
        raises."""
        ...

    def read(self, start: Position, limit: int = 10_000) -> LogBatch:
        """The records from `start` on. Raises PositionGone where they are no longer kept. What a durable `Erase`
        further on forgets does not come through."""
        ...

    def erasures(self) -> Erasures:
        """How far the erasures in the log have come."""
        ...

    def end(self) -> Position:
        """The position after the newest durable record."""
        ...

    def wait(self, seen: Position, timeout: float) -> bool:
        """Block until there is something after `seen` or `timeout` seconds pass."""
        ...

    def follow(self, name: str) -> Position:
        """Register the follower `name` (ranges it has not passed are kept); its last noted position."""
        ...

    def note(self, name: str, position: Position) -> None:
        """Note that follower `name` has safely stored everything before `position`."""
        ...

    def unfollow(self, name: str) -> None:
        """Forget the follower: ranges are no longer kept for it."""
        ...

    def close(self) -> None: ...


# ---- the catalogue -----------------------------------------------------------------------------


class Catalog(Protocol):
    """Entities by key. Reads are from memory, columnar; a write is visible to the next read.

    Rows are dense ints that stay put for an entity's life in this process; row -1 is "not known".
    """

    def write(self, records: Sequence[LogRecord], position: Position) -> list[Entity]:
        """Apply entities, patches, deletes and erasures (others are skipped) and the position in one
        transaction; the entities as they now are, of those that changed and still exist."""
        ...

    def position(self) -> Position: ...

    def __len__(self) -> int: ...

    def rows(self, keys: Keys) -> NDArray[np.int32]:
        """Row of each key [n], -1 where not known (or deleted)."""
        ...

    def keys(self) -> Keys:
        """Key of every row [rows], 0 where deleted."""
        ...

    def entity(self, key: int) -> Entity | None: ...

    def available(self, rows: NDArray[np.int32], time: int, entity_type: str = "item") -> NDArray[np.bool_]:
        """Mask [n]: known, of this type, inside its availability window at `time`, in stock."""
        ...

    def codes(self, attribute: str, rows: NDArray[np.int32]) -> Keys:
        """key64("type.attribute", value) of a category attribute [n]; 0 where absent. Attribute
        `"group"` gives the variant group."""
        ...

    def numbers(self, attribute: str, rows: NDArray[np.int32]) -> NDArray[np.float64]:
        """Values of a number attribute [n]; NaN where absent."""
        ...

    def matches(self, rows: NDArray[np.int32], wanted: Mapping[str, object]) -> NDArray[np.bool_]:
        """Mask [n] of the rows whose attributes have the wanted value, or one of the wanted values."""
        ...

    def attributes(self, key: int) -> dict[str, Attribute]: ...

    def text(self, key: int) -> str:
        """The entity's own text and its configured text attributes, joined; "" where not known."""
        ...

    def close(self) -> None: ...


# ---- features ----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Scored:
    """Candidates of one source, best first. keys uint64 [n], scores float32 [n]."""

    keys: Keys
    scores: Floats

    def __len__(self) -> int:
        return len(self.keys)

    @classmethod
    def none(cls) -> Scored:
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.float32))


@dataclass(frozen=True, slots=True)
class History:
    """A user's latest events of interest, oldest first: entity, kind, value, time and canvas (a place as `CanvasPlaces`
    gives it), [m] each."""

    entity: Keys
    kind: NDArray[np.int16]
    value: NDArray[np.float32]
    time: NDArray[np.int64]
    canvas: NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Counts:
    """A user's entities: keys [m] sorted ascending, plain counts [m], first and last time [m], and whether owned."""

    keys: Keys
    count: Floats
    first: NDArray[np.int64]
    last: NDArray[np.int64]
    owned: NDArray[np.bool_] = field(default_factory=lambda: np.zeros(0, np.bool_))


class FeatureView(Protocol):
    """The state as of one moment for one request: events strictly before `time` (law 4). One read transaction.

    Views are cheap, short-lived and not shared between threads; close them (or use `with`).
    """

    time: int
    position: Position
    exact: bool
    """False where events at or after `time` are folded in already: a request from the past."""

    def history(self) -> History: ...

    def counts(self) -> Counts: ...

    def hidden(self) -> Keys:
        """Entities the user has hidden."""
        ...

    def popular(self, limit: int, window: int = 1, place: bool = False, fresh: bool = False) -> Scored:
        """Most popular of `features.popularity_windows[window]`; `place`: of the user's usual place; `fresh`:
        counting only each user's first event with an entity, which is what people newly take up."""
        ...

    def popularity(self, entities: Keys, window: int = 1) -> Floats:
        """How popular each is in `features.popularity_windows[window]`: float32 [n]; 0 where it is unknown."""
        ...

    def neighbours(self, entities: Keys, weights: Floats, limit: int) -> Scored:
        """Entities that co-occur with `entities`, by weighted sum of normalised co-occurrence."""
        ...

    def values(self, candidates: Keys) -> Floats:
        """Feature matrix float32 [n, len(FeatureStore.names)]; finite everywhere."""
        ...

    def __enter__(self) -> FeatureView: ...

    def __exit__(self, *exc: object) -> None: ...


class FeatureStore(Protocol):
    """All features with their state. One writer, many readers (threads; processes where the URL allows it)."""

    names: tuple[str, ...]
    kinds: tuple[str, ...]
    """What `History.kind` indexes."""
    fingerprint: str

    def write(self, events: EventBatch, position: Position) -> None:
        """Fold events into the state and commit `position`, in one transaction (law 2)."""
        ...

    def position(self) -> Position: ...

    def view(self, context: Context, tenant: str = "main") -> FeatureView:
        """A view for `context.user` at `context.time` (which must be set)."""
        ...

    def erase(self, user: int) -> None:
        """Drop all state of the user with this key (law 10)."""
        ...

    def alias(self, guest: int, user: int) -> None:
        """Fold the guest's state into the user's."""
        ...

    def expire(self, time: int) -> int:
        """Drop state not touched since `time` minus the configured expiry; how many keys went."""
        ...

    def nbytes(self) -> dict[str, int]:
        """Bytes by what takes them."""
        ...

    def close(self) -> None: ...


# ---- index -------------------------------------------------------------------------------------


class VectorIndex(Protocol):
    """Nearest neighbours by inner product. `version` names the dense version that made the vectors (law 8)."""

    version: str

    def upsert(self, keys: Keys, vectors: Floats) -> None:
        """Add or replace; visible to the next search. vectors [n, d]."""
        ...

    def delete(self, keys: Keys) -> None: ...

    def search(self, query: Floats, limit: int, allowed: Callable[[Keys], NDArray[np.bool_]] | None = None) -> Scored:
        """The best `limit` for query [d]; `allowed` maps keys [m] to a mask [m]."""
        ...

    def vectors(self, keys: Keys) -> Floats:
        """The stored vectors [n, d]; zeros where a key is not in it."""
        ...

    def __len__(self) -> int: ...

    def items(self) -> Iterator[tuple[Keys, Floats]]:
        """Everything that is in it, in chunks."""
        ...
