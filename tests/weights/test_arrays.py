"""Arrays as safetensors: the library of that name is the oracle, in both directions."""

from __future__ import annotations

import json
import tracemalloc
from typing import Any

import numpy as np
import pytest
import safetensors.numpy
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as shapes
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.weights.arrays import decode, encode

DTYPES = ["<f8", "<f4", "<f2", "<i8", "<i4", "<i2", "|i1", "<u8", "<u4", "<u2", "|u1", "|b1"]
SHAPES = shapes.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)
ARRAYS = st.dictionaries(
    st.text(min_size=1, max_size=6).filter(lambda name: name != "__metadata__"),
    st.sampled_from(DTYPES).flatmap(lambda dtype: shapes.arrays(dtype, SHAPES)),
    max_size=5,
)


def same(found: dict[str, NDArray[Any]], wanted: dict[str, NDArray[Any]]) -> None:
    assert found.keys() == wanted.keys()
    for name, array in wanted.items():
        assert (found[name].dtype, found[name].shape) == (array.dtype, array.shape)
        assert found[name].tobytes() == array.tobytes()


@settings(max_examples=150, deadline=None)
@given(ARRAYS)
def test_the_library_reads_ours_and_we_read_the_librarys(arrays: dict[str, NDArray[Any]]) -> None:
    ours = b"".join(encode(arrays))
    same(decode(ours, "x"), arrays)
    same(safetensors.numpy.load(ours), arrays)
    same(decode(safetensors.numpy.save(arrays), "x"), arrays)


def test_views_of_a_bytearray_are_writable_and_apart() -> None:
    data = bytearray(b"".join(encode({"a": np.zeros(2, np.float32), "b": np.ones(2, np.float32)})))
    found = decode(data, "x")
    found["a"] += 5
    np.testing.assert_array_equal(decode(data, "x")["a"], [5, 5])
    np.testing.assert_array_equal(found["b"], [1, 1])
    assert all(array.flags.aligned for array in found.values())


def test_other_layouts_and_equal_contents() -> None:
    matrix = np.arange(12, dtype=np.float32).reshape(3, 4)
    assert b"".join(encode({"a": matrix.T})) == b"".join(encode({"a": matrix.T.copy()}))
    one, two = np.zeros(3), np.ones(2, np.int8)
    assert b"".join(encode({"a": one, "b": two})) == b"".join(encode({"b": two, "a": one}))
    assert b"".join(encode({"a": matrix})) != b"".join(encode({"a": matrix.T}))  # canary


def test_what_has_no_place_in_the_format() -> None:
    for bad in (np.array(["x"]), np.array([None]), np.zeros(2, ">f4"), np.zeros(2, np.complex64)):
        with pytest.raises(TypeError, match="cannot be stored"):
            encode({"a": bad})


def test_a_table_is_neither_written_nor_read_twice() -> None:
    table = {"values": np.zeros((1 << 18, 8), np.float32)}  # 8 MiB
    data = bytearray(b"".join(encode(table)))
    tracemalloc.start()
    try:
        assert sum(len(part) for part in encode(table)) == len(data)
        assert decode(data, "x")["values"].nbytes == 1 << 23
        assert tracemalloc.get_traced_memory()[1] < 1 << 20
    finally:
        tracemalloc.stop()


def file(header: object, body: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return (len(text) if length is None else length).to_bytes(8, "little") + text + body


def entry(dtype: str = "F32", shape: object = (2,), offsets: object = (0, 8)) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


ATTACKS = {
    "nothing": b"",
    "a length without a header": (5).to_bytes(8, "little"),
    "a length beyond all": file({}, length=2**64 - 8),
    "a length beyond the end": file({}, length=16),
    "a header of no whole words": (2).to_bytes(8, "little") + b"{}",
    "no JSON": file(b"{{{{"),
    "a list": file([]),
    "deep JSON": file(b'{"a":' + b"[" * 100_000),
    "deep unknown JSON": file(b'{"a":{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}}"),
    "bytes that are no text": file(b'{"\xff\xfe": 1}'),
    "a huge shape": file({"a": entry(shape=[2**62, 2**62])}, bytes(8)),
    "a huge shape that multiplies to nothing": file({"a": entry(shape=[2**63, 0], offsets=[0, 0])}),
    "a huge number": file(
        b'{"a": {"dtype": "F32", "shape": [1' + b"0" * 5_000 + b'], "data_offsets": [0, 8]}}', bytes(8)
    ),
    "a negative length": file({"a": entry(shape=[-2])}, bytes(8)),
    "a length that is no int": file({"a": entry(shape=[2.5])}, bytes(8)),
    "many dimensions": file({"a": entry(shape=[1] * 1_000, offsets=[0, 4])}, bytes(4)),
    "an unknown dtype": file({"a": entry(dtype="BF16", offsets=[0, 4])}, bytes(4)),
    "an unknown field": file({"a": entry() | {"x": 1}}, bytes(8)),
    "metadata": file({"__metadata__": {"format": "pt"}}),
    "offsets that overlap": file({"a": entry(), "b": entry(offsets=[4, 12])}, bytes(12)),
    "offsets with a hole": file({"a": entry(), "b": entry(offsets=[12, 20])}, bytes(20)),
    "offsets backwards": file({"a": entry(offsets=[8, 0])}, bytes(8)),
    "offsets beyond the end": file({"a": entry(shape=[4], offsets=[0, 16])}, bytes(8)),
    "offsets that differ from the shape": file({"a": entry(offsets=[0, 4])}, bytes(4)),
    "bytes of nobody": file({"a": entry()}, bytes(9)),
    "the same name twice": file(
        b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"F32","shape":[2],"data_offsets":[8,16]}}',
        bytes(16),
    ),
    "unaligned": file({"a": entry("U8", [1], [0, 1]), "b": entry(offsets=[1, 9])}, bytes(9)),
    "a third truth value": file({"a": entry("BOOL", [2], [0, 2])}, b"\x01\x02"),
}


@pytest.mark.parametrize("name", ATTACKS)
def test_attacks_are_refused_in_little_memory(name: str) -> None:
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match="table-rows is damaged"):
            decode(ATTACKS[name], "table-rows")
        assert tracemalloc.get_traced_memory()[1] < 1 << 22
    finally:
        tracemalloc.stop()


def test_the_attacks_are_damaged_in_that_alone() -> None:
    """The canary: what the attacks are made of loads when nothing is wrong with it."""
    assert decode(file({"a": entry()}, bytes(8)), "x")["a"].shape == (2,)
    assert decode(file({}), "x") == {}
    assert decode(file({"a": entry("BOOL", [2], [0, 2])}, b"\x01\x00"), "x")["a"].tolist() == [True, False]
