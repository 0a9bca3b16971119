"""Label preparation: which requests, of which canvases, a positive is the right answer to.

One positive is learned from in several ways: as what the user's home feed should have had, as what belongs beside the
entity that they took before it, as what they looked for in its category. One stream of examples holds them all, each
canvas with its share, so what one canvas teaches reaches the others (Bhattacharya et al. 2024, UniCoRn, section 3.2).

| `learns_from` | the request |
|---|---|
| `events` | the user and their history |
| `previous` | besides, the other entity that the user took last as the source |
| `category` | besides, the entity's category |
| `query` | besides, what was searched for; of events that have a query alone |

An event that names its canvas is the answer to a request of that one.

A canvas that starts from something else than the user must work for strangers too: of its requests `WITHHELD` are asked
without user and history. And as clients differ in what they send, every request lacks each of country, language and
device, where the event has it, with the chance `UNTOLD`: else what is always known in training would have no sentinel.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mainstem.schema.canvases import UNKNOWN, CanvasPlaces
from mainstem.schema.config import CanvasConfig
from mainstem.schema.ids import DEFAULT_TENANT, Keys
from mainstem.schema.settings import setting_keys
from mainstem.train.interactions import Interactions

__all__ = ["WITHHELD", "Canvases", "Requests"]

Ints = NDArray[np.int64]

WITHHELD = 0.5
UNTOLD = 0.25


@dataclass(frozen=True, slots=True)
class Requests:
    """m requests, each with a positive among b as its right answer.

    positive int64 [m]; canvas int64 [m]: `UNKNOWN` or 1 + its place in the configuration; personal bool [m]: whether
    user and history are told; source, category, query uint64 [m]: 0 where there is none; setting uint64 [m, 3]: keys of
    country, language and device, 0 where one is not told
    """

    positive: Ints
    canvas: Ints
    personal: NDArray[np.bool_]
    source: Keys
    category: Keys
    query: Keys
    setting: Keys

    def __len__(self) -> int:
        return len(self.positive)


class Canvases:
    """The canvases as configured. `feeds`: places of those that learn from events; `weights` float32 [1 + canvases]:
    what a request of each counts, 1 for one that is not configured."""

    def __init__(self, canvases: Mapping[str, CanvasConfig], tenant: str = DEFAULT_TENANT) -> None:
        self.places = CanvasPlaces(tuple(canvases), tenant)
        self.configs = tuple(canvases.values())
        feeds = [1 + i for i, each in enumerate(self.configs) if each.learns_from == "events"]
        self.feeds = np.array(feeds, np.int64)
        self.weights = np.array([1.0, *(each.weight for each in self.configs)], np.float32)

    def plain(self, batch: Interactions) -> Requests:
        """Of each positive the request of its user on the first canvas that learns from events, all told."""
        b, canvas = len(batch), self.feeds[0] if len(self.feeds) else UNKNOWN
        setting = setting_keys(batch.setting, batch.settings)
        nothing = np.zeros(b, np.uint64)
        return Requests(np.arange(b), np.full(b, canvas), np.ones(b, np.bool_), nothing, nothing, nothing, setting)

    def prepare(self, batch: Interactions, category: Keys, rng: np.random.Generator) -> Requests:
        """The requests that these positives answer; category uint64 [b]: that of each one's entity.

        Each answers one request of a feed: of its own canvas, or else of the first. And on each other canvas, with the
        chance `share` (for certain, if it is its own), one that it can have been asked on.
        """
        b, own = len(batch), self.places.of_keys(batch.canvas)
        given = {"previous": batch.previous, "category": category, "query": batch.query}
        parts: list[tuple[NDArray[Any], ...]] = []
        if len(self.feeds):
            canvas = np.where(np.isin(own, self.feeds), own, self.feeds[0])
            parts.append((np.arange(b), canvas, np.ones(b, np.bool_), *np.zeros((3, b), np.uint64)))
        for place, config in enumerate(self.configs, 1):
            feed = config.learns_from == "events"
            if feed and place == self.feeds[0]:
                continue
            wanted = rng.random(b) < config.share
            if feed:
                rows = np.flatnonzero(wanted & (own != place))
                told = np.ones(len(rows), np.bool_)
            else:
                rows = np.flatnonzero((given[config.learns_from] != 0) & (wanted | (own == place)))
                told = rng.random(len(rows)) >= WITHHELD
            from_ = [
                part[rows] if name == config.learns_from else np.zeros(len(rows), np.uint64)
                for name, part in given.items()
            ]
            parts.append((rows, np.full(len(rows), place), told, *from_))
        positive, asked, personal, source, of, query = (np.concatenate(column) for column in zip(*parts, strict=True))
        setting = setting_keys(batch.setting, batch.settings)[positive]
        if setting.any():
            setting[rng.random(setting.shape) < UNTOLD] = 0
        return Requests(positive, asked, personal, source, of, query, setting)
