"""Results of `mainstem evaluate`: the same figures as a table, as JSON and as a plot."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from html import escape
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table
from rich.text import Text

from mainstem.evaluate.calibration import Calibration
from mainstem.evaluate.charts import Bar, bar_chart
from mainstem.evaluate.report import machine, page

__all__ = ["Evaluation"]

_LOWER_IS_BETTER = ("logloss", "loss", "rmse", "mae")


@dataclass(frozen=True, slots=True)
class Evaluation:
    """`rows[system][metric]`, the system under evaluation first; `facts` say on what and how; `failures`: gates that it
    did not pass; `calibration`: of its heads."""

    protocol: str
    rows: Mapping[str, Mapping[str, float | None]]
    facts: Mapping[str, Any] = field(default_factory=dict)
    failures: tuple[str, ...] = ()
    calibration: tuple[Calibration, ...] = ()

    def metrics(self) -> list[str]:
        """Every metric that some row has, in order of first appearance."""
        return list(dict.fromkeys(metric for row in self.rows.values() for metric in row))

    def best(self, metric: str) -> str | None:
        """The system that is best in `metric` (loss and error: the lowest); ties by order of rows."""
        values = [(name, row.get(metric)) for name, row in self.rows.items()]
        held = [(name, value) for name, value in values if value is not None and value == value]
        if not held:
            return None
        pick = min if any(word in metric.lower() for word in _LOWER_IS_BETTER) else max
        return pick(held, key=lambda pair: pair[1])[0]

    def table(self) -> Table:
        """For the terminal: systems by row, the best of each metric bold."""
        table = Table(box=box.SIMPLE_HEAD, caption=self.protocol, caption_justify="left", pad_edge=False)
        table.add_column("")
        metrics = self.metrics()
        for metric in metrics:
            table.add_column(metric, justify="right")
        best = {metric: self.best(metric) for metric in metrics}
        for name, row in self.rows.items():
            cells = []
            for metric in metrics:
                value = row.get(metric)
                cells.append(
                    Text("–" if value is None else f"{value:.4f}", style="bold" if best[metric] == name else "")
                )
            table.add_row(name, *cells)
        return table

    def json(self) -> str:
        """One line; a metric that could not be computed is null, never NaN."""
        rows = {
            name: {metric: None if value is None or value != value else value for metric, value in row.items()}
            for name, row in self.rows.items()
        }
        found = {
            "protocol": self.protocol, "rows": rows, "facts": dict(self.facts), "failures": list(self.failures),
            "calibration": [head.as_dict() for head in self.calibration],
        }  # fmt: skip
        return json.dumps(found, allow_nan=False)

    def html(self, title: str = "Evaluation") -> str:
        """One bar chart a metric, with the facts and the machine."""
        sections = [f"<header><h1>{escape(title)}</h1><p>{escape(self.protocol)}</p></header>"]
        for metric in self.metrics():
            bars = [
                Bar(name, value, min(series, 5))
                for series, (name, row) in enumerate(self.rows.items())
                if (value := row.get(metric)) is not None and value == value
            ]
            sections.append(f"<section><h2>{escape(metric)}</h2>{bar_chart(bars, metric)}</section>")
        sections += [head.html() for head in self.calibration]
        facts = {**self.facts, **machine()}
        entries = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
        sections.append(f"<section class=wide><h2>Run</h2><dl>{entries}</dl></section>")
        return page(title, "\n".join(sections))

    def write(self, folder: Path) -> tuple[Path, Path]:
        """`evaluation.json` and `evaluation.html` in `folder`, which is made; their paths."""
        folder.mkdir(parents=True, exist_ok=True)
        as_json, as_html = folder / "evaluation.json", folder / "evaluation.html"
        as_json.write_text(self.json() + "\n", encoding="utf-8")
        as_html.write_text(self.html(), encoding="utf-8")
        return as_json, as_html
