"""Predicted against observed: bins of a world with known chances, and the same figures in table, JSON and plot."""

from __future__ import annotations

import json
import re
from io import StringIO

import numpy as np
import pytest
from rich.console import Console

from mainstem.evaluate import Calibration, Evaluation, calibration_of


def world(share: float = 1.0) -> Calibration:
    """A hundred thousand candidates that happen with `share` of the predicted chance; a tenth is not known."""
    rng = np.random.default_rng(0)
    predicted = rng.beta(0.3, 6.0, 100_000)
    observed = (rng.random(len(predicted)) < share * predicted).astype(np.float64)
    observed[::10] = np.nan
    found = calibration_of("purchase", predicted, observed)
    assert found is not None
    return found


def test_what_is_calibrated_lies_on_the_line_and_what_is_not_does_not() -> None:
    found = world()
    assert sum(found.examples) == 90_000
    assert len(found.predicted) == 10
    for predicted, observed, spread in zip(found.predicted, found.observed, found.spread, strict=True):
        assert spread is not None
        assert observed == pytest.approx(predicted, abs=4 * spread + 1e-4)
    assert found.error < 0.003
    assert world(0.5).error == pytest.approx(np.mean(found.predicted) / 2, rel=0.1)  # canary


def test_nothing_known_is_no_calibration_and_one_bin_has_no_spread() -> None:
    assert calibration_of("a", np.ones(3), np.full(3, np.nan)) is None
    found = calibration_of("a", np.ones(1), np.zeros(1))
    assert found is not None
    assert found.spread == (None,)
    assert found.error == 1.0


def test_table_json_and_plot_say_the_same() -> None:
    found = world()
    evaluation = Evaluation("p", {"mainstem": {}}, calibration=(found,))
    [head] = json.loads(evaluation.json())["calibration"]
    assert head == {
        **found.as_dict(),
        **{name: list(getattr(found, name)) for name in head if name not in ("head", "error")},
    }
    html = evaluation.html()
    assert html.count("<circle") == 10
    shown = StringIO()
    Console(file=shown, width=100).print(found.table())
    for value in found.predicted:
        assert f"{value:.4g}" in html
        assert f"{value:.4g}" in shown.getvalue()
    heights = [float(y) for y in re.findall(r'<circle cx="[\d.]+" cy="([\d.]+)"', html)]
    assert heights == sorted(heights, reverse=True)  # what is predicted higher was observed higher
