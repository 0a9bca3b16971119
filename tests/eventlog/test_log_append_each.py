"""Batches that share a commit: each learns its own outcome, and an error of the commit reaches every one of them."""

from __future__ import annotations

import sqlite3
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from log_checks import event, open_tiny, read_all

from mainstem.eventlog import sqlite
from mainstem.eventlog.connections import Connections
from mainstem.eventlog.memory import MemoryLog
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import InvalidRecord, LogError, StoreError
from mainstem.schema.position import START
from mainstem.schema.protocols import Appended, Log
from mainstem.schema.records import LogRecord

WRONG = event("w", user="")
batches = st.lists(
    st.lists(st.one_of(st.integers(0, 15).map(lambda n: event(f"e{n}")), st.just(WRONG)), max_size=5), max_size=8
)


def alone(log: Log, records: list[LogRecord]) -> Appended | Exception:
    try:
        return log.append(records)
    except (InvalidRecord, LogError, StoreError) as error:
        return error


def said(outcome: Appended | Exception) -> object:
    return (type(outcome), str(outcome)) if isinstance(outcome, Exception) else outcome


@settings(max_examples=40, deadline=None)
@given(st.lists(batches, max_size=3), st.integers(1, 6))
def test_together_is_as_one_after_the_other(sent: list[list[list[LogRecord]]], group: int) -> None:
    oracle = MemoryLog(LogConfig())
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryDirectory() as folder,
        open_tiny(Path(folder), 7, 3) as log,
    ):
        patch.setattr(sqlite, "_GROUP_ROWS", group)  # several commits for one call
        for together in sent:
            expected = [said(alone(oracle, batch)) for batch in together]
            assert [said(outcome) for outcome in log.append_each(together)] == expected
        assert read_all(log) == read_all(oracle)


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_what_no_append_foresaw_is_the_outcome_of_its_batch_alone(tmp_path: Path, kind: str) -> None:
    log: Log = MemoryLog(LogConfig()) if kind == "memory" else open_tiny(tmp_path)
    good, strange, other = log.append_each([[event("a")], [None], [event("b")]])  # type: ignore[list-item]
    assert isinstance(strange, Exception)
    assert [said(good), said(other)] == [said(Appended(START.at(1), 1, 0)), said(Appended(START.at(2), 1, 0))]
    log.close()


@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_a_closed_log_says_so_to_each(tmp_path: Path, kind: str) -> None:
    log: Log = MemoryLog(LogConfig()) if kind == "memory" else open_tiny(tmp_path)
    log.append([event("a")])
    log.close()
    first, wrong, empty = log.append_each([[event("b")], [WRONG], []])
    assert isinstance(first, LogError)
    assert isinstance(wrong, InvalidRecord), "as append: what can never be written is said first"
    assert isinstance(empty, LogError)
    assert "closed" in str(first)
    assert log.append_each([]) == []


def test_another_writer_is_said_to_each_and_each_may_try_again(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as writer, open_tiny(tmp_path) as second:
        writer.append([event("a")])
        outcomes = second.append_each([[event("b")], [event("c")], [WRONG]])
        assert [type(outcome) for outcome in outcomes] == [StoreError, StoreError, InvalidRecord]
        assert outcomes[0] is not outcomes[1]
        assert not second._queue
        assert len(read_all(second)) == 1, "it still reads"
        writer.close()
        again = second.append_each([[event("b")], [event("a")]])
        assert again == [Appended(START.at(2), 1, 0), Appended(START.at(2), 0, 1)]


@pytest.mark.parametrize("written", [False, True])
def test_a_failing_disk_reaches_every_batch_of_the_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, written: bool
) -> None:
    """Those of one call, and those of other threads that shared its commit; then each may be sent again."""
    log = open_tiny(tmp_path)
    log.claim()
    plain = Connections.transaction

    @contextmanager
    def transaction(self: Connections) -> Iterator[sqlite3.Connection]:
        with plain(self) as connection:
            yield connection
            if not written:
                raise sqlite3.OperationalError("disk I/O error")
        raise sqlite3.OperationalError("disk I/O error after all was written")

    outcomes: list[Appended | Exception] = []

    def each() -> None:
        outcomes.extend(log.append_each([[event("a"), event("b")], [event("a")], [WRONG]]))

    def one() -> None:
        outcomes.append(alone(log, [event("c")]))

    with monkeypatch.context() as patch:
        patch.setattr(Connections, "transaction", transaction)
        threads = [threading.Thread(target=call) for call in (each, one, one)]
        with log._writing:
            for thread in threads:
                thread.start()
            deadline = time.monotonic() + 30
            while len(log._queue) < 4:
                assert time.monotonic() < deadline
                time.sleep(0.001)
        for thread in threads:
            thread.join(30)
            assert not thread.is_alive()
    failures = [outcome for outcome in outcomes if isinstance(outcome, LogError)]
    assert len(outcomes) == 5
    assert len({id(failure) for failure in failures}) == 4, "each has an error of its own"
    assert all("disk I/O error" in str(failure) for failure in failures)
    again = log.append_each([[event("a"), event("b")], [event("a")], [event("c")]])
    assert [outcome.accepted for outcome in again if isinstance(outcome, Appended)] == (
        [0, 0, 0] if written else [2, 0, 1]
    )
    assert len(read_all(log)) == 3
    log.close()


def test_what_others_queued_before_is_committed_on_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sqlite, "_GROUP_ROWS", 1)
    with open_tiny(tmp_path) as log:
        others = [log._ticket([event(f"other{number}")], 0) for number in range(3)]
        log._queue.extend(others)
        assert log.append_each([[event("mine")], []]) == [Appended(START.at(4), 1, 0), Appended(START.at(4), 0, 0)]
        assert [ticket.outcome() for ticket in others] == [Appended(START.at(n), 1, 0) for n in (1, 2, 3)]
