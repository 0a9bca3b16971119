"""The problem of p2_training_step, for both interpreters that run it: needs numpy and torch only.

FIELDS categorical fields of IDS ids each, WIDTH numbers an id, an MLP on their concatenation, logloss. A label is drawn
with a probability that a hidden weight per id gives, so there is something to learn.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import torch
from torch import Tensor, nn

FIELDS, IDS, WIDTH, BATCH = 26, 100_000, 16, 4096
HIDDEN = (256, 128)
DENSE_RATE, EPSILON = 1e-3, 1e-8
RATES = {"row-wise Adagrad": 0.02, "Adagrad": 0.02, "Adam": 1e-3}

Batch = tuple[np.ndarray, Tensor]  # ids int64 [BATCH, FIELDS], each in 0 .. IDS - 1; labels float32 [BATCH]


def batches(zipf: float, seed: int) -> Iterator[Batch]:
    """Without end. `zipf`: 0 draws ids evenly, else with probability falling as rank ** -zipf."""
    hidden = np.random.default_rng(0).normal(size=(FIELDS, IDS)).astype(np.float32)
    rng = np.random.default_rng(seed)
    share = np.cumsum(np.arange(1, IDS + 1) ** -zipf)
    while True:
        ids = np.searchsorted(share, rng.random((BATCH, FIELDS)) * share[-1])
        logit = hidden[np.arange(FIELDS), ids].sum(axis=1) * (2.0 / FIELDS**0.5) - 1.0
        labels = rng.random(BATCH) < 1.0 / (1.0 + np.exp(-logit))
        yield ids, torch.from_numpy(labels.astype(np.float32))


def initial_rows() -> np.ndarray:
    """float32 [FIELDS * IDS, WIDTH]: the values that every arm starts from."""
    return np.random.default_rng(1).uniform(-0.05, 0.05, (FIELDS * IDS, WIDTH)).astype(np.float32)


class Arm:
    """One way to train: `look_up` makes float32 [BATCH, FIELDS * WIDTH] of ids, `update` learns after backward."""

    def __init__(self, look_up: Callable[[np.ndarray], Tensor], update: Callable[[], None], zipf: float) -> None:
        torch.manual_seed(0)
        first, second = HIDDEN
        self.mlp = nn.Sequential(
            nn.Linear(FIELDS * WIDTH, first), nn.ReLU(), nn.Linear(first, second), nn.ReLU(), nn.Linear(second, 1)
        )
        self.dense = torch.optim.Adam(self.mlp.parameters(), lr=DENSE_RATE, fused=True)
        self.look_up, self.update = look_up, update
        self.stream, self.zipf = batches(zipf, seed=2), zipf

    def train(self, steps: int) -> float:
        """Seconds of `steps` whole steps on batches made beforehand."""
        ready = [next(self.stream) for _ in range(steps)]
        start = time.perf_counter()
        for ids, labels in ready:
            self.dense.zero_grad(set_to_none=True)
            self._loss(ids, labels).backward()  # type: ignore[no-untyped-call]
            self.dense.step()
            self.update()
        return time.perf_counter() - start

    @torch.no_grad()
    def loss(self, count: int = 8) -> float:
        """Mean logloss on batches that are never trained on."""
        held_out = batches(self.zipf, seed=3)
        return float(np.mean([float(self._loss(*next(held_out))) for _ in range(count)]))

    def _loss(self, ids: np.ndarray, labels: Tensor) -> Tensor:
        return nn.functional.binary_cross_entropy_with_logits(self.mlp(self.look_up(ids))[:, 0], labels)
