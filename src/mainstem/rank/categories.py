"""What is popular in a category: the one that is asked for, else those that the user likes most.

The popular items of the whole catalogue say little of a small category: of a hundred thousand items with sales, its own
may all come after the first ten thousand. So the members of every category are known here.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from mainstem.rank.question import Question
from mainstem.rank.sources import Allowed, Search, recent
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys, key64
from mainstem.schema.protocols import Catalog, FeatureView, Scored
from mainstem.schema.records import Entity

__all__ = ["Categories", "PopularInCategory", "has_categories"]

# The attribute that `Context.category` is a value of.
CATEGORY = "category"
# Categories of the user's latest entities that are looked into where none is asked for.
FAVOURITES = 3
# Members of a category up to which each one's popularity is looked up; of more, the best are among what is popular.
LOOKED_UP = 4_000
# Popular items of the catalogue among which those of a larger category are looked for.
WIDEST = 10_000


def has_categories(config: Config) -> bool:
    """Whether the entities of any type have a category."""
    return any(kind.attributes.get(CATEGORY) == "category" for kind in config.entities.values())


class Categories:
    """The entities of each category, by code; a sink of the follower. 8 bytes an entity, some 150 a category."""

    def __init__(self, catalog: Catalog) -> None:
        self.catalog = catalog
        self._writing = threading.Lock()
        keys = catalog.keys()
        self._members: dict[int, Keys] = {}
        self._add(keys[keys != 0])

    @classmethod
    def open(cls, config: Config, catalog: Catalog) -> Categories | None:
        """Over the whole catalogue; None where no type of entity has such an attribute."""
        return cls(catalog) if has_categories(config) else None

    def among(self, keys: Keys, code: int) -> NDArray[np.bool_]:
        """Mask [n] of the entities whose category has this code now."""
        mask: NDArray[np.bool_] = self.catalog.codes(CATEGORY, self.catalog.rows(keys)) == code
        return mask

    def of(self, code: int, most: int) -> Keys | None:
        """Keys of the entities whose category has this code: uint64 [n], rising; None where they are more than so many,
        those who left counted in."""
        members = self._members.get(code, np.zeros(0, np.uint64))
        return members[self.among(members, code)] if len(members) <= most else None

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        """Who left, or moved to another category, is passed over by `of`, and forgotten with the next who comes."""
        self._add(np.array([key64(each.entity_type, each.entity, each.tenant) for each in changed], np.uint64))

    def _add(self, keys: Keys) -> None:
        codes = self.catalog.codes(CATEGORY, self.catalog.rows(keys))
        order = np.argsort(codes, kind="stable")
        begins = np.flatnonzero(np.diff(codes[order], prepend=np.uint64(0)))
        with self._writing:
            for some in np.split(order, begins)[1:]:
                code = int(codes[some[0]])
                members = self._members.get(code, keys[:0])
                self._members[code] = np.union1d(members[self.among(members, code)], keys[some])


class PopularInCategory:
    """The popular items of `context.category`; without one, those of the categories of the user's latest entities, each
    an equal share of the limit, in turn. `window` indexes `features.popularity_windows`; where a category sold nothing
    within it, the longest one speaks."""

    name = "category"
    concurrent = False

    def __init__(self, categories: Categories, window: int) -> None:
        self.categories, self.window = categories, window

    def prepare(self, question: Question, view: FeatureView, limit: int, allowed: Allowed) -> Search:
        def search() -> Scored:
            codes = self._asked(question, view)
            share = -(-limit // max(len(codes), 1))
            return _in_turn([self._popular(question, view, code, share, allowed) for code in codes], limit)

        return search

    def _asked(self, question: Question, view: FeatureView) -> list[int]:
        """Codes of the categories to look into."""
        if question.context.category is not None:
            return [key64(f"{question.show.entity_type}.{CATEGORY}", question.context.category, question.tenant)]
        keys, weights = recent(view)
        catalog = self.categories.catalog
        codes, place = np.unique(catalog.codes(CATEGORY, catalog.rows(keys)), return_inverse=True)
        weight = np.bincount(place, weights, len(codes)) * (codes != 0)
        best = np.argsort(-weight, kind="stable")[:FAVOURITES]
        return [int(codes[at]) for at in best if weight[at] > 0]

    def _popular(self, question: Question, view: FeatureView, code: int, limit: int, allowed: Allowed) -> Scored:
        members = self.categories.of(code, LOOKED_UP)
        for window in dict.fromkeys((self.window, question.widest[0])):
            if members is None:
                found = view.popular(WIDEST, window)
                found = _some(found, self.categories.among(found.keys, code))
            else:
                scores = view.popularity(members, window)
                order = np.argsort(-scores, kind="stable")
                found = Scored(members[order], scores[order])
            found = _some(found, (found.scores > 0) & allowed(found.keys))
            if len(found):
                return Scored(found.keys[:limit], found.scores[:limit])
        return Scored.none()


def _some(found: Scored, mask: NDArray[np.bool_]) -> Scored:
    return Scored(found.keys[mask], found.scores[mask])


def _in_turn(lists: Sequence[Scored], limit: int) -> Scored:
    """The first of each, then the second of each ...; scores fall with the place, as each list's are its own."""
    keys = np.concatenate([np.zeros(0, np.uint64), *(found.keys for found in lists)])
    place = np.concatenate([np.zeros(0, np.int64), *(np.arange(len(found)) for found in lists)])
    keys = keys[np.argsort(place, kind="stable")][:limit]
    return Scored(keys, (1.0 / (1.0 + np.arange(len(keys)))).astype(np.float32))
