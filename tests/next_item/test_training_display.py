"""The bar of a training ends where the training will, as far as one knows."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest

from mainstem.next_item import TrainingDisplay, display
from mainstem.next_item.runs import Epoch, Run


@pytest.mark.parametrize(("minutes", "ends"), [(math.inf, 6_000), (100.0, 6_000), (10.0, 3_000)])
def test_the_bar_ends_with_patience_or_when_the_time_is_up(
    monkeypatch: pytest.MonkeyPatch, minutes: float, ends: int
) -> None:
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(display, "time", SimpleNamespace(monotonic=lambda: clock.now))
    bars: list[tuple[int, int]] = []
    lines: list[str] = []
    shown = TrainingDisplay(lambda stage, done, total: bars.append((done, total)), lines.append, "ours", minutes)
    run = Run()
    shown.begin("choose", run, most=200, patience=5, actions=1_000)
    clock.now = 100.0  # 5 actions a second
    shown.step(500)
    assert bars[-1] == (500, ends)
    clock.now = 200.0
    shown.step(500)
    run.epochs.append(Epoch(1, 1.0, 0.1, 200.0))
    run.best = 1
    clock.now = 900.0  # asking validation took its time, which does not count
    shown.epoch(run)
    clock.now = 1_000.0
    shown.step(500)
    assert bars[-1] == (1_500, ends)
    assert lines == ["ours, training: epoch 1, loss 1.0000, validation NDCG@10 0.1000 (the best), 200 s"]
    run.over = True
    shown.epoch(run)
    assert bars[-1] == (1_000, 1_000), "over"
