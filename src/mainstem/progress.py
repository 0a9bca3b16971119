"""Progress of long work, a bar per stage; on stderr, so that stdout stays free for results."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.progress import TimeRemainingColumn as TimeLeftColumn

__all__ = ["Show", "stages"]

Show = Callable[[str, int, int], None]
"""(stage, done, total)."""

# Where nobody watches, a line for each stage's beginning and end, and one in between each so many seconds.
LINE_EVERY = 15.0


@contextmanager
def stages(console: Console | None = None) -> Iterator[Show]:
    """`with stages() as show: ... show("events", done, total)`. Bars on a terminal, lines elsewhere."""
    console = console or Console(stderr=True)
    if not console.is_terminal:
        yield _lines(console)
        return
    columns = (
        TextColumn("{task.description:<26}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn(),
        TextColumn("[dim]left"), TimeLeftColumn(),
    )  # fmt: skip
    with Progress(*columns, console=console) as bars:
        tasks: dict[str, TaskID] = {}

        def show(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = bars.add_task(stage, total=total)
            bars.update(tasks[stage], completed=min(done, total), total=total)

        yield show


def _lines(console: Console) -> Show:
    began: dict[str, float] = {}
    told: dict[str, float] = {}
    finished: set[str] = set()

    def show(stage: str, done: int, total: int) -> None:
        now = time.monotonic()
        first = stage not in began
        began.setdefault(stage, now)
        over = done >= total and stage not in finished
        if first or over or (stage not in finished and now - told[stage] >= LINE_EVERY):
            told[stage] = now
            console.print(f"{stage}: {min(done, total):,}/{total:,} in {now - began[stage]:.0f} s", highlight=False)
        if over:
            finished.add(stage)

    return show
