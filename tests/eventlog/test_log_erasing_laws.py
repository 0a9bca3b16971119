"""Random appends, erasures, sealing, crashes and reopening, against a plain model of what is left."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st
from log_checks import erase_all, event, open_tiny, raw_bytes, read_all

from mainstem.eventlog.memory import MemoryLog
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.schema.config import LogConfig
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Erase, Erased, Event, LogRecord

USERS, ITEMS = ["ann", "bob", "cleo"], ["i0", "i1"]

whats = st.tuples(st.sampled_from(USERS), st.sampled_from(ITEMS), st.integers(0, 30))
erasures = st.tuples(st.sampled_from(USERS + ITEMS), st.integers(0, 30))
steps = st.one_of(
    st.tuples(st.just("append"), st.lists(st.one_of(whats, whats, erasures), min_size=1, max_size=8)),
    st.tuples(st.just("read"), st.tuples(st.integers(0, 60), st.integers(1, 20))),
    st.tuples(st.sampled_from(["seal", "reopen", "crash", "some", "pass on"]), st.none()),
)


class Model:
    """What the log must hold: a list, and who was erased when."""

    def __init__(self) -> None:
        self.left: list[LogRecord | None] = []
        self.erased: dict[str, int] = {}

    def take(self, record: LogRecord) -> bool:
        """Append; False where it is refused."""
        if isinstance(record, Erase):
            name = str(record.user or record.entity)
            self.left = [None if name in _names(kept) else kept for kept in self.left]
            self.erased[name] = max(record.time, self.erased.get(name, record.time))
        elif any(record.time <= self.erased.get(name, -1) for name in _names(record)):
            return False
        self.left.append(record)
        return True


def _names(record: LogRecord | None) -> list[str]:
    if isinstance(record, Event):
        return [record.user, str(record.entity)]
    return [str(record.user or record.entity)] if isinstance(record, Erase) else []


def records_of(given_: list[tuple[str, str, int] | tuple[str, int]], first: int) -> list[LogRecord]:
    made: list[LogRecord] = []
    for number, what in enumerate(given_, first):
        if len(what) == 3:
            user, item, time = what
            made.append(event(f"e{number}", user=user, entity=item, time=time, session=f"session-{number}-"))
        else:
            name, time = what
            whom = {"user": name} if name in USERS else {"entity": name}
            made.append(Erase(record_id=f"x{number}", time=time, received_at=1, **whom))  # type: ignore[arg-type]
    return made


def check(log: Log, model: Model) -> None:
    found = [None if isinstance(record, Erased) else record for record in read_all(log, 7)]
    assert found == model.left


def crash(log: SqliteLog) -> None:
    """End without a word, as the process would; the thread is stopped, since ours goes on."""
    if log._sealer:
        log._sealer.stop()
    if log._lock_file is not None:
        os.close(log._lock_file)
    log._store.close()


@settings(max_examples=40, deadline=None)
@given(st.lists(steps, max_size=20), st.integers(3, 20), st.integers(1, 20))
def test_what_is_left_is_what_the_model_says(script: list[tuple[str, object]], seal_rows: int, keep_rows: int) -> None:
    model, oracle, count = Model(), MemoryLog(LogConfig()), 0
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        log = open_tiny(folder, seal_rows, keep_rows)
        log.follow("state")
        try:
            for verb, given_ in script:
                if verb == "append":
                    batch = records_of(given_, count)  # type: ignore[arg-type]
                    count += len(batch)
                    written = sum([model.take(record) for record in batch])
                    done = log.append(batch)
                    assert done == oracle.append(batch)
                    assert (done.accepted, done.erased) == (written, len(batch) - written)
                elif verb == "read":
                    start, limit = given_  # type: ignore[misc]
                    at = Position.at(min(start, log.end().offset()))
                    assert log.read(at, limit) == oracle.read(at, limit)
                elif verb == "seal":
                    assert log.seal() == oracle.end()
                elif verb == "pass on":
                    log.note("state", log.end())
                elif verb == "some":
                    log.claim()
                    log.erase_some()
                elif verb == "crash":
                    crash(log)
                    log = open_tiny(folder, seal_rows, keep_rows)
                else:
                    log.close()
                    log = open_tiny(folder, seal_rows, keep_rows)
                check(log, model)
            check(oracle, model)
            erase_all(log)
            check(log, model)
            left = raw_bytes(folder)
            kept = {record.session for record in model.left if isinstance(record, Event)}
            for number in range(count):
                session = f"session-{number}-"
                assert (session.encode() in left) == (session in kept)
        finally:
            log.close()
