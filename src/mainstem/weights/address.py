"""Memory by address, for compiled code: prefetches, ordered loads and stores, copies past the cache.

Arrays know their bounds and wrap negative places; the table's inner loops need neither, but a few instructions that
numba has no names for. Each function here becomes one or two of them. Addresses are int64; whoever calls keeps the
memory mapped, and aligned to what is read.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
from llvmlite import ir
from numba import types
from numba.extending import intrinsic

from mainstem.schema.keyrows import compiled

__all__ = [
    "Int",
    "acquire32",
    "copy4",
    "copy16",
    "copy_row",
    "equal8",
    "fence_acquire",
    "fence_all",
    "fence_release",
    "load32",
    "load64",
    "lowest",
    "prefetch",
    "release32",
    "stream16",
    "stream_row",
    "zero_row",
]

Int = int | np.int64
"""A whole number inside compiled code, where every one has 64 bits."""

_BITS32, _BITS64, _FLOAT = ir.IntType(32), ir.IntType(64), ir.FloatType()


def _made(result: Any, arguments: int, emit: Callable[..., Any]) -> Callable[..., Any]:
    """The intrinsic that takes `arguments` addresses (the last may be a value) and runs `emit(builder, *arguments)`."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        made = emit(builder, *given)
        return context.get_dummy_value() if result is types.void else made

    if arguments == 0:
        return cast(Callable[..., Any], intrinsic(lambda context: (result(), generate)))
    if arguments == 1:
        return cast(Callable[..., Any], intrinsic(lambda context, a: (result(types.int64), generate)))
    if arguments == 2:
        return cast(Callable[..., Any], intrinsic(lambda context, a, b: (result(types.int64, types.int64), generate)))
    raise ValueError(arguments)


def _pointer(builder: Any, address: Any, to: Any) -> Any:
    return builder.inttoptr(address, to.as_pointer())


def _prefetch(builder: Any, address: Any) -> None:
    pointer = _pointer(builder, address, ir.IntType(8))
    kind = ir.FunctionType(ir.VoidType(), [pointer.type, _BITS32, _BITS32, _BITS32])
    function = builder.module.declare_intrinsic("llvm.prefetch", [pointer.type], kind)
    # to read, into the second cache: the first has few places for lines on their way, and is left to what is worked on
    builder.call(function, [pointer, _BITS32(0), _BITS32(2), _BITS32(1)])


def _copy(lanes: int, past_the_cache: bool) -> Callable[..., None]:
    def emit(builder: Any, target: Any, source: Any) -> None:
        vector = ir.VectorType(_FLOAT, lanes)
        value = builder.load(_pointer(builder, source, vector), align=4)
        align = 4 * lanes if past_the_cache else 4
        stored = builder.store(value, _pointer(builder, target, vector), align=align)
        if past_the_cache:
            stored.set_metadata("nontemporal", builder.module.add_metadata([ir.Constant(_BITS32, 1)]))

    return emit


prefetch = _made(types.void, 1, _prefetch)
"""Ask for the cache line at an address; never faults."""

load64 = _made(types.uint64, 1, lambda builder, a: builder.load(_pointer(builder, a, _BITS64)))
load32 = _made(types.uint32, 1, lambda builder, a: builder.load(_pointer(builder, a, _BITS32)))


def _equal8(builder: Any, address: Any, value: Any) -> Any:
    words = ir.VectorType(_BITS64, 8)
    line = builder.load(_pointer(builder, address, words), align=8)
    first = builder.insert_element(ir.Constant(words, ir.Undefined), value, _BITS32(0))
    nought = ir.Constant(ir.VectorType(_BITS32, 8), [0] * 8)
    every = builder.shuffle_vector(first, ir.Constant(words, ir.Undefined), nought)
    mask = builder.bitcast(builder.icmp_unsigned("==", line, every), ir.IntType(8))
    return builder.zext(mask, _BITS64)


equal8 = _made(types.uint64, 2, _equal8)
"""Which of the eight words at an address equal a value: bit j for word j."""

lowest = _made(types.int64, 1, lambda builder, bits: builder.cttz(bits, ir.Constant(ir.IntType(1), 1)))
"""Place of the lowest bit that is set; some must be."""

acquire32 = _made(types.uint32, 1, lambda b, a: b.load_atomic(_pointer(b, a, _BITS32), "acquire", 4))
"""Load: what follows in the program is read after it."""

release32 = _made(
    types.void,
    2,
    lambda b, a, value: b.store_atomic(b.trunc(value, _BITS32), _pointer(b, a, _BITS32), "release", 4),
)
"""Store the low 32 bits of a value: what comes before in the program is seen by whoever sees it."""

fence_acquire = _made(types.void, 0, lambda builder: builder.fence("acquire"))
"""Loads before it are done before loads after it."""

fence_release = _made(types.void, 0, lambda builder: builder.fence("release"))
"""Stores before it are seen before stores after it."""

fence_all = _made(types.void, 0, lambda builder: builder.fence("seq_cst"))
"""Also orders stores that go past the cache."""

copy16 = _made(types.void, 2, _copy(16, False))
copy4 = _made(types.void, 2, _copy(4, False))
_copy1 = _made(types.void, 2, _copy(1, False))
stream16 = _made(types.void, 2, _copy(16, True))
_stream4 = _made(types.void, 2, _copy(4, True))


def _zero(builder: Any, target: Any) -> None:
    builder.store(ir.Constant(_FLOAT, 0.0), _pointer(builder, target, _FLOAT), align=4)


_zero1 = _made(types.void, 1, _zero)


@compiled
def copy_row(target: Int, source: Int, width: Int) -> None:
    """Copy `width` bytes, a multiple of 4."""
    at = 0
    while at + 64 <= width:
        copy16(target + at, source + at)
        at += 64
    while at + 16 <= width:
        copy4(target + at, source + at)
        at += 16
    while at < width:
        _copy1(target + at, source + at)
        at += 4


@compiled
def stream_row(target: Int, source: Int, width: Int) -> None:
    """`copy_row` past the caches, without fetching the lines that are overwritten: `width` must be a multiple of 64,
    `target` one of 16. `fence_all` must follow before another thread reads."""
    if target & 63 == 0:
        for at in range(0, width, 64):
            stream16(target + at, source + at)
    else:
        for at in range(0, width, 16):
            _stream4(target + at, source + at)


@compiled
def zero_row(target: Int, width: Int) -> None:
    """Zero `width` bytes, a multiple of 4."""
    for at in range(0, width, 4):
        _zero1(target + at)
