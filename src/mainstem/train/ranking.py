"""Trains the ranking network on examples: listwise softmax on binary heads, Huber on value heads; then calibrates.

The listwise loss leaves a slate's level free, so binary heads are calibrated afterwards on the validation
examples: Platt scaling (Platt 1999) of the logit, each drawn negative standing for all that it was drawn from. It
changes no order. `ranking_online.py` makes the steps that follow, on the stream.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from mainstem.models import Ranker
from mainstem.models.jagged import segment_sum
from mainstem.models.losses import binary, listwise_softmax, value
from mainstem.schema.config import HeadConfig, TrainConfig
from mainstem.schema.examples import Examples
from mainstem.train.meetings import Meetings, Vectors
from mainstem.train.threads import torch_threads

__all__ = ["RankingFit", "Slates", "calibrate", "fit_ranker", "logits_of", "loss_of", "ranking_loss"]

# Weight of the second softmax, among what is new to the user alone: slates with `new_only` are one use of the
# same scores, and there the first softmax, won by what is bought again and again, teaches little.
FRESH_WEIGHT = 0.5
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


@dataclass(frozen=True, slots=True)
class Slates:
    """Examples as tensors, made once.

    inputs [n, f], labels [n, h], log_rate [n], fresh [n], weight [n], offsets [g + 1]; meetings: for a network that
    reads histories

    log_rate is the log of the chance that a row is among the examples at all: 0 for what has a label of any head,
    as that was kept for certain, also where another head counts it as a negative.
    """

    inputs: Tensor
    labels: Tensor
    log_rate: Tensor
    fresh: Tensor
    weight: Tensor
    offsets: Tensor
    meetings: Meetings | None = None

    @classmethod
    def of(cls, examples: Examples, vectors: Vectors | None = None) -> Slates:
        """vectors: of entities, where the network reads histories. Raises ValueError where the examples have none."""
        labels = torch.from_numpy(examples.labels)
        certain = (torch.nan_to_num(labels) != 0).any(dim=1)
        return cls(
            inputs=torch.from_numpy(examples.inputs),
            labels=labels,
            log_rate=torch.from_numpy(examples.negative_rate).log().masked_fill(certain, 0.0),
            fresh=torch.from_numpy(examples.fresh),
            weight=torch.from_numpy(examples.weight),
            offsets=torch.from_numpy(examples.offsets),
            meetings=None if vectors is None else Meetings.of(examples, vectors),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def groups(self, which: Tensor) -> Slates:
        """The groups at these places, in this order."""
        sizes = self.offsets.diff()[which]
        offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
        rows = torch.arange(int(offsets[-1])) + torch.repeat_interleave(self.offsets[which] - offsets[:-1], sizes)
        columns = (self.inputs, self.labels, self.log_rate, self.fresh, self.weight)
        inputs, labels, log_rate, fresh, weight = (column.index_select(0, rows) for column in columns)
        meetings = None if self.meetings is None else self.meetings.groups(which, rows)
        return Slates(inputs, labels, log_rate, fresh, weight, offsets, meetings)


def logits_of(ranker: Ranker, slates: Slates) -> Tensor:
    """Logits [n, h], not calibrated. Raises ValueError where the network reads histories and the slates have none."""
    if ranker.interest is None:
        return ranker(slates.inputs)  # type: ignore[no-any-return]
    if slates.meetings is None:
        raise ValueError("this network reads histories: make slates with the entities' vectors")
    return ranker(slates.inputs, embeddings=ranker.interest(slates.meetings.meeting()))  # type: ignore[no-any-return]


def ranking_loss(ranker: Ranker, examples: Examples, heads: Sequence[HeadConfig]) -> Tensor:
    """Sum over heads of their weighted loss on these examples. Labels that are NaN do not count."""
    return _loss(ranker, Slates.of(examples), heads)


def _loss(ranker: Ranker, slates: Slates, heads: Sequence[HeadConfig]) -> Tensor:
    return loss_of(logits_of(ranker, slates), slates, slates.labels, heads)


def loss_of(
    logits: Tensor, slates: Slates, labels: Tensor, heads: Sequence[HeadConfig], *, mean: bool = True
) -> Tensor:
    """Weighted sum of the heads' losses of logits [n, h] against labels [n, h]; each head's is the mean over slates
    (value heads: rows) with a label, or with mean=False the sum over them, which is then additive in slates."""
    total = torch.zeros(())
    for column, head in enumerate(heads):
        known = labels[:, column].isfinite()
        target = torch.nan_to_num(labels[:, column])
        if head.type == "binary":
            loss = _listwise(logits[:, column], target, known, slates, mean)
        else:
            counted = slates.weight * known
            loss = value(logits[:, column], target, counted) * (1.0 if mean else counted.sum())
        total = total + head.weight * loss
    return total


def _listwise(logits: Tensor, gains: Tensor, known: Tensor, slates: Slates, mean: bool) -> Tensor:
    """Softmax over the slate's candidates, and over the fresh ones among them.

    A negative that was drawn with chance r stands for 1/r of its kind, so its logit is raised by -log r (sampled
    softmax, Bengio & Senecal 2008, eq. 11). A slate with k positives counts sqrt(k): between once a slate and once a
    positive. A slate's weight is the mean of its rows'.
    """
    corrected = logits - slates.log_rate
    offsets = slates.offsets
    weight = segment_sum(slates.weight, offsets) / offsets.diff().clamp(min=1)
    total = torch.zeros(())
    for kept, share in ((known, 1.0), (known & slates.fresh, FRESH_WEIGHT)):
        gain = gains * kept
        scores = corrected.masked_fill(~kept, -1e9)
        counted = weight * segment_sum(gain, offsets).sqrt()
        total = total + share * listwise_softmax(scores, gain, offsets, counted, mean=mean)
    return total


@torch.no_grad()
def _mean_loss(ranker: Ranker, slates: Slates, heads: Sequence[HeadConfig]) -> float:
    ranker.eval()
    total = 0.0
    for which in torch.split(torch.arange(len(slates)), CHUNK):
        total += float(_loss(ranker, slates.groups(which), heads)) * len(which)
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
) -> RankingFit:
    """Train in place; the weights of the best validation epoch stay. `on_step(done, total)` in slates. vectors: of
    entities, which a network that reads histories needs; it does not move them.

    `config.ranking_learning_rate` is the peak of the cycle. Runs on one thread: its matrices are small. Raises
    ValueError where `train` is empty or an input is not finite.
    """
    if not len(train):
        raise ValueError("there is nothing to train on")
    with torch_threads(1):
        return _fit(ranker, Slates.of(train, vectors), Slates.of(valid, vectors), heads, config, on_epoch, on_step)


def _fit(
    ranker: Ranker,
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
    adam = torch.optim.AdamW(ranker.parameters(), lr=config.ranking_learning_rate, weight_decay=WEIGHT_DECAY)
    # Few slates would make few steps: smaller batches then, down to one slate.
    batch = max(min(config.ranking_batch, len(train) // LEAST_STEPS), 1)
    steps = config.ranking_epochs * -(-len(train) // batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: _one_cycle(step, steps))
    rng = np.random.default_rng(config.seed)
    fit = RankingFit(validation=[_mean_loss(ranker, valid, heads)])
    kept, waited, total = copy.deepcopy(ranker.state_dict()), 0, config.ranking_epochs * len(train)
    for epoch in range(1, config.ranking_epochs + 1):
        ranker.train()
        losses, done = [], (epoch - 1) * len(train)
        for which in torch.split(torch.from_numpy(rng.permutation(len(train))), batch):
            loss = _loss(ranker, train.groups(which), heads)
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
            losses.append(float(loss.detach()))
            done += len(which)
            if on_step:
                on_step(done, total)
        fit.training.append(float(np.mean(losses)))
        fit.validation.append(_mean_loss(ranker, valid, heads))
        if fit.validation[-1] < fit.validation[fit.best_epoch]:
            kept, waited, fit.best_epoch = copy.deepcopy(ranker.state_dict()), 0, epoch
        else:
            waited += 1
        if on_epoch:
            on_epoch(epoch, fit)
        if waited >= config.patience:
            break
    ranker.load_state_dict(kept)
    _calibrate(ranker, valid, heads)
    return fit


def _one_cycle(step: int, steps: int) -> float:
    """Share of the peak learning rate at `step` of `steps`: a rising line, then half a cosine down to nothing."""
    warm = max(round(steps * WARM_UP), 1)
    if step < warm:
        return (step + 1) / warm
    return float(0.5 * (1 + np.cos(np.pi * min((step - warm) / max(steps - warm, 1), 1.0))))


def calibrate(ranker: Ranker, valid: Examples, heads: Sequence[HeadConfig]) -> None:
    """Platt scaling of every binary head. Heads without examples of both labels stay."""
    _calibrate(ranker, Slates.of(valid), heads)


def _calibrate(ranker: Ranker, valid: Slates, heads: Sequence[HeadConfig]) -> None:
    ranker.eval()
    with torch.no_grad():
        parts = [logits_of(ranker, valid.groups(which)) for which in torch.split(torch.arange(len(valid)), CHUNK)]
    for column, head in enumerate(heads):
        target, known = torch.nan_to_num(valid.labels[:, column]), valid.labels[:, column].isfinite()
        if head.type != "binary" or not 0 < float(target.sum()) < float(known.sum()):
            continue
        # Two numbers are fitted to thousands of rows, so variance is no concern, and weighting is exact for every
        # head, also where one head's negative is another's positive.
        counted = valid.weight * known * (-valid.log_rate).exp()
        slope, shift = _platt(torch.cat(parts)[:, column].double(), target.double(), counted.double())
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
