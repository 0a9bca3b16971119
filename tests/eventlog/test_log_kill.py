"""Kill -9 at random moments loses nothing that was acknowledged and shows no half batch."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from log_checks import TINY, batch_of, check_batches, check_turns, event, in_sqlite, open_tiny, turn_of

from mainstem.eventlog.memory import MemoryLog
from mainstem.schema.config import LogConfig
from mainstem.schema.position import Position
from mainstem.schema.protocols import LogBatch
from mainstem.schema.records import Erase


@contextmanager
def writers(folder: Path, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    script = Path(__file__).with_name("log_writer_process.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(folder), *arguments],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1,
    ) as server:  # fmt: skip
        yield server
        assert server.stdin
        server.stdin.close()


def kill_one(server: subprocess.Popen[str], following: int, after: float) -> list[tuple[int, int, int]]:
    """Let a writer begin with the batch `following` and kill it after so many seconds; what it acknowledged."""
    assert server.stdin
    assert server.stdout
    server.stdin.write(f"{following}\n")
    writer = int(server.stdout.readline().split()[1])
    time.sleep(after)
    os.kill(writer, signal.SIGKILL)
    said = []
    while (line := server.stdout.readline().strip()) != "dead":
        number, accepted, duplicates = map(int, line.split())
        said.append((number, accepted, duplicates))
    return said


def kill_writers(
    folder: Path, kills: int, seed: int, seal_rows: int = TINY, keep_age: str | None = None,
    enough: Callable[[], bool] = lambda: True,
) -> tuple[int, int]:  # fmt: skip
    """Kill `kills` writers, and up to four times as many more until it is `enough`: on a busy machine they come to
    little. The log is checked after each; (batches in the log, ranges sealed)."""
    chance = random.Random(seed)
    acknowledged: list[int] = []
    with writers(folder, str(seal_rows), *([keep_age] if keep_age else [])) as server:
        for number_of_kills in range(5 * kills):
            if number_of_kills >= kills and enough():
                break
            following = acknowledged[-1] + 1 if acknowledged else 0
            # From within the opening (recovery is killed too) to well within appending and sealing.
            for number, accepted, duplicates in kill_one(server, following, chance.uniform(0.0, 0.4)):
                assert number == following, "acknowledged out of turn"
                size = len(batch_of(number))
                # The first may have been durable already, when its writer died before it could say so.
                assert (accepted, duplicates) in [(size, 0), (0, size)]
                acknowledged.append(number)
                following += 1
            with open_tiny(folder) as log:
                check_batches(log, acknowledged)
    with open_tiny(folder) as log:
        again = acknowledged[-1]
        assert log.append(batch_of(again)).accepted == 0, "what was acknowledged is written again"
        log.append(batch_of(again + 1))
        log.seal()
        ranges = log.history.ranges()
        assert [span.first for span in ranges[1:]] == [span.last for span in ranges[:-1]], (
            "ranges overlap or leave gaps"
        )
        return check_batches(log, acknowledged), len(ranges)


def test_kill_nine(tmp_path: Path) -> None:
    batches, ranges = kill_writers(tmp_path, kills=8, seed=1)
    assert batches > 8
    assert ranges >= 1


def test_kill_nine_while_records_leave_by_age(tmp_path: Path) -> None:
    batches, ranges = kill_writers(
        tmp_path, kills=8, seed=3, seal_rows=1_000_000, keep_age="64ms", enough=lambda: in_sqlite(tmp_path)[0] > 0
    )
    assert batches > 8
    assert ranges >= 2, "what is old was never sealed while the writers lived"
    assert in_sqlite(tmp_path)[0] > 0, "nothing left SQLite"


@pytest.mark.slow
def test_kill_nine_many_times(tmp_path: Path) -> None:
    batches, ranges = kill_writers(tmp_path, kills=60, seed=2)
    assert batches > 60
    assert ranges > 10


def kill_while_erasing(folder: Path, kills: int, seed: int) -> int:
    """Kill writers that append and erase, and look at every byte after each; the last turn acknowledged."""
    chance, last = random.Random(seed), -1
    with writers(folder, "64", "erasing") as server:
        for _ in range(kills):
            for number, _, _ in kill_one(server, last + 1, chance.uniform(0.0, 0.6)):
                assert number == last + 1, "acknowledged out of turn"
                last = number
            with open_tiny(folder) as log:
                check_turns(folder, log, last)
    return last


def test_kill_nine_while_erasing(tmp_path: Path) -> None:
    assert kill_while_erasing(tmp_path, kills=6, seed=4) > 6


@pytest.mark.slow
def test_kill_nine_while_erasing_many_times(tmp_path: Path) -> None:
    assert kill_while_erasing(tmp_path, kills=40, seed=5) > 40


def test_canary_what_came_through_is_caught(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as log:
        for number in range(5):
            log.append([record for record in turn_of(number) if not isinstance(record, Erase)])
        log.append([event(f"filler-{n}") for n in range(2)])
        with pytest.raises(AssertionError):
            check_turns(tmp_path, log, 4)


class BrokenLog(MemoryLog):
    """A log whose reading is broken by `fault`: what the check must notice."""

    def __init__(self, fault: Callable[[LogBatch], LogBatch]) -> None:
        super().__init__(LogConfig())
        self.fault = fault

    def read(self, start: Position, limit: int = 10_000) -> LogBatch:
        batch = super().read(start, limit)
        return self.fault(batch) if len(batch) else batch


def drop_one(batch: LogBatch) -> LogBatch:
    return LogBatch(batch.records[:30] + batch.records[31:], batch.offsets[:-1], batch.next)


def drop_one_and_renumber(batch: LogBatch) -> LogBatch:
    return LogBatch(batch.records[:30] + batch.records[31:], batch.offsets[:-1], Position.at(batch.offsets[-1]))


def repeat_one(batch: LogBatch) -> LogBatch:
    return LogBatch(batch.records[:30] + batch.records[29:-1], batch.offsets, batch.next)


def swap_two(batch: LogBatch) -> LogBatch:
    records = batch.records.copy()
    records[30], records[31] = records[31], records[30]
    return LogBatch(records, batch.offsets, batch.next)


def keep(batch: LogBatch) -> LogBatch:
    return batch


def test_check_accepts_a_sound_log() -> None:
    log = BrokenLog(keep)
    for number in range(6):
        log.append(batch_of(number))
    assert check_batches(log, range(6)) == 6


@pytest.mark.parametrize("fault", [drop_one, drop_one_and_renumber, repeat_one, swap_two])
def test_canary_broken_reading_is_caught(fault: Callable[[LogBatch], LogBatch]) -> None:
    log = BrokenLog(fault)
    for number in range(6):
        log.append(batch_of(number))
    with pytest.raises(AssertionError):
        check_batches(log, range(6))


def test_canary_lost_and_half_batches_are_caught() -> None:
    log = MemoryLog(LogConfig())
    log.append(batch_of(0))
    with pytest.raises(AssertionError, match="lost"):
        check_batches(log, [0, 1])
    log.append(batch_of(1)[:3])
    with pytest.raises(AssertionError, match="not whole"):
        check_batches(log, [0])
