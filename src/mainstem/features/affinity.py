"""User x attribute value: what the user's counts say about the candidate's category, brand ...

The user's side is summed at read time from the user x item counts through the catalogue's codes, and has no
state of its own. The value's own popularity is a `Ring` record per code (table `value`), folded under the code
that the catalogue gives at the time of the event.
"""

from __future__ import annotations

import numpy as np

from mainstem.features.pending import Fold
from mainstem.features.popularity import FRESH, Popularity
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay, Records, Snapshot, expire_records
from mainstem.features.user_item import NEVER, UserItem, log_days, log_fine, log_share
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog, Floats

__all__ = ["Affinity"]


class Affinity:
    """One block of columns per attribute in `features.by`."""

    name = "affinity"

    def __init__(self, config: Config, catalog: Catalog, user_item: UserItem, popularity: Popularity) -> None:
        self._catalog, self._user_item, self._popularity = catalog, user_item, popularity
        self.by = tuple(config.features.by)
        lives = config.features.half_lives
        self.lives = sorted({len(lives) // 2, len(lives) - 1}) if lives else []
        windows = self._popularity.ring.names
        self.names = tuple(
            f"affinity_{by}_{name}"
            for by in self.by
            for name in (
                *(f"decayed_{lives[h]}" for h in self.lives), "share", "items", "days_since",
                *(f"popularity_{window}" for window in windows), "share_within",
                *(f"fresh_within_{window}" for window in windows), "fresh_rate",
            )
        )  # fmt: skip
        self.definition = f"v1 by={','.join(self.by)} lives={self.lives} {self._popularity.definition}"

    def write(self, fold: Fold, state: Overlay) -> None:
        if not self.by:
            return
        catalog_rows = self._catalog.rows(fold.entities)
        for by in self.by:
            code = self._catalog.codes(by, catalog_rows)[fold.entity]
            known = np.flatnonzero(code)
            if len(known):
                keys, place = np.unique(code[known], return_inverse=True)
                self._popularity.ring.fold("value", keys, place, fold, known, state)

    def values(self, reading: Reading, candidates: Candidates, out: Floats) -> None:
        if not self.by:
            return
        width = out.shape[1] // len(self.by)
        candidate_rows = self._catalog.rows(candidates.keys)
        mine = reading.once("affinity.rows", lambda: self._catalog.rows(self._user_item.rows(reading)["item"]))
        for place, by in enumerate(self.by):
            part = out[:, place * width : (place + 1) * width]
            codes = self._catalog.codes(by, candidate_rows)
            self._of_user(reading, by, codes, self._catalog.codes(by, mine), part)
            self._of_value(reading, candidates, codes, part[:, len(self.lives) + 3 :])

    def _of_user(self, reading: Reading, by: str, codes: Keys, mine: Keys, out: Floats) -> None:
        """The user's decayed counts, their share, entities and recency of each candidate's value."""
        h = len(self.lives)
        out[:, : h + 2], out[:, h + 2] = 0, np.log1p(NEVER)
        rows: Records = self._user_item.rows(reading)
        if not len(rows):
            return
        values, place = np.unique(mine, return_inverse=True)
        at = np.minimum(np.searchsorted(values, codes), len(values) - 1)
        hit = np.flatnonzero((values[at] == codes) & (codes != 0))
        at = at[hit]
        decayed = self._user_item.decayed(reading)
        for column, life in enumerate(self.lives):
            sums = np.bincount(place, decayed[:, life], len(values))
            out[hit, column] = log_fine(sums[at])
        out[hit, h] = log_share(sums[at] / max(float(sums.sum()), 1e-9))
        out[hit, h + 1] = np.log1p(np.bincount(place, minlength=len(values))[at])
        last = np.full(len(values), np.iinfo(np.int64).min)
        np.maximum.at(last, place, rows["last"])
        out[hit, h + 2] = log_days(reading.time - last[at])

    def _of_value(self, reading: Reading, candidates: Candidates, codes: Keys, out: Floats) -> None:
        """The value's popularity, and the candidate's share of it."""
        ring, w = self._popularity.ring, len(self._popularity.ring.spans)
        values, place = np.unique(codes, return_inverse=True)
        records = reading.records("value", values, ring.dtype)
        total = ring.windows(records, "ring", reading.time)[:, place]
        fresh = ring.windows(records, FRESH, reading.time)[:, place]
        known = codes != 0
        out[:, :w] = np.where(known, np.log1p(total), 0).T
        ours = np.concatenate(
            [self._popularity.windows(reading, candidates)[-1:], self._popularity.windows(reading, candidates, FRESH)]
        )
        whole = np.concatenate([total[-1:], fresh])
        share = np.minimum(ours / np.maximum(whole, 1e-6), 1.0)
        out[:, w : 2 * w + 1] = np.where(known & (whole > 1e-6), log_share(share), 0).T
        count = np.maximum(records["count"], 1.0)
        out[:, 2 * w + 1] = np.where(known, (records["fresh"] / count)[place], 0)

    def erase(self, user: int, state: Overlay) -> None:
        """Nothing is kept of a user."""

    def merge(self, guest: int, user: int, state: Overlay) -> None:
        """Nothing is kept of a user."""

    def expire(self, limit: int, snapshot: Snapshot, state: Overlay) -> int:
        return len(expire_records("value", self._popularity.ring.dtype, limit, snapshot, state))
