"""What all benchmarks share. Run alone, it lists them.

The convention: progress goes to stderr; the last line on stdout is one JSON object with `name, metric, ours, peer,
peer_name, ratio, goal, met, runs, seconds, machine` (and any extra keys), and the same is written to
`results/NAME.json`. `ours` and `peer` are medians over runs of the same process, on the same data.

A benchmark is a script `NAME.py` beside this file whose docstring's first line says what it measures:

    with Bench("p7_ingest", metric="events/s", goal=50_000) as bench:
        ours = bench.median(run_ours, runs=3)
        peer = bench.median(run_peer, runs=3)
        bench.report(ours=ours, peer=peer, peer_name="sqlite3")
"""

from __future__ import annotations

import ast
import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

__all__ = ["Bench", "machine", "milliseconds", "say"]

HERE = Path(__file__).resolve().parent
RESULTS = HERE / "results"


def say(text: str) -> None:
    """Progress, for people: on stderr."""
    print(text, file=sys.stderr, flush=True)


def machine() -> dict[str, Any]:
    """What a figure depends on besides the code; `load` is the number of runnable processes, other ones included."""
    processor = platform.processor() or platform.machine()
    if (info := Path("/proc/cpuinfo")).exists():
        names = [
            line.partition(":")[2].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    return {
        "processor": processor,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory_gib": round(memory, 1),
        "python": platform.python_version(),
        "system": platform.system(),
        "load": round(os.getloadavg()[0], 2),
        **card(),
    }


def card() -> dict[str, str]:
    """The GPU that torch has used, if it has."""
    torch = sys.modules.get("torch")
    return {"card": torch.cuda.get_device_name()} if torch is not None and torch.cuda.is_initialized() else {}


def milliseconds(call: Callable[[], object], calls: int) -> float:
    """The median of what so many calls take."""
    taken = []
    for _ in range(calls):
        start = time.perf_counter()
        call()
        taken.append(time.perf_counter() - start)
    return statistics.median(taken) * 1000


class Bench:
    """One benchmark run: collects the runs, then reports. `goal` is what `ours` must reach at least, or with
    `lower_is_better` at most; with `goal_is_ratio` it is the ratio that must. ratio = ours / peer either way."""

    def __init__(
        self, name: str, *, metric: str, goal: float | None, lower_is_better: bool = False, goal_is_ratio: bool = False
    ) -> None:
        self.name, self.metric, self.goal = name, metric, goal
        self._lower, self._of_ratio = lower_is_better, goal_is_ratio
        self._started = time.monotonic()
        self.runs: dict[str, list[float]] = {}
        self.parts: dict[str, dict[str, Any]] = {}

    def __enter__(self) -> Bench:
        return self

    def __exit__(self, *exc: object) -> None: ...

    def median(self, run: Callable[[], float], runs: int = 3, label: str | None = None) -> float:
        """The median of what `run` returns, called `runs` times; the single values are kept in the report."""
        label = label or run.__name__
        values = self.runs.setdefault(label, [])
        for number in range(runs):
            values.append(run())
            say(f"{self.name}: {label} {number + 1}/{runs}: {values[-1]:,.6g}")
        return statistics.median(values)

    def part(self, name: str, *, metric: str, ours: float | None, goal: float | None = None, **more: Any) -> None:
        """A further figure of this benchmark, under `parts` in the report. ours: None where there is no figure since
        ours did not get there, and so not to the goal."""
        met = None if goal is None else self._reached(ours, goal)
        self.parts[name] = {"metric": metric, "ours": _short(ours), "goal": goal, "met": met, **more}

    def report(
        self, *, ours: float | None, peer: float | None, peer_name: str, keep: bool = True, **more: Any
    ) -> dict[str, Any]:
        """Print the JSON line and write `results/NAME.json` (unless `keep` is False: a smaller run); the object.
        ours: as in `part`."""
        ratio = None if not peer or ours is None else ours / peer
        judged = ratio if self._of_ratio else ours
        compared = judged is not None or ours is None
        result: dict[str, Any] = {
            "name": self.name,
            "metric": self.metric,
            "ours": _short(ours),
            "peer": _short(peer),
            "peer_name": peer_name,
            "ratio": _short(ratio),
            "goal": self.goal,
            "met": self._reached(judged, self.goal) if self.goal is not None and compared else None,
            "runs": {label: [_short(value) for value in values] for label, values in self.runs.items()},
            "seconds": round(time.monotonic() - self._started, 1),
            "machine": machine(),
            **({"parts": self.parts} if self.parts else {}),
            **more,
        }
        if keep:
            RESULTS.mkdir(exist_ok=True)
            (RESULTS / f"{self.name}.json").write_text(json.dumps(result, indent=2) + "\n")
        else:
            say(f"{self.name}: a smaller run, {self.name}.json stays as it is")
        print(json.dumps(result), flush=True)
        return result

    def _reached(self, value: float | None, goal: float) -> bool:
        if value is None:
            return False
        return value <= goal if self._lower else value >= goal


def _short(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def scripts() -> dict[str, str]:
    """Every benchmark beside this file: name -> first line of its docstring."""
    found = {}
    for path in sorted(HERE.glob("*.py")):
        if path.name != Path(__file__).name and not path.name.startswith("_"):
            found[path.stem] = (ast.get_docstring(ast.parse(path.read_text())) or "").partition("\n")[0]
    return found


def main() -> None:
    listed = scripts()
    width = max(map(len, listed), default=0)
    for name, line in listed.items():
        print(f"{name:<{width}}  {line}")


if __name__ == "__main__":
    main()
