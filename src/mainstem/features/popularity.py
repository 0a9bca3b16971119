"""How much an entity is asked for lately: windows over a ring of days, totals, age, how many come back.

Buckets are days (UTC). The window of n days at t is today's bucket so far, the n - 1 days before it, and of
the day before those the share that a window of exactly n days would still hold:

    sum(bucket[day(t) - i] for i < n) + (1 - part of the day gone by) * bucket[day(t) - n]

so a window neither empties at midnight nor grows through the day. Counts are weighted by interest. `fresh`
counts only each user's first event with the entity. Attribute values have the same records, under their code
in the catalogue at the time of the event.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.features.mirror import Mirror
from mainstem.features.pending import Fold
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, expire_records
from mainstem.features.user_item import NEVER, log_days
from mainstem.schema.config import Config
from mainstem.schema.errors import ConfigError
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled
from mainstem.schema.protocols import Floats, Scored
from mainstem.schema.time import DAY, parse_duration

__all__ = ["FRESH", "Popularity", "Ranking", "Ring", "best"]

Ints = NDArray[np.int64]

FRESH = "fresh_ring"
"""The ring that counts each user's first event only; the other is "ring"."""


@compiled
def _fold(
    entity: Ints, time: Ints, weight: Floats, fresh: NDArray[np.bool_], first: Ints, last: Ints, day: NDArray[np.int32],
    count: Floats, fresh_count: Floats, decay: Floats, ring: Floats, fresh_ring: Floats, half_life: float,
) -> None:  # fmt: skip
    days = ring.shape[1]
    for e in range(len(entity)):
        i, t = entity[e], time[e]
        today = t // 86_400_000
        if count[i] == 0:
            first[i], last[i], day[i] = t, t, today
        for d in range(max(day[i] + 1, today - days + 1), today + 1):
            ring[i, d % days] = 0
            fresh_ring[i, d % days] = 0
        day[i] = max(day[i], today)
        if today > day[i] - days:
            ring[i, today % days] += weight[e]
            if fresh[e]:
                fresh_ring[i, today % days] += weight[e]
        if t >= last[i]:
            decay[i] = decay[i] * 2.0 ** (-(t - last[i]) / half_life) + weight[e]
        else:
            decay[i] += weight[e] * 2.0 ** (-(last[i] - t) / half_life)
        first[i], last[i] = min(first[i], t), max(last[i], t)
        count[i] += 1
        fresh_count[i] += fresh[e]


@compiled
def _windows(
    rows: NDArray[np.int32], day: NDArray[np.int32], ring: Floats, today: int, spans: Ints, whole: Floats, edge: Floats
) -> None:
    """For record rows[i]: whole [w, rows[i]] the sum of each window's full buckets, edge the bucket before them."""
    days = ring.shape[1]
    for row in rows:
        for w in range(len(spans)):
            total = np.float32(0.0)
            for back in range(max(0, today - day[row]), min(spans[w], today - day[row] + days)):
                total += ring[row, (today - back) % days]
            whole[w, row] = total
            back = spans[w]
            inside = 0 <= day[row] - today + back < days
            edge[w, row] = ring[row, (today - back) % days] if inside else np.float32(0.0)


class Ring:
    """The record of one entity or attribute value, and how it is folded and summed."""

    def __init__(self, config: Config) -> None:
        names = config.features.popularity_windows
        spans = [parse_duration(name) for name in names]
        if not spans or any(span % DAY or not DAY <= span <= 56 * DAY for span in spans):
            raise ConfigError("features.popularity_windows: whole days, at most 56d")
        self.names = tuple(names)
        self.spans = np.array(spans, np.int64) // DAY
        self.half_life = float(parse_duration(config.features.half_lives[-1])) if config.features.half_lives else DAY
        days = int(self.spans.max()) + 1
        self.dtype = np.dtype(
            [("first", "i8"), ("last", "i8"), ("day", "i4"), ("count", "f4"), ("fresh", "f4"), ("decay", "f4"),
             ("ring", "f4", (days,)), ("fresh_ring", "f4", (days,))], align=True,
        )  # fmt: skip
        self.definition = f"v1 windows={','.join(names)} half_life={self.half_life:g}"

    def fold(self, table: str, keys: Keys, place: Ints, fold: Fold, rows: Any, state: Overlay) -> None:
        """Fold the events `rows` of a fold into the records of `keys`; `place` [len(rows)] says which."""
        r, e = state.records(table, keys, self.dtype), fold.rows[rows]
        _fold(
            place, e["time"], e["weight"], fold.fresh[rows], r["first"], r["last"], r["day"], r["count"], r["fresh"],
            r["decay"], r["ring"], r["fresh_ring"], self.half_life,
        )  # fmt: skip
        state.put_records(table, keys, r)

    def parts(self, records: Records, ring: str, day: int) -> tuple[Floats, Floats]:
        """(whole, edge), each [windows, n], as of `day`."""
        whole = np.zeros((len(self.spans), len(records)), np.float32)
        edge = np.zeros_like(whole)
        rows = np.arange(len(records), dtype=np.int32)
        _windows(rows, records["day"], records[ring], day, self.spans, whole, edge)
        return whole, edge

    def windows(self, records: Records, ring: str, time: int) -> Floats:
        """Sum of each window at `time`: [windows, n]."""
        whole, edge = self.parts(records, ring, time // DAY)
        return whole + np.float32(1 - time % DAY / DAY) * edge


@compiled
def _bar(bits: NDArray[np.int32], limit: int) -> int:
    """A lower bound, as float bits, of the `limit` best: positive floats order as their bits do."""
    histogram = np.zeros(1 << 13, np.int64)
    for bit in bits:
        if bit > 0:
            histogram[bit >> 18] += 1
    above, bucket = 0, len(histogram)
    while bucket > 0 and above < limit:
        bucket -= 1
        above += histogram[bucket]
    return bucket << 18


def best(keys: Keys, scores: Floats, limit: int) -> Scored:
    """The `limit` best positive scores, best first; equal scores by ascending key."""
    bits = np.ascontiguousarray(scores, np.float32).view(np.int32)
    places = np.flatnonzero(bits >= max(_bar(bits, limit), 1))
    places = places[np.lexsort((keys[places], -scores[places]))[:limit]]
    return Scored(keys[places], scores[places])


class Ranking:
    """The window sums of every row of the item mirror, for one day; changed rows are summed again."""

    def __init__(self, ring: Ring, mirror: Mirror) -> None:
        self._ring, self._mirror = ring, mirror
        self._made: tuple[int, int] | None = None
        self._parts: dict[str, tuple[Floats, Floats]] = {}

    def scores(self, window: int, ring: str, time: int) -> Floats:
        """The window's sum of each row of the mirror; row 0 (the blank one) has 0. Hold the store's lock."""
        mirror, day = self._mirror, time // DAY
        capacity = len(mirror.keys)
        if self._made != (day, mirror.generation) or self._parts["ring"][0].shape[1] != capacity:
            shape = (len(self._ring.spans), capacity)
            self._parts = {name: (np.zeros(shape, np.float32), np.zeros(shape, np.float32)) for name in ("ring", FRESH)}
            mirror.touched = [np.arange(1, mirror.size, dtype=np.int32)]
            self._made = (day, mirror.generation)
        if mirror.touched:
            rows = np.concatenate(mirror.touched)
            for name, (whole, edge) in self._parts.items():
                _windows(rows, mirror.records["day"], mirror.records[name], day, self._ring.spans, whole, edge)
            mirror.touched = []
        whole, edge = self._parts[ring]
        share = np.float32(1 - time % DAY / DAY)
        found: Floats = whole[window, : mirror.size] + share * edge[window, : mirror.size]
        return found


class Popularity:
    """Table `item`: one Ring record per entity."""

    name = "popularity"

    def __init__(self, config: Config) -> None:
        self.ring = Ring(config)
        windows, w = self.ring.names, len(self.ring.names)
        self.names = tuple(
            f"popularity_{name}" for name in (
                *windows, *(f"fresh_{window}" for window in windows),
                *(f"trend_{windows[i]}_{windows[i + 1]}" for i in range(w - 1)),
                "decayed", "total", "days_since", "age", "repeat", "trend_all",
            )
        )  # fmt: skip
        self.definition = self.ring.definition

    def write(self, fold: Fold, state: Overlay) -> None:
        self.ring.fold("item", fold.entities, fold.entity, fold, slice(None), state)

    def records(self, reading: Reading, candidates: Candidates) -> Records:
        return candidates.once("item", lambda: reading.records("item", candidates.keys, self.ring.dtype))

    def windows(self, reading: Reading, candidates: Candidates, ring: str = "ring") -> Floats:
        """Window sums [windows, n]."""
        return candidates.once(
            f"item.{ring}", lambda: self.ring.windows(self.records(reading, candidates), ring, reading.time)
        )

    def popular(self, reading: Reading, ranking: Ranking, limit: int, window: int, fresh: bool) -> Scored:
        """Entities by the sum of one window. From the mirror: a view that has been overtaken by a write may
        see that write here (these are candidates; `values` never does)."""
        ring, mirror = FRESH if fresh else "ring", reading.mirrors["item"]
        changed, records = (
            reading.overlay.changed("item", self.ring.dtype)
            if reading.overlay is not None
            else (np.zeros(0, np.uint64), np.zeros(0, self.ring.dtype))
        )
        with reading.lock:
            scores = ranking.scores(window, ring, reading.time)
            keys = mirror.keys[: mirror.size]
            scores[mirror.rows(changed)] = 0
            found = best(keys, scores, limit)
        if not len(changed):
            return found
        late = self.ring.windows(records, ring, reading.time)[window]
        return best(np.concatenate([found.keys, changed]), np.concatenate([found.scores, late]), limit)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        records, w = self.records(reading, candidates), len(self.ring.spans)
        windows, fresh = self.windows(reading, candidates), self.windows(reading, candidates, FRESH)
        known = records["count"] > 0
        out[:, :w] = np.log1p(windows).T
        out[:, w : 2 * w] = np.log1p(fresh).T
        rate = windows / self.ring.spans[:, None]
        out[:, 2 * w : 3 * w - 1] = (np.log1p(7 * rate[:-1]) - np.log1p(7 * rate[1:])).T
        decayed = records["decay"] * np.exp2(-(reading.time - records["last"]) / self.ring.half_life)
        out[:, 3 * w - 1] = np.log1p(decayed)
        out[:, 3 * w] = np.log1p(records["count"])
        out[:, 3 * w + 1] = log_days(np.where(known, reading.time - records["last"], NEVER * DAY))
        out[:, 3 * w + 2] = log_days(np.where(known, reading.time - records["first"], 0))
        out[:, 3 * w + 3] = np.where(known, 1 - records["fresh"] / np.maximum(records["count"], 1), 0)
        life = np.maximum((reading.time - records["first"]) / DAY, 0.0) + self.ring.spans[-1]
        out[:, 3 * w + 4] = np.log1p(7 * rate[-1]) - np.log1p(7 * records["count"] / life)

    def erase(self, user: int, state: Overlay) -> None:
        """Sums over all users hold nothing that names one."""

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Sums over all users stay as they are."""

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        return len(expire_records("item", self.ring.dtype, limit, snapshot, state))
