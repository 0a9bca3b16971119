"""Trains the ranking network on examples by the losses of `ranking_loss.py`; then calibrates.

An order loss leaves a slate's level free, so binary heads are calibrated afterwards on the validation
examples: Platt scaling (Platt 1999) of the logit, each drawn negative standing for all that it was drawn from. Heads
of expected amounts get one factor, by which their predictions there add up to what was observed. Neither changes an
order. `ranking_online.py` makes the steps that follow, on the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mainstem.models import Ranker
from mainstem.models.heads import ExpectedAmountHead
from mainstem.models.losses import binary
from mainstem.schema.config import HeadConfig, TrainConfig
from mainstem.schema.examples import Examples
from mainstem.train.meetings import Vectors
from mainstem.train.ranking_loss import Slates, loss_of, raw_of, said
from mainstem.train.threads import torch_threads
from mainstem.train.wide import Wide
from mainstem.weights.table import Arrays

__all__ = ["RankingFit", "calibrate", "fit_ranker", "one_cycle", "ranking_loss"]

# Share of the steps in which the learning rate rises; it falls in all others (Smith & Topin 2018, "one cycle").
WARM_UP = 0.1
WEIGHT_DECAY = 1e-5
# Rows that say what a column's mean and deviation are: more would say nothing else.
NORMALISER_ROWS = 100_000
# Optimizer steps an epoch at least, as far as there are slates.
LEAST_STEPS = 30
# Groups scored at once where no gradient is needed.
CHUNK = 64


@dataclass(slots=True)
class RankingFit:
    """What happened: the loss on the validation examples before training and after each epoch, and the best one."""

    validation: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    best_epoch: int = 0


def ranking_loss(ranker: Ranker, examples: Examples, heads: Sequence[HeadConfig]) -> Tensor:
    """Sum over heads of their weighted loss on these examples. Labels that are NaN do not count."""
    slates = Slates.of(examples, heads)
    return loss_of(ranker, raw_of(ranker, slates), slates, slates.labels, heads)


@torch.no_grad()
def _mean_loss(ranker: Ranker, slates: Slates, heads: Sequence[HeadConfig], wide: Wide | None) -> float:
    ranker.eval()
    total = 0.0
    for which in torch.split(torch.arange(len(slates)), CHUNK):
        some = slates.groups(which)
        total += float(loss_of(ranker, raw_of(ranker, some, said(wide, some)), some, some.labels, heads)) * len(which)
    return total / max(len(slates), 1)


def fit_ranker(
    ranker: Ranker,
    train: Examples,
    valid: Examples,
    heads: Sequence[HeadConfig],
    config: TrainConfig,
    on_epoch: Callable[[int, RankingFit], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
    vectors: Vectors | None = None,
    wide: Wide | None = None,
) -> RankingFit:
    """Train in place; the weights of the best validation epoch stay. `on_step(done, total)` in slates. vectors: of
    entities, which a network that reads histories needs; it does not move them. wide: the untrained wide part of a
    network that has one, trained along; the first epoch alone makes weights, so that an event is one sight of a cross.

    `config.ranking_learning_rate` is the peak of the cycle. Runs on one thread: its matrices are small. Raises
    ValueError where `train` is empty or an input is not finite.
    """
    if not len(train):
        raise ValueError("there is nothing to train on")
    with torch_threads(1):
        crosses = None if wide is None else wide.crosses
        slates = Slates.of(train, heads, vectors, crosses), Slates.of(valid, heads, vectors, crosses)
        return _fit(ranker, wide, *slates, heads, config, on_epoch, on_step)


def _fit(
    ranker: Ranker,
    wide: Wide | None,
    train: Slates,
    valid: Slates,
    heads: Sequence[HeadConfig],
    config: TrainConfig,
    on_epoch: Callable[[int, RankingFit], None] | None,
    on_step: Callable[[int, int], None] | None,
) -> RankingFit:
    for slates in (train, valid):
        # one pass and no copy: what is not finite stays so in the sum
        if not bool(slates.inputs.sum(dtype=torch.float64).isfinite()):
            raise ValueError("features must be finite")
    ranker.fit_normaliser(train.inputs[:: -(-len(train.inputs) // NORMALISER_ROWS)])
    ranker.start(train.labels, train.counted())
    adam = torch.optim.AdamW(ranker.parameters(), lr=config.ranking_learning_rate, weight_decay=WEIGHT_DECAY)
    # Few slates would make few steps: smaller batches then, down to one slate.
    batch = max(min(config.ranking_batch, len(train) // LEAST_STEPS), 1)
    steps = config.ranking_epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: one_cycle(step, steps))
    rng = np.random.default_rng(config.seed)
    fit = RankingFit(validation=[_mean_loss(ranker, valid, heads, wide)])
    best, waited, total = _Weights.of(ranker, wide), 0, config.ranking_epochs * len(train)
    for epoch in range(1, config.ranking_epochs + 1):
        ranker.train()
        losses, done = [], (epoch - 1) * len(train)
        for which in torch.split(torch.from_numpy(rng.permutation(len(train))), batch):
            adam.zero_grad(set_to_none=True)
            loss = _backward(ranker, wide, train.groups(which), heads, admit=epoch == 1)
            adam.step()
            schedule.step()
            losses.append(loss)
            done += len(which)
            if on_step:
                on_step(done, total)
        fit.training.append(float(np.mean(losses)))
        fit.validation.append(_mean_loss(ranker, valid, heads, wide))
        if fit.validation[-1] < fit.validation[fit.best_epoch]:
            best, waited, fit.best_epoch = _Weights.of(ranker, wide), 0, epoch
        else:
            waited += 1
        if on_epoch:
            on_epoch(epoch, fit)
        if waited >= config.patience:
            break
    best.load(ranker, wide)
    _calibrate(ranker, valid, heads, wide)
    return fit


def _backward(ranker: Ranker, wide: Wide | None, slates: Slates, heads: Sequence[HeadConfig], *, admit: bool) -> float:
    """The loss of a batch; its gradient is left on the network, and learned by the wide part."""
    crossed = None if wide is None or slates.crossings is None else wide.look_up(slates.crossings, admit=admit)
    loss = loss_of(ranker, raw_of(ranker, slates, crossed), slates, slates.labels, heads)
    loss.backward()  # type: ignore[no-untyped-call]
    if wide is not None:
        wide.learn(len(slates))
    return float(loss.detach())


@dataclass(frozen=True, slots=True)
class _Weights:
    """A copy of a network's and its wide part's."""

    ranker: dict[str, Tensor]
    table: Arrays | None

    @classmethod
    def of(cls, ranker: Ranker, wide: Wide | None) -> _Weights:
        return cls(copy.deepcopy(ranker.state_dict()), None if wide is None else wide.table.state())

    def load(self, ranker: Ranker, wide: Wide | None) -> None:
        ranker.load_state_dict(self.ranker)
        if wide is not None and self.table is not None:
            wide.table.load(self.table)


def one_cycle(step: int, steps: int, warm_up: float = WARM_UP) -> float:
    """Share of the peak learning rate at `step` of `steps`: a line that rises in the share `warm_up` of them, then half
    a cosine down to nothing."""
    warm = max(round(steps * warm_up), 1)
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * min((step - warm) / max(steps - warm, 1), 1.0))))


def calibrate(ranker: Ranker, valid: Examples, heads: Sequence[HeadConfig]) -> None:
    """Platt scaling of every binary head, and the factor of heads of expected amounts. Heads without examples of both
    labels, or of any amount, stay."""
    _calibrate(ranker, Slates.of(valid, heads), heads)


def _calibrate(ranker: Ranker, valid: Slates, heads: Sequence[HeadConfig], wide: Wide | None = None) -> None:
    ranker.eval()
    with torch.no_grad():
        parts = [valid.groups(which) for which in torch.split(torch.arange(len(valid)), CHUNK)]
        raw = torch.cat([raw_of(ranker, part, said(wide, part)) for part in parts])
    parted = zip(heads, ranker.task_list(), ranker.split(raw), strict=True)
    for column, (head, task, part) in enumerate(parted):
        target, known = (valid.labels[:, column] > 0).float(), valid.labels[:, column].isfinite()
        if isinstance(task, ExpectedAmountHead):
            task.fit_scale(task.predict(part), valid.labels[:, column], valid.counted())
        if head.type != "binary" or not 0 < float(target.sum()) < float(known.sum()):
            continue
        # Two numbers are fitted to thousands of rows, so variance is no concern, and weighting is exact for every
        # head, also where one head's negative is another's positive.
        counted = valid.counted() * known
        slope, shift = _platt(part[:, 0].double(), target.double(), counted.double())
        ranker.slope[column], ranker.shift[column] = slope, shift


def _platt(logits: Tensor, target: Tensor, counted: Tensor) -> tuple[float, float]:
    """Slope > 0 and shift that minimise the weighted cross-entropy of slope * logit + shift. All [n]."""
    log_slope, shift = (torch.zeros((), dtype=logits.dtype, requires_grad=True) for _ in range(2))
    search = torch.optim.LBFGS([log_slope, shift], max_iter=50, line_search_fn="strong_wolfe")

    def closure() -> Tensor:
        search.zero_grad()
        loss = binary(logits * log_slope.exp() + shift, target, counted)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    search.step(closure)  # type: ignore[no-untyped-call]
    return float(log_slope.detach().exp()), float(shift.detach())
