"""How a training stands, epoch by epoch, and who is told."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

__all__ = ["Epoch", "Run", "Watch"]


@dataclass(frozen=True, slots=True)
class Epoch:
    """One that is over: its number from 1, its mean loss, NDCG@10 on validation (None: nobody asked), and seconds of
    training since the first."""

    number: int
    loss: float
    validation: float | None
    seconds: float


@dataclass(slots=True)
class Run:
    """How a fit stands: the epochs so far, which was best (0: none was judged), and the average (see `averaging`) up to
    the best, which counts, and up to the last."""

    epochs: list[Epoch] = field(default_factory=list)
    best: int = 0
    kept: dict[str, Any] | None = None
    average: dict[str, Any] | None = None
    over: bool = False

    @property
    def seconds(self) -> float:
        return self.epochs[-1].seconds if self.epochs else 0.0

    def figures(self) -> list[float]:
        return [each.validation for each in self.epochs if each.validation is not None]


class Watch:
    """What is told of a training; this one says nothing."""

    def begin(self, stage: str, run: Run, most: int, patience: int, actions: int) -> None:
        """A fit of at most so many epochs of so many actions begins, or goes on after those of `run`."""

    def step(self, actions: int) -> None:
        """So many more of this epoch's actions are learned from."""

    def epoch(self, run: Run) -> None:
        """The last epoch of `run` is over."""
