"""Records leave SQLite by age: never one that is younger, or that a follower or a kept snapshot still needs."""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_checks import batch_of, check_batches, cut_power, event, in_sqlite, open_tiny, read_all

from mainstem.eventlog import arrivals
from mainstem.eventlog.memory import MemoryLog
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.schema.config import Config, LogConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.position import START, Position

MANY = 1_000_000
HOUR = 3_600_000


class Clock:
    """The log's wall clock, in ms, set by hand; nothing runs in the background."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1_700_000_000_000
        monkeypatch.setattr(arrivals, "now_ms", lambda: self.now)
        monkeypatch.setattr(SqliteLog, "_wake", lambda log: None)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    return Clock(monkeypatch)


def tick(log: SqliteLog) -> None:
    """What the background thread does when it wakes."""
    log.claim()
    while log.seal_due():
        pass
    log.drop_sealed()


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.005)


def first_kept(folder: Path, end: int) -> int:
    kept = in_sqlite(folder)
    assert kept == list(range(end - len(kept), end)), "SQLite has a gap"
    return end - len(kept)


steps = st.one_of(
    st.tuples(st.just("append"), st.integers(1, 9)),
    st.tuples(st.just("pass"), st.integers(0, 14)),
    st.tuples(st.just("note"), st.tuples(st.sampled_from(["state", "snapshot:a"]), st.integers(0, 80))),
    st.tuples(st.sampled_from(["tick", "tick", "reopen", "unfollow"]), st.none()),
)


@settings(max_examples=60, deadline=None)
@given(st.lists(steps, max_size=30), st.integers(3, 40))
def test_what_leaves_is_what_is_old_and_passed(script: list[tuple[str, object]], seal_rows: int) -> None:
    """The law in full: after each look SQLite starts where the oldest record stands that is young or not passed."""
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as name:
        clock, folder, oracle = Clock(patch), Path(name), MemoryLog(LogConfig())
        log = open_tiny(folder, seal_rows, MANY, "10h")
        noticed: list[int] = []  # when the log first looked, after each record had come
        followers: dict[str, int] = {}
        first = 0
        try:
            for verb, given_ in script:
                end = oracle.end().offset()
                if verb == "append":
                    batch = [event(f"e{end + i}") for i in range(given_)]  # type: ignore[call-overload]
                    assert log.append(batch) == oracle.append(batch)
                elif verb == "pass":
                    clock.now += given_ * HOUR  # type: ignore[operator]
                elif verb == "note":
                    who, offset = given_  # type: ignore[misc]
                    followers[who] = min(offset, end)
                    log.note(who, Position.at(followers[who]))
                elif verb == "unfollow":
                    followers.pop("snapshot:a", None)
                    log.unfollow("snapshot:a")
                else:
                    if verb == "reopen":
                        log.claim()
                        log.close()
                        log = open_tiny(folder, seal_rows, MANY, "10h")
                    noticed += [clock.now] * (end - len(noticed))
                    tick(log)
                    old = sum(moment <= clock.now - 10 * HOUR for moment in noticed)
                    first = max(first, min([old, *followers.values()]))
                    assert log.sealed().offset() >= old
                    assert first_kept(folder, end) == first
            assert read_all(log, 7) == read_all(oracle)
        finally:
            log.close()


def test_by_arrival_in_this_log_whatever_the_records_say(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        log.append([event("old", time=1, received_at=1), event("ahead", received_at=clock.now + 10**12)])
        tick(log)
        assert in_sqlite(tmp_path) == [0, 1], "imported just now"
        clock.now += 10 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []


def test_a_slow_log_gets_two_files_an_age_and_keeps_few_marks(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path, MANY, MANY, "32h") as log:
        for hour in range(320):
            log.append([event(f"e{hour}")])
            tick(log)
            clock.now += HOUR
            assert len(in_sqlite(tmp_path)) <= 33
            assert len(log._arrivals._marks) <= 34
        assert 16 <= len(log.history.ranges()) <= 18
        assert len(read_all(log)) == 320


def test_by_age_and_by_size_whichever_comes_first(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path, 10, 15, "10h") as log:
        log.append([event(f"e{i}") for i in range(25)])
        tick(log)
        assert (log.sealed().offset(), in_sqlite(tmp_path)[0]) == (20, 10), "by size"
        clock.now += 10 * HOUR
        log.append([event("young")])
        tick(log)
        assert (log.sealed().offset(), in_sqlite(tmp_path)) == (25, [25]), "by age"
        log.append([event(f"f{i}") for i in range(4)])
        tick(log)
        assert log.sealed().offset() == 30, "full ranges still end where they did"
        assert [(r.first, r.last) for r in log.history.ranges()] == [(0, 10), (10, 20), (20, 25), (25, 30)]


def test_an_id_that_left_by_age_is_still_refused(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        for round_ in range(12):  # enough files of ids that they merge
            log.append([event(f"e{round_}-{i}") for i in range(5)])
            tick(log)
            clock.now += 11 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []
        every = [event(f"e{round_}-{i}") for round_ in range(12) for i in range(5)]
        assert log.append(every).accepted == 0
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        assert log.append(every).accepted == 0
        assert log.end() == Position.at(60)


def test_age_survives_a_restart_and_a_clock_that_was_set_back(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        log.append([event("a")])
    clock.now += 10 * HOUR
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        tick(log)
        assert in_sqlite(tmp_path) == []
        clock.now += 10_000 * HOUR
        log.append([event("b")])
        tick(log)
        clock.now -= 10_000 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == [1]
        clock.now += 10 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []


@pytest.mark.parametrize("survives", range(9))
def test_a_crash_at_any_step_of_leaving_by_age(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, survives: int
) -> None:
    log = open_tiny(tmp_path, MANY, MANY, "10h")
    for number in range(5):
        log.append(batch_of(number))
        tick(log)
        clock.now += 4 * HOUR
    finished = cut_power(survives, monkeypatch, lambda: tick(log))
    if not finished and survives % 2:
        tick(log)
        assert check_batches(log, range(5)) == 5, "the same process may also go on"
    log.close()
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        assert check_batches(log, range(5)) == 5
        assert all(log.append(batch_of(number)).accepted == 0 for number in range(5))
        assert not list(tmp_path.rglob("*.tmp"))
        clock.now += 10 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []
        spans = log.history.ranges()
        assert spans[0].first == 0
        assert all(a.last == b.first for a, b in pairwise(spans))
        assert check_batches(log, range(5)) == 5


def test_it_runs_in_the_background_without_anybody_appending(tmp_path: Path) -> None:
    with open_tiny(tmp_path, MANY, MANY, "160ms") as log, open_tiny(tmp_path) as reader:
        log.follow("state")
        log.append([event(f"e{i}") for i in range(5)])
        wait_until(lambda: log.sealed() == Position.at(5))
        assert len(in_sqlite(tmp_path)) == 5, "the follower stands at the start"
        log.note("state", Position.at(3))
        wait_until(lambda: in_sqlite(tmp_path) == [3, 4])
        log.unfollow("state")
        wait_until(lambda: in_sqlite(tmp_path) == [])
        assert len(read_all(reader, 2)) == len(read_all(log)) == 5
        assert reader.read(Position.at(4)).offsets == [4]


def test_reading_goes_on_while_records_leave(tmp_path: Path) -> None:
    with open_tiny(tmp_path, MANY, MANY, "32ms") as log, open_tiny(tmp_path) as reader:
        for number in range(60):
            log.append([event(f"e{number}-{i}") for i in range(3)])
            assert len(read_all(reader, 5)) == 3 * (number + 1)
            time.sleep(0.002)
        wait_until(lambda: in_sqlite(tmp_path) == [])
        assert len(read_all(reader)) == 180


def test_marks_that_cannot_be_written_are_said_and_harm_nothing(
    tmp_path: Path, clock: Clock, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        log.append([event("a")])

        def full() -> None:
            raise StoreError("disk full")

        with monkeypatch.context() as patch:
            patch.setattr(log._arrivals._store, "shared", full)
            log._arrivals.mark(1)
        assert "disk full" in caplog.text
        clock.now += 10 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []


def test_a_log_of_the_format_before_is_taken_over(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path) as log:
        log.append(batch_of(0))
    connection = sqlite3.connect(tmp_path / "log.sqlite")
    connection.executescript("DROP TABLE arrivals; PRAGMA user_version=1")
    connection.close()
    with open_tiny(tmp_path, MANY, MANY, "10h") as log:
        tick(log)
        assert check_batches(log, [0]) == 1
        clock.now += 10 * HOUR
        tick(log)
        assert in_sqlite(tmp_path) == []
        assert log.read(START).offsets[0] == 0


def test_without_an_age_nothing_is_marked(tmp_path: Path, clock: Clock) -> None:
    with open_tiny(tmp_path) as log:
        log.append([event("a")])
        tick(log)
        clock.now += 10**15
        tick(log)
        assert (log._arrivals._marks, log._arrivals.every, in_sqlite(tmp_path)) == ([], None, [0])


def test_the_configuration_says_what_it_takes() -> None:
    assert Config().log.keep_age is None
    assert LogConfig(keep_age="30d").keep_age == "30d"
    for wrong in ("5s", "soon"):
        with pytest.raises(ValueError, match="keep_age"):
            LogConfig(keep_age=wrong)
