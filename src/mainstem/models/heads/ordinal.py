"""A grade on an ordered scale: stars, satisfaction, how far a video was watched in steps."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.heads.protocol import known, weighted_mean

__all__ = ["OrdinalHead"]

_GAP = 1e-4
"""Least distance of thresholds: a grade that nobody gives keeps a finite log likelihood."""


class OrdinalHead(nn.Module):
    """Cumulative logit link (McCullagh 1980, "Regression Models for Ordinal Data", section 2).

        P(label <= levels[k]) = sigmoid(threshold_k - raw)

    One direction of the network's output moves the whole distribution; the thresholds say where the grades lie on
    it. They rise by construction: the first is free, each further one adds a softplus. The loss is the negative log
    likelihood of the observed grade.
    """

    levels: Tensor

    def __init__(self, levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)) -> None:
        """levels: the grades in the event's own unit, rising. Thresholds start where all grades are equally likely.

        Raises ValueError on fewer than two levels, or levels that do not rise.
        """
        super().__init__()
        if len(levels) < 2 or any(b <= a for a, b in pairwise(levels)):
            raise ValueError(f"levels must be at least two and rise, not {levels}")
        self.outputs = 1
        self.register_buffer("levels", torch.tensor(levels))
        start = (torch.arange(1, len(levels)) / len(levels)).logit()
        self.first = nn.Parameter(start[:1].clone())
        self.steps = nn.Parameter((start.diff() - _GAP).expm1().log())  # the inverse of softplus

    @property
    def thresholds(self) -> Tensor:
        """[levels - 1], strictly rising."""
        return torch.cat((self.first, self.first + self._gaps().cumsum(0)))

    def loss(self, raw: Tensor, labels: Tensor, weights: Tensor | None = None) -> Tensor:
        """raw [n, 1]; labels [n], each one of the levels or NaN; weights [n]. A scalar.

        Raises ValueError on a label between the levels.
        """
        labels = labels.to(self.levels.dtype).contiguous()
        place = torch.searchsorted(self.levels, labels).clamp(max=len(self.levels) - 1)  # NaN falls behind the last
        if not bool(((self.levels[place] == labels) | labels.isnan()).all()):
            raise ValueError(f"labels must be among {self.levels.tolist()}")
        _, weights = known(raw, labels, weights)
        return weighted_mean(-self.log_chances(raw).gather(1, place[:, None])[:, 0], weights)

    def log_chances(self, raw: Tensor) -> Tensor:
        """log P of each level: [n, levels], finite however far raw lies from the thresholds.

        sigmoid(b) - sigmoid(a) = sigmoid(b) sigmoid(-a) (1 - exp(a - b)): no difference of near equals is taken.
        """
        below = functional.logsigmoid(self.thresholds - raw)  # [n, levels - 1]: log P(label <= level k)
        above = functional.logsigmoid(raw - self.thresholds)  # log P(label > level k)
        between = torch.log(-torch.expm1(-self._gaps()))
        return torch.cat((below[:, :1], below[:, 1:] + above[:, :-1] + between, above[:, -1:]), dim=1)

    def predict(self, raw: Tensor) -> Tensor:
        """raw [n, 1] -> the expected grade [n], in the levels' unit."""
        above = (raw - self.thresholds).sigmoid()
        return self.levels[0] + above @ self.levels.diff()

    @torch.no_grad()
    def start(self, labels: Tensor, weights: Tensor) -> Tensor:
        """Zero, with thresholds that give each grade its share (of all labels and one more of each grade): [1]."""
        is_known = ~labels.isnan()
        place = torch.searchsorted(self.levels, labels[is_known].to(self.levels.dtype).contiguous())
        count = torch.ones_like(self.levels)
        if bool(is_known.any()):
            own = weights[is_known].to(count.dtype)
            count.index_add_(0, place.clamp(max=len(count) - 1), own)
        thresholds = (count.cumsum(0) / count.sum())[:-1].logit()
        self.first.copy_(thresholds[:1])
        self.steps.copy_((thresholds.diff() - _GAP).clamp(min=_GAP).expm1().log())  # the inverse of softplus
        return labels.new_zeros(1)

    def _gaps(self) -> Tensor:
        return functional.softplus(self.steps) + _GAP
