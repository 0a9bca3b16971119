"""Events from files: what is read, what is set aside, and that doing it again changes nothing."""

from __future__ import annotations

import gzip
import json
from collections.abc import Sequence
from datetime import UTC, date, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainstem import eventlog
from mainstem.datasets.files import ingest_file
from mainstem.eventlog.memory import MemoryLog
from mainstem.schema.config import Config, LogConfig
from mainstem.schema.errors import ConfigError, DatasetError, InvalidRecord, TooFarAhead
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Erase, Event
from mainstem.schema.time import now_ms, parse_time

AT = 1_512_380_000_000
ISO = "2017-12-04T09:33:20Z"


class Memory:
    """An append that keeps events by id, and refuses those later than `latest` as a log does."""

    def __init__(self, latest: int = 10**15, breaks_at: int | None = None) -> None:
        self.events: dict[str, Event] = {}
        self.latest, self.breaks_at, self.calls = latest, breaks_at, 0

    def __call__(self, records: Sequence[Event], /) -> Appended:
        self.calls += 1
        if self.calls == self.breaks_at:
            raise KeyboardInterrupt
        for place, event in enumerate(records):
            if event.time > self.latest:
                raise TooFarAhead(f"events[{place}].time", "lies ahead")
        before = len(self.events)
        for event in records:
            self.events.setdefault(event.event_id, event)
        accepted = len(self.events) - before
        return Appended(Position.at(len(self.events)), accepted, len(records) - accepted)

    @property
    def list(self) -> list[Event]:
        return list(self.events.values())


def write(path: Path, text: str) -> Path:
    data = text.encode("utf-8", "surrogateescape")
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


HEAD = "event_id,time,user,kind,entity,value,store,place\n"


@pytest.mark.parametrize("name", ["e.csv", "e.csv.gz", "e.tsv", "e.jsonl", "e.jsonl.gz", "e.parquet"])
def test_every_form_gives_the_same_events(tmp_path: Path, name: str) -> None:
    rows = [
        {"event_id": "a", "time": ISO, "user": "u1", "kind": "view", "entity": "i1", "value": 2.5, "store": "s1"},
        {"event_id": "b", "time": ISO, "user": "ü", "kind": "buy", "entity": None, "value": None, "store": None},
    ]
    path = tmp_path / name
    if name.endswith("parquet"):
        pq.write_table(pa.Table.from_pylist(rows), path)
    elif "jsonl" in name:
        write(path, "\n".join(json.dumps(row) for row in rows))
    else:
        mark = "\t" if "tsv" in name else ","
        lines = [mark.join(rows[0]), *(mark.join("" if v is None else str(v) for v in row.values()) for row in rows)]
        write(path, "\ufeff" + "\n".join(lines))
    log, seen = Memory(), []
    report = ingest_file(path, log, progress=lambda done, total: seen.append((done, total)))
    assert (report.accepted, report.duplicates, report.rejected) == (2, 0, 0)
    assert log.list == [
        Event(event_id="a", time=AT, user="u1", kind="view", entity="i1", value=2.5, extras={"store": "s1"}),
        Event(event_id="b", time=AT, user="ü", kind="buy"),
    ]
    assert seen[-1][0] == seen[-1][1] > 0


def test_rows_of_the_erased_are_left_out_and_counted(tmp_path: Path) -> None:
    log = MemoryLog(LogConfig())
    log.append([Erase(record_id="x", time=parse_time(ISO), user="u1")])
    path = tmp_path / "e.csv"
    path.write_text(
        f"time,user,kind,entity\n{ISO},u1,view,i1\n{ISO},u2,view,i1\n2030-01-01,u1,view,i1\n{ISO},u1,view,i2\n"
    )
    report = ingest_file(path, log.append, batch=2)
    assert (report.accepted, report.duplicates, report.erased, report.rejected) == (1, 0, 2, 1)


def test_mapping_default_kind_and_generated_ids(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", f"household_id,when,product\n7,{ISO},p1\n7,{ISO},p1\n")
    log = Memory()
    mapping = {"user": "household_id", "time": "when", "entity": "product"}
    report = ingest_file(path, log, mapping=mapping, kind="purchase")
    assert report.accepted == 2, "equal rows are two events: their numbers differ"
    assert {(e.user, e.kind, e.entity, e.time) for e in log.list} == {("7", "purchase", "p1", AT)}
    assert log.list[0].extras == {}
    write(path, path.read_text() + f"8,{ISO},p2\n")
    again = ingest_file(path, log, mapping=mapping, kind="purchase", batch=2)
    assert (again.accepted, again.duplicates) == (1, 2), "a file that grew is ingested on"


def test_a_killed_run_is_continued_by_doing_it_again(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", "user,time,kind\n" + "".join(f"u{i},{AT + i},view\n" for i in range(100)))
    log = Memory(breaks_at=4)
    with pytest.raises(KeyboardInterrupt):
        ingest_file(path, log, batch=10)
    assert len(log.list) == 30
    report = ingest_file(path, log, batch=7)
    assert (report.accepted, report.duplicates, len(log.list)) == (70, 30, 100)
    assert [e.time for e in log.list] == [AT + i for i in range(100)]


TIMES = [
    (ISO, AT),
    ("2017-12-04T10:33:20+01:00", AT),
    ("2017-12-04 09:33:20", AT),
    ("2017-12-04", AT - 34_400_000),
    (AT, AT),
    (AT // 1000, AT),
    (AT / 1000 + 0.25, AT + 250),
    (str(AT), AT),
    (f" {AT // 1000} ", AT),
    ("1512380000.5", AT + 500),
    (99_999_999_999, 99_999_999_999_000),
    (631_152_000, 631_152_000_000),
    (631_152_000_000, 631_152_000_000),
]


@pytest.mark.parametrize(("given", "expected"), TIMES)
def test_times(tmp_path: Path, given: object, expected: int) -> None:
    log = Memory()
    ingest_file(write(tmp_path / "e.jsonl", json.dumps({"user": "u", "kind": "k", "time": given})), log)
    assert [e.time for e in log.list] == [expected]


@pytest.mark.parametrize(
    "column",
    [
        pa.array([datetime(2017, 12, 4, 9, 33, 20)], pa.timestamp("us")),
        pa.array([datetime(2017, 12, 4, 9, 33, 20, tzinfo=UTC)], pa.timestamp("ns", tz="Europe/Berlin")),
        pa.array([datetime(2017, 12, 4, 9, 33, 20)], pa.timestamp("s")),
        pa.array([AT]),
        pa.array([AT // 1000], pa.int32()),
        pa.array([ISO]).dictionary_encode(),
    ],
)
def test_times_of_parquet(tmp_path: Path, column: pa.Array) -> None:
    table = pa.table({"time": column, "user": [12], "kind": ["k"], "day": [date(2017, 12, 4)], "n": [2.0]})
    pq.write_table(table, tmp_path / "e.parquet")
    log = Memory()
    ingest_file(tmp_path / "e.parquet", log)
    (event,) = log.list
    assert (event.time, event.user) == (AT, "12")
    assert event.extras == {"day": "2017-12-04T00:00:00.000Z", "n": 2.0}


def test_early_timestamps_are_not_taken_for_seconds(tmp_path: Path) -> None:
    table = pa.table({"time": pa.array([datetime(1970, 1, 2)], pa.timestamp("ms")), "user": ["u"], "kind": ["k"]})
    pq.write_table(table, tmp_path / "e.parquet")
    log = Memory()
    ingest_file(tmp_path / "e.parquet", log)
    assert log.list == []
    assert ingest_file(tmp_path / "e.parquet", log).reasons == ("row 1: time: 1970-01-02 lies before 1990",)


HINT = "lies before 1990; milliseconds, not seconds? a thousand times as much is"
BEFORE_1990 = [
    (0, "1970-01-01 lies before 1990"),
    (-1, "1969-12-31 lies before 1990"),
    (631_151_999, "1989-12-31 lies before 1990"),
    (100_000_000_000, "1973-03-03 lies before 1990"),
    ("1066-10-14", "1066-10-14 lies before 1990"),
    ("1970-01-18T12:06:20Z", f"1970-01-18 {HINT} 2017-12-04"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "reason"), BEFORE_1990)
def test_times_before_1990_are_set_aside(tmp_path: Path, given: object, reason: str) -> None:
    path = write(tmp_path / "e.jsonl", json.dumps({"user": "u", "kind": "k", "time": given}))
    report = ingest_file(path, Memory())
    assert (report.accepted, report.reasons) == (0, (f"line 1: time: {reason}",))


CONFIG = Config.model_validate(
    {
        "events": {
            "buy": {"owned": True, "interest": 0},
            "like": {},
            "search": {"interest": 0},
            "aim": {"interest": 0},
        },
        "heads": {"aim": {"event": "aim"}},
    }
)


def test_kinds_that_count_need_an_entity(tmp_path: Path) -> None:
    kinds = ["buy", "like", "aim", "alias", "hide", "search", "other", "impression"]
    path = write(tmp_path / "e.csv", "user,time,kind,entity\n" + "".join(f"u,{ISO},{kind},\n" for kind in kinds))
    log, rejects = Memory(), tmp_path / "r.jsonl"
    report = ingest_file(path, log, config=CONFIG, rejects=rejects)
    assert [event.kind for event in log.list] == ["search", "other", "impression"]
    assert report.reasons[0].startswith("line 2: entity: is missing, and kind 'buy' is about one")
    assert [json.loads(line)["data"]["kind"] for line in rejects.read_text().splitlines()] == kinds[:5]
    assert ingest_file(path, Memory()).rejected == 0, "canary: only a configuration knows which kinds count"
    write(path, path.read_text().replace(",\n", ",i1\n"))
    assert ingest_file(path, Memory(), config=CONFIG).rejected == 0


def test_a_kind_for_all_rows_needs_the_column_of_entities(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", f"user,time,sku\nu,{ISO},i\n")
    with pytest.raises(ConfigError, match=r"no column for entity(.|\n)*--map entity=COLUMN"):
        ingest_file(path, Memory(), kind="buy", config=CONFIG)
    assert ingest_file(path, Memory(), kind="search", config=CONFIG).accepted == 1
    assert ingest_file(path, Memory(), kind="buy", config=CONFIG, mapping={"entity": "sku"}).accepted == 1


def test_unknown_kinds_go_in_and_are_counted(tmp_path: Path) -> None:
    kinds = ["like", "lik", "hide", "lik", "sale", "impression"]
    path = write(tmp_path / "e.csv", "user,time,kind,entity\n" + "".join(f"u,{ISO},{kind},i\n" for kind in kinds))
    report = ingest_file(path, Memory(), config=CONFIG, batch=2)
    assert (report.accepted, report.unknown_kinds) == (6, {"lik": 2, "sale": 1})
    assert ingest_file(path, Memory()).unknown_kinds == {}


# ---- quotes --------------------------------------------------------------------------------------


def test_a_quote_that_is_never_closed_is_told_with_its_lines(tmp_path: Path) -> None:
    row = f"u,{ISO},k"
    text = f'user,time,kind,entity\n{row},"two\nlines"\n{row},i\n{row},"open\n{row},i\n{row},i\n'
    for ending in (text, text[:-1]):
        report = ingest_file(write(tmp_path / "e.csv", ending), Memory())
        reason = "line 5: a quote opened on line 5 is never closed; lines 5 to 7 are set aside with it"
        assert (report.accepted, report.reasons) == (2, (reason,)), "though it has as many fields as the header"
    report = ingest_file(write(tmp_path / "e.csv", f'user,time,kind\n"u\nv",{ISO},"k\n{row}\n'), Memory())
    assert report.reasons == ("line 2: a quote opened on line 3 is never closed; lines 2 to 4 are set aside with it",)
    report = ingest_file(write(tmp_path / "e.csv", f'user,time,kind\nu,{ISO},"k"'), Memory())
    assert (report.accepted, report.rejected) == (1, 0), "canary: a quote closed at the very end is one"


def test_a_quote_that_is_closed_much_later(tmp_path: Path) -> None:
    row = f"u,{ISO},k,i\n"
    path = write(tmp_path / "e.csv", f'user,time,kind,entity\n{row}u,{ISO},k,"open\n' + row * 10_000)
    report = ingest_file(path, Memory())
    assert report.rejected == 1
    assert "a quote opened from line 3 on is not closed by line" in report.reasons[0]
    assert report.accepted > 3_000


@pytest.mark.parametrize("rows", [3, 10_000])
def test_a_quote_that_opens_in_the_header(tmp_path: Path, rows: int) -> None:
    path = write(tmp_path / "e.csv", 'user,time,"kind\n' + f"u,{ISO},k\n" * rows)
    with pytest.raises(DatasetError, match=r"e\.csv: the header is not CSV: .*a quote opened"):
        ingest_file(path, Memory())


def test_extras_keep_their_types(tmp_path: Path) -> None:
    row = {"user": 1, "time": AT, "kind": "k", "a": True, "b": 2, "c": 2**60, "d": [1], "e": None, "extras": {"f": 1.5}}
    log = Memory()
    ingest_file(write(tmp_path / "e.jsonl", json.dumps(row)), log)
    assert log.list[0].extras == {"a": True, "b": 2.0, "c": str(2**60), "d": "[1]", "f": 1.5}


def test_bad_rows_of_csv_are_set_aside(tmp_path: Path) -> None:
    lines = [
        f"a,{ISO},u,view,i,1,s,",
        "b,never,u,view,i,1,s,",
        f"c,{ISO},,view,i,1,s,",
        f"d,{ISO},u,view,i,much,s,",
        f"e,{ISO},u,view,i,inf,s,",
        f"f,{ISO},u,view,i",
        "",
        f'g,{ISO},u,view,"i\nj",1,s,3',
        f"h,{ISO},u\udcff,view,i,1,s,",
        f"k,{ISO},u,view,i,1,s,1.5",
        "l,9999-01-01,u,view,i,1,s,",
        f"m,{ISO},u,,i,1,s,",
        f"n,{ISO},u,view,i,1,s,",
    ]
    path = write(tmp_path / "e.csv", HEAD + "\n".join(lines))
    log = Memory(latest=AT)
    rejects = tmp_path / "rejects.jsonl"
    report = ingest_file(path, log, rejects=rejects, batch=5)
    assert list(log.events) == ["a", "g", "n"]
    assert (report.accepted, report.rejected) == (3, 9)
    kept = [json.loads(line) for line in rejects.read_text().splitlines()]
    assert {row["line"]: row["reason"].split(":")[0] for row in kept} == {
        3: "time", 4: "user", 5: "value", 6: "value", 7: "has 5 fields where the header names 8",
        11: "is not UTF-8", 12: "place", 13: "time", 14: "kind",
    }  # fmt: skip
    assert next(row for row in kept if row["line"] == 3)["data"]["time"] == "never"
    assert report.reasons[0].startswith("line 3: time: 'never' is not ISO 8601") or "line 3" in "".join(report.reasons)
    ingest_file(write(tmp_path / "e.csv", HEAD + lines[0]), log, rejects=rejects)
    assert not rejects.exists(), "what an earlier run set aside does not stay"


def test_bad_rows_of_jsonl_are_set_aside(tmp_path: Path) -> None:
    good = json.dumps({"user": "u", "time": ISO, "kind": "k"})
    nested = '{"user": {"id": 1}, "time": 1, "kind": "k"}'
    path = write(tmp_path / "e.jsonl", "\n".join([good, "{half", "[1]", "", nested, good]))
    log, rejects = Memory(), tmp_path / "r.jsonl"
    report = ingest_file(path, log, rejects=rejects)
    assert (report.accepted, report.rejected) == (2, 3)
    assert [json.loads(line)["line"] for line in rejects.read_text().splitlines()] == [2, 3, 5]


def test_bad_rows_of_parquet_are_set_aside(tmp_path: Path) -> None:
    table = pa.table({"time": [AT, None, AT], "user": ["u", "u", None], "kind": ["k"] * 3, "raw": [b"\xff", b"", None]})
    pq.write_table(table, tmp_path / "e.parquet")
    report = ingest_file(tmp_path / "e.parquet", Memory(), rejects=tmp_path / "r.jsonl")
    assert (report.accepted, report.rejected) == (1, 2)
    assert report.reasons == ("row 2: time: is missing", "row 3: user: is missing")


def test_one_refused_event_does_not_cost_many_appends(tmp_path: Path) -> None:
    times = [AT] * 1000
    times[421] = AT + 1
    path = write(tmp_path / "e.csv", "user,kind,time\n" + "".join(f"u,k,{t}\n" for t in times))
    log = Memory(latest=AT)
    report = ingest_file(path, log)
    assert (report.accepted, report.rejected, report.reasons) == (999, 1, ("line 423: time: lies ahead",))
    assert log.calls < 30


def test_missing_columns_are_named_with_the_way_out(tmp_path: Path) -> None:
    path = write(tmp_path / "e.csv", f"household_id,time,sku\n1,{ISO},x\n")
    with pytest.raises(ConfigError) as error:
        ingest_file(path, Memory())
    for part in ("no column for user, kind", "household_id, time, sku", "--map user=COLUMN", "--kind"):
        assert part in str(error.value)
    with pytest.raises(ConfigError, match="entity=product"):
        ingest_file(path, Memory(), mapping={"user": "household_id", "entity": "product"}, kind="purchase")
    with pytest.raises(ConfigError, match="usr is not a field"):
        ingest_file(path, Memory(), mapping={"usr": "household_id"})


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="no such file"):
        ingest_file(tmp_path / "none.csv", Memory())
    with pytest.raises(DatasetError, match="is a folder; name a file in it"):
        ingest_file(tmp_path, Memory())
    with pytest.raises(ConfigError, match=r"\.parquet"):
        ingest_file(write(tmp_path / "e.xlsx", "x"), Memory())
    with pytest.raises(DatasetError, match="damaged"):
        ingest_file(write(tmp_path / "e.parquet", "x"), Memory())
    whole = gzip.compress(b"user,time,kind\n" + b"u,1,k\n" * 100_000)
    (tmp_path / "e.csv.gz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DatasetError, match="damaged or cut off"):
        ingest_file(tmp_path / "e.csv.gz", Memory())
    (tmp_path / "f.csv.gz").write_bytes(b"no gzip")
    with pytest.raises(DatasetError, match="damaged or cut off"):
        ingest_file(tmp_path / "f.csv.gz", Memory())


@pytest.mark.parametrize("text", ["", "user,time,kind\n"])
def test_nothing_in_it(tmp_path: Path, text: str) -> None:
    report = ingest_file(write(tmp_path / "e.csv", text), Memory())
    assert (report.accepted, report.rejected) == (0, 0)


def test_other_errors_pass_through(tmp_path: Path) -> None:
    def broken(records: Sequence[Event], /) -> Appended:
        raise OSError("no connection")

    assert not issubclass(OSError, InvalidRecord)
    with pytest.raises(OSError, match="no connection"):
        ingest_file(write(tmp_path / "e.csv", f"user,time,kind\nu,{AT},k\n"), broken)


def test_into_a_real_log(tmp_path: Path) -> None:
    late = now_ms() + 10 * 86_400_000
    rows = [f"u{i % 7},{AT + i},view,i{i}" for i in range(500)]
    rows[123] = f"u1,{late},view,i1"
    path = write(tmp_path / "e.csv", "user,time,kind,entity\n" + "\n".join(rows))
    log = eventlog.open(f"sqlite://{tmp_path}/log.sqlite", history=f"file://{tmp_path}/history")
    report = ingest_file(path, log.append, batch=200)
    assert (report.accepted, report.duplicates, report.rejected) == (499, 0, 1)
    assert report.reasons[0].startswith("line 125: time: lies ")
    again = ingest_file(path, log.append, batch=333)
    assert (again.accepted, again.duplicates, again.rejected) == (0, 499, 1)
    entities = [record.entity for record in log.read(START).records if isinstance(record, Event)]
    assert entities == [f"i{i}" for i in range(500) if i != 123]
    log.close()
