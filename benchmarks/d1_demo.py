"""D1: the demo on a year of real purchases: NDCG@10 of what the server answered against its strongest baseline.

Runs `mainstem demo --exit --json` in a fresh folder (deleted afterwards unless `--data` names one) and reports what it
printed. Every basket of the last four weeks gets two slates before it is learned: of anything, scored on all its
products, and of what is new to the household, scored on those; the baselines answer the same requests. The peer is
the best baseline by NDCG over all products; among new products it is what is popular among what the user never had.

Only a full run on the default data set is kept in results/. The final table of such a run, or with `--save`, and the
commands that the demo offers to try are kept in docs/demo-output.txt, without colours.

    python benchmarks/d1_demo.py [--quick] [--dataset completejourney] [--data FOLDER] [--save FILE]
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

from bench import HERE, Bench, say

DATASET = "completejourney"
TEXT = HERE.parent / "docs" / "demo-output.txt"
PATIENCE = 600.0
"""Seconds that the second run, which has nothing left to do, may take until it offers its commands."""
_ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
_LAST_COMMAND = "curl -X POST"


def start(arguments: list[str]) -> subprocess.Popen[str]:
    environment = os.environ | {"COLUMNS": "110", "NO_COLOR": "1", "PYTHONUNBUFFERED": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "mainstem", "demo", "--json", "--port", "0", *arguments],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True,
    )  # fmt: skip


def follow(process: subprocess.Popen[str], last: str | None = None) -> list[str]:
    """The lines it writes for people, as they come, up to the one that holds `last`; without colours."""
    assert process.stderr
    lines = []
    for line in process.stderr:
        lines.append(_ESCAPE.sub("", line).rstrip())
        say(lines[-1])
        if last and last in lines[-1]:
            break
    return lines


def run(arguments: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The demo, to its end: its JSON and its lines."""
    process = start(["--exit", *arguments])
    lines = follow(process)
    assert process.stdout
    said = process.stdout.read().strip().splitlines()
    if process.wait() or not said:
        raise SystemExit(f"the demo ended with status {process.returncode}")
    summary: dict[str, Any] = json.loads(said[-1])
    return summary, lines


def commands(arguments: list[str]) -> list[str]:
    """What the demo offers to try while its server runs: the same folder again, ended once it has said so."""
    process = start(arguments)
    watch = threading.Timer(PATIENCE, process.terminate)
    watch.start()
    lines = follow(process, _LAST_COMMAND)
    watch.cancel()
    process.terminate()  # a run in the background may have been told to ignore interrupts
    process.communicate()
    offered = [line.strip() for line in lines if line.strip().startswith("curl ")]
    if not offered:
        raise SystemExit(f"the demo's second run offered no command within {PATIENCE:.0f} s")
    return [re.sub(r"127\.0\.0\.1:\d+", "127.0.0.1:8080", line) for line in offered]


def table(lines: list[str]) -> list[str]:
    """The final table: from its title to the line that names the report."""
    end = next(place for place, line in enumerate(lines) if line.startswith("report with plots"))
    first = max(place for place, line in enumerate(lines[:end]) if line.startswith("Quality"))
    return lines[first:end]


def best(baselines: dict[str, Any], restriction: str, among: str = "") -> tuple[str, float]:
    """The baseline with the highest NDCG among those whose name begins with `among`."""
    scores = {name: scored[restriction]["ndcg@10"] for name, scored in baselines.items() if name.startswith(among)}
    name = max(scores, key=lambda name: scores[name] or 0.0)
    return name, scores[name]


def measure(bench: Bench, arguments: list[str], folder: Path, save: Path | None) -> None:
    given = [*arguments, "--data", str(folder)]
    summary, lines = run(given)
    system = next(iter(summary))
    ours, baselines = summary[system], summary["baselines"]
    name, new = best(baselines, "new", "popular")
    bench.part("new", metric="NDCG@10, new to the household, ratio", ours=ours["new"]["ndcg@10"] / new, goal=1.3,
               ndcg=ours["new"]["ndcg@10"], peer=new, peer_name=name)  # fmt: skip
    top, strongest = best(baselines, "new")
    bench.part("new_strongest", metric="NDCG@10, new, over the best of all baselines: ratio",
               ours=ours["new"]["ndcg@10"] / strongest, peer=strongest, peer_name=top)  # fmt: skip
    bench.part("latency", metric="slate over HTTP, p50 ms", ours=summary["latency_ms"]["p50"], **summary["latency_ms"])
    bench.part("events", metric="events/s while replaying", ours=summary["events_per_s"])
    if summary["freshness_ms"]["p50"] is not None:
        bench.part("freshness", metric="event posted to slate that reflects it, p50 ms",
                   ours=summary["freshness_ms"]["p50"], **summary["freshness_ms"])  # fmt: skip
    peer_name, peer = best(baselines, "all")
    bench.report(ours=ours["all"]["ndcg@10"], peer=peer, peer_name=peer_name, slates=summary["slates"],
                 demo_seconds=summary["seconds"], arguments=arguments, summary=summary,
                 keep=arguments == ["--dataset", DATASET])  # fmt: skip
    if save:
        text = [*table(lines), *commands(given)]
        save.write_text("\n".join(text).strip("\n") + "\n")
        say(f"d1_demo: wrote {save.name}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tenth of the households")
    parser.add_argument("--dataset", default=DATASET)
    parser.add_argument("--data", type=Path, help="keep the demo's folder here; it must not exist")
    parser.add_argument("--save", type=Path, help="where the final table goes")
    given = parser.parse_args()
    arguments = ["--dataset", given.dataset, *(["--quick"] if given.quick else [])]
    save = given.save or (TEXT if given.dataset == DATASET and not given.quick else None)
    if given.data and given.data.exists():
        parser.error(f"{given.data} is there already: the figures are of a fresh run")
    with (
        tempfile.TemporaryDirectory(prefix="d1-") as fresh,
        Bench("d1_demo", metric="NDCG@10, all products", goal=1.10, goal_is_ratio=True) as bench,
    ):
        measure(bench, arguments, given.data or Path(fresh) / "demo", save)


if __name__ == "__main__":
    main()
