"""Trains the ranking network on examples: listwise softmax on binary heads, Huber on value heads; then calibrates.

The listwise loss leaves a slate's level free, so binary heads are calibrated afterwards on the validation
examples: Platt scaling (Platt 1999) of the logit with the log-odds correction for sampled negatives, folded
into the last layer. It changes no order.
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

__all__ = ["RankingFit", "calibrate", "fit_ranker", "ranking_loss"]


@dataclass(slots=True)
class RankingFit:
    """What happened: the loss on the validation examples before training and after each epoch, and the best one."""

    validation: list[float] = field(default_factory=list)
    training: list[float] = field(default_factory=list)
    best_epoch: int = 0


def _tensors(examples: Examples) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    return (
        torch.from_numpy(examples.inputs),
        torch.from_numpy(examples.labels),
        torch.from_numpy(examples.offsets),
        torch.from_numpy(examples.weight),
        torch.from_numpy(examples.negative_rate),
    )


def ranking_loss(ranker: Ranker, examples: Examples, heads: Sequence[HeadConfig]) -> Tensor:
    """Sum over heads of their weighted loss on these examples. Labels that are NaN do not count."""
    x, labels, offsets, weight, rate = _tensors(examples)
    fresh = torch.from_numpy(examples.fresh)
    logits = ranker(x)
    total = torch.zeros(())
    for column, head in enumerate(heads):
        known = labels[:, column].isfinite()
        target = torch.nan_to_num(labels[:, column])
        if head.type == "binary":
            loss = _listwise(logits[:, column], target * known, rate, fresh, offsets, weight)
        else:
            loss = value(logits[:, column], target, weight * known)
        total = total + head.weight * loss
    return total


# Weight of the second softmax, among what is new to the user alone: slates with `new_only` are one use of the
# same scores, and there the first softmax, won by what is bought again and again, teaches little.
FRESH_WEIGHT = 0.5


def _listwise(logits: Tensor, gains: Tensor, rate: Tensor, fresh: Tensor, offsets: Tensor, weight: Tensor) -> Tensor:
    """Softmax over the slate's candidates, and over the fresh ones among them.

    A negative stands for 1/rate of its kind, so its logit is raised by -log(rate) (sampled softmax, Bengio &
    Senecal 2008, eq. 11). A slate with k positives counts sqrt(k): between once a slate and once a positive.
    """
    corrected = logits - torch.where(gains > 0, torch.zeros_like(rate), rate.log())
    total = torch.zeros(())
    for kept, share in ((torch.ones_like(fresh), 1.0), (fresh, FRESH_WEIGHT)):
        gain = gains * kept
        positives = segment_sum(gain, offsets)
        first = weight[offsets[:-1].clamp(max=len(weight) - 1)]
        scores = corrected.masked_fill(~kept, -1e9)
        total = total + share * listwise_softmax(scores, gain, offsets, first * positives.sqrt())
    return total


@torch.no_grad()
def _mean_loss(ranker: Ranker, examples: Examples, heads: Sequence[HeadConfig], chunk: int = 512) -> float:
    ranker.eval()
    total = 0.0
    for start in range(0, len(examples), chunk):
        part = examples.groups(np.arange(start, min(start + chunk, len(examples))))
        total += float(ranking_loss(ranker, part, heads)) * len(part)
    return total / max(len(examples), 1)


def fit_ranker(
    ranker: Ranker,
    train: Examples,
    valid: Examples,
    heads: Sequence[HeadConfig],
    config: TrainConfig,
    on_epoch: Callable[[int, RankingFit], None] | None = None,
    on_step: Callable[[int, int], None] | None = None,
) -> RankingFit:
    """Train in place; the weights of the best validation epoch stay. `on_step(done, total)` in slates."""
    ranker.fit_normaliser(torch.from_numpy(train.inputs))
    adam = torch.optim.AdamW(ranker.parameters(), lr=config.ranking_learning_rate, weight_decay=1e-4)
    steps = config.ranking_epochs * -(-len(train) // config.ranking_batch)
    schedule = torch.optim.lr_scheduler.LambdaLR(adam, lambda step: max(1.0 - step / max(steps, 1), 0.02))
    rng = np.random.default_rng(config.seed)
    fit = RankingFit(validation=[_mean_loss(ranker, valid, heads)])
    best, kept, waited = fit.validation[0], copy.deepcopy(ranker.state_dict()), 0
    for epoch in range(1, config.ranking_epochs + 1):
        ranker.train()
        order, losses = rng.permutation(len(train)), []
        for start in range(0, len(order), config.ranking_batch):
            loss = ranking_loss(ranker, train.groups(order[start : start + config.ranking_batch]), heads)
            adam.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            adam.step()
            schedule.step()
            losses.append(float(loss.detach()))
            if on_step:
                on_step((epoch - 1) * len(order) + start + config.ranking_batch, config.ranking_epochs * len(order))
        fit.training.append(float(np.mean(losses)))
        fit.validation.append(_mean_loss(ranker, valid, heads))
        if fit.validation[-1] < best:
            best, kept, waited = fit.validation[-1], copy.deepcopy(ranker.state_dict()), 0
            fit.best_epoch = epoch
        else:
            waited += 1
        if on_epoch:
            on_epoch(epoch, fit)
        if waited >= config.patience:
            break
    ranker.load_state_dict(kept)
    calibrate(ranker, valid, heads)
    return fit


def calibrate(ranker: Ranker, valid: Examples, heads: Sequence[HeadConfig]) -> None:
    """Platt scaling of every binary head, folded into the last layer. Needs examples of both labels."""
    ranker.eval()
    x, labels, _, weight, rate = _tensors(valid)
    with torch.no_grad():
        logits = ranker(x)
    for column, head in enumerate(heads):
        target, known = torch.nan_to_num(labels[:, column]), labels[:, column].isfinite()
        if head.type != "binary" or not 0 < float(target.sum()) < float(known.sum()):
            continue
        log_slope, shift = torch.zeros((), requires_grad=True), torch.zeros((), requires_grad=True)
        search = torch.optim.LBFGS([log_slope, shift], max_iter=50, line_search_fn="strong_wolfe")

        def closure(
            column: int = column,
            target: Tensor = target,
            counted: Tensor = weight * known,
            log_slope: Tensor = log_slope,
            shift: Tensor = shift,
            search: torch.optim.LBFGS = search,
        ) -> Tensor:
            search.zero_grad()
            loss = binary(logits[:, column] * log_slope.exp() + shift, target, counted, rate)
            loss.backward()  # type: ignore[no-untyped-call]
            return loss

        search.step(closure)  # type: ignore[no-untyped-call]
        _fold(ranker, column, float(log_slope.detach().exp()), float(shift.detach()))


@torch.no_grad()
def _fold(ranker: Ranker, column: int, slope: float, shift: float) -> None:
    """logit -> slope * logit + shift of one head, inside the weights."""
    ranker.wide.weight[column] *= slope
    ranker.wide.bias[column] = ranker.wide.bias[column] * slope + shift
    if ranker.heads is not None:
        ranker.heads.weight[column] *= slope
