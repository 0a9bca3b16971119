"""Steps of the ranking network on the stream: slates whose labels became known, and the level of binary heads.

Order and level are learned apart, as offline. The order, and all that other heads predict, from each label as it comes:
a revision takes back the loss of what was known before and adds that of what is known now, so at given weights a
slate's gradients sum to that of its last labels, whatever the order of arrival. The level of binary heads, two numbers
each, from slates whose windows have passed: only there is a missing label an answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from mainstem.models import Ranker
from mainstem.schema.config import HeadConfig, TrainConfig
from mainstem.schema.examples import Examples, Revision, answered
from mainstem.schema.protocols import Floats
from mainstem.train.meetings import Vectors
from mainstem.train.ranking import WEIGHT_DECAY
from mainstem.train.ranking_loss import Slates, loss_of, raw_of, said
from mainstem.train.wide import Wide

__all__ = ["RankingLearner"]

# Slates after which one counts 1/e in the level, and the information (sum of p (1 - p)) that the level starts with.
MEMORY = 1_000
PRIOR = 100.0
LEAST_SLOPE = 0.1


class RankingLearner:
    """`ranker` with its optimizer (AdamW) and the curvature of its level; not safe for several threads. vectors: of
    entities as they are when it is asked, for a network that reads histories; it does not move them. wide: its wide
    part, where it has one."""

    def __init__(
        self, ranker: Ranker, heads: Sequence[HeadConfig], train: TrainConfig, vectors: Vectors | None = None,
        wide: Wide | None = None,
    ) -> None:  # fmt: skip
        self.ranker, self.heads, self.train, self.wide = ranker, list(heads), train, wide
        self.vectors = None if ranker.interest is None else vectors
        self.rate = train.online.ranking_learning_rate
        self.adam = torch.optim.AdamW(ranker.parameters(), lr=self.rate, weight_decay=WEIGHT_DECAY)
        self.curvature: NDArray[np.float64] = np.tile(PRIOR * np.eye(2), (len(self.heads), 1, 1))
        """Of each head's log-likelihood in (slope, shift), older slates counting less: [h, 2, 2]."""

    def step(self, revisions: Sequence[Revision]) -> float:
        """One optimizer step on revisions of one slate each; the mean loss of their labels before it, NaN without any.

        A slate moves the weights by the same in a small batch as in a full one of `train.ranking_batch`. Raises
        FloatingPointError where loss or gradient is not finite; weights are then as they were, new ones of crosses 0.
        """
        if not revisions or not self.rate:
            return float("nan")
        whole = Revision.concat(revisions)
        slates, before = self._slates(whole.examples), torch.from_numpy(whole.before)
        self.ranker.train()
        raw = raw_of(self.ranker, slates, self._crossed(slates, whole.before))
        known = loss_of(self.ranker, raw, slates, slates.labels, self.heads, mean=False)
        change = known - loss_of(self.ranker, raw, slates, before, self.heads, mean=False)
        batch = max(self.train.ranking_batch, len(revisions))
        full = min(len(revisions) / self.train.ranking_batch, 1.0)
        for group in self.adam.param_groups:
            group["lr"] = self.rate * full
        self.adam.zero_grad(set_to_none=True)
        (change / batch).backward()  # type: ignore[no-untyped-call]
        gradients = (parameter.grad for parameter in self.ranker.parameters())
        finite = all(bool(gradient.isfinite().all()) for gradient in gradients if gradient is not None)
        finite = finite and (self.wide is None or self.wide.finite())
        if not (finite and bool(known.detach().isfinite())):
            raise FloatingPointError("the ranking loss of a step or its gradient is not finite")
        self.adam.step()
        if self.wide is not None:
            self.wide.learn(batch)
        return float(loss_of(self.ranker, raw.detach(), slates, slates.labels, self.heads).detach())

    @torch.no_grad()
    def level(self, closed: Sequence[Examples]) -> None:
        """Follow the level of binary heads: an online Newton step of Platt scaling a slate, with forgetting."""
        for examples in closed if self.rate else ():
            parts = self.ranker.split(self._raw(examples).double())
            for column, (head, part) in enumerate(zip(self.heads, parts, strict=True)):
                if head.type == "binary":
                    self._follow(column, part[:, 0].numpy(), (examples.labels[:, column] > 0).astype(np.float64))

    @torch.no_grad()
    def order(self, examples: Examples) -> Floats:
        """What examples are ordered by, head for head: `Ranker.order` [n, h]."""
        found: Floats = self.ranker.order(self._raw(examples)).numpy()
        return found

    def _raw(self, examples: Examples) -> Tensor:
        self.ranker.eval()
        slates = self._slates(examples)
        return raw_of(self.ranker, slates, said(self.wide, slates))

    def _slates(self, examples: Examples) -> Slates:
        return Slates.of(examples, self.heads, self.vectors, None if self.wide is None else self.wide.crosses)

    def _crossed(self, slates: Slates, before: Floats) -> Tensor | None:
        """What the wide part says of each candidate, for a step. before [n, h]: the labels that were learned from."""
        if self.wide is None or slates.crossings is None:
            return None
        crossings = slates.crossings.newly(torch.from_numpy(answered(before, self.heads)))
        return self.wide.look_up(crossings, admit=True)

    def _follow(self, column: int, logits: NDArray[np.float64], labels: NDArray[np.float64]) -> None:
        slope, shift = self.ranker.slope, self.ranker.shift
        chance = 1.0 / (1.0 + np.exp(-np.clip(float(slope[column]) * logits + float(shift[column]), -30, 30)))
        inputs = np.stack([logits, np.ones_like(logits)])
        information = (inputs * (chance * (1 - chance))) @ inputs.T
        self.curvature[column] = self.curvature[column] * (1 - 1 / MEMORY) + information
        moved = np.linalg.solve(self.curvature[column], inputs @ (labels - chance))
        slope[column] = max(float(slope[column]) + moved[0], LEAST_SLOPE)
        shift[column] += moved[1]

    def state(self) -> dict[str, Any]:
        """All but the heads and the table of crosses, for `flatten`."""
        return {
            "module": self.ranker.state_dict(), "adam": self.adam.state_dict(), "curvature": self.curvature.copy(),
        }  # fmt: skip

    def load(self, state: dict[str, Any]) -> None:
        """Take up what `state` gave."""
        self.ranker.load_state_dict(state["module"])
        self.adam.load_state_dict(state["adam"])
        self.curvature = state["curvature"].copy()
