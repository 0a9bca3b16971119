"""Evaluation that can be believed: metrics, online baselines, prequential replay, and what is shown of them.

metrics.py      full-ranking metrics, AUC and logloss, paired intervals; the tie rule is stated there
latency.py      percentiles in bounded memory
baselines.py    popular lately, user counts, recency-weighted counts: the protocol `learn` / `rank`
neighbours.py   item-item neighbours, incremental and bounded
replay.py       the past as live traffic: ask, score, checkpoint, post, learn
results.py      running sums and what is derived from them; the JSON summary
display.py      the live display and the final table
report.py       the HTML report, with charts.py
calibration.py  what heads predict against what is observed, as table, JSON and plot
table.py        results of `mainstem evaluate` as table, JSON and plot
"""

from __future__ import annotations

from mainstem.evaluate.baselines import Baseline, PopularLately, RecencyCounts, UserCounts
from mainstem.evaluate.calibration import Calibration, calibration_of
from mainstem.evaluate.display import ReplayDisplay, final_table
from mainstem.evaluate.latency import Latency
from mainstem.evaluate.neighbours import ItemNeighbours
from mainstem.evaluate.replay import Basket, Replay, ReplayClient, load_state, save_state
from mainstem.evaluate.report import machine, write_report
from mainstem.evaluate.results import Results
from mainstem.evaluate.table import Evaluation

__all__ = [
    "Baseline",
    "Basket",
    "Calibration",
    "Evaluation",
    "ItemNeighbours",
    "Latency",
    "PopularLately",
    "RecencyCounts",
    "Replay",
    "ReplayClient",
    "ReplayDisplay",
    "Results",
    "UserCounts",
    "calibration_of",
    "default_baselines",
    "final_table",
    "load_state",
    "machine",
    "save_state",
    "write_report",
]


def default_baselines() -> list[Baseline]:
    """The four rivals of the demo, fresh: popular lately, user counts, recency counts, item neighbours."""
    return [PopularLately(), UserCounts(), RecencyCounts(), ItemNeighbours()]
