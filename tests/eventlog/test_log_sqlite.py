"""What only the SQLite log promises: agreement with the oracle, sealing, group commit, one writer, crashes."""

from __future__ import annotations

import sqlite3
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_checks import batch_of, check_batches, cut_power, event, in_sqlite, open_tiny, read_all

from mainstem.eventlog.connections import Connections
from mainstem.eventlog.dedup import IdRun
from mainstem.eventlog.memory import MemoryLog
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import LogError, MainstemError, PositionGone, StoreError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log, LogBatch

ids = st.integers(0, 60).map(lambda n: f"e{n}")
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(ids, max_size=12)),
    st.tuples(st.just("read"), st.tuples(st.integers(0, 70), st.integers(0, 40))),
    st.tuples(st.just("note"), st.tuples(st.sampled_from(["state", "snapshot:a"]), st.integers(0, 70))),
    st.tuples(st.sampled_from(["seal", "reopen", "unfollow"]), st.none()),
)


def attempt(log: Log, start: Position, limit: int) -> LogBatch | type[MainstemError]:
    try:
        return log.read(start, limit)
    except MainstemError as error:
        return type(error)


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=25), st.integers(3, 20), st.integers(1, 20))
def test_agrees_with_the_oracle(script: list[tuple[str, object]], seal_rows: int, keep_rows: int) -> None:
    oracle = MemoryLog(LogConfig())
    with tempfile.TemporaryDirectory() as folder:
        log = open_tiny(Path(folder), seal_rows, keep_rows)
        try:
            for verb, given_ in script:
                if verb == "append":
                    batch = [event(name) for name in given_]  # type: ignore[attr-defined]
                    assert log.append(batch) == oracle.append(batch)
                elif verb == "read":
                    start, limit = given_  # type: ignore[misc]
                    assert attempt(log, Position.at(start), limit) == attempt(oracle, Position.at(start), limit)
                elif verb == "note":
                    name, offset = given_  # type: ignore[misc]
                    log.note(name, Position.at(offset))
                    oracle.note(name, Position.at(offset))
                elif verb == "unfollow":
                    log.unfollow("snapshot:a")
                    oracle.unfollow("snapshot:a")
                elif verb == "seal":
                    assert log.seal() == oracle.end()
                else:
                    log.close()
                    log = open_tiny(Path(folder), seal_rows, keep_rows)
                assert log.followers() == oracle.followers()
            assert read_all(log, 7) == read_all(oracle)
        finally:
            log.close()


def test_ranges_leave_sqlite_when_sealed_and_passed(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=5) as log:
        log.follow("state")
        log.follow("snapshot:a")
        for first in range(0, 50, 5):
            log.append([event(f"e{i}") for i in range(first, first + 5)])
        assert log.seal() == log.sealed() == Position.at(50)
        assert len(in_sqlite(tmp_path)) == 50, "a follower at the start holds everything"
        log.note("state", Position.at(50))
        log.note("snapshot:a", Position.at(29))
        log.drop_sealed()
        assert in_sqlite(tmp_path)[0] == 20, "whole ranges before the slowest follower"
        log.unfollow("snapshot:a")
        log.drop_sealed()
        assert in_sqlite(tmp_path)[0] == 40, "keep_rows stay"
        assert len(read_all(log, 7)) == 50
        assert log.append([event("e3"), event("e44")]).duplicates == 2


def test_sealing_runs_in_the_background(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=5) as log:
        log.append([event(f"e{i}") for i in range(57)])
        deadline = time.monotonic() + 30
        while log.sealed() != Position.at(50) or in_sqlite(tmp_path)[0] != 50:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert [(r.first, r.last) for r in log.history.ranges()] == [(n, n + 10) for n in range(0, 50, 10)]
        assert len(read_all(log)) == 57


def test_a_follower_that_passes_frees_ranges_in_the_background(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=5) as log:
        log.follow("state")
        log.append([event(f"e{i}") for i in range(50)])
        log.seal()
        for noted, kept in ((9, 0), (10, 10), (50, 40)):
            log.note("state", Position.at(noted))
            deadline = time.monotonic() + 30
            while in_sqlite(tmp_path)[0] != kept:
                assert time.monotonic() < deadline
                time.sleep(0.01)


def test_everything_can_leave_sqlite(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        log.append([event(f"e{i}") for i in range(30)])
        log.seal()
        assert in_sqlite(tmp_path) == []
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        assert log.end() == Position.at(30)
        assert log.append([event("e0"), event("x")]).position == Position.at(31)
        assert len(read_all(log)) == 31


def test_another_size_of_ranges_after_reopening(tmp_path: Path) -> None:
    for round_, seal_rows in enumerate((10, 7, 64, 3)):
        with open_tiny(tmp_path, seal_rows=seal_rows, keep_rows=2) as log:
            log.append([event(f"e{round_}-{i}") for i in range(23)])
            log.seal()
            assert log.append([event(f"e{r}-{i}") for r in range(round_ + 1) for i in range(23)]).accepted == 0
            assert len(read_all(log)) == 23 * (round_ + 1)


@pytest.mark.parametrize("survives", range(15))
def test_a_crash_at_any_step_of_sealing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, survives: int) -> None:
    """The process ends before the n-th thing that sealing makes durable; what is found then is whole."""
    log = open_tiny(tmp_path, seal_rows=20, keep_rows=10)
    monkeypatch.setattr(SqliteLog, "_wake", lambda self: None)
    sent = 5
    for number in range(sent):
        log.append(batch_of(number))
    finished = cut_power(survives, monkeypatch, log.seal)
    if not finished and survives % 2:
        assert log.seal() == log.end(), "the same process may also go on"
        assert check_batches(log, range(sent)) == sent
    log.close()
    with open_tiny(tmp_path, seal_rows=20, keep_rows=10) as log:
        assert check_batches(log, range(sent)) == sent
        assert all(log.append(batch_of(number)).accepted == 0 for number in range(sent))
        assert not list(tmp_path.rglob("*.tmp"))
        log.append(batch_of(sent))
        assert log.seal() == log.end()
        spans = log.history.ranges()
        assert spans[0].first == 0
        assert all(a.last == b.first for a, b in pairwise(spans))
        assert check_batches(log, range(sent + 1)) == sent + 1


def test_a_failing_disk_acknowledges_nothing_and_is_recovered_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = open_tiny(tmp_path)
    log.append(batch_of(0))
    plain = Connections.transaction
    outcome = ["before"]

    @contextmanager
    def transaction(self: Connections) -> Iterator[sqlite3.Connection]:
        with plain(self) as connection:
            yield connection
            if outcome[0] == "before":
                raise sqlite3.OperationalError("disk I/O error")
        raise sqlite3.OperationalError("disk I/O error after all was written")

    for number, outcome[0] in ((1, "before"), (2, "after")):
        with monkeypatch.context() as patch:
            patch.setattr(Connections, "transaction", transaction)
            with pytest.raises(LogError, match="disk I/O error"):
                log.append(batch_of(number))
        assert log.append(batch_of(number)).accepted == (len(batch_of(number)) if outcome[0] == "before" else 0)
    assert check_batches(log, [0, 1, 2]) == 3
    log.close()


def test_group_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Appends that queue up behind a commit share the next one, and each learns its own outcome."""
    commits: list[int] = []
    plain = Connections.transaction

    @contextmanager
    def transaction(self: Connections) -> Iterator[sqlite3.Connection]:
        commits.append(1)
        with plain(self) as connection:
            yield connection

    monkeypatch.setattr(Connections, "transaction", transaction)
    with open_tiny(tmp_path, seal_rows=10_000) as log:
        log.claim()
        outcomes: dict[int, tuple[int, int]] = {}

        def write(number: int) -> None:
            done = log.append([event(f"e{number}"), event("shared")])
            outcomes[number] = (done.accepted, done.duplicates)

        writers = [threading.Thread(target=write, args=(n,)) for n in range(16)]
        with log._writing:
            for thread in writers:
                thread.start()
            deadline = time.monotonic() + 30
            while len(log._queue) < 16:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        for thread in writers:
            thread.join()
        assert len(commits) == 1
        assert sorted(outcomes.values()) == [(1, 1)] * 15 + [(2, 0)]
        assert log.end() == Position.at(17)


def test_commits_are_synced(tmp_path: Path) -> None:
    """A killed process does not show it (the system still writes what it was given), a power cut would."""
    with open_tiny(tmp_path) as log:
        log.append(batch_of(0))
        writer = log._store._writer
        assert writer is not None
        assert writer.execute("PRAGMA synchronous").fetchone() == (2,)
        assert writer.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_one_writer_many_readers(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as writer, open_tiny(tmp_path) as reader:
        seen = writer.append(batch_of(0)).position
        assert check_batches(reader, [0]) == 1
        with pytest.raises(StoreError, match="written by another process"):
            reader.append(batch_of(1))
        with pytest.raises(StoreError, match="written by another process"):
            reader.claim()
        assert not reader.wait(seen, 0.01)
        writer.append(batch_of(1))
        assert reader.wait(seen, 30.0)
        reader.note("serving", seen)
        assert writer.followers() == {"serving": seen}
        writer.seal()
        assert check_batches(reader, [0, 1]) == 2
        writer.close()
        assert reader.append(batch_of(2)).duplicates == 0


def test_a_second_process_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from log_checks import *\n"
        "log = open_tiny(Path(sys.argv[1])); print(check_batches(log, [0]))\n"
        "try: log.append(batch_of(1))\nexcept Exception as error: print(type(error).__name__)\n"
    )
    with open_tiny(tmp_path) as log:
        log.append(batch_of(0))
        ran = subprocess.run(
            [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parent
        )
    assert ran.stdout.split() == ["1", "StoreError"], ran.stderr


def test_lost_history_is_said(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        log.append([event(f"e{i}") for i in range(20)])
        log.seal()
        log.history.ranges()[0].path.unlink()
        with pytest.raises(PositionGone):
            log.read(START)
        assert len(log.read(Position.at(10))) == 10


def test_damaged_files_are_said(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        log.append([event(f"e{i}") for i in range(10)])
        log.seal()
        log.history.ranges()[0].path.write_bytes(b"PAR1 not at all PAR1")
        with pytest.raises(StoreError, match="cannot be read"):
            log.read(START)
    (tmp_path / "log.sqlite").write_bytes(b"x" * 4096)
    for leftover in ("log.sqlite-wal", "log.sqlite-shm"):
        (tmp_path / leftover).unlink(missing_ok=True)
    with pytest.raises(StoreError, match="not a database"):
        open_tiny(tmp_path)


def test_ids_files_that_were_lost_are_made_anew(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        log.append([event(f"e{i}") for i in range(50)])
        log.seal()
    files = sorted((tmp_path / "history" / "ids").iterdir())
    assert len(files) == 5
    files[1].unlink()
    files[4].unlink()
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        assert log.append([event(f"e{i}") for i in range(50)]).accepted == 0
    damaged = sorted((tmp_path / "history" / "ids").iterdir())[0]
    damaged.write_bytes(damaged.read_bytes()[:-1])
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log, pytest.raises(StoreError, match="damaged"):
        log.claim()
    assert IdRun.load(sorted((tmp_path / "history" / "ids").iterdir())[1]).last == 20


def test_a_failed_sealing_is_kept_and_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    with open_tiny(tmp_path, seal_rows=10, keep_rows=0) as log:
        with monkeypatch.context() as patch:
            patch.setattr(log.history, "write", lambda *_: (_ for _ in ()).throw(OSError("disk full")))
            log.append([event(f"e{i}") for i in range(10)])
            deadline = time.monotonic() + 30
            while log._sealer is None or log._sealer.error is None:
                assert time.monotonic() < deadline
                time.sleep(0.005)
        assert "sealing a range failed" in caplog.text
        log.append([event("more")])
        while log.sealed() != Position.at(10):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        assert len(read_all(log)) == 11


def test_a_record_that_arrives_while_a_reader_looks_is_not_taken_for_gone(tmp_path: Path) -> None:
    """The reader finds nothing, the record is appended, the reader asks for the end: it must look again or wait."""
    with open_tiny(tmp_path) as log:
        look, late = log._rows.kept, [event("a")]

        def look_then_append(start: int, limit: int) -> list[bytes]:
            found = look(start, limit)
            if late:
                log.append([late.pop()])
            return found

        log._rows.kept = look_then_append  # type: ignore[method-assign]
        assert len(log.read(START)) == 1
        end_on_disk, later = log._rows.end, [event("b")]

        def end_then_append() -> int:
            end = end_on_disk()
            if later:
                log.append([later.pop()])
            return end

        log._rows.end = end_then_append  # type: ignore[method-assign]
        assert len(log.read(log.end())) == 0
