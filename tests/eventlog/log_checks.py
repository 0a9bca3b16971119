"""What every log must hold, checked from the outside; `test_log_kill.py` shows that the check can fail."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from mainstem.eventlog import dedup, history
from mainstem.eventlog.connections import Connections
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.eventlog.tombstones import Entry, TombstoneFile
from mainstem.schema.config import LogConfig
from mainstem.schema.position import START
from mainstem.schema.protocols import Log
from mainstem.schema.records import Erase, Erased, Event, LogRecord, record_id

TINY = 64


def tiny_config(
    seal_rows: int = TINY, keep_rows: int = TINY, keep_age: str | None = None, keep_erasures: str = "30d"
) -> LogConfig:
    """Ranges far smaller, and ages far shorter, than the configuration allows, so that a test seals many."""
    return LogConfig.model_construct(
        skew="10m", seal_rows=seal_rows, keep_rows=keep_rows, keep_age=keep_age, keep_erasures=keep_erasures
    )


def open_tiny(
    folder: Path, seal_rows: int = TINY, keep_rows: int = TINY, keep_age: str | None = None, keep_erasures: str = "30d"
) -> SqliteLog:
    config = tiny_config(seal_rows, keep_rows, keep_age, keep_erasures)
    return SqliteLog(folder / "log.sqlite", folder / "history", config)


def erase_all(log: SqliteLog) -> None:
    """Do all that is left to erase, as the background thread does."""
    log.claim()
    while (left := log.erase_some()) is not None and left < 10:
        time.sleep(left / 10)
    assert log.erasures().pending == 0


def raw_bytes(folder: Path) -> bytes:
    """Every byte of every file under `folder`, and what Parquet files hold once unpacked."""
    found: list[bytes] = []
    try:
        for path in sorted(path for path in folder.rglob("*") if path.is_file()):
            found.append(path.read_bytes())
            if path.suffix == ".parquet":
                found.append(repr(pq.read_table(path).to_pylist()).encode())
                found.append(repr(pq.read_metadata(path).to_dict()).encode())
    except FileNotFoundError:  # renamed meanwhile: look again
        return raw_bytes(folder)
    return b"\n".join(found)


def in_sqlite(folder: Path) -> list[int]:
    """Offsets of the records that SQLite still has."""
    connection = sqlite3.connect(folder / "log.sqlite")
    rows = connection.execute("SELECT offset FROM records ORDER BY offset").fetchall()
    connection.close()
    return [row[0] for row in rows]


class PowerCut(BaseException):
    """Stands for the end of the process at this point."""


def cut_power(survives: int, monkeypatch: pytest.MonkeyPatch, sealing: Callable[[], object]) -> bool:
    """Run `sealing`, whose process ends before the n-th thing that it makes durable; whether it got through."""
    left = [survives]

    def count() -> None:
        left[0] -= 1
        if left[0] < 0:
            raise PowerCut

    plain_publish, plain_transaction, plain_append = dedup.publish, Connections.transaction, TombstoneFile.append

    def publish(temp: Path, path: Path) -> None:
        count()
        plain_publish(temp, path)

    def append(self: TombstoneFile, key: bytes, entries: Sequence[Entry]) -> None:
        count()
        plain_append(self, key, entries)

    @contextmanager
    def transaction(self: Connections) -> Iterator[sqlite3.Connection]:
        with plain_transaction(self) as connection:
            yield connection
            count()

    with monkeypatch.context() as patch:
        patch.setattr(dedup, "publish", publish)
        patch.setattr(history, "publish", publish)
        patch.setattr(Connections, "transaction", transaction)
        patch.setattr(TombstoneFile, "append", append)
        try:
            sealing()
        except PowerCut:
            return False
    return True


def event(event_id: str, **fields: object) -> Event:
    """A purchase; arrived when it happened."""
    given = {"time": 1_700_000_000_000, "user": "u", "kind": "purchase", "entity": "i", **fields}
    return Event(event_id=event_id, **{"received_at": 1_700_000_000_000, **given})  # type: ignore[arg-type]


def read_all(log: Log, limit: int = 1000) -> list[LogRecord]:
    """Everything, with the offsets checked on the way: dense from 0, and `next` after the last."""
    records: list[LogRecord] = []
    at = START
    while len(batch := log.read(at, limit)):
        first = len(records)
        records += batch.records
        assert batch.offsets == list(range(first, len(records))), "offsets are not dense"
        assert batch.next.offset() == len(records), "next does not follow the last record"
        at = batch.next
    assert at == log.end(), "reading stopped before the end"
    return records


def batch_of(number: int) -> list[Event]:
    """The batch that has this number, always the same; sizes 1 to 40."""
    size = 1 + number * 7919 % 40
    return [
        event(f"b{number}-{i}", user=f"u{i % 5}", value=float(i), time=1_600_000_000_000 + number) for i in range(size)
    ]


def turn_of(number: int) -> list[LogRecord]:
    """A new user's events, and the erasure of the user of three turns before."""
    sent: list[LogRecord] = [
        event(f"t{number}-{i}", user=f"user-{number}", session=f"session-{number}-", time=1_600_000_000_000 + number)
        for i in range(12)
    ]
    if number >= 3:
        sent.append(Erase(record_id=f"x{number}", time=1_650_000_000_000, received_at=1, user=f"user-{number - 3}"))
    return sent


def check_turns(folder: Path, log: SqliteLog, acknowledged: int) -> None:
    """What was acknowledged up to the turn `acknowledged` is there, but for what is erased, which no file holds."""
    records = read_all(log)
    turns = (log.end().offset() + 3) // 13  # 12 records in each of the first three turns, 13 from then on
    sent = [record for number in range(turns) for record in turn_of(number)]
    assert len(records) == len(sent), "a turn is not whole"
    assert turns > acknowledged, "an acknowledged turn is lost"
    for found, was in zip(records, sent, strict=True):
        if isinstance(was, Event) and int(was.user.split("-")[1]) < turns - 3:
            assert isinstance(found, Erased), f"{was} came through"
        else:
            assert found == was
    erase_all(log)
    left = raw_bytes(folder)
    for number in range(turns):
        assert (f"session-{number}-".encode() in left) == (number >= turns - 3), f"turn {number} of {turns}"


def check_batches(log: Log, acknowledged: Iterable[int]) -> int:
    """Every acknowledged batch is there; every batch that is there is whole, in order, once. How many there are."""
    found: dict[int, list[LogRecord]] = {}
    last = -1
    for record in read_all(log):
        number = int(record_id(record)[1:].split("-")[0])
        assert number >= last, f"batch {number} lies after batch {last}"
        last = number
        found.setdefault(number, []).append(record)
    for number, records in found.items():
        assert records == batch_of(number), f"batch {number} is not whole, or not as it was sent"
    missing = [number for number in acknowledged if number not in found]
    assert not missing, f"acknowledged batches are lost: {missing}"
    return len(found)
