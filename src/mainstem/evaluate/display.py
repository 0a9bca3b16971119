"""The live display of a replay, and its final table. Without a terminal: a line every few seconds."""

from __future__ import annotations

import sys
import time as _time
from collections.abc import Callable
from datetime import UTC, datetime
from types import TracebackType
from typing import TextIO

from rich import box
from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table
from rich.text import Text

from mainstem.evaluate.results import RESTRICTIONS, Results

__all__ = ["ReplayDisplay", "final_table", "status_line"]


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def _lift(value: float | None) -> Text:
    if value is None:
        return Text("–", style="dim")
    return Text(f"{value:+.1%}", style="green" if value > 0 else "red")


def final_table(results: Results, title: str = "Quality") -> Table:
    """Systems by row, NDCG and recall by restriction; the best of a column is bold, the last row is the lift."""
    k = results.k
    table = Table(box=box.SIMPLE_HEAD, title=title, title_justify="left", title_style="bold", pad_edge=False)
    table.add_column("")
    for what in ("all products", "new products"):
        table.add_column(f"NDCG@{k}\n{what}", justify="right")
        table.add_column(f"recall@{k}\n{what}", justify="right")
    scores = {name: [results.score(name, restriction) for restriction in RESTRICTIONS] for name in results.systems}
    best = [
        max((value for value in column if value is not None), default=None)
        for column in zip(*([v for s in row for v in (s.ndcg, s.recall)] for row in scores.values()), strict=True)
    ]
    for name in results.systems:
        values = [value for score in scores[name] for value in (score.ndcg, score.recall)]
        cells = [
            Text(_number(value, ".4f"), style="bold" if value is not None and value == top else "")
            for value, top in zip(values, best, strict=True)
        ]
        table.add_row(Text(name, style="bold cyan" if name == results.systems[0] else ""), *cells)
    if len(results.systems) > 1:
        lifts = [cell for restriction in RESTRICTIONS for cell in (_lift(results.lift(restriction)), Text(""))]
        table.add_row(Text("over the best baseline", style="dim"), *lifts)
    return table


def _figures(results: Results) -> Text:
    slate, fresh = results.slate_ms, results.freshness_ms
    parts = [
        ("slate p50 ", _number(slate.percentile(0.5), ".1f", " ms")),
        ("p99 ", _number(slate.percentile(0.99), ".1f", " ms")),
        ("events ", _number(results.events_per_s(), ",.0f", "/s")),
        ("freshness lag p50 ", _number(fresh.percentile(0.5), ".0f", " ms")),
        ("p99 ", _number(fresh.percentile(0.99), ".0f", " ms")),
        ("slates ", f"{results.slates:,}"),
    ]
    text = Text()
    for label, value in parts:
        text.append(("   " if text else "") + label, style="dim").append(value)
    return text


def _clock(ms: int) -> str:
    return datetime.fromtimestamp(ms / 1000, UTC).strftime("%a %d %b %Y %H:%M") if ms else ""


def status_line(results: Results, total: int, elapsed: float, done_here: int) -> str:
    """One line for a log file: how far, how good, how fast."""
    share = results.baskets / total if total else 1.0
    left = elapsed / done_here * (total - results.baskets) if done_here else None
    parts = [f"{share:4.0%} {results.baskets:,}/{total:,} baskets", f"left {_number(left, '.0f', ' s')}"]
    for restriction in RESTRICTIONS:
        rival = results.best_baseline(restriction)
        line = f"{restriction} NDCG@{results.k} {_number(results.score(results.systems[0], restriction).ndcg, '.4f')}"
        if rival is not None:
            line += f" ({rival} {_number(results.score(rival, restriction).ndcg, '.4f')})"
        parts.append(line)
    return "  ".join([*parts, _figures(results).plain])


class ReplayDisplay:
    """`with ReplayDisplay(total) as display: for results in replay.run(...): display.update(results)`.

    On a terminal: a progress bar with the time left above a table that fills in. Elsewhere: one line each
    `line_every` seconds. Always on stderr, so that stdout stays free for JSON. Updates are cheap: what is
    shown is drawn at most four times a second, however often it is told.
    """

    def __init__(
        self, total: int, *, title: str = "Replay", file: TextIO | None = None, line_every: float = 5.0,
        clock: Callable[[], float] = _time.monotonic,
    ) -> None:  # fmt: skip
        self._total, self._title = total, title
        self._console = Console(file=file or sys.stderr, stderr=file is None)
        self._every = 0.25 if self._console.is_terminal else line_every
        self._clock = clock
        self._results: Results | None = None
        self._began = self._drawn = clock()
        self._first: int | None = None
        self._live: Live | None = None
        self._progress = Progress(
            TextColumn("[bold]{task.description}"), BarColumn(bar_width=None), MofNCompleteColumn(),
            TextColumn("[dim]elapsed"), TimeElapsedColumn(), TextColumn("[dim]left"), TimeRemainingColumn(),
            console=self._console, expand=True, speed_estimate_period=60,
        )  # fmt: skip
        self._task: TaskID = self._progress.add_task(title, total=total)

    def __enter__(self) -> ReplayDisplay:
        if self._console.is_terminal:
            self._live = Live(self._progress, console=self._console, refresh_per_second=4)
            self._live.start()
        return self

    def update(self, results: Results) -> None:
        if self._first is None:
            self._first = results.baskets - 1
        self._results = results
        now = self._clock()
        if now - self._drawn >= self._every:
            self._drawn = now
            self._draw()

    def _draw(self) -> None:
        if self._results is None:
            return
        if self._live is not None:
            self._progress.update(self._task, completed=self._results.baskets)
            moment = Text(f"live at {_clock(self._results.time)}", style="dim")
            self._live.update(Group(self._progress, final_table(self._results, ""), _figures(self._results), moment))
        else:
            done_here = self._results.baskets - (self._first or 0)
            line = status_line(self._results, self._total, self._clock() - self._began, done_here)
            self._console.print(line, markup=False, highlight=False, soft_wrap=True)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._draw()
        if self._live is not None:
            self._live.stop()
