"""What the ranking network reads of users' histories: columns for training, bytes for the log, and back.

Entities are keys; what an entity is made of is looked up by whoever scores or learns, as of then.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.schema.records import Past

__all__ = ["Pasts", "pack_past", "past_without", "unpack_past"]


@dataclass(frozen=True, slots=True)
class Pasts:
    """The latest events of interest before each of g requests, jagged, oldest first.

    entity uint64 [t]; action uint8 [t]: the place of the event's kind among those of interest; time int64 [t], ms;
    offsets int64 [g + 1]
    """

    entity: Keys
    action: NDArray[np.uint8]
    time: NDArray[np.int64]
    offsets: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.offsets) - 1

    @classmethod
    def none(cls, groups: int) -> Pasts:
        """So many empty ones."""
        times = np.zeros(0, np.int64)
        return cls(np.zeros(0, np.uint64), np.zeros(0, np.uint8), times, np.zeros(groups + 1, np.int64))

    @classmethod
    def concat(cls, parts: Sequence[Pasts]) -> Pasts:
        """One after the other. Needs at least one part."""
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            np.concatenate([part.entity for part in parts]),
            np.concatenate([part.action for part in parts]),
            np.concatenate([part.time for part in parts]),
            np.concatenate([[0], np.cumsum(sizes)]),
        )

    def take(self, which: NDArray[np.int64]) -> Pasts:
        """Those at these places, in this order."""
        sizes = np.diff(self.offsets)[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][which] - offsets[:-1], sizes)
        return Pasts(self.entity[rows], self.action[rows], self.time[rows], offsets)

    def without(self, entity: np.uint64) -> Pasts:
        """The same but for the events of `entity`."""
        kept = self.entity != entity
        offsets = np.concatenate([[0], np.cumsum(kept)])[self.offsets]
        return Pasts(self.entity[kept], self.action[kept], self.time[kept], offsets)

    def gaps(self, asked: NDArray[np.int64]) -> Floats:
        """Seconds from each event to its request at asked int64 [g], ms: float32 [t]."""
        ages = np.repeat(asked, np.diff(self.offsets)) - self.time
        return (ages / 1000).astype(np.float32)


def pack_past(pasts: Pasts, kinds: Sequence[str]) -> Past:
    """`pasts` of one request; `kinds` is what `action` numbers."""
    return Past(
        kinds=list(kinds),
        entities=pasts.entity.astype("<u8").tobytes(),
        actions=pasts.action.tobytes(),
        times=pasts.time.astype("<i8").tobytes(),
    )


def unpack_past(past: Past | None, kinds: Sequence[str]) -> Pasts:
    """One request's. Raises InvalidRecord where it was not put on record, numbers other kinds, or is damaged."""
    if past is None or past.kinds != list(kinds):
        raise InvalidRecord("past", f"it is not on record with the kinds {', '.join(kinds)}")
    n = len(past.actions)
    if (len(past.entities), len(past.times)) != (8 * n, 8 * n) or any(action >= len(kinds) for action in past.actions):
        raise InvalidRecord("past", f"its {n} actions of {len(kinds)} kinds do not fit its entities and times")
    return Pasts(
        np.frombuffer(past.entities, "<u8").astype(np.uint64),
        np.frombuffer(past.actions, np.uint8),
        np.frombuffer(past.times, "<i8").astype(np.int64),
        np.array([0, n], np.int64),
    )


def past_without(past: Past | None, entity: np.uint64) -> Past | None:
    """The same but for the events of `entity` (law 10); None for one that is damaged."""
    if past is None or entity.tobytes() not in past.entities:
        return past
    try:
        return pack_past(unpack_past(past, past.kinds).without(entity), past.kinds)
    except InvalidRecord:
        return None
