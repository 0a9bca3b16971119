"""What each positive of a step is told from: the whole population, or a sample of it with log Q, as configured.

    in_batch   the batch's other positives            queue   those of the batches before
    uniform    even draws                             hard    draws from lists that `mine` found
    popular    draws by a power of the share

The population is what was ever taken; the sources and their chances are those of `models.losses.negatives`, on places
in it. All of it happens before the look-up (law 7), from the step's own random numbers and what `state` holds.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models.losses.negatives import ByPopularity, Hard, InBatch, NegativeSource, Queue, Uniform, draw
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats
from mainstem.schema.retrieval_config import RetrievalConfig
from mainstem.train.interactions import Interactions, ranges
from mainstem.train.population import Population
from mainstem.train.towers import Towers

__all__ = ["Candidates", "Negatives", "mine", "others"]

Ints = NDArray[np.int64]

# Scores of requests against the whole population that are made at once.
MINED_AT_ONCE = 2**22


@dataclass(frozen=True, slots=True)
class Candidates:
    """c distinct entities, among them the b positives of a step.

    keys uint64 [c]; places int64 [b]: of each positive in keys. Of a sample: log_q float32 [c], and drawn bool [c]:
    false for what is there as a positive alone. None of the whole population.
    """

    keys: Keys
    places: Ints
    log_q: Tensor | None = None
    drawn: Tensor | None = None


class Negatives:
    """Gives the candidates of one step after the other, and remembers the batches that the queue holds.

    online: `full` means `auto`, so that a micro-batch never costs more than `full_up_to` entities; nothing is mined.
    """

    def __init__(self, config: RetrievalConfig, *, online: bool = False) -> None:
        self.config, self.online = config, online
        self._queue: deque[tuple[Keys, Floats]] = deque(maxlen=config.queue)
        self._made: tuple[Population, int, Tensor, list[NegativeSource]] | None = None

    def full(self, population: Population) -> bool:
        """Whether a step is told from the whole population."""
        if self.config.softmax == "full" and not self.online:
            return True
        return self.config.softmax != "sampled" and len(population) <= self.config.full_up_to

    def mines(self, population: Population) -> bool:
        """Whether steps want lists of `mine`."""
        return self.config.hard.draws > 0 and not self.online and not self.full(population)

    def candidates(
        self, positives: Keys, population: Population, rng: np.random.Generator, lists: Ints | None = None
    ) -> Candidates:
        """The candidates of a step on positives uint64 [b]; lists int64 [s, k]: see `mine`.

        Raises ValueError where the population lacks one of the positives.
        """
        places = population.places(positives)
        if (places < 0).any():
            raise ValueError("the population must count the positives of a step before it")
        if self.full(population):
            return Candidates(population.keys, places)
        share, sources = self._sources(population)
        at = torch.from_numpy(places)
        if self.config.in_batch:
            sources = [*sources, InBatch(at, share)]
        if self._queue:
            sources = [*sources, self._queued(population, share)]
        if lists is not None and len(lists):
            k = lists.shape[1]
            sources = [*sources, Hard(torch.from_numpy(lists), min(self.config.hard.draws, k))]
        generator = torch.Generator().manual_seed(int(rng.integers(2**63)))
        found = draw(sources, at, generator)
        return Candidates(population.keys[found.keys.numpy()], found.targets.numpy(), found.log_q, found.drawn)

    def _sources(self, population: Population) -> tuple[Tensor, list[NegativeSource]]:
        """The share of each entity, and the sources that depend on nothing else: made anew when it has changed."""
        if self._made is None or self._made[0] is not population or self._made[1] != population.changes:
            share, config = torch.from_numpy(population.shares()), self.config
            sources: list[NegativeSource] = []
            if config.uniform:
                sources.append(Uniform(len(population), min(config.uniform, len(population))))
            if config.popular.draws:
                draws = min(config.popular.draws, len(population))
                sources.append(ByPopularity(share, draws, config.popular.power))
            self._made = population, population.changes, share, sources
        return self._made[2:]

    def _queued(self, population: Population, share: Tensor) -> Queue:
        queue = Queue(share, len(self._queue))
        for keys, then in self._queue:
            places = population.places(keys)
            known = places >= 0  # what nobody has taken for long is forgotten
            if known.any():
                queue.push(torch.from_numpy(places[known]), torch.from_numpy(then[known]))
        return queue

    def learned(self, positives: Keys, population: Population) -> None:
        """Take a batch uint64 [b] into the queue, after its step."""
        if self.config.queue:
            self._queue.append((positives, population.share(positives)))

    def forget(self) -> None:
        """Empty the queue."""
        self._queue.clear()

    def state(self) -> dict[str, Any]:
        """For `load`."""
        return {"queue": [{"keys": keys, "share": share} for keys, share in self._queue]}

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave: of a longer queue the newest batches."""
        self._queue.clear()
        self._queue.extend((each["keys"], each["share"]) for each in state["queue"])


def others(user: Keys, places: Ints, positive: Ints) -> Ints:
    """Pairs (request, candidate) int64 [2, p]: what each request's user has taken in the batch, no negative for them.

    user uint64 [b], places int64 [b]: whose each positive is, and its place among the candidates; positive int64 [m]:
    the positive that each request has for its answer.
    """
    _, group, size = np.unique(user, return_inverse=True, return_counts=True)
    ends = np.cumsum(size)
    who = group[positive]
    taken, _ = ranges((ends - size)[who], ends[who])
    return np.stack((np.repeat(np.arange(len(positive)), size[who]), places[np.argsort(group, kind="stable")][taken]))


def mine(towers: Towers, batches: Sequence[Interactions], population: Population, among: int) -> Iterator[Ints]:
    """Of each batch int64 [s, k] places in the population: what the request of each visit scores best, by the weights
    of now. k is `among`, or the whole population if that is less.

    A visit's own positives are not cleared from its list: what is missing would tell them (`losses.negatives.Hard`).
    """
    vectors = torch.from_numpy(towers.entity_vectors(population.keys))
    at_once = max(MINED_AT_ONCE // max(len(vectors), 1), 1)
    for batch in batches:
        visits = np.unique(np.column_stack((batch.user.view(np.int64), batch.state)), axis=0, return_index=True)[1]
        asked = torch.from_numpy(towers.vectors_before(batch.take(visits)))
        most = min(among, len(vectors))
        best = [(some @ vectors.T).topk(most, dim=1).indices for some in torch.split(asked, at_once)]
        yield torch.cat(best).numpy()
