"""Canaries: fixed questions whose answers must not turn over from one update to the next.

retrieval   the top of some fixed users among fixed entities, by the towers
ranking     the top of some fixed recorded pools, by each head of the ranking network

They are chosen once there is enough to choose from, and stay until the trainer goes on from a snapshot.
"""

from __future__ import annotations

import numpy as np

from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.train.interactions import Interactions
from mainstem.train.online import RANKING, RETRIEVAL, OnlineLearner

__all__ = ["Canaries"]

# Users, entities to choose from, recorded pools and how many of these at least, length of a slate at most.
USERS, CHOICE, POOLS, LEAST_POOLS, TOP = 32, 2_000, 8, 4, 10


class Canaries:
    """Those of one learner, chosen when `slates` finds enough."""

    def __init__(self) -> None:
        self._asked: tuple[Interactions, Keys] | None = None
        self._pools: list[Examples] = []

    def slates(self, learner: OnlineLearner) -> dict[str, Keys]:
        """What each kind is answered now: uint64 [c, k], by what is learned; a kind with too few canaries is absent."""
        found = {RETRIEVAL: self._retrieved(learner), RANKING: self._ranked(learner)}
        return {name: slates for name, slates in found.items() if slates is not None}

    def _retrieved(self, learner: OnlineLearner) -> Keys | None:
        self._asked = self._asked or learner.canaries(USERS, CHOICE)
        if self._asked is None:
            return None
        users, choice = self._asked
        vectors: Floats = learner.towers.entity_vectors(choice)
        scores = learner.towers.vectors_before(users) @ vectors.T
        top = np.argpartition(-scores, min(TOP, len(choice) - 1), axis=1)[:, :TOP]
        return choice[top]

    def _ranked(self, learner: OnlineLearner) -> Keys | None:
        """Places in each pool that head for head stand in its better half, `TOP` at most: [pools * heads, k]."""
        if not self._pools and learner.labelling is not None:
            pools = [pool for pool in learner.labelling.pools(POOLS) if len(pool.keys) > 1]
            self._pools = pools if len(pools) >= LEAST_POOLS else []
        if not self._pools:
            return None
        k = min(TOP, *(len(pool.keys) // 2 for pool in self._pools))
        scores = [learner.ranking.order(pool) for pool in self._pools]
        return np.concatenate([np.argsort(-each, axis=0, kind="stable")[:k].T for each in scores]).astype(np.uint64)
