"""Weights between items from a whole log, for the sources `item_knn` and `ease`.

What a user took is a row of strengths: of each entity the largest `events.KIND.interest` of the user's events with it,
whenever they were. The same rule makes the row of the user who asks, from their history of now (`rank.sources`).
"""

from __future__ import annotations

from collections.abc import Collection

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mainstem.index import Neighbourhood
from mainstem.models.neighbourhood import ease, item_knn, strongest
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Catalog

__all__ = ["item_weights"]


def item_weights(
    named: Collection[str], config: Config, events: EventBatch, catalog: Catalog
) -> dict[str, Neighbourhood]:
    """The weights of the sources `named`, from `events` [n], in any order, with what the catalogue knows; of a user
    with more entities than `features.items_per_user` the latest."""
    keys, taken = _taken(config, events, catalog)
    settings, found = config.train.neighbourhoods, dict[str, Neighbourhood]()
    if "item_knn" in named:
        knn = settings.item_knn
        found["item_knn"] = _of(keys, item_knn(taken, shrink=knn.shrink, neighbours=knn.neighbours))
    if "ease" in named:
        users = np.bincount(taken.indices, minlength=len(keys))
        most = np.sort(np.argsort(-users, kind="stable")[: settings.ease.most])
        weights = ease(taken[:, most], l2=settings.ease.l2)
        found["ease"] = _of(keys[most], strongest(weights, settings.ease.neighbours))
    return found


def _of(keys: Keys, weights: csr_matrix) -> Neighbourhood:
    return Neighbourhood(
        keys, weights.indptr.astype(np.int64), weights.indices.astype(np.uint32), weights.data.astype(np.float32)
    )


def _taken(config: Config, events: EventBatch, catalog: Catalog) -> tuple[Keys, csr_matrix]:
    """Entities [m], ascending, and the strengths of users and entities: float32 [users, m]."""
    interest = config.interest()
    of_kind = np.array([interest.get(kind, 0.0) for kind in events.kinds] or [0.0], np.float32)
    strength = of_kind[events.kind]
    rows = np.flatnonzero((strength > 0) & (events.entity != 0) & (catalog.rows(events.entity) >= 0))
    rows = rows[np.argsort(-events.time[rows], kind="stable")]  # newest first
    users, user = np.unique(events.user[rows], return_inverse=True)
    keys, entity = np.unique(events.entity[rows], return_inverse=True)
    _, newest, pair = np.unique(user * max(len(keys), 1) + entity, return_index=True, return_inverse=True)
    largest = np.zeros(len(newest), np.float32)
    np.maximum.at(largest, pair, strength[rows])
    user, entity = user[newest], entity[newest]
    kept = _first_of_each(user, newest, config.features.items_per_user)
    strengths = csr_matrix((largest[kept], (user[kept], entity[kept])), shape=(len(users), len(keys)))
    return keys, strengths


def _first_of_each(user: NDArray[np.int64], place: NDArray[np.int64], most: int) -> NDArray[np.bool_]:
    """Mask [n] of the `most` pairs of each user whose `place` comes first."""
    order = np.lexsort((place, user))
    _, first, count = np.unique(user[order], return_index=True, return_counts=True)
    kept = np.zeros(len(user), np.bool_)
    kept[order] = np.arange(len(user)) - np.repeat(first, count) < most
    return kept
