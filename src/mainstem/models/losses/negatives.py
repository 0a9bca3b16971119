"""How negatives are drawn, and with which chance: what `sampled_softmax` needs to correct for the drawing.

Each source draws entities and knows the chance that it misses one. A mixture misses what all its sources miss:

    log Q(y) = log(1 - product over sources of (1 - Q_source(y)))

so that one rule corrects any mixture, repeats and accidental hits included: the sample is a set (see
`sampled_softmax`). Entities are places 0 .. n - 1 in the catalogue; who owns the keys translates.

    keys, log_q, targets, drawn = draw([InBatch(positives, share), Uniform(n, 1024)], positives, generator)
    loss = sampled_softmax(users, vectors_of(keys), None, log_q, targets=targets, drawn=drawn)

| source | draws | reaches |
|---|---|---|
| `InBatch` | the other positives of the batch | what is taken |
| `Uniform` | evenly | everything |
| `ByPopularity` | by a power of the share of positives | what was ever taken |
| `Hard` | from each user's list of best-scoring entities | the lists |
| `Queue` | the positives of earlier batches | what was taken lately |

Law 7: all of it happens before the look-up, on numbers alone. A queue therefore keeps no vectors, and none is stale.

Bengio & Senecal 2008, "Adaptive Importance Sampling to Accelerate Training of a Neural Probabilistic Language Model";
Yi et al. 2019, "Sampling-Bias-Corrected Neural Modeling for Large Corpus Item Recommendations" (in-batch); Yang et al.
2020, "Mixed Negative Sampling"; Wang et al. 2021, "Cross-Batch Negative Sampling for Training Two-Tower Recommenders".
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

__all__ = ["ByPopularity", "Drawn", "Hard", "InBatch", "NegativeSource", "Queue", "Uniform", "draw"]


class NegativeSource(Protocol):
    """One way to draw negatives for one step."""

    def draw(self, generator: torch.Generator) -> Tensor:
        """Entities int64 [m], repeats allowed."""
        ...

    def log_missed(self, keys: Tensor) -> Tensor:
        """log(1 - Q) float64 [k] <= 0: Q is the chance that a step's draw has keys[i] int64 [k] in it at all."""
        ...


class Drawn(NamedTuple):
    """keys int64 [c]: distinct, rising; log_q float32 [c]; targets int64 [b]: where each positive stands in keys; drawn
    bool [c]: whether a source drew it, or it is there as a positive alone."""

    keys: Tensor
    log_q: Tensor
    targets: Tensor
    drawn: Tensor


def draw(sources: Sequence[NegativeSource], positives: Tensor, generator: torch.Generator) -> Drawn:
    """The candidates of a step: the positives int64 [b] and what the sources draw, with log Q of the mixture.

    On the CPU, where the look-up is. Raises ValueError where no source could have drawn one of the positives: then Q is
    0, and that the entity is among the candidates at all would give it away. Add `Uniform`. A lone candidate is right
    for certain, whatever Q is; it is then taken for 1.
    """
    found = torch.cat([positives[:0], *(source.draw(generator) for source in sources)])
    keys = torch.unique(torch.cat([positives, found]))
    drawn = torch.zeros(len(keys), dtype=torch.bool)
    drawn[torch.searchsorted(keys, found)] = True
    targets = torch.searchsorted(keys, positives)
    if len(keys) == 1:
        return Drawn(keys, torch.zeros(1), targets, drawn)
    missed = torch.zeros(len(keys), dtype=torch.float64)
    for source in sources:
        missed = missed + source.log_missed(keys)
    log_q = torch.log(-torch.expm1(missed))
    if not bool(log_q.isfinite().all()):
        raise ValueError("some candidates have no chance to be drawn: add Uniform")
    return Drawn(keys, log_q.float(), targets, drawn)


def _missed(share: Tensor, draws: int) -> Tensor:
    """log of the chance that `draws` draws with replacement all miss: share [k] -> [k]."""
    return draws * torch.log1p(-share.double().clamp(0.0, 1 - 1e-9))


class InBatch:
    """The batch's positives serve each other as negatives.

    share [n]: the part of all training positives that each entity is. Chance by b - 1 draws, not b: a user's own
    positive is there for certain, and would be so whatever it is.
    """

    def __init__(self, positives: Tensor, share: Tensor) -> None:
        """positives int64 [b]."""
        self.positives, self.share = positives, share

    def draw(self, generator: torch.Generator) -> Tensor:
        return self.positives

    def log_missed(self, keys: Tensor) -> Tensor:
        return _missed(self.share[keys], max(len(self.positives) - 1, 0))


class Uniform:
    """`draws` even draws with replacement from `catalogue` entities."""

    def __init__(self, catalogue: int, draws: int) -> None:
        self.catalogue, self.draws = catalogue, draws

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.randint(self.catalogue, (self.draws,), generator=generator)

    def log_missed(self, keys: Tensor) -> Tensor:
        return _missed(torch.full((len(keys),), 1 / self.catalogue, dtype=torch.float64), self.draws)


class ByPopularity:
    """`draws` draws with replacement by share ** power.

    power 1 draws as a batch does, 0 evenly among what has a share; 0.75 is word2vec's (Mikolov et al. 2013,
    "Distributed Representations of Words and Phrases and their Compositionality", section 2.2).
    """

    def __init__(self, share: Tensor, draws: int, power: float = 0.75) -> None:
        """share float >= 0 [n], not all 0."""
        scaled = torch.where(share > 0, share.double() ** power, 0.0)
        self.chance, self.draws = scaled / scaled.sum(), draws
        # torch.multinomial takes no more than 2^24 categories
        self._upto = self.chance.cumsum(0)

    def draw(self, generator: torch.Generator) -> Tensor:
        at = torch.rand(self.draws, dtype=torch.float64, generator=generator) * self._upto[-1]
        return torch.searchsorted(self._upto, at, right=True).clamp(max=len(self._upto) - 1)

    def log_missed(self, keys: Tensor) -> Tensor:
        return _missed(self.chance[keys], self.draws)


class Hard:
    """Of each user's list of best-scoring entities, `draws` without replacement (mined: Xiong et al. 2021, "Approximate
    Nearest Neighbor Negative Contrastive Learning for Dense Text Retrieval").

    Given the lists, an entity in j of b lists is missed with chance (1 - draws / k)^j: exact, so that hard negatives
    need no tuned share to stay unbiased. Lists must not be cleared of the users' own positives: what is left of a list
    would tell the positive, and an accidental hit does no harm here.
    """

    def __init__(self, lists: Tensor, draws: int) -> None:
        """lists int64 [b, k], distinct within each row. Raises ValueError unless 1 <= draws <= k."""
        if not 1 <= draws <= lists.shape[1]:
            raise ValueError(f"draws must be between 1 and the lists' length {lists.shape[1]}, not {draws}")
        self.lists, self.draws = lists, draws

    def draw(self, generator: torch.Generator) -> Tensor:
        order = torch.rand(self.lists.shape, generator=generator).argsort(dim=1)
        return self.lists.gather(1, order[:, : self.draws]).flatten()

    def log_missed(self, keys: Tensor) -> Tensor:
        listed, times = torch.unique(self.lists, return_counts=True)
        place = torch.searchsorted(listed, keys).clamp(max=len(listed) - 1)
        missed = times * torch.log1p(torch.tensor(-self.draws / self.lists.shape[1], dtype=torch.float64))
        return torch.where(listed[place] == keys, missed[place], 0.0)


class Queue:
    """The positives of the last batches, first in first out, each with the log share it had when it came.

    An entity in the queue is corrected by the share it was drawn by (its newest), not by today's: what was popular an
    hour ago and no longer is would else count as a rare find and be pushed down far too hard. An entity that is not in
    the queue has today's share.
    """

    def __init__(self, share: Tensor, batches: int) -> None:
        """share float [n]: today's part of all positives that each entity is; read at each call, so that its owner may
        let it move. batches: how many the queue holds. Raises ValueError unless that is at least 1."""
        if batches < 1:
            raise ValueError(f"a queue holds at least one batch, not {batches}")
        self.share = share
        self._held: deque[tuple[Tensor, Tensor]] = deque(maxlen=batches)

    def __len__(self) -> int:
        return sum(len(keys) for keys, _ in self._held)

    def push(self, positives: Tensor, share: Tensor | None = None) -> None:
        """Take in a batch int64 [b], after its step; the oldest leaves when the queue is full. share [b]: what each was
        when it came, today's by default."""
        share = self.share[positives] if share is None else share
        self._held.append((positives.clone(), share.double().log()))

    def draw(self, generator: torch.Generator) -> Tensor:
        return torch.cat([keys for keys, _ in self._held]) if self._held else torch.zeros(0, dtype=torch.int64)

    def log_missed(self, keys: Tensor) -> Tensor:
        share = self.share[keys].double()
        for held, log_share in self._held:  # oldest first: the newest share is written last
            listed, inverse = torch.unique(held, return_inverse=True)
            newest = torch.zeros(len(listed), dtype=torch.float64).scatter(0, inverse, log_share)
            place = torch.searchsorted(listed, keys).clamp(max=len(listed) - 1)
            share = torch.where(listed[place] == keys, newest[place].exp(), share)
        return _missed(share, len(self))
