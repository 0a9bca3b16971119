"""Erasure reaches the log (law 10): readers, what arrives again, and the bytes of its files."""

from __future__ import annotations

import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path

import msgspec
import numpy as np
import pytest
from log_checks import cut_power, erase_all, event, in_sqlite, open_tiny, raw_bytes, read_all

from mainstem.eventlog import erasing
from mainstem.eventlog.admission import decode_many
from mainstem.eventlog.memory import MemoryLog
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import InvalidRecord, StoreError
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import (
    Context,
    Entity,
    EntityPatch,
    Erase,
    Erased,
    Event,
    LogRecord,
    Past,
    Served,
    Show,
    Slate,
    SlateItem,
    SlateRequest,
    encode_record,
)

AnyLog = MemoryLog | SqliteLog
T = 1_700_000_000_000


@pytest.fixture(params=["memory", "sqlite", "sqlite-sealing"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyLog]:
    if request.param == "memory":
        opened: AnyLog = MemoryLog(LogConfig())
    else:
        opened = open_tiny(tmp_path, seal_rows=1_000_000 if request.param == "sqlite" else 5, keep_rows=3)
    yield opened
    opened.close()


def erase(user: str | None = None, at: int = T + 100, name: str = "", **fields: str) -> Erase:
    return Erase(record_id=f"x-{name or user or fields['entity']}-{at}", time=at, received_at=at, user=user, **fields)


def settle(log: AnyLog) -> None:
    if isinstance(log, SqliteLog):
        erase_all(log)


def served(user: str | None, items: list[str], name: str = "s", at: int = T, **context: object) -> Served:
    values = np.arange(len(items), dtype=np.float32)
    return Served(
        record_id=name, time=at, user=user, received_at=at,
        request=SlateRequest(
            context=Context(user=user, sources=["i1", "i2"], **context),  # type: ignore[arg-type]
            show=Show(exclude=["i1"], only=["i1", "i2", "i3"]),
        ),
        slate=Slate(
            request_id=name, canvas="home", time=at, items=[SlateItem(entity=item, score=1.0) for item in items]
        ),
        feature_names=["f"], features=values.tobytes(),
    )  # fmt: skip


def gone(log: Log) -> list[int]:
    """The places where something is erased."""
    return [place for place, record in enumerate(read_all(log, 7)) if isinstance(record, Erased)]


# ---- every log ---------------------------------------------------------------------------------------


def test_what_a_user_did_before_the_erasure_is_gone_and_offsets_stay(log: AnyLog) -> None:
    sent: list[LogRecord] = [event(f"e{n}", user="ann" if n % 3 else "bob") for n in range(12)]
    end = log.append([*sent, served("ann", ["i1"]), served(None, ["i1"], "s2", query="q")]).position
    done = log.append([erase("ann")])
    assert (done.position, done.accepted) == (Position.at(15), 1)
    for _ in range(2):  # hidden at once, then taken out
        records = read_all(log, 4)
        assert gone(log) == [n for n in range(12) if n % 3] + [12]
        assert [records[n] for n in range(0, 12, 3)] == sent[::3]
        assert isinstance(records[13], Served)
        assert records[14] == erase("ann")
        cut = log.read(Position.at(1), 2)
        assert (cut.offsets, cut.next) == ([1, 2], Position.at(3)), "a cut of erased records ends where it ended"
        settle(log)
    assert log.erasures().known == 1
    assert log.append(sent).duplicates == 12, "known ids stay known"
    assert end == Position.at(14)


def test_what_arrives_again_is_refused_up_to_the_time_of_the_erasure(log: AnyLog) -> None:
    log.append([event("e1", user="ann"), erase("ann", T + 100)])
    done = log.append(
        [
            event("n1", user="ann", time=T + 99), event("n2", user="ann", time=T + 100), event("e1", user="ann"),
            event("n3", user="ann", time=T + 101), event("n4", user="bob"), served("ann", ["i1"], "s1", T + 50),
            event("n5", user="ann", tenant="other"), event("n6", user="bob", entity="ann", entity_type="user"),
        ]
    )  # fmt: skip
    assert (done.accepted, done.duplicates, done.erased) == (3, 1, 4)
    assert done.position == log.end() == Position.at(5)
    settle(log)
    records = read_all(log)
    assert [record.event_id for record in records if isinstance(record, Event)] == ["n3", "n4", "n5"]
    again = log.append([event("n1", user="ann", time=T + 200)])
    assert again.accepted == 1, "what was refused was not written, so its id is free"


def test_order_within_one_batch_counts(log: AnyLog) -> None:
    done = log.append(
        [event("a", user="ann"), erase("ann"), event("b", user="ann"), event("c", user="ann", time=T + 101)]
    )
    assert (done.accepted, done.erased) == (3, 1)
    settle(log)
    assert gone(log) == [0]
    assert [r.event_id for r in read_all(log) if isinstance(r, Event)] == ["c"]


def test_an_erasure_is_never_refused_and_the_latest_time_counts(log: AnyLog) -> None:
    log.append([erase("ann", T + 100), erase("ann", T + 50, "again")])
    assert log.append([event("a", user="ann", time=T + 80)]).erased == 1
    log.append([event("b", user="ann", time=T + 120), erase("ann", T + 10, "third")])
    settle(log)
    assert gone(log) == [0, 1, 2], "earlier erasures of the same name go with the later one"
    assert log.append([event("c", user="ann", time=T + 100)]).erased == 1
    assert log.append([event("d", user="ann", time=T + 101)]).accepted == 1


def test_an_erased_entity_leaves_slates_and_takes_what_is_about_it(log: AnyLog) -> None:
    log.append(
        [
            Entity(record_id="r1", time=T, entity="i1", text="words", received_at=T),
            EntityPatch(record_id="r2", time=T, entity="i1", stock=1.0, received_at=T),
            event("e1", entity="i1"), event("e2", entity="i2"), event("e3", entity="i1", entity_type="film"),
            served("bob", ["i1", "i2", "i3"]), erase(entity="i1"),
        ]
    )  # fmt: skip
    done = log.append(
        [Entity(record_id="r3", time=T + 100, entity="i1", received_at=T), served("cleo", ["i3", "i1"], "s2", T + 50)]
    )
    assert (done.accepted, done.erased) == (1, 1)
    settle(log)
    assert gone(log) == [0, 1, 2]
    slates = [record for record in read_all(log) if isinstance(record, Served)]
    assert [[item.entity for item in slate.slate.items] for slate in slates] == [["i2", "i3"], ["i3"]]
    assert [np.frombuffer(slate.features, np.float32).tolist() for slate in slates] == [[1.0, 2.0], [0.0]]
    for slate in slates:
        assert (slate.request.context.sources, slate.request.show.exclude) == (["i2"], [])
        assert slate.request.show.only == ["i2", "i3"]


@pytest.mark.parametrize(("entity", "stays"), [("i1", False), ("i9", True)])
def test_what_was_read_of_the_history_goes_with_an_erased_place(log: AnyLog, entity: str, stays: bool) -> None:
    past = Past(kinds=["view"], entities=bytes(8), actions=bytes(1), times=bytes(8))
    log.append([msgspec.structs.replace(served("bob", ["i1", "i2"]), past=past), erase(entity=entity)])
    settle(log)
    (slate,) = (record for record in read_all(log) if isinstance(record, Served))
    assert (slate.past == past) is stays
    assert (slate.past is None) is not stays


def test_guests_who_became_the_user_are_erased_too(log: AnyLog) -> None:
    def alias(name: str, user: str, guest: str) -> Event:
        return event(name, user=user, kind="alias", entity=guest, entity_type="user")

    log.append([event("a", user="g0"), event("b", user="g1"), alias("c", "g1", "g0"), event("d", user="zoe")])
    log.append([event("e", user="g1"), alias("f", "ann", "g1"), event("g", user="ann"), alias("h", "zoe", "g9")])
    log.append([erase("ann")])
    settle(log)
    records = read_all(log)
    assert gone(log) == [0, 1, 2, 4, 5, 6]
    assert [record.user for record in records if isinstance(record, Erase)] == ["ann", "g1", "g0"]
    assert log.append([event("z", user="g0")]).erased == 1
    assert log.erasures().known == 3


def test_nobody_appends_a_placeholder(log: AnyLog) -> None:
    with pytest.raises(InvalidRecord, match="only the log itself"):
        log.append([Erased(digest=b"0" * 16)])


# ---- SQLite and Parquet ------------------------------------------------------------------------------

SECRETS = [b"ann-secret", b"secret-query", b"secret-item", b"secret-session", b"secret-extra"]


def secret(number: int, **fields: object) -> Event:
    return event(
        f"e{number}", user="ann-secret", entity="secret-item", query="secret-query", session=f"secret-session-{number}",
        extras={"store": "secret-extra"}, **fields,
    )  # fmt: skip


def fill(log: SqliteLog, count: int = 90) -> None:
    """A third of it secret, in sealed files, in files and SQLite, and in SQLite alone."""
    log.follow("state")
    for first in range(0, count, 6):
        log.append(
            [
                secret(n) if n % 3 == 0 else event(f"e{n}", user="bob", extras={"n": "x" * n})
                for n in range(first, first + 6)
            ]
        )
        if first == count // 2:
            log.seal()
            log.note("state", Position.at(first))
            log.drop_sealed()
    log.append([served("ann-secret", ["i1"])])


def test_nothing_of_it_is_left_in_the_bytes_of_any_file(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5, keep_erasures="0s") as log:
        fill(log)
        assert all(word in raw_bytes(tmp_path) for word in SECRETS), "canary: the search finds what is there"
        kept = [record for record in read_all(log) if isinstance(record, Event) and record.user == "bob"]
        log.append([erase("ann-secret", name="x")])
        erase_all(log)
        left = raw_bytes(tmp_path)
        assert not [word for word in SECRETS[1:] if word in left]
        assert b"ann-secret" in left, "the erasure names its user until all have followed it"
        log.note("state", log.end())
        erase_all(log)
        left = raw_bytes(tmp_path)
        assert not [word for word in SECRETS if word in left]
        assert [r for r in read_all(log) if isinstance(r, Event)] == kept
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        assert log.append([secret(n) for n in range(0, 90, 3)]).duplicates == 30
        assert log.append([event("new", user="ann-secret")]).erased == 1
        assert not [word for word in SECRETS if word in raw_bytes(tmp_path)]


def test_the_erasure_keeps_its_name_for_as_long_as_configured(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as log:
        log.append([event("a", user="ann"), erase("ann")])
        erase_all(log)
        assert read_all(log)[1] == erase("ann")
    with open_tiny(tmp_path, keep_erasures="0s") as log:
        erase_all(log)
        assert gone(log) == [0, 1]
        log.append([erase(entity="i9"), event("b", user="ann", time=T + 101)])
        erase_all(log)
        assert read_all(log)[2] == erase(entity="i9"), "entities are no persons: the catalogue goes on knowing of it"
        assert gone(log) == [0, 1]


def test_the_background_does_it(tmp_path: Path, waiting: Callable[[Callable[[], bool]], None]) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        fill(log)
        log.append([erase("ann-secret")])
        waiting(lambda: log.erasures().pending == 0)
        assert b"secret-query" not in raw_bytes(tmp_path)


@pytest.fixture
def waiting() -> Callable[[Callable[[], bool]], None]:
    def wait(until: Callable[[], bool]) -> None:
        deadline = time.monotonic() + 60
        while not until():
            assert time.monotonic() < deadline
            time.sleep(0.01)

    return wait


def test_appends_go_on_between_slices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        fill(log)
        monkeypatch.setattr(log, "_wake", lambda: None)
        monkeypatch.setattr(erasing, "_SLICE", 8)
        log.append([erase("ann-secret")])
        slices = 0
        while log.erasures().pending:
            log.erase_some()
            log.append([event(f"between-{slices}")])
            log.seal()
            slices += 1
        assert slices > 3
        assert log.erasures().pending == 0
        assert b"secret-query" not in raw_bytes(tmp_path)


def test_another_process_reads_nothing_erased(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log, open_tiny(tmp_path) as reader:
        fill(log)
        assert not gone(reader)
        log.append([erase("ann-secret")])
        assert len(gone(reader)) == 31
        assert reader.erasures().known == 1
        erase_all(log)
        assert len(gone(reader)) == 31
        assert reader.erasures().pending == 0


def test_an_old_copy_of_a_file_is_rewritten_again(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        fill(log)
        log.seal()
        path = log.history.ranges()[0].path
        shutil.copy2(path, tmp_path / "copy")
        log.append([erase("ann-secret")])
        erase_all(log)
    shutil.copy2(tmp_path / "copy", path)
    (tmp_path / "copy").unlink()
    assert b"secret-query" in raw_bytes(tmp_path)
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        assert len(gone(log)) == 31, "hidden before anything is written"
        log.claim()
        assert log.erasures().pending == 1
        erase_all(log)
        assert b"secret-query" not in raw_bytes(tmp_path)


def test_an_old_copy_of_the_whole_log_forgets_again(tmp_path: Path) -> None:
    data, copy = tmp_path / "data", tmp_path / "copy"
    data.mkdir()
    with open_tiny(data, seal_rows=20, keep_rows=5) as log:
        fill(log)
    shutil.copytree(data, copy)
    with open_tiny(data, seal_rows=20, keep_rows=5) as log:
        log.append([event(f"later-{n}") for n in range(30)])
        log.append([erase("ann-secret")])
        erase_all(log)
    shutil.copytree(data / "log.sqlite.erased", copy / "log.sqlite.erased")
    with open_tiny(copy, seal_rows=20, keep_rows=5) as log:
        end = log.end()
        assert len(gone(log)) == 31
        assert log.append([event("again", user="ann-secret")]).erased == 1
        log.append([event("anew", user="ann-secret", time=T + 101)])
        erase_all(log)
        assert b"secret-query" not in raw_bytes(copy)
        assert [r.event_id for r in log.read(end).records if isinstance(r, Event)] == ["anew"]
    with open_tiny(copy, seal_rows=20, keep_rows=5) as log:
        assert [r.event_id for r in log.read(end).records if isinstance(r, Event)] == ["anew"]


def test_lost_tombstones_are_made_anew_from_the_erasures(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        fill(log)
        log.append([erase("ann-secret")])
        erase_all(log)
    shutil.rmtree(tmp_path / "log.sqlite.erased")
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        assert log.append([event("again", user="ann-secret")]).erased == 1
        erase_all(log)
        assert len(gone(log)) == 31


def test_a_log_from_before_there_were_tombstones_forgets_too(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        fill(log)
    with closing(sqlite3.connect(tmp_path / "log.sqlite")) as old:
        old.executescript("DROP TABLE erasures; DROP TABLE swept; PRAGMA user_version=2;")
        old.execute("DELETE FROM meta WHERE name LIKE 'erased%'")
        old.execute("UPDATE records SET body = ? WHERE offset = 89", (encode_record(erase("ann-secret")),))
        old.commit()
    with open_tiny(tmp_path, seal_rows=20, keep_rows=5) as log:
        erase_all(log)
        assert len(gone(log)) == 30
        assert b"secret-query" not in raw_bytes(tmp_path)


def test_a_power_cut_anywhere_while_erasing_is_harmless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(erasing, "_SLICE", 8)
    plain = tmp_path / "plain"
    plain.mkdir()
    with open_tiny(plain, seal_rows=20, keep_rows=5) as log:
        fill(log)
        monkeypatch.setattr(log, "_wake", lambda: None)  # nothing is erased yet
        log.append([event("al", user="ann-secret", kind="alias", entity="guest", entity_type="user")])
        log.append([erase("ann-secret")])
        expected_end = log.end().offset()
    for survives in range(40):
        folder = tmp_path / f"cut-{survives}"
        shutil.copytree(plain, folder)
        log = open_tiny(folder, seal_rows=20, keep_rows=5)
        monkeypatch.setattr(log, "_wake", lambda: None)  # nothing but the power is to end a slice
        through = cut_power(survives, monkeypatch, lambda: erase_all(log))  # noqa: B023
        log._store.close()
        if log._lock_file is not None:
            os.close(log._lock_file)
        with open_tiny(folder, seal_rows=20, keep_rows=5) as log:
            assert len(gone(log)) >= 32
            erase_all(log)
            assert b"secret-query" not in raw_bytes(folder)
            assert log.end() == Position.at(expected_end + 1), "the guest is erased once"
        if through:
            break
    assert through
    assert survives > 5


def test_a_lost_key_is_said(tmp_path: Path) -> None:
    with open_tiny(tmp_path) as log:
        log.append([erase("ann")])
        erase_all(log)
    key = tmp_path / "log.sqlite.erased" / "key"
    assert key.stat().st_mode & 0o777 == 0o600
    key.write_bytes(b"another")
    with open_tiny(tmp_path) as log, pytest.raises(StoreError, match="do not belong together"):
        log.append([event("a")])


def test_a_torn_tombstone_is_cut_off_and_a_damaged_one_is_said(tmp_path: Path) -> None:
    path = tmp_path / "log.sqlite.erased" / "tombstones.bin"
    with open_tiny(tmp_path) as log:
        log.append([erase("ann"), erase("bob")])
        erase_all(log)
    whole = path.read_bytes()
    assert len(whole) == 16 + 2 * 40
    path.write_bytes(whole + whole[16:40])
    with open_tiny(tmp_path) as log:
        assert log.append([event("a", user="ann"), event("b", user="bob")]).erased == 2
        assert path.read_bytes() == whole
    path.write_bytes(whole[:20] + bytes([whole[20] ^ 1]) + whole[21:])
    with open_tiny(tmp_path) as log, pytest.raises(StoreError, match="damaged"):
        log.append([event("c")])


def test_in_sqlite_and_history_the_same_is_left(tmp_path: Path) -> None:
    with open_tiny(tmp_path, seal_rows=20, keep_rows=1000) as log:
        fill(log)
        log.append([erase("ann-secret")])
        erase_all(log)
        log.seal()
        assert in_sqlite(tmp_path)[0] == 0
        whole = log.read(START, 1000).records
        for span in log.history.ranges():
            at = span.first
            assert decode_many(log.history.bodies(at, 1000)) == whole[at : span.last]
