"""Examples as columns: what the join makes and training eats. Groups of candidates that stood for one request."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.batch import EventBatch
from mainstem.schema.config import HeadConfig
from mainstem.schema.ids import Keys
from mainstem.schema.pasts import Pasts
from mainstem.schema.protocols import Floats
from mainstem.schema.records import Erase, Served

__all__ = ["Examples", "Labelling", "Revision", "answered"]


def answered(labels: Floats, heads: Sequence[HeadConfig]) -> NDArray[np.bool_]:
    """Which rows an event of some head is about, as far as labels [n, h] tell: bool [n]."""
    unanswered = np.array([head.unanswered for head in heads], np.float32)
    found: NDArray[np.bool_] = (np.isfinite(labels) & (labels != unanswered)).any(axis=1)
    return found


@dataclass(frozen=True, slots=True)
class Examples:
    """g groups, n candidates in all; candidates of group i are rows offsets[i]:offsets[i+1].

    inputs   float32 [n, f]  what the ranking network eats, as of the request (law 4)
    labels   float32 [n, h]  per head; NaN where it is not known (see `HeadConfig.unanswered` and `delayed`). Of a
                             binary head above 0 where it happened: how much it counts beside the others of its group
    negative_rate float32 [n]  share of the negatives of its group and stratum (fresh or not) that were kept, the
                             same for positives and negatives: the log-odds correction
    fresh    bool    [n]     new to the user: not among what they had before
    weight   float32 [n]
    keys     uint64  [n]
    offsets  int64   [g + 1]
    time     int64   [g]     of the request, ms
    user     uint64  [g]
    pasts    of g requests   what the network reads of the users' histories, as of the request; None where it reads none
    """

    inputs: Floats
    labels: Floats
    negative_rate: Floats
    fresh: NDArray[np.bool_]
    weight: Floats
    keys: Keys
    offsets: NDArray[np.int64]
    time: NDArray[np.int64]
    user: Keys
    pasts: Pasts | None = None

    def __len__(self) -> int:
        return len(self.time)

    @classmethod
    def none(cls, inputs: int, heads: int) -> Examples:
        """No groups, of these widths."""
        empty = np.zeros(0, np.float32)
        return cls(
            inputs=np.zeros((0, inputs), np.float32),
            labels=np.zeros((0, heads), np.float32),
            negative_rate=empty,
            fresh=np.zeros(0, np.bool_),
            weight=empty,
            keys=np.zeros(0, np.uint64),
            offsets=np.zeros(1, np.int64),
            time=np.zeros(0, np.int64),
            user=np.zeros(0, np.uint64),
        )

    @classmethod
    def concat(cls, parts: Sequence[Examples]) -> Examples:
        """One after the other. Needs at least one part. Raises ValueError where some have pasts and some have none."""
        pasts = [part.pasts for part in parts if part.pasts is not None]
        if pasts and len(pasts) < len(parts):
            raise ValueError("examples with and without the users' histories do not go together")
        sizes = np.concatenate([np.diff(part.offsets) for part in parts])
        return cls(
            inputs=np.concatenate([part.inputs for part in parts]),
            labels=np.concatenate([part.labels for part in parts]),
            negative_rate=np.concatenate([part.negative_rate for part in parts]),
            fresh=np.concatenate([part.fresh for part in parts]),
            weight=np.concatenate([part.weight for part in parts]),
            keys=np.concatenate([part.keys for part in parts]),
            offsets=np.concatenate([[0], np.cumsum(sizes)]),
            time=np.concatenate([part.time for part in parts]),
            user=np.concatenate([part.user for part in parts]),
            pasts=Pasts.concat(pasts) if pasts else None,
        )

    def groups(self, which: NDArray[np.int64]) -> Examples:
        """The groups at these places, in this order."""
        sizes = np.diff(self.offsets)[which]
        offsets = np.concatenate([[0], np.cumsum(sizes)])
        rows = np.arange(offsets[-1]) + np.repeat(self.offsets[:-1][which] - offsets[:-1], sizes)
        return Examples(
            self.inputs[rows], self.labels[rows], self.negative_rate[rows], self.fresh[rows], self.weight[rows],
            self.keys[rows], offsets, self.time[which], self.user[which],
            None if self.pasts is None else self.pasts.take(which),
        )  # fmt: skip

    def segment(self) -> NDArray[np.int64]:
        """Group of each row: int64 [n]."""
        return np.repeat(np.arange(len(self)), np.diff(self.offsets))


@dataclass(frozen=True, slots=True)
class Revision:
    """Examples whose labels became known, or changed: `examples.labels` is what is known now, `before` float32 [n, h]
    what was learned from already (0 and NaN where nothing was).

    A loss that takes back `before` and adds `labels` comes, over all revisions of a slate, to that of its last labels.
    """

    examples: Examples
    before: Floats

    @classmethod
    def concat(cls, parts: Sequence[Revision]) -> Revision:
        """One after the other. Raises ValueError where there is none."""
        if not parts:
            raise ValueError("there are no revisions")
        return cls(Examples.concat([part.examples for part in parts]), np.concatenate([part.before for part in parts]))


class Labelling(Protocol):
    """What tells training, while the log goes on, which labels became known."""

    def take(self, served: Sequence[Served], events: EventBatch) -> tuple[list[Revision], list[Examples]]:
        """Slates on record and events that follow the last ones: revisions of one slate each, and the examples whose
        labels are all known now."""
        ...

    def pools(self, most: int) -> list[Examples]:
        """The latest slates that still wait for labels, at most so many."""
        ...

    def erase(self, erase: Erase) -> None:
        """Forget a user or an entity (law 10)."""
        ...

    def state(self) -> bytes:
        """Everything that is held, for `load`."""
        ...

    def load(self, state: bytes) -> None:
        """Go on where `state` was taken; no bytes are the state of the beginning."""
        ...
