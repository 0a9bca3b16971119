"""Online baselines: what a careful team would try before any model. They learn one basket at a time.

A baseline that is cheap to keep current is the fair rival of a system that learns online; a frozen
one is not. Each has two verbs, `learn` and `rank`; a rank costs well under half a millisecond at
92,000 items, so that they can run beside what they are compared with. Ids are interned: nothing here
is per catalogue but a few arrays.

Ties, everywhere: the item that this user touched more recently first, then the item that was seen
first by the baseline. Lists come back shorter than k when nothing more is known.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from itertools import islice
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.time import DAY

__all__ = ["Baseline", "FilledUp", "PopularLately", "RecencyCounts", "UserCounts", "UserItems", "Vocabulary"]


class Baseline(Protocol):
    """What a replay asks of a rival."""

    name: str

    def learn(self, user: str, items: Sequence[str], time: int) -> None:
        """The user took `items` (distinct) at `time` (ms); times never go back."""
        ...

    def rank(self, user: str, time: int, k: int, new_only: bool = False) -> list[str]:
        """At most k item ids, best first; `new_only` leaves out all that the user ever took."""
        ...


class Vocabulary:
    """Item ids <-> dense ints, in the order of first sight."""

    def __init__(self) -> None:
        self._place: dict[str, int] = {}
        self._ids: list[str] = []

    def __len__(self) -> int:
        return len(self._ids)

    def intern(self, items: Sequence[str]) -> list[int]:
        """Ints of `items`; unknown ones are added."""
        place, ids = self._place, self._ids
        found = []
        for item in items:
            row = place.get(item)
            if row is None:
                row = place[item] = len(ids)
                ids.append(item)
            found.append(row)
        return found

    def names(self, rows: Sequence[int]) -> list[str]:
        return [self._ids[row] for row in rows]


class UserItems:
    """One user's items: which, how much weight (decayed to `last`), and when last. Arrays grow by doubling."""

    __slots__ = ("_items", "_last", "_place", "_weight", "earlier")

    def __init__(self) -> None:
        self._place: dict[int, int] = {}
        self._items = np.zeros(8, np.int64)
        self._weight = np.zeros(8, np.float64)
        self._last = np.zeros(8, np.int64)
        self.earlier = np.zeros(0, np.int64)
        """What a learner wants to remember of the latest basket."""

    def __len__(self) -> int:
        return len(self._place)

    def __contains__(self, item: int) -> bool:
        return item in self._place

    @property
    def items(self) -> NDArray[np.int64]:
        """int64 [m] in the order of first sight; do not write."""
        return self._items[: len(self)]

    def add(self, items: Sequence[int], time: int, half_life: float | None) -> None:
        """Each item's weight halves every `half_life` ms (None: never) and then grows by one."""
        place = self._place
        for item in items:
            at = place.get(item)
            if at is None:
                at = place[item] = len(place)
                if at == len(self._items):
                    self._items = np.concatenate((self._items, np.zeros_like(self._items)))
                    self._weight = np.concatenate((self._weight, np.zeros_like(self._weight)))
                    self._last = np.concatenate((self._last, np.zeros_like(self._last)))
                self._items[at] = item
            elif half_life is not None:
                self._weight[at] *= 0.5 ** ((time - int(self._last[at])) / half_life)
            self._weight[at] += 1.0
            self._last[at] = time

    def best(self, time: int, k: int, half_life: float | None) -> list[int]:
        """The k heaviest as of `time`; ties: the latest touched, then the first seen."""
        size = len(self)
        weight, last = self._weight[:size], self._last[:size]
        if half_life is not None:
            weight = weight * np.exp2((last - time) / half_life)
        rows = np.arange(size)
        if size > k:  # only what reaches the k-th weight needs sorting
            rows = np.flatnonzero(weight >= np.partition(weight, size - k)[size - k])
        order = np.lexsort((self._items[rows], -last[rows], -weight[rows]))[:k]
        found: list[int] = self._items[rows[order]].tolist()
        return found

    def recent(self, limit: int) -> NDArray[np.int64]:
        """The `limit` items touched last, latest first; ties by first seen."""
        size = len(self)
        rows = np.argsort(-self._last[:size], kind="stable")[:limit]
        return self._items[rows]


class _Counts:
    """Integer counts kept in order: +1 and -1 cost O(1), the top is read without sorting everything.

    Items are filed by count; a read walks the files from the highest count down and sorts each file
    it opens, once until that file changes.
    """

    def __init__(self) -> None:
        self._count: dict[int, int] = {}
        self._files: dict[int, set[int]] = {}
        self._sorted: dict[int, list[int]] = {}
        self._highest = 0

    def change(self, item: int, by: int) -> None:
        old = self._count.get(item, 0)
        new = old + by
        if old:
            self._files[old].discard(item)
            self._sorted.pop(old, None)
        if new:
            self._count[item] = new
            self._files.setdefault(new, set()).add(item)
            self._sorted.pop(new, None)
            self._highest = max(self._highest, new)
        else:
            del self._count[item]

    def descending(self) -> Iterator[int]:
        """Items by count, the highest first, ties by lower int (first seen)."""
        while self._highest and not self._files.get(self._highest):
            self._highest -= 1
        for count in range(self._highest, 0, -1):
            if self._files.get(count):
                ordered = self._sorted.get(count)
                if ordered is None:
                    ordered = self._sorted[count] = sorted(self._files[count])
                yield from ordered


class _Popular:
    """What sold in the last `window` ms, as a multiset that slides with time."""

    def __init__(self, window: int) -> None:
        self._window = window
        self._counts = _Counts()
        self._baskets: deque[tuple[int, list[int]]] = deque()

    def _slide(self, time: int) -> None:
        while self._baskets and self._baskets[0][0] < time - self._window:
            for item in self._baskets.popleft()[1]:
                self._counts.change(item, -1)

    def learn(self, items: list[int], time: int) -> None:
        self._slide(time)
        self._baskets.append((time, items))
        for item in items:
            self._counts.change(item, 1)

    def rank(self, time: int) -> Iterator[int]:
        self._slide(time)
        return self._counts.descending()


class FilledUp:
    """Shared frame: a personal list first, then popular lately; both under the same restriction."""

    def __init__(self, name: str, days: float) -> None:
        self.name = name
        self._vocabulary = Vocabulary()
        self._popular = _Popular(round(days * DAY))
        self._users: dict[str, UserItems] = {}
        self._half_life: float | None = None

    def learn(self, user: str, items: Sequence[str], time: int) -> None:
        rows = self._vocabulary.intern(items)
        self._popular.learn(rows, time)
        self._users.setdefault(user, UserItems()).add(rows, time, self._half_life)
        self._study(rows, self._users[user])

    def rank(self, user: str, time: int, k: int, new_only: bool = False) -> list[str]:
        had = self._users.get(user)
        chosen = self._personal(had, time, k, new_only) if had is not None else []
        if len(chosen) < k:
            seen = set(chosen)
            more = (
                item for item in self._popular.rank(time)
                if item not in seen and not (new_only and had is not None and item in had)
            )  # fmt: skip
            chosen = chosen + list(islice(more, k - len(chosen)))
        return self._vocabulary.names(chosen)

    def _study(self, rows: list[int], had: UserItems) -> None:
        """What else there is to learn from a basket, after it joined `had`."""

    def _personal(self, had: UserItems, time: int, k: int, new_only: bool) -> list[int]:
        return []


class PopularLately(FilledUp):
    """The items in most baskets of the last `days` days, the same for everybody."""

    def __init__(self, days: float = 7, name: str = "popular lately") -> None:
        super().__init__(name, days)


class UserCounts(FilledUp):
    """What the user took most often, ever; filled up with popular lately.

    Restricted to new items nothing personal is left: it is then `PopularLately`.
    """

    def __init__(self, days: float = 7, name: str = "user counts") -> None:
        super().__init__(name, days)

    def _personal(self, had: UserItems, time: int, k: int, new_only: bool) -> list[int]:
        return [] if new_only else had.best(time, k, self._half_life)


class RecencyCounts(UserCounts):
    """`UserCounts` where a purchase counts half after every `half_life_days`; filled up with popular lately.

    90 days is the best of 30, 45, 60, 75, 90, 120 and 180 on The Complete Journey, on the four weeks before
    the last four (60 and 75 are within a hundredth of it).
    """

    def __init__(self, half_life_days: float = 90, days: float = 7, name: str = "recency counts") -> None:
        super().__init__(days, name)
        self._half_life = half_life_days * DAY
