"""Named arrays as bytes in the safetensors format, written and read without a second copy in memory.

    8 bytes    length h of the header, little-endian
    h bytes    JSON {name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}, padded with spaces
    the rest   the arrays, little-endian, row-major, without holes; offsets count from here

The format is that of huggingface/safetensors, README, "Format". Its Python library copies every array twice on the
way out and on the way in; tables are the larger half of a machine's memory, so `encode` gives views of the
caller's arrays and `decode` gives views of the bytes. Wider numbers come first, so that all lie aligned.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Iterator, Mapping
from typing import Annotated, Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.errors import StoreError
from mainstem.weights.files import Part

__all__ = ["decode", "encode", "raw"]

_DTYPES = {
    "F64": "<f8", "F32": "<f4", "F16": "<f2", "I64": "<i8", "I32": "<i4", "I16": "<i2", "I8": "|i1",
    "U64": "<u8", "U32": "<u4", "U16": "<u2", "U8": "|u1", "BOOL": "|b1",
}  # fmt: skip
_NAMES = {np.dtype(code): name for name, code in _DTYPES.items()}
_MOST_HEADER = 100_000_000
_MOST_DIMENSIONS = 32

if sys.byteorder != "little":  # pragma: no cover - arrays are written as they lie in memory
    raise ImportError("mainstem.weights needs a little-endian machine")

_Count = Annotated[int, msgspec.Meta(ge=0)]


class _Entry(msgspec.Struct, forbid_unknown_fields=True):
    dtype: str
    shape: list[_Count]
    data_offsets: tuple[_Count, _Count]


def encode(arrays: Mapping[str, NDArray[Any]]) -> Iterator[Part]:
    """The parts of the file, in order; equal arrays give equal bytes.

    Raises TypeError (before the first part) for a dtype that the format does not know.
    """
    ready = {}
    for name, array in arrays.items():
        if array.dtype not in _NAMES:
            raise TypeError(f"{name}: arrays of {array.dtype} cannot be stored, only {', '.join(_NAMES.values())}")
        ready[name] = array
    order = sorted(ready, key=lambda name: (-ready[name].dtype.itemsize, name))
    entries, begin = {}, 0
    for name in order:
        array = ready[name]
        entries[name] = _Entry(_NAMES[array.dtype], list(array.shape), (begin, begin + array.nbytes))
        begin += array.nbytes
    header = msgspec.json.encode(entries)
    header += b" " * (-len(header) % 8)
    return _parts(header, [ready[name] for name in order])


def _parts(header: bytes, arrays: list[NDArray[Any]]) -> Iterator[Part]:
    yield len(header).to_bytes(8, "little") + header
    for array in arrays:
        if array.size:
            yield raw(array)


def raw(array: NDArray[Any]) -> memoryview:
    """The bytes of an array in row-major order; a view where it lies so."""
    return np.ascontiguousarray(array).reshape(-1).view(np.uint8).data


def decode(data: Part, name: str) -> dict[str, NDArray[Any]]:
    """Arrays that are views of `data` (writable where it is). Raises StoreError naming `name` where it is damaged."""
    try:
        return _decode(memoryview(data))
    except (msgspec.MsgspecError, ValueError, KeyError, RecursionError, OverflowError) as error:
        raise StoreError(f"{name} is damaged: {error}") from error


def _decode(view: memoryview) -> dict[str, NDArray[Any]]:
    length = int.from_bytes(view[:8], "little")
    if len(view) < 8 or length > min(len(view) - 8, _MOST_HEADER) or length % 8:
        raise ValueError("its header does not fit")
    entries = msgspec.json.decode(view[8 : 8 + length], type=dict[str, _Entry])
    body = view[8 + length :]
    found, end = {}, 0
    for name, entry in sorted(entries.items(), key=lambda pair: pair[1].data_offsets):
        dtype = np.dtype(_DTYPES[entry.dtype])
        count = math.prod(entry.shape)
        if len(entry.shape) > _MOST_DIMENSIONS:
            raise ValueError(f"{name!r} has {len(entry.shape)} dimensions")
        if entry.data_offsets != (end, end + count * dtype.itemsize) or end % dtype.itemsize:
            raise ValueError(f"{name!r} does not lie where it should")
        begin, end = end, end + count * dtype.itemsize
        if end > len(body):
            raise ValueError(f"{name!r} reaches beyond the end")
        if dtype == np.bool_ and count and int(np.frombuffer(body[begin:end], np.uint8).max()) > 1:
            raise ValueError(f"{name!r} holds a truth value that is neither 0 nor 1")
        found[name] = (
            np.frombuffer(body[begin:end], dtype).reshape(entry.shape) if count else np.zeros(entry.shape, dtype)
        )
    if end != len(body):
        raise ValueError(f"{len(body) - end} bytes belong to no array")
    return found
