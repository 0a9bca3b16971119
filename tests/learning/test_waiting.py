"""Who trains a line while others want to: they wait, say for whom, and go on."""

from __future__ import annotations

import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from mainstem import weights
from mainstem.learning import LINE, Learning
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls

HOLDER = """
import sys
from mainstem import weights
with weights.open(sys.argv[1]).trainer_lock(sys.argv[2]):
    print("held", flush=True)
    sys.stdin.read()
"""


def eventually(holds: Callable[[], bool]) -> None:
    """Wait until it holds; the time is only the end of patience."""
    end = time.monotonic() + 60
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_a_trainer_waits_for_the_process_that_trains_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, "mainstem.learning")
    monkeypatch.setattr("mainstem.learning.LOOK", 0.01)
    store = storage_urls(Config(), tmp_path).weights
    command = [sys.executable, "-c", HOLDER, store, LINE]
    with (
        subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder,
        Learning(Config(), tmp_path) as learning,
    ):
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert holder.stdout.readline() == "held\n"
        learning.start()
        eventually(lambda: f"being trained by another process or thread (process {holder.pid})" in learning.waiting)
        holder.stdin.close()  # it ends
        eventually(lambda: "no events of interest" in learning.waiting)  # it has come to what an empty log says
        assert learning.failure is None
    said = [record.message for record in caplog.records if str(holder.pid) in record.message]
    assert len(said) == 1
    with weights.open(store).trainer_lock(LINE):  # canary: it has let go
        pass


def test_one_that_waits_can_be_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainstem.learning.LOOK", 0.01)
    with weights.open(storage_urls(Config(), tmp_path).weights).trainer_lock(LINE):
        with Learning(Config(), tmp_path) as learning:
            learning.start()
            eventually(lambda: "a thread of this process" in learning.waiting)
        assert learning.trainer is None
        assert learning.failure is None


def test_a_trainer_that_failed_lets_go_of_the_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object) -> None:
        raise OSError("the disk is away")

    monkeypatch.setattr("mainstem.learning.online_trainer", fails)
    with Learning(Config(), tmp_path) as learning:
        learning.start()
        eventually(lambda: learning.failure is not None)
        learning._thread.join()  # type: ignore[union-attr]
        with weights.open(storage_urls(Config(), tmp_path).weights).trainer_lock(LINE):
            pass
