"""The demo on real data, killed at random moments and started again: nothing lost, nothing twice."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from mainstem import datasets
from mainstem.assemble import open_log
from mainstem.schema.config_file import load
from mainstem.schema.position import START
from mainstem.schema.records import Entity, Event, record_id

pytestmark = [
    pytest.mark.slow,
    pytest.mark.data,
    pytest.mark.skipif(not os.environ.get("MAINSTEM_DATA"), reason="needs ml-latest-small in MAINSTEM_DATA"),
]

SET = "ml-latest-small"


def command(folder: Path) -> list[str]:
    options = ["--dataset", SET, "--quick", "--exit", "--json", "--port", "0", "--data", str(folder)]
    return [sys.executable, "-m", "mainstem", "demo", *options]


def to_the_end(folder: Path) -> dict[str, dict[str, dict[str, float]]]:
    done = subprocess.run(command(folder), capture_output=True, text=True, timeout=600, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    summary: dict[str, dict[str, dict[str, float]]] = json.loads(done.stdout.splitlines()[-1])
    return summary


def ids(folder: Path) -> list[str]:
    """What is in the log beside served slates, in order."""
    log = open_log(load(folder / "mainstem.yaml"), folder)
    found, seen = [], START
    while (batch := log.read(seen, 50_000)).records:
        found += [record_id(record) for record in batch.records if isinstance(record, Event | Entity)]
        seen = batch.next
    log.close()
    return found


def test_killed_demos_end_as_one_that_never_was(tmp_path: Path) -> None:
    whole = to_the_end(tmp_path / "whole")
    dice, kills = random.Random(5), 0
    for patience in (2.0, 5.0, 12.0, 20.0, 26.0, 30.0):
        with (tmp_path / "out.txt").open("ab") as out:
            child = subprocess.Popen(command(tmp_path / "killed"), stdout=out, stderr=out)
            time.sleep(patience + dice.random() * 3)
            if child.poll() is None:
                child.send_signal(signal.SIGKILL)
                kills += 1
            child.wait()
    killed = to_the_end(tmp_path / "killed")
    assert kills >= 3
    found = ids(tmp_path / "killed")
    assert len(found) == len(set(found)), "nothing is there twice"
    assert sorted(found) == sorted(ids(tmp_path / "whole")), "nothing is lost"
    # The baselines depend on the data alone: what was scored before a kill was scored once, and in order.
    assert killed["baselines"] == whole["baselines"]
    for which in ("all", "new"):
        assert killed["mainstem"][which]["ndcg@10"] == pytest.approx(whole["mainstem"][which]["ndcg@10"], abs=0.02)


def test_the_set_is_there() -> None:
    assert datasets.get(SET).find() is not None
