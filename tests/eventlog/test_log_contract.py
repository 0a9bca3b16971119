"""What every log promises, on every log."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from log_checks import event, open_tiny, read_all

from mainstem import eventlog
from mainstem.eventlog.memory import MemoryLog
from mainstem.eventlog.sqlite import SqliteLog
from mainstem.schema.config import LogConfig
from mainstem.schema.errors import ConfigError, InvalidRecord, LogError, TooFarAhead
from mainstem.schema.position import START, Position
from mainstem.schema.records import Entity, EntityDelete, EntityPatch, Erase, Event, Served, Slate, SlateRequest
from mainstem.schema.time import now_ms

AnyLog = MemoryLog | SqliteLog


@pytest.fixture(params=["memory", "sqlite", "sqlite-sealing"])
def log(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[AnyLog]:
    if request.param == "memory":
        opened: AnyLog = MemoryLog(LogConfig())
    else:
        opened = open_tiny(tmp_path, seal_rows=1_000_000 if request.param == "sqlite" else 5, keep_rows=3)
    yield opened
    opened.close()


def of_every_kind() -> list[Event | Entity | EntityPatch | EntityDelete | Erase | Served]:
    slate = SLATE
    return [
        event(
            "e1", extras={"store": "s1", "coupon": True, "paid": 2.5}, session="b1", place=3, request_id="q1", query="x"
        ),
        Entity(record_id="r1", time=5, entity="i1", attributes={"category": "milk", "tags": ["a", "b"]}, received_at=9),
        EntityPatch(record_id="r2", time=6, entity="i1", stock=0.0, received_at=9),
        EntityDelete(record_id="r3", time=7, entity="i1", received_at=9),
        Erase(record_id="r4", time=8, user="u1", received_at=9),
        Served(record_id="r5", time=9, user=None, request=SlateRequest(), slate=slate, features=b"\0\1", received_at=9),
    ]


def test_empty(log: AnyLog) -> None:
    assert log.end() == START
    assert len(log.read(START)) == 0
    assert log.append([]).position == START
    assert not log.wait(START, 0.01)


def test_records_come_back_as_they_were(log: AnyLog) -> None:
    sent = of_every_kind()
    done = log.append(sent)
    assert (done.accepted, done.duplicates) == (6, 0)
    assert done.position == log.end() == Position.at(6)
    assert read_all(log, limit=4) == sent


def test_reading_goes_on_where_it_stopped(log: AnyLog) -> None:
    for first in range(0, 40, 8):
        log.append([event(f"e{i}") for i in range(first, first + 8)])
    for limit in (1, 7, 1000):
        assert [r.event_id for r in read_all(log, limit)] == [f"e{i}" for i in range(40)]  # type: ignore[union-attr]
    assert log.read(Position.at(38), 10).offsets == [38, 39]
    assert len(log.read(Position.at(3), 0)) == 0


def test_reading_past_the_end_is_an_error(log: AnyLog) -> None:
    log.append([event("e")])
    assert len(log.read(Position.at(1))) == 0
    with pytest.raises(LogError, match="after the end"):
        log.read(Position.at(2))


def test_known_ids_are_skipped_and_counted(log: AnyLog) -> None:
    log.append([event(f"e{i}") for i in range(20)])
    again = log.append([event("e3", value=9.0), event("new"), event("e19")])
    assert (again.accepted, again.duplicates) == (1, 2)
    assert again.position == Position.at(21)
    known = log.append([event("e0")])
    assert (known.accepted, known.position) == (0, Position.at(21))
    assert [r.value for r in read_all(log) if r.event_id == "e3"] == [1.0]  # type: ignore[union-attr]


def test_an_id_twice_in_one_batch_counts_once(log: AnyLog) -> None:
    done = log.append([event("e", value=1.0), event("f"), event("e", value=2.0)])
    assert (done.accepted, done.duplicates) == (2, 1)
    assert [r.value for r in read_all(log)] == [1.0, 1.0]  # type: ignore[union-attr]


def test_ids_of_tenants_are_apart_and_of_record_types_are_not(log: AnyLog) -> None:
    assert log.append([event("x"), event("x", tenant="other")]).accepted == 2
    assert log.append([Erase(record_id="x", time=1, user="u")]).duplicates == 1


def test_received_at_is_stamped_where_it_is_missing(log: AnyLog) -> None:
    before = now_ms()
    log.append([Event(event_id="a", time=5, user="u", kind="view"), event("b", received_at=77, time=5)])
    stamped, kept = read_all(log)
    assert before <= stamped.received_at <= now_ms()
    assert kept.received_at == 77


def test_skew(log: AnyLog) -> None:
    soon, late = now_ms() + 60_000, now_ms() + 3_600_000
    log.append([Event(event_id="a", time=soon, user="u", kind="view")])
    with pytest.raises(TooFarAhead) as error:
        log.append([event("b"), Event(event_id="c", time=late, user="u", kind="view")])
    assert error.value.field == "events[1].time"
    assert log.end() == Position.at(1)


SLATE = Slate(request_id="q1", canvas="home", time=5, items=[])
WRONG = [
    (event(""), "events[1].event_id"),
    (event("x", user=""), "events[1].user"),
    (event("x", kind=""), "events[1].kind"),
    (event("x", entity=""), "events[1].entity"),
    (event("x", tenant=""), "events[1].tenant"),
    (event("x", value=float("nan")), "events[1].value"),
    (event("x", value=float("-inf")), "events[1].value"),
    (event("x", value="3"), "events[1].value"),
    (event("x", time=10**18), "events[1].time"),
    (event("x", time=1.5), "events[1].time"),
    (event("x", received_at=2**63), "events[1].received_at"),
    (event("x", place=2**31), "events[1].place"),
    (event("x", place=-1), "events[1].place"),
    (Erase(record_id="r", time=1, user="u", received_at=-5), "erasures[1].received_at"),
    (event("x", user=5), "events[1].user"),
    (event("x", extras={"a": [1]}), "events[1].extras[...]"),
    (event("x\ud800"), "events[1]"),
    (Entity(record_id="", time=1, entity="i"), "entities[1].record_id"),
    (EntityDelete(record_id="r", time=1, entity=""), "entities[1].entity"),
    (EntityPatch(record_id="r", time=10**18, entity="i"), "entities[1].time"),
    (Erase(record_id="r", time=1), "erasures[1].user"),
    (Erase(record_id="r", time=1, user="u", entity="i"), "erasures[1].user"),
    (Erase(record_id="r", time=1, user=""), "erasures[1].user"),
    (Served(record_id="r", time=1, user="", request=SlateRequest(), slate=SLATE), "served[1].user"),
    (Erase(record_id="r", time=1, entity=""), "erasures[1].entity"),
]


@pytest.mark.parametrize(("wrong", "field"), WRONG, ids=[field + str(i) for i, (_, field) in enumerate(WRONG)])
def test_one_wrong_record_refuses_the_whole_batch(log: AnyLog, wrong: Event, field: str) -> None:
    with pytest.raises(InvalidRecord) as error:
        log.append([event("good"), wrong])
    assert error.value.field == field
    assert log.end() == START
    assert log.append([event("good")]).accepted == 1


def test_followers(log: AnyLog) -> None:
    log.append([event(f"e{i}") for i in range(9)])
    assert log.follow("state") == START
    log.note("state", Position.at(4))
    assert log.follow("state") == Position.at(4)
    log.note("snapshot:best", Position.at(2))
    assert log.followers() == {"state": Position.at(4), "snapshot:best": Position.at(2)}
    log.unfollow("snapshot:best")
    log.unfollow("never was")
    assert log.followers() == {"state": Position.at(4)}


def test_wait(log: AnyLog) -> None:
    seen = log.append([event("a")]).position
    assert log.wait(START, 0.0)
    assert not log.wait(seen, 0.01)
    writer = threading.Thread(target=lambda: (time.sleep(0.05), log.append([event("b")])))
    writer.start()
    assert log.wait(seen, 30.0)
    writer.join()
    assert log.end() == Position.at(2)


def test_many_threads(log: AnyLog) -> None:
    """Every thread sends its own events and some that all send; readers see a growing prefix meanwhile."""
    threads, rounds = 8, 12
    outcomes: list[tuple[int, int]] = []
    failures: list[Exception] = []

    def write(number: int) -> None:
        try:
            for turn in range(rounds):
                mine = [event(f"t{number}-{turn}-{i}") for i in range(3)]
                done = log.append([*mine, event(f"all-{turn}")])
                outcomes.append((done.accepted, done.duplicates))
                ids = {r.event_id for r in log.read(START, done.position.offset()).records}  # type: ignore[union-attr]
                assert {e.event_id for e in mine} <= ids
                assert f"all-{turn}" in ids
        except Exception as error:  # noqa: BLE001 - a thread hands its failure on
            failures.append(error)

    writers = [threading.Thread(target=write, args=(n,)) for n in range(threads)]
    for thread in writers:
        thread.start()
    for thread in writers:
        thread.join()
    assert not failures
    records = read_all(log)
    assert len({r.event_id for r in records}) == len(records) == threads * rounds * 3 + rounds  # type: ignore[union-attr]
    assert sum(accepted for accepted, _ in outcomes) == len(records)
    assert sum(duplicates for _, duplicates in outcomes) == threads * rounds - rounds


def test_closed(log: AnyLog) -> None:
    log.append([event("a")])
    log.close()
    log.close()
    with pytest.raises(LogError, match="closed"):
        log.append([event("b")])
    with pytest.raises(LogError, match="closed"):
        log.read(START)
    assert not log.wait(Position.at(1), 5.0)


def test_open_by_url(tmp_path: Path) -> None:
    assert isinstance(eventlog.open("memory://", history="", config=LogConfig()), MemoryLog)
    for slashes in ("//", "///"):  # `sqlite:///{data}/log.sqlite` with an absolute data directory has four in all
        log = eventlog.open(f"sqlite:{slashes}{tmp_path}/log.sqlite", history=f"file://{tmp_path}/history")
        log.append([event("a")])
        log.close()
    assert (tmp_path / "log.sqlite").exists()
    with pytest.raises(ConfigError, match="sqlite:///path"):
        eventlog.open("postgres://x", history="file:///x")
    with pytest.raises(ConfigError, match="file:///path"):
        eventlog.open(f"sqlite://{tmp_path}/log.sqlite", history="s3://bucket")
    assert eventlog.path_of("file:///./data/history", "file") == Path("data/history")


def test_several_batches_in_one_commit_are_each_all_or_nothing(log: AnyLog) -> None:
    good, known, wrong = [event("a"), event("b")], [event("a")], [event("c"), event("d", user="")]
    first, second, third, fourth = log.append_each([good, known, wrong, [event("e")]])
    assert (first.accepted, first.duplicates) == (2, 0)  # type: ignore[union-attr]
    assert (second.accepted, second.duplicates) == (0, 1)  # type: ignore[union-attr]
    assert isinstance(third, InvalidRecord)
    assert third.field == "events[1].user"
    assert (fourth.accepted, fourth.duplicates) == (1, 0)  # type: ignore[union-attr]
    assert [record.event_id for record in read_all(log) if isinstance(record, Event)] == ["a", "b", "e"]
    assert log.append_each([]) == []
