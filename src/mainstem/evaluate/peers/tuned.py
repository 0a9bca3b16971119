"""A peer with a grid of settings as a `NextItem`: each is fitted, the best on validation stays."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from mainstem.evaluate.next_item import LeaveOneOut, Mask, Scorer
from mainstem.schema.protocols import Floats

__all__ = ["Fit", "Tuned"]


Fit = Callable[..., Scorer]
"""`fit(data, learned, **settings)`: learn from the actions in the mask; what comes back scores every item at places."""


class Tuned:
    """grid: settings of `fit`, at least one; of equal ones on validation the first stays. seed: handed to `fit` where
    it draws; None where nothing is drawn."""

    def __init__(self, name: str, fit: Fit, grid: Sequence[Mapping[str, Any]], seed: int | None = None) -> None:
        self.name, self.grid, self.seed = name, grid, seed
        self.seconds = 0.0
        self._fit = fit
        self._best: Mapping[str, Any] = grid[0]
        self._scorer: Scorer | None = None
        self._judged: list[dict[str, Any]] = []

    def choose(self, data: LeaveOneOut, learned: Mask, judge: Callable[[], float]) -> None:
        best: tuple[float, float, Scorer] | None = None
        for settings in self.grid:
            scorer, seconds = self._fitted(data, learned, settings)
            self._scorer = scorer
            found = judge() if len(self.grid) > 1 else 0.0
            self._judged.append({**settings, "ndcg": round(found, 5)})
            if best is None or found > best[0]:
                best, self._best = (found, seconds, scorer), settings
        if best is not None:
            _, self.seconds, self._scorer = best

    def refit(self, data: LeaveOneOut, learned: Mask) -> None:
        self._scorer, self.seconds = self._fitted(data, learned, self._best)

    def scores(self, data: LeaveOneOut, places: Any) -> Floats:
        if self._scorer is None:
            raise RuntimeError(f"{self.name} was not fitted")
        return self._scorer(data, places)

    def settled(self) -> Mapping[str, Any]:
        return {**self._best, "validation": self._judged} if len(self.grid) > 1 else dict(self._best)

    def _fitted(self, data: LeaveOneOut, learned: Mask, settings: Mapping[str, Any]) -> tuple[Scorer, float]:
        began = time.monotonic()
        drawn = {} if self.seed is None else {"seed": self.seed}
        scorer = self._fit(data, learned, **settings, **drawn)
        return scorer, time.monotonic() - began
