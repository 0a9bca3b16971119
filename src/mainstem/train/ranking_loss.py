"""What the ranking network minimises: an order loss of each binary head, the own loss of every other one.

| `model.ranking.loss` | of a slate | sees |
|---|---|---|
| `listwise` | softmax over its candidates, sqrt(positives) times | mostly the top |
| `pairwise` | mean over its pairs, sqrt(positives) times | all pairs alike |
| `pointwise` | sum over its candidates of the cross-entropy | each by itself; the level too |

Each has a second part, of half the weight, among what is new to the user alone: slates with `new_only` are one use of
the same scores, and there the first part, won by what is bought again and again, teaches little.

A label of a binary head above 0 is a positive, and says how much it counts beside the slate's others
(`HeadConfig.each_next`); 1 for all by default.

All of them are sums over slates, so that on the stream a label that was taken too early can be taken back.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from mainstem.models import Ranker
from mainstem.models.heads import BinaryHead
from mainstem.models.jagged import segment_ids, segment_sum
from mainstem.models.losses import listwise_softmax, pairwise
from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples, answered
from mainstem.train.meetings import Meetings, Vectors
from mainstem.train.wide import Crosses, Crossings, Wide

__all__ = ["Slates", "loss_of", "raw_of", "said"]

# Weight of the part among what is new to the user alone.
FRESH_WEIGHT = 0.5


@dataclass(frozen=True, slots=True)
class Slates:
    """Examples as tensors, made once.

    inputs [n, f], labels [n, h], log_chance [n], log_rate [n], fresh [n], weight [n], offsets [g + 1]; meetings: for a
    network that reads histories; crossings: for one with a wide part

    log_chance is the log of the chance that a row is among the examples at all: 0 for what an event of any head is
    about, as that was kept for certain, also where another head counts it as a negative. log_rate is that of the
    negatives of its stratum, the same for positives and negatives: what lowers the log-odds of a sample.
    """

    inputs: Tensor
    labels: Tensor
    log_chance: Tensor
    log_rate: Tensor
    fresh: Tensor
    weight: Tensor
    offsets: Tensor
    meetings: Meetings | None = None
    crossings: Crossings | None = None

    @classmethod
    def of(
        cls, examples: Examples, heads: Sequence[HeadConfig], vectors: Vectors | None = None,
        crosses: Crosses | None = None,
    ) -> Slates:  # fmt: skip
        """vectors: of entities, where the network reads histories; crosses: where it has a wide part. Raises ValueError
        where either needs histories and the examples have none."""
        log_rate = torch.from_numpy(examples.negative_rate).log()
        certain = torch.from_numpy(answered(examples.labels, heads))
        return cls(
            inputs=torch.from_numpy(examples.inputs),
            labels=torch.from_numpy(examples.labels),
            log_chance=log_rate.masked_fill(certain, 0.0),
            log_rate=log_rate,
            fresh=torch.from_numpy(examples.fresh),
            weight=torch.from_numpy(examples.weight),
            offsets=torch.from_numpy(examples.offsets),
            meetings=None if vectors is None else Meetings.of(examples, vectors),
            crossings=None if crosses is None else Crossings.of(examples, certain, crosses),
        )

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def groups(self, which: Tensor) -> Slates:
        """The groups at these places, in this order."""
        sizes = self.offsets.diff()[which]
        offsets = torch.cat((sizes.new_zeros(1), sizes.cumsum(0)))
        rows = torch.arange(int(offsets[-1])) + torch.repeat_interleave(self.offsets[which] - offsets[:-1], sizes)
        columns = (self.inputs, self.labels, self.log_chance, self.log_rate, self.fresh, self.weight)
        inputs, labels, log_chance, log_rate, fresh, weight = (column.index_select(0, rows) for column in columns)
        meetings = None if self.meetings is None else self.meetings.groups(which, rows)
        crossings = None if self.crossings is None else self.crossings.groups(which, rows)
        return Slates(inputs, labels, log_chance, log_rate, fresh, weight, offsets, meetings, crossings)

    def counted(self) -> Tensor:
        """What each row stands for: its weight, a drawn negative that of all from which it was drawn. [n]"""
        return self.weight * (-self.log_chance).exp()

    def slate_weight(self) -> Tensor:
        """The mean of each slate's rows' weights: [g]."""
        return segment_sum(self.weight, self.offsets) / self.offsets.diff().clamp(min=1)


def raw_of(ranker: Ranker, slates: Slates, crossed: Tensor | None = None) -> Tensor:
    """Raw outputs [n, outputs]; crossed [n, outputs]: what the wide part says, where the network has one. Raises
    ValueError where the network reads histories and the slates have none."""
    if ranker.interest is None:
        return ranker(slates.inputs, crossed=crossed)  # type: ignore[no-any-return]
    if slates.meetings is None:
        raise ValueError("this network reads histories: make slates with the entities' vectors")
    read = ranker.interest(slates.meetings.meeting())
    return ranker(slates.inputs, embeddings=read, crossed=crossed)  # type: ignore[no-any-return]


def said(wide: Wide | None, slates: Slates) -> Tensor | None:
    """What the wide part says of each candidate now, [n, outputs], without a gradient; None where there is none."""
    return None if wide is None or slates.crossings is None else wide.read(slates.crossings)


def loss_of(
    ranker: Ranker, raw: Tensor, slates: Slates, labels: Tensor, heads: Sequence[HeadConfig], *, mean: bool = True
) -> Tensor:
    """Weighted sum of the heads' losses of raw outputs [n, outputs] against labels [n, h], NaN where not known.

    Each head's is the mean over slates with a label (`value` and `ordinal` heads: over rows with one), or with
    mean=False the sum over them, which is then additive in slates.
    """
    total = torch.zeros(())
    parts = zip(heads, ranker.task_list(), ranker.split(raw), labels.unbind(dim=1), strict=True)
    for head, task, part, label in parts:
        if isinstance(task, BinaryHead):
            loss = _order_loss(ranker, part[:, 0], label, slates, mean)
        else:
            counted = slates.weight if _of_events_alone(head) else _even(slates, label)
            loss = task.loss(part, label, counted)
            if not mean:
                loss = loss * (counted * label.isfinite()).sum()
        total = total + head.weight * loss
    return total


def _of_events_alone(head: HeadConfig) -> bool:
    """Whether only rows that an event is about have a label: they were all kept, and count one by one."""
    return math.isnan(head.unanswered)


def _even(slates: Slates, label: Tensor) -> Tensor:
    """Weights of rows that have a label whatever happened: what each stands for, as a share of its slate. [n]"""
    counted = slates.counted() * label.isfinite()
    ids = segment_ids(slates.offsets, len(counted))
    total = segment_sum(counted, slates.offsets).clamp(min=1e-12)
    return counted * (slates.slate_weight() / total)[ids]


def _order_loss(ranker: Ranker, logits: Tensor, label: Tensor, slates: Slates, mean: bool) -> Tensor:
    """The loss of one binary head's logits [n]; a slate's weight is the mean of its rows'."""
    known, gains = label.isfinite(), torch.nan_to_num(label)
    if ranker.config.loss == "pointwise":
        return _pointwise(logits, gains, known, slates, mean)
    total = torch.zeros(())
    weight = slates.slate_weight()
    for kept, share in ((known, 1.0), (known & slates.fresh, FRESH_WEIGHT)):
        gain = gains * kept
        # between once a slate and once a positive
        counted = weight * segment_sum(gain, slates.offsets).sqrt()
        if ranker.config.loss == "listwise":
            # A negative that was drawn with chance r stands for 1 / r of its kind, so its logit is raised by -log r
            # (sampled softmax, Bengio & Senecal 2008, eq. 11).
            scores = (logits - slates.log_chance).masked_fill(~kept, -1e9)
            loss = listwise_softmax(scores, gain, slates.offsets, counted, mean=mean)
        else:
            # Which of two comes out better is seen r times as often where the worse was drawn with chance r: the same
            # correction of log-odds as candidate by candidate, on both sides.
            compared = (gain > 0).to(gain.dtype).masked_fill(~kept, torch.nan)
            each = torch.where(gain > 0, gain, 1.0)
            loss = pairwise(logits - slates.log_rate, compared, slates.offsets, counted, each=each, mean=mean)
        total = total + share * loss
    return total


def _pointwise(logits: Tensor, gains: Tensor, known: Tensor, slates: Slates, mean: bool) -> Tensor:
    """Cross-entropy, corrected for drawn negatives (King & Zeng 2001, see `losses.binary`), summed over each slate."""
    taken = (gains > 0).to(gains.dtype)
    losses = functional.binary_cross_entropy_with_logits(logits - slates.log_rate, taken, reduction="none")
    each = slates.weight * known * (1.0 + FRESH_WEIGHT * slates.fresh) * torch.where(gains > 0, gains, 1.0)
    total = (losses * each).sum()
    if not mean:
        return total
    slates_with_label = segment_sum(known.to(logits.dtype), slates.offsets) > 0
    return total / (slates.slate_weight() * slates_with_label).sum().clamp(min=1e-12)
