"""Recommenders beside each other: mean and spread over seeds, by segment, as table, JSON and plots."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich import box
from rich.console import RenderableType
from rich.table import Table
from rich.text import Text

from mainstem.evaluate.charts import Bar, bar_chart
from mainstem.evaluate.metrics import coverage, novelty, paired_interval
from mainstem.evaluate.next_item import Outcome, hit, ndcg
from mainstem.evaluate.report import machine, page

__all__ = ["SHOWN", "Comparison"]

SHOWN = 10
"""Items of each answer whose coverage and novelty are told."""
_METRICS = {"hr": hit, "ndcg": ndcg}
_DIGITS = 5


@dataclass(frozen=True, slots=True)
class Comparison:
    """What recommenders answered to the same questions: `outcomes` by name, each by seed, ours first.

    segments: bool [q] each, `all` first. counts int64 [items]: how often each item is learned from. left_out: by
    name why a recommender is not there.
    """

    protocol: str
    outcomes: Mapping[str, Sequence[Outcome]]
    segments: Mapping[str, NDArray[np.bool_]]
    counts: NDArray[np.int64]
    ks: tuple[int, ...] = (10, 5)
    facts: Mapping[str, Any] = field(default_factory=dict)
    left_out: Mapping[str, str] = field(default_factory=dict)

    def figures(self, name: str, segment: str = "all") -> dict[str, dict[str, Any]]:
        """`hr@k` and `ndcg@k` -> mean and spread (standard deviation) over seeds, and each seed's; None where nobody
        is of the segment, and no spread of one seed."""
        of = self.segments[segment]
        return {
            f"{metric}@{k}": _spread([float(score(each.rank[of], k).mean()) if of.any() else None
                                      for each in self.outcomes[name]])
            for k in self.ks
            for metric, score in _METRICS.items()
        }  # fmt: skip

    def beyond(self, name: str) -> dict[str, dict[str, Any]]:
        """Coverage and novelty of what was shown, seconds of training and peak memory."""
        outcomes = self.outcomes[name]
        return {
            f"coverage@{SHOWN}": _spread([coverage(each.shown, SHOWN, len(self.counts)) for each in outcomes]),
            f"novelty@{SHOWN}": _spread([float(np.nanmean(novelty(each.shown, SHOWN, self.counts)))
                                         for each in outcomes]),
            "seconds": _spread([each.seconds for each in outcomes]),
            "choosing seconds": _spread([each.choosing for each in outcomes]),
            "peak GiB": _spread([each.peak_gib for each in outcomes]),
        }  # fmt: skip

    def gain(self, name: str, over: str, k: int = 10) -> dict[str, float]:
        """NDCG@k of `name` less that of `over`, user by user (the mean of their seeds), with its 95 % interval."""
        ours, theirs = (np.mean([ndcg(each.rank, k) for each in self.outcomes[who]], axis=0) for who in (name, over))
        found = paired_interval(ours, theirs)
        return {"mean": _round(found.mean), "low": _round(found.low), "high": _round(found.high)}

    def as_dict(self) -> dict[str, Any]:
        """All of it, JSON-serialisable; a figure that cannot be computed is None."""
        first = next(iter(self.outcomes))
        systems = {}
        for name, outcomes in self.outcomes.items():
            systems[name] = {
                "metrics": self.figures(name),
                "beyond": self.beyond(name),
                "segments": {segment: self.figures(name, segment) for segment in self.segments if segment != "all"},
                "settled": [dict(each.settled) for each in outcomes],
                **({} if name == first else {f"{first} gains ndcg@10": self.gain(first, name)}),
            }
        return {
            "protocol": self.protocol, "facts": dict(self.facts), "systems": systems,
            "segments": {name: int(of.sum()) for name, of in self.segments.items()}, "left out": dict(self.left_out),
        }  # fmt: skip

    def json(self) -> str:
        """One line."""
        return json.dumps(self.as_dict(), allow_nan=False)

    # ---- for people ----------------------------------------------------------------------------------

    def tables(self) -> list[RenderableType]:
        """For the terminal: metrics by recommender, the best of each bold; what they take; a metric by segment; what
        was asked."""
        metrics = {name: self.figures(name) for name in self.outcomes}
        beyond = {name: self.beyond(name) for name in self.outcomes}
        told = [f"{name}: not run. {why}" for name, why in self.left_out.items()]
        # Text, for a name of an extra looks like rich's markup
        return [_by_name(metrics), _by_name(beyond), self._by_segment(), Text("\n".join([*told, self.protocol]))]

    def _by_segment(self) -> Table:
        metric = f"ndcg@{self.ks[0]}"
        table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
        table.add_column(f"{metric} by segment")
        table.add_column("users", justify="right")
        for name in self.outcomes:
            table.add_column(name, justify="right")
        for segment, of in self.segments.items():
            means = [self.figures(name, segment)[metric]["mean"] for name in self.outcomes]
            cells = (_cell({"mean": mean, "spread": None}, metric, means) for mean in means)
            table.add_row(segment, f"{int(of.sum()):,}", *cells)
        return table

    def html(self, title: str) -> str:
        """One bar chart a metric, the segments, and on what it ran."""
        body = [f"<header><h1>{escape(title)}</h1><p>{escape(self.protocol)}</p></header>"]
        metrics = self.figures(next(iter(self.outcomes)))
        body += [f"<section><h2>{escape(each)}</h2>{self._bars('all', each)}</section>" for each in metrics]
        for segment, of in self.segments.items():
            if segment != "all" and of.any():
                head = f"ndcg@{self.ks[0]}, {segment} ({int(of.sum()):,} users)"
                body.append(f"<section><h2>{escape(head)}</h2>{self._bars(segment, f'ndcg@{self.ks[0]}')}</section>")
        facts = {**self.facts, **self.left_out, **machine()}
        entries = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
        body.append(f"<section class=wide><h2>Run</h2><dl>{entries}</dl></section>")
        return page(title, "\n".join(body))

    def _bars(self, segment: str, metric: str) -> str:
        bars = []
        for series, name in enumerate(self.outcomes):
            found = self.figures(name, segment)[metric]
            note = f"± {found['spread']:.4f}" if found["spread"] is not None else ""
            bars.append(Bar(name, found["mean"], min(series, 5), note))
        return bar_chart(bars, metric)

    def write(self, path: Path, title: str) -> Path:
        """`html` into a file (folders are made); the path."""
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(self.html(title), encoding="utf-8")
        return path


def _spread(values: Sequence[float | None]) -> dict[str, Any]:
    held = [value for value in values if value is not None and value == value]
    return {
        "mean": _round(float(np.mean(held))) if held else None,
        "spread": _round(float(np.std(held, ddof=1))) if len(held) > 1 else None,
        "seeds": [None if value is None or value != value else _round(value) for value in values],
    }


def _round(value: float) -> float:
    return round(value, _DIGITS)


def _by_name(told: Mapping[str, Mapping[str, Any]]) -> Table:
    """Recommenders by row, what is told of them by column."""
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False)
    table.add_column("")
    metrics = list(next(iter(told.values())))
    for metric in metrics:
        table.add_column(metric, justify="right")
    for name, row in told.items():
        means = {metric: [other[metric]["mean"] for other in told.values()] for metric in metrics}
        table.add_row(name, *(_cell(row[metric], metric, means[metric]) for metric in metrics))
    return table


def _cell(found: Mapping[str, Any], metric: str, others: Sequence[float | None]) -> Text:
    """A mean with its spread; bold where it is the best of a metric."""
    mean, spread = found["mean"], found["spread"]
    if mean is None:
        return Text("–")
    scored = metric.partition("@")[0] in _METRICS
    form = ".4f" if scored else ",.1f" if metric.endswith("seconds") else ".3g"
    text = format(mean, form) + (f" ± {spread:.4f}" if scored and spread is not None else "")
    best = max((other for other in others if other is not None), default=None)
    return Text(text, style="bold" if scored and mean == best else "")
