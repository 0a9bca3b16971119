"""Sealed ranges: lossless to read on, and plain columns for DuckDB."""

from __future__ import annotations

from pathlib import Path

import duckdb
import pytest
from log_checks import event

from mainstem.eventlog.history import ROW_GROUP, SCHEMA, History, table_of
from mainstem.schema.records import (
    Context,
    Entity,
    EntityDelete,
    Erase,
    LogRecord,
    Served,
    Slate,
    SlateRequest,
    encode_record,
)


def records() -> list[LogRecord]:
    request = SlateRequest(context=Context(canvas="home", session="b2", query="milk"))
    return [
        event("e1", value=2.5, session="b1", place=0, request_id="q", canvas="home", extras={"store": "s1", "n": 2.0}),
        event("e2", entity=None, user="ü", query="bread"),
        Entity(record_id="r1", time=5, entity="i1", entity_type="product", received_at=6),
        EntityDelete(record_id="r2", time=5, entity="i1", received_at=6),
        Erase(record_id="r3", time=5, user="u1", received_at=6, tenant="other"),
        Served(
            record_id="r4", time=7, user="u2", received_at=8, request=request,
            slate=Slate(request_id="q2", canvas="home", time=7, items=[]),
        ),
    ]  # fmt: skip


def test_columns_in_duckdb(tmp_path: Path) -> None:
    History(tmp_path).write(40, [[encode_record(r) for r in records()]])
    connection = duckdb.connect()
    names = ", ".join(f'"{name}"' for name in SCHEMA.names if name != "body")
    rows = connection.execute(f"SELECT {names} FROM '{tmp_path}/*.parquet' ORDER BY \"offset\"").fetchall()
    at = 1_700_000_000_000
    none, extras = None, '{"store":"s1","n":2.0}'
    assert rows == [
        (40, "event", at, at, "main", "u", "item", "i", "purchase", 2.5, "b1", "q", 0, "home", none, extras),
        (41, "event", at, at, "main", "ü", "item", none, "purchase", 1.0, none, none, none, none, "bread", none),
        (42, "entity", 5, 6, "main", none, "product", "i1", none, none, none, none, none, none, none, none),
        (43, "delete", 5, 6, "main", none, "item", "i1", none, none, none, none, none, none, none, none),
        (44, "erase", 5, 6, "other", "u1", none, none, none, none, none, none, none, none, none, none),
        (45, "served", 7, 8, "main", "u2", none, none, none, none, "b2", "q2", none, "home", "milk", none),
    ]  # fmt: skip
    assert connection.execute(f"SELECT sum(value) FROM '{tmp_path}/*.parquet'").fetchall() == [(3.5,)]


def test_table_has_the_schema_whatever_is_in_it() -> None:
    assert table_of(0, []).schema == SCHEMA
    assert table_of(0, [encode_record(event("e"))]).schema == SCHEMA


@pytest.mark.parametrize("rows", [1, ROW_GROUP - 1, ROW_GROUP, ROW_GROUP + 1, 2 * ROW_GROUP + 5])
def test_bodies_from_anywhere(tmp_path: Path, rows: int) -> None:
    bodies = [encode_record(event(f"e{i}")) for i in range(rows)]
    history = History(tmp_path)
    history.write(100, (bodies[at : at + ROW_GROUP] for at in range(0, rows, ROW_GROUP)))
    assert history.bodies(99, 10) == history.bodies(100 + rows, 10) == []
    for start, limit in ((0, rows), (0, 1), (rows - 1, 10), (rows // 2, rows), (max(0, ROW_GROUP - 3), 6)):
        if start < rows:
            assert History(tmp_path).bodies(100 + start, limit) == bodies[start : start + limit]


def test_another_process_removed_a_leftover(tmp_path: Path) -> None:
    """A reader that knew a range which a crash had left follows its replacement."""
    bodies = [encode_record(event(f"e{i}")) for i in range(20)]
    reader, writer = History(tmp_path), History(tmp_path)
    writer.write(0, [bodies[:7]])
    reader.ranges()
    writer.tidy(0)
    writer.write(0, [bodies])
    assert reader.bodies(3, 100) == bodies[3:]
