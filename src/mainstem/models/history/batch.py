"""A batch of histories: what each user did, oldest first, packed without padding."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

__all__ = ["Histories"]


@dataclass(frozen=True, slots=True)
class Histories:
    """The events of b users, user after user: user i's are offsets[i]:offsets[i + 1], oldest first.

    user 0   a b c         rows         a b c d e
    user 1   -             time         1 5 9 2 4
    user 2   d e           offsets      0 3 3 5
                           query_time   9 7 8

    rows float32 [t, dim]: the rows of the entities, taken from the step's one leaf (law 7), through which their
    gradient flows; action, canvas int64 [t]: what was done, and where, as places in the encoder's tables;
    value float32 [t]: how much (seconds, amount), 0 where nothing was measured; time int64 [t]: ms since 1970, never
    falling within a user; offsets int64 [b + 1], from 0 to t, never falling; query_time int64 [b]: ms at which each
    user's next entity is asked for, at or after their last event, or None where that is not known.

    Raises ValueError where the shapes do not fit each other.
    """

    rows: Tensor
    action: Tensor
    canvas: Tensor
    value: Tensor
    time: Tensor
    offsets: Tensor
    query_time: Tensor | None = None

    def __post_init__(self) -> None:
        if self.rows.ndim != 2 or self.offsets.ndim != 1 or not len(self.offsets):
            raise ValueError("rows must be [t, dim] and offsets [b + 1]")
        for name in ("action", "canvas", "value", "time"):
            if getattr(self, name).shape != (len(self.rows),):
                raise ValueError(f"{name} must be [{len(self.rows)}], not {[*getattr(self, name).shape]}")
        if self.query_time is not None and self.query_time.shape != (len(self),):
            raise ValueError(f"query_time must be [{len(self)}], not {[*self.query_time.shape]}")

    def __len__(self) -> int:
        """b: how many users."""
        return len(self.offsets) - 1

    def first(self) -> Tensor:
        """Places of the first event of each history that has one: int64 [<= b]."""
        return self.offsets[:-1][self.offsets.diff() > 0]

    def since_previous(self) -> Tensor:
        """ms from the same user's event before to each event: int64 [t]; 0 for a first one."""
        gaps = self.time - self.time.roll(1)
        return gaps.index_fill(0, self.first(), 0)

    def asked_at(self) -> Tensor:
        """ms at which what follows each event was asked for: int64 [t].

        That is the time of the event after it, and of the query after a user's last: the time that training knows for
        a target inside the history is the one that serving knows for its request.

        Raises ValueError where query_time is None.
        """
        if self.query_time is None:
            raise ValueError("this encoder was built to know the time of the query: pass query_time [b]")
        filled = self.offsets.diff() > 0
        return self.time.roll(-1).index_copy(0, self.offsets[1:][filled] - 1, self.query_time[filled])
