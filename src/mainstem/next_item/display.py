"""The training on a terminal: a bar with the time left, and above it a line for each epoch that is over."""

from __future__ import annotations

import math
import time
from collections.abc import Callable

from mainstem.next_item.runs import Run, Watch
from mainstem.progress import Show

__all__ = ["TrainingDisplay"]


class TrainingDisplay(Watch):
    """show: the bars (`progress.stages`); say: a line of text; minutes: after which training ends. The bar's end is
    where training ends if no epoch is better than the best so far, or where it will be when the time is up: so is the
    time left."""

    def __init__(self, show: Show, say: Callable[[str], None], name: str, minutes: float = math.inf) -> None:
        self.show, self.say, self.name, self.limit = show, say, name, 60 * minutes

    def begin(self, stage: str, run: Run, most: int, patience: int, actions: int) -> None:
        self.stage = f"{self.name}, {'to the end' if stage == 'refit' else 'training'}"
        self.most, self.patience, self.actions = most, patience, actions
        self.judged = stage != "refit"
        if run.epochs:
            self.say(f"{self.stage}: {'was over' if run.over else 'goes on'} after epoch {len(run.epochs)}")
        self._draw(run)

    def step(self, actions: int) -> None:
        self.done += actions
        # the last step is over only when validation has been asked
        total = self._within(self.total)
        self.show(self.stage, min(self.done, total - 1), total)

    def epoch(self, run: Run) -> None:
        self.say(f"{self.stage}: {told(run)}")
        self._draw(run)

    def _within(self, total: int) -> int:
        """How many actions of `total` there is time for, at the pace until now."""
        spent = self.before + time.monotonic() - self.began
        return total if self.limit == math.inf or not spent else max(min(total, int(self.done / spent * self.limit)), 1)

    def _draw(self, run: Run) -> None:
        self.done = len(run.epochs) * self.actions
        self.before, self.began = run.seconds, time.monotonic()
        epochs = self.most
        if run.over:
            epochs = len(run.epochs)
        elif self.judged:
            epochs = min(max(run.best, 1) + self.patience, self.most)
        self.total = max(epochs * self.actions, 1)
        self.show(self.stage, self.total if run.over else min(self.done, self.total - 1), self.total)


def told(run: Run) -> str:
    """The last epoch in a line."""
    last = run.epochs[-1]
    line = f"epoch {last.number}, loss {last.loss:.4f}"
    if last.validation is not None:
        line += f", validation NDCG@10 {last.validation:.4f}"
        best = run.epochs[run.best - 1]
        line += " (the best)" if best is last else f" (best {best.validation:.4f}, epoch {best.number})"
    return f"{line}, {last.seconds:,.0f} s"
