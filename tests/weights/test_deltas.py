"""The bytes of a delta: as specified, exact both ways, and nothing damaged is ever decoded."""

from __future__ import annotations

import hashlib
import json
import struct
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes

from mainstem.schema.errors import StoreError
from mainstem.schema.position import Position
from mainstem.weights.deltas import Delta, TableDelta, decode, encode

BASE = "v-" + "0" * 31 + "1"
FINITE = st.floats(allow_nan=False, allow_infinity=False, width=32)
NAMES = st.from_regex(r"\A[a-z][a-z0-9_-]{0,8}\Z")
JSON: st.SearchStrategy[Any] = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**53), 2**53)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


@st.composite
def table_deltas(draw: st.DrawFn) -> TableDelta:
    keys = draw(st.lists(st.integers(1, 2**64 - 1), unique=True, max_size=8))
    cut = draw(st.integers(0, len(keys)))
    dim = draw(st.integers(1, 5))
    values = draw(shapes.arrays(np.float32, (cut, dim), elements=FINITE))
    return TableDelta(np.array(keys[:cut], np.uint64), values, np.array(keys[cut:], np.uint64))


DELTAS = st.builds(
    Delta,
    line=NAMES,
    base=st.integers(0, 2**128 - 1).map(lambda n: f"v-{n:032x}"),
    sequence=st.integers(1, 9_999_999_999),
    previous=st.binary(min_size=32, max_size=32).map(bytes.hex),
    dense_version=st.text(min_size=1, max_size=20),
    position=st.dictionaries(st.integers(0, 9), st.integers(0, 2**40), max_size=3).map(Position),
    tables=st.dictionaries(NAMES, table_deltas(), max_size=3),
    dense=st.none() | st.dictionaries(st.text(min_size=1, max_size=4), shapes.arrays(np.float32, 3, elements=FINITE)),
    created=st.integers(0, 2**50),
    metrics=st.dictionaries(st.text(max_size=5), st.none() | FINITE, max_size=3),
    extras=st.dictionaries(st.text(max_size=5), JSON, max_size=3),
)


def small() -> Delta:
    """Two tables, one of odd width, and a dense part."""
    return Delta(
        line="main",
        base=BASE,
        sequence=7,
        previous="ab" * 32,
        dense_version=f"{BASE}+7",
        position=Position.at(42),
        tables={
            "users": TableDelta(
                np.array([9, 2**64 - 1], np.uint64),
                np.array([[1, 2, 3], [4, 5, 6]], np.float32),
                np.array([5], np.uint64),
            ),
            "items": TableDelta(np.array([3], np.uint64), np.array([[-1.5]], np.float32), np.zeros(0, np.uint64)),
        },
        dense={"w": np.arange(3, dtype=np.float32)},
        created=1_700_000_000_000,
        metrics={"loss": 0.5},
        extras={"cuts": [[1, True]]},
    )


def same(one: Delta, other: Delta) -> None:
    for name in ("line", "base", "sequence", "previous", "dense_version", "position", "created", "metrics", "extras"):
        assert getattr(one, name) == getattr(other, name), name
    assert one.tables.keys() == other.tables.keys()
    for name, table in one.tables.items():
        for part in ("keys", "values", "deleted"):
            np.testing.assert_array_equal(getattr(table, part), getattr(other.tables[name], part))
            assert getattr(table, part).dtype == getattr(other.tables[name], part).dtype
    assert (one.dense is None) == (other.dense is None)
    if one.dense is not None and other.dense is not None:
        assert one.dense.keys() == other.dense.keys()
        for name, array in one.dense.items():
            np.testing.assert_array_equal(array, other.dense[name])


def ascending(delta: Delta) -> Delta:
    tables = {}
    for name, table in delta.tables.items():
        order = np.argsort(table.keys)
        tables[name] = TableDelta(table.keys[order], table.values[order], np.sort(table.deleted))
    return replace(delta, tables=tables)


@settings(max_examples=150, deadline=None)
@given(DELTAS)
def test_what_was_encoded_is_decoded(delta: Delta) -> None:
    data = encode(delta)
    again = decode(data, "x")
    same(again, ascending(delta))
    assert again.sha256 == hashlib.sha256(data[:-32]).hexdigest() == data[-32:].hex()
    assert encode(again) == data


def by_hand(
    header: dict[str, Any] | bytes, body: bytes, *, tables: int = 2, form: int = 1, magic: bytes = b""
) -> bytes:
    """A delta as docs/weights-format.md says, from struct alone, with a true seal."""
    text = header if isinstance(header, bytes) else json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    data = struct.pack("<8sIIQQ", magic or b"\x89MSDELTA", form, tables, len(text), len(body)) + text + body
    return data + hashlib.sha256(data).digest()


def header() -> dict[str, Any]:
    return {
        "line": "main",
        "base": BASE,
        "sequence": 7,
        "previous": "ab" * 32,
        "dense_version": f"{BASE}+7",
        "position": "p0:42",
        "created": 1_700_000_000_000,
        "metrics": {"loss": 0.5},
        "extras": {"cuts": [[1, True]]},
        "tables": [
            {"name": "items", "dim": 1, "rows": 1, "deleted": 0},
            {"name": "users", "dim": 3, "rows": 2, "deleted": 1},
        ],
        "dense": len(DENSE),
    }


DENSE = safetensors.numpy.save({"w": np.arange(3, dtype=np.float32)})
ITEMS = struct.pack("<Qf4x", 3, -1.5)
USERS = struct.pack("<QQQ6f", 9, 2**64 - 1, 5, 1, 2, 3, 4, 5, 6)


def test_the_bytes_are_those_of_the_specification() -> None:
    assert encode(small()) == by_hand(header(), ITEMS + USERS + DENSE)


def test_order_does_not_matter_and_views_stay_views() -> None:
    users = small().tables["users"]
    shuffled = TableDelta(users.keys[::-1], users.values[::-1], users.deleted)
    data = encode(replace(small(), tables={"users": shuffled, "items": small().tables["items"]}))
    assert data == encode(small())
    held = bytearray(data)
    values = decode(held, "x").tables["users"].values
    assert np.shares_memory(values, np.frombuffer(held, np.uint8))


def test_every_truncation_is_refused() -> None:
    data = encode(small())
    for length in range(len(data)):
        with pytest.raises(StoreError, match="d7 is damaged"):
            decode(data[:length], "d7")
    with pytest.raises(StoreError, match="d7 is damaged"):
        decode(data + b"\0", "d7")
    same(decode(data, "d7"), ascending(small()))


def test_every_flipped_byte_is_refused() -> None:
    data = bytearray(encode(small()))
    for place in range(len(data)):
        for flip in (1, 0x80, 0xFF):
            data[place] ^= flip
            with pytest.raises(StoreError, match="d7 is damaged"):
                decode(data, "d7")
            data[place] ^= flip
    same(decode(data, "d7"), ascending(small()))


@pytest.mark.parametrize(
    ("change", "match"),
    [
        ({"keys": np.array([9, 0], np.uint64)}, "key 0"),
        ({"keys": np.array([9, 9], np.uint64)}, "repeat"),
        ({"keys": np.array([9, 5], np.uint64)}, "both written and deleted"),
        ({"deleted": np.array([5, 5], np.uint64)}, "repeat"),
        ({"deleted": np.array([0], np.uint64)}, "key 0"),
        ({"keys": np.array([9, 8], np.int64)}, "uint64"),
        ({"keys": np.array([[9], [8]], np.uint64)}, "uint64"),
        ({"values": np.zeros((2, 3))}, "float32"),
        ({"values": np.zeros((3, 3), np.float32)}, "float32"),
        ({"values": np.zeros((2, 0), np.float32)}, "cannot be written"),
        ({"values": np.array([[1, np.nan, 0]] * 2, np.float32)}, "not finite"),
        ({"values": np.array([[1, np.inf, 0]] * 2, np.float32)}, "not finite"),
    ],
)
def test_what_a_delta_must_not_hold_is_not_written(change: dict[str, Any], match: str) -> None:
    users = replace(small().tables["users"], **change)
    with pytest.raises(StoreError, match=match):
        encode(replace(small(), tables={"users": users}))


@pytest.mark.parametrize(
    "change",
    [
        {"line": "../x"},
        {"line": "main\n"},
        {"base": "v-1"},
        {"sequence": 0},
        {"sequence": 10**10},
        {"previous": ""},
        {"previous": "AB" * 32},
        {"dense_version": ""},
        {"tables": {"../x": TableDelta(np.zeros(0, np.uint64), np.zeros((0, 1), np.float32), np.zeros(0, np.uint64))}},
        {"dense": {"w": np.array([np.inf], np.float32)}},
    ],
)
def test_fields_that_no_reader_would_take_are_not_written(change: dict[str, Any]) -> None:
    with pytest.raises(StoreError):
        encode(replace(small(), **change))


def test_extras_must_be_json() -> None:
    with pytest.raises(TypeError):
        encode(replace(small(), extras={"a": object()}))


def test_values_that_are_not_finite_only_on_demand() -> None:
    users = replace(small().tables["users"], values=np.full((2, 3), np.nan, np.float32))
    data = encode(replace(small(), tables={"users": users}, dense={"w": np.array([np.inf])}), finite=False)
    with pytest.raises(StoreError, match="not finite"):
        decode(data, "x")
    assert np.isnan(decode(data, "x", finite=False).tables["users"].values).all()
