"""Tables, JSON and plots say the same, with spread over seeds and by segment."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from mainstem.evaluate.comparison import Comparison
from mainstem.evaluate.next_item import Outcome

SHOWN = np.array([[0, 1], [0, 2], [1, 0]])
FOUND = Comparison(
    "what was asked",
    {
        "ours": [
            Outcome(np.array([0, 1, 20]), SHOWN, 2.0, 5.0, 1.5), Outcome(np.array([0, 0, 20]), SHOWN, 4.0, 5.0, 1.7)
        ],
        "theirs": [Outcome(np.array([4, 20, 20]), SHOWN, 1.0, 1.0, None, {"l2": 5})],
    },
    {"all": np.ones(3, np.bool_), "few": np.array([False, False, True]), "none": np.zeros(3, np.bool_)},
    np.array([5, 3, 1, 0]),
    (10, 1),
    {"data": "made up"},
    {"absent": "pip install 'it[all]'"},
)  # fmt: skip


def test_mean_and_spread_are_over_seeds() -> None:
    figures = FOUND.figures("ours")
    assert list(figures) == ["hr@10", "ndcg@10", "hr@1", "ndcg@1"]
    assert figures["hr@1"] == {"mean": 0.5, "spread": pytest.approx(0.2357, abs=1e-4), "seeds": [0.33333, 0.66667]}
    assert FOUND.figures("theirs")["hr@10"] == {"mean": 0.33333, "spread": None, "seeds": [0.33333]}
    seconds = FOUND.beyond("ours")["seconds"]
    assert (seconds["mean"], seconds["spread"]) == (3.0, pytest.approx(1.41421))
    assert FOUND.beyond("ours")["coverage@10"]["mean"] == 0.75


def test_a_segment_of_nobody_has_no_figure() -> None:
    assert FOUND.figures("ours", "few")["hr@10"]["mean"] == 0
    assert FOUND.figures("ours", "none")["hr@10"] == {"mean": None, "spread": None, "seeds": [None, None]}


def test_gains_are_paired_by_user() -> None:
    gain = FOUND.gain("ours", "theirs")
    expected = np.mean([1 - 1 / np.log2(6), (1 + 1 / np.log2(3)) / 2, 0])
    assert gain["mean"] == pytest.approx(expected, abs=1e-5)
    assert gain["low"] <= gain["mean"] <= gain["high"]
    assert FOUND.gain("ours", "ours") == {"mean": 0, "low": 0, "high": 0}


def test_json_holds_it_all() -> None:
    told = json.loads(FOUND.json())
    assert told == json.loads(json.dumps(FOUND.as_dict()))
    assert told["systems"]["theirs"]["settled"] == [{"l2": 5}]
    assert "ours gains ndcg@10" in told["systems"]["theirs"]
    assert "ours gains ndcg@10" not in told["systems"]["ours"]
    assert told["segments"] == {"all": 3, "few": 1, "none": 0}
    assert told["left out"] == {"absent": "pip install 'it[all]'"}


def test_tables_show_it_to_people() -> None:
    console = Console(width=200, record=True, file=Path("/dev/null").open("w"))  # noqa: SIM115 - rich keeps what it prints
    with console.file:
        console.print(*FOUND.tables())
    text = console.export_text()
    assert "0.5000 ± 0.2357" in text
    assert "what was asked" in text
    assert "absent: not run. pip install 'it[all]'" in text
    assert "–" in text, "nobody is of the segment `none`"


def test_plots_are_one_file(tmp_path: Path) -> None:
    path = FOUND.write(tmp_path / "new" / "found.html", "A <title>")
    text = path.read_text()
    assert "A &lt;title&gt;" in text
    assert text.count("<svg") == 5, "four metrics, and one segment that is somebody's"
