"""Trains the two towers on positives: (user's history before the session, entity taken).

`RetrievalLearner` makes one step; `RetrievalTrainer` takes it over a whole log, `online.py` over the stream.
"""

from __future__ import annotations

import itertools
from collections.abc import Generator, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models.losses import full_softmax, sampled_softmax
from mainstem.schema.config import ModelConfig, TrainConfig
from mainstem.schema.protocols import Floats
from mainstem.train.canvases import Requests
from mainstem.train.device import device_of, matmul_precision
from mainstem.train.interactions import Interactions, Positives, ranges
from mainstem.train.negatives import Candidates, Negatives, mine, others
from mainstem.train.population import Population
from mainstem.train.towers import Towers

__all__ = ["RetrievalLearner", "RetrievalTrainer"]

Ints = NDArray[np.int64]

# Learning rate of the towers' networks, for a full batch.
ADAM_RATE = 1e-3


class RetrievalLearner:
    """One optimizer step at a time: the table learns by its families' optimizers, the towers by Adam. online: see
    `Negatives`."""

    def __init__(self, towers: Towers, model: ModelConfig, train: TrainConfig, *, online: bool = False) -> None:
        self.towers, self.model, self.train = towers, model, train
        self.negatives = Negatives(train.retrieval, online=online)
        self.adam = torch.optim.Adam(towers.module.parameters(), lr=ADAM_RATE)

    def step(
        self, batch: Interactions, population: Population, rng: np.random.Generator, lists: Ints | None = None
    ) -> float:
        """One step on b > 0 positives, which `population` counts already; the loss before it. lists: mined for it.

        One look-up for all roles (law 7), with negatives drawn before. Raises FloatingPointError, changing no weight,
        where the loss or a row's gradient is not finite.
        """
        towers = self.towers
        towers.module.train()
        requests = towers.canvases.prepare(batch, towers.categories(batch.entity), rng)
        candidates = self.negatives.candidates(batch.entity, population, rng, lists)
        gathered, layout = towers.gather(batch, requests, candidates.keys, learn=True)
        bodies = towers.bodies(gathered, layout)
        asked = towers.request_batch(gathered, bodies, layout, batch, requests)
        counted = batch.interest[requests.positive] * towers.canvases.weights[requests.canvas]
        loss = self._loss(asked, towers.entity_batch(bodies, layout), batch, requests, candidates, counted)
        # the other canvases' requests come on top of what a positive teaches as such
        loss = loss * float(counted.sum() / batch.interest.sum())
        # A positive moves the weights by the same in a small batch as in a full one: online they are small, and the
        # optimizers' state comes from full ones.
        full = min(len(batch) / self.train.retrieval_batch, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = ADAM_RATE * full
        self.adam.zero_grad(set_to_none=True)
        (loss * full).backward()  # type: ignore[no-untyped-call]
        if not all(bool(grad.isfinite().all()) for grad in (loss, gathered.rows.grad) if grad is not None):
            raise FloatingPointError("the loss of a step or its gradient is not finite")
        self.adam.step()
        towers.lookup.apply_gradients(self.train.retrieval_learning_rate)
        self.negatives.learned(batch.entity, population)
        return float(loss.detach())

    def _loss(
        self, asked: Tensor, entities: Tensor, batch: Interactions, requests: Requests, candidates: Candidates,
        counted: Floats,
    ) -> Tensor:  # fmt: skip
        """The mean over requests asked [m, dim], each `counted` [m] times, of what it would have among entities
        [c, dim]."""
        tensor = self.towers.tensor
        targets, weights = tensor(candidates.places[requests.positive]), tensor(counted)
        excluded = tensor(others(batch.user, candidates.places, requests.positive))
        temperature = self.model.temperature
        if candidates.log_q is None:
            return full_softmax(asked, entities, targets, temperature, weights=weights, excluded=excluded)
        return sampled_softmax(
            asked, entities, None, candidates.log_q.to(asked.device), temperature, targets=targets, weights=weights,
            drawn=None if candidates.drawn is None else candidates.drawn.to(asked.device), excluded=excluded,
        )  # fmt: skip


class RetrievalTrainer:
    """One pass over a log's positives at a time, in random order, on the device that `train.device` names.

    Raises ConfigError where there is none."""

    def __init__(self, towers: Towers, positives: Positives, model: ModelConfig, train: TrainConfig) -> None:
        self.towers, self.positives, self.train = towers, positives, train
        self.learner = RetrievalLearner(towers, model, train)
        self.device = device_of(train.device)
        if self.device.type == "cuda":
            # else a seed that waits for it would overwrite the random state of a checkpoint
            torch.cuda.init()  # type: ignore[no-untyped-call]
        self.entities = np.unique(positives.entity)
        self.draw_from(np.arange(len(positives)))

    def draw_from(self, rows: Ints) -> None:
        """Say which positives batches come from: Q of the logQ correction is their distribution, and negatives are
        their entities alone. Those that come up only later must not be learned as unwanted before they exist."""
        self.population = Population()
        self.population.add(self.positives.entity[rows])
        self.learner.negatives.forget()

    @contextmanager
    def computing(self) -> Iterator[None]:
        """Within, networks and their optimizer are on the device; afterwards where they were. The table stays in host
        memory: a step's rows go there, their gradients come back."""
        before = self.towers.device
        self._move(self.device)
        try:
            with matmul_precision(self.device):
                yield
        finally:
            self._move(before)

    def _move(self, device: torch.device) -> None:
        if device == self.towers.device:
            return
        self.towers.move(device)
        adam = self.learner.adam
        adam.load_state_dict(adam.state_dict())  # which brings the state to where the weights are

    def epoch(self, rows: Ints, rng: np.random.Generator, number: int = 0) -> Generator[tuple[float, int], None, None]:
        """One pass over these positives, in random order; yields each step's loss and how many positives it had.
        Who ends it early closes it.

        rows: places, rising. number: of the epoch, which `windows` of histories take turns by.
        """
        self.draw_from(rows)
        batches = (batch for batch in self._batches(rows, rng, number) if len(batch) > 1)
        with self.computing():
            for batch, lists in self._mined(batches):
                yield self.learner.step(batch, self.population, rng, lists), len(batch)

    def _mined(self, batches: Iterator[Interactions]) -> Iterator[tuple[Interactions, Ints | None]]:
        """Each batch with its lists, if any are mined: of some batches at a time, by the weights before their steps."""
        if not self.learner.negatives.mines(self.population):
            yield from ((batch, None) for batch in batches)
            return
        hard = self.train.retrieval.hard
        while some := list(itertools.islice(batches, hard.every)):
            yield from zip(some, list(mine(self.towers, some, self.population, hard.among)), strict=True)

    def _batches(self, rows: Ints, rng: np.random.Generator, number: int) -> Iterator[Interactions]:
        size, how = self.train.retrieval_batch, self.learner.model.history.windows
        if how == "sessions":
            sessions = self.positives.sessions(rows)
            for chosen in _in_turn(np.diff(sessions), size, rng):
                yield self.positives.batch(rows[ranges(sessions[chosen], sessions[chosen + 1])[0]])
            return
        wanted = np.zeros(len(self.positives), np.bool_)
        wanted[rows] = True
        windows = self.positives.windows(wanted, how, number, self.train.seed)
        for chosen in _in_turn(windows[:, 1] - windows[:, 0], size, rng):
            yield self.positives.window_batch(windows[chosen], wanted)

    @torch.no_grad()
    def recall(self, rows: Ints, k: int = 100, chunk: int = 512) -> float:
        """Share of positives `rows` that are among the k nearest of all entities: full ranking."""
        towers = self.towers
        towers.module.eval()
        vectors = torch.from_numpy(towers.entity_vectors(self.entities))
        hits = 0
        for start in range(0, len(rows), chunk):
            batch = self.positives.batch(rows[start : start + chunk])
            best = (torch.from_numpy(towers.vectors_before(batch)) @ vectors.T).topk(min(k, len(self.entities)), dim=1)
            target = np.searchsorted(self.entities, batch.entity)
            hits += int((best.indices.numpy() == target[:, None]).any(axis=1).sum())
        return hits / max(len(rows), 1)


def _in_turn(sizes: Ints, most: int, rng: np.random.Generator) -> Iterator[Ints]:
    """Groups of these sizes in random order, so many at a time that their sizes come to about `most`: places."""
    order = rng.permutation(len(sizes))
    before = np.cumsum(sizes[order]) - sizes[order]
    cuts = np.flatnonzero(np.diff(before // most)) + 1
    yield from np.split(order, cuts) if len(order) else ()
