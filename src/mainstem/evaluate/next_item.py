"""Next item: the protocol in arrays. Every user's last action is asked for, the whole catalogue is ranked.

- Leave one out. `test` asks for each user's last action, `validation` for the one before it. Only users with at least
  three actions are asked; what the others did is learned from, all of it.
- What is asked for is ranked among all items that occur in the data, from what the user did before it and nothing else.
- Items that the user had before are filtered, but never the one that is asked for (`seen="keep"` filters none).
- Ties by place in the catalogue, the lower first (`metrics.rank_of`).
- Learned from: what lies before validation; with `refit`, validation too. What a recommender chooses, it chooses by
  NDCG@10 on validation, fitted to what lies before it; of more than 50,000 users it asks as many, drawn once.

`NextItem` is what a recommender offers; `run` asks one. All metrics are made from the rank of what was asked for, so
that users can be cut into segments, and recommenders compared user by user, afterwards.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from mainstem.evaluate.metrics import rank_of, top_k
from mainstem.evaluate.peak_memory import PeakMemory
from mainstem.schema.protocols import Floats

__all__ = ["LEAST", "LeaveOneOut", "NextItem", "Outcome", "Seen", "Split", "hit", "ndcg", "ranks_of", "run", "segments"]

Ints = NDArray[np.int64]
Mask = NDArray[np.bool_]
Split = Literal["test", "validation"]
Seen = Literal["filter", "keep"]
Scorer = Callable[["LeaveOneOut", Ints], Floats]

LEAST = 3
"""Actions of a user who is asked: one to learn from, one for validation, one for the test."""
CHOSEN_AT = 10
"""Whatever is chosen is chosen by NDCG at this place, on validation."""
MOST_JUDGED = 50_000
"""Users who are asked for a choice: asking millions would take longer than an epoch, and say the same. The standard
error of NDCG@10 is at most .0022 then."""
# Scores at once: 64 MB of float32.
AT_ONCE = 2**24
# The most popular items that are no long tail, as a share of the catalogue.
POPULAR = 0.2


@dataclass(frozen=True, slots=True)
class LeaveOneOut:
    """Every user's actions, oldest first, one user after the other.

    item int64 [n]: places in the catalogue, 0 .. items - 1; offsets int64 [u + 1]: where each user's actions begin.

    user 0: a b c d    item    a b c d e f     a b learned, c validation, d test
    user 1: e f        offsets 0 4 6           e f learned: too few to be asked

    Raises ValueError where they do not fit each other.
    """

    item: Ints
    offsets: Ints
    items: int

    def __post_init__(self) -> None:
        sizes = np.diff(self.offsets)
        if not len(self.offsets) or self.offsets[0] != 0 or self.offsets[-1] != len(self.item) or (sizes < 0).any():
            raise ValueError(f"offsets must rise from 0 to {len(self.item)}, the number of actions")
        if len(self.item) and not 0 <= int(self.item.min()) <= int(self.item.max()) < self.items:
            raise ValueError(f"items must lie in 0 .. {self.items - 1}")

    @property
    def users(self) -> int:
        return len(self.offsets) - 1

    def facts(self) -> dict[str, int]:
        """How many users, items and actions there are, and how many users are asked."""
        return {
            "users": self.users, "items": self.items, "actions": len(self.item), "asked": len(self.held("test")),
        }  # fmt: skip

    def held(self, split: Split) -> Ints:
        """Places of the actions that are asked for, one of each user with enough of them: int64 [q]."""
        ends = self.offsets[1:][np.diff(self.offsets) >= LEAST]
        return ends - (1 if split == "test" else 2)

    def learned(self, refit: bool = False) -> Mask:
        """The actions that are learned from: bool [n]. refit: validation is among them."""
        kept = np.ones(len(self.item), np.bool_)
        kept[self.held("test")] = False
        if not refit:
            kept[self.held("validation")] = False
        return kept

    def begin(self, places: Ints) -> Ints:
        """Where the user of each of these actions begins: int64 [q]."""
        return self.offsets[np.searchsorted(self.offsets, places, side="right") - 1]

    def before(self, places: Ints) -> tuple[Ints, Ints]:
        """What each action's user did before it, jagged: rows int64 [t], of `places`, and items int64 [t]."""
        begins = self.begin(places)
        sizes = places - begins
        rows = np.repeat(np.arange(len(places)), sizes)
        starts = np.cumsum(sizes) - sizes
        return rows, self.item[np.arange(len(rows)) - starts[rows] + begins[rows]]


class NextItem(Protocol):
    """A recommender. It sees a user's actions before a place, and of what is learned from what the mask gives."""

    name: str
    seconds: float
    """Of training what now scores, without what was tried besides and without asking validation."""

    def choose(self, data: LeaveOneOut, learned: Mask, judge: Callable[[], float]) -> None:
        """Fit to the actions `learned`, and settle what validation settles. `judge` gives NDCG@10 on validation of
        what `scores` says now, the more the better."""
        ...

    def refit(self, data: LeaveOneOut, learned: Mask) -> None:
        """Fit anew with what was settled."""
        ...

    def scores(self, data: LeaveOneOut, places: Ints) -> Floats:
        """Of every item as what comes at each of these places: float32 [b, items], finite."""
        ...

    def settled(self) -> Mapping[str, Any]:
        """What `choose` chose, for people: JSON-serialisable."""
        ...


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one recommender answered: rank int64 [q], from 0, of what was asked for; shown int64 [q, k]: its best,
    -1 after their end. seconds: of the training that counts, and of all choosing; peak_gib: of the process meanwhile,
    None where the system does not tell."""

    rank: Ints
    shown: Ints
    seconds: float = 0.0
    choosing: float = 0.0
    peak_gib: float | None = None
    settled: Mapping[str, Any] = field(default_factory=dict)


def run(
    recommender: NextItem, data: LeaveOneOut, split: Split, *, most: int = 10, seen: Seen = "filter",
    refit: bool = False,
) -> Outcome:  # fmt: skip
    """Choose on validation, fit, and ask for `split`; most: of the items shown that are kept, for coverage.

    Raises ValueError where nobody is asked, or where validation is asked of what was refitted with it.
    """
    if refit and split == "validation":
        raise ValueError("with refit validation is learned from: it says nothing then")
    if not len(data.held(split)):
        raise ValueError(f"no user has {LEAST} actions: nobody can be asked")
    validation = data.held("validation")
    if len(validation) > MOST_JUDGED:
        validation = np.sort(np.random.default_rng(0).choice(validation, MOST_JUDGED, replace=False))

    def judge() -> float:
        return float(ndcg(ranks_of(recommender.scores, data, validation, seen=seen), CHOSEN_AT).mean())

    began = time.monotonic()
    with PeakMemory() as memory:
        recommender.choose(data, data.learned(), judge)
        choosing = time.monotonic() - began
        if refit:
            recommender.refit(data, data.learned(refit=True))
    rank, shown = _asked(recommender.scores, data, data.held(split), seen, most)
    return Outcome(rank, shown, recommender.seconds, choosing, memory.gib, dict(recommender.settled()))


def ranks_of(scores: Scorer, data: LeaveOneOut, places: Ints, *, seen: Seen = "filter") -> Ints:
    """The rank, from 0, of what was done at each of these places: int64 [q]."""
    return _asked(scores, data, places, seen, 0)[0]


def _asked(scores: Scorer, data: LeaveOneOut, places: Ints, seen: Seen, most: int) -> tuple[Ints, Ints]:
    chunk = max(AT_ONCE // max(data.items, 1), 1)
    rank = np.zeros(len(places), np.int64)
    shown = np.full((len(places), min(most, data.items)), -1)
    for start in range(0, len(places), chunk):
        some = places[start : start + chunk]
        found = np.array(scores(data, some), np.float32)
        if found.shape != (len(some), data.items) or not np.isfinite(found).all():
            raise ValueError(f"scores must be finite, [{len(some)}, {data.items}], not {list(found.shape)}")
        target = data.item[some]
        if seen == "filter":
            rows, had = data.before(some)
            other = had != target[rows]
            found[rows[other], had[other]] = -np.inf
        rank[start : start + chunk] = rank_of(found, target)
        if most:
            shown[start : start + chunk] = top_k(found, most)
    return rank, shown


def hit(rank: Ints, k: int) -> NDArray[np.float64]:
    """HR@k of each rank [q], counted from 0: also recall@k, as one item is right."""
    return (rank < k).astype(np.float64)


def ndcg(rank: Ints, k: int) -> NDArray[np.float64]:
    """NDCG@k of each rank [q], counted from 0."""
    return np.where(rank < k, 1 / np.log2(rank + 2.0), 0.0)


def segments(data: LeaveOneOut, places: Ints, learned: Mask) -> dict[str, Mask]:
    """Which of those asked belong to what: bool [q] each.

    `all` first. A *cold* target is not among what is learned from; a *seen* one is among what its user did before;
    some published runs leave both out. *Popular* targets are among the fifth of the catalogue that is learned from
    most, the others are the *long tail*. *Light* users are those with the shortest histories, a third or a little
    more, *heavy* ones those with the longest.
    """
    target = data.item[places]
    counts = np.bincount(data.item[learned], minlength=data.items)
    place = np.empty(data.items, np.int64)
    place[np.argsort(-counts, kind="stable")] = np.arange(data.items)
    popular = place[target] < POPULAR * data.items
    cold = counts[target] == 0
    rows, had = data.before(places)
    seen = np.zeros(len(places), np.bool_)
    seen[rows[had == target[rows]]] = True
    length = places - data.begin(places)
    light, heavy = np.quantile(length, [1 / 3, 2 / 3]) if len(length) else (0.0, 0.0)
    return {
        "all": np.ones(len(places), np.bool_),
        "without cold and seen targets": ~cold & ~seen,
        "cold targets": cold,
        "seen targets": seen,
        "popular targets": popular,
        "long tail targets": ~popular,
        "light users": length <= light,
        "heavy users": length >= heavy if heavy > light else length > light,
    }
