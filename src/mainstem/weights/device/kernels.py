"""Reads on a GPU, in Triton: find, find and mark as seen, find and gather in one pass.

A program looks for a block of keys. Each key's bucket is one load of 64 bytes, by four threads, and rows and count come
with the keys. The program goes on while any of its keys is open; keys that are settled load nothing more. `read`
copies rows in the same program, so row numbers never go to memory.

This module needs Triton and is imported where a table is on a GPU. With TRITON_INTERPRET=1 it runs on the CPU, slowly.
"""

# annotations stay objects here: Triton's interpreter looks for constexpr among them
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

__all__ = ["find", "read", "touch"]

_KEYS = 32  # keys a program
_WARPS = 2
_COLUMNS = 128  # numbers of a row that are copied at once, at most


def _kernel(function: Callable[..., Any]) -> Any:
    return triton.jit(function, do_not_specialize=["n", "shift", "now"])


def _device_function(function: Callable[..., Any]) -> Any:
    return triton.jit(function)


@_device_function
def _mix(x):  # type: ignore[no-untyped-def]
    """`schema.keyrows.mix` of uint64."""
    x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9
    x = (x ^ (x >> 27)) * 0x94D049BB133111EB
    return x ^ (x >> 31)


@_device_function
def _search(words, shift, key):  # type: ignore[no-untyped-def]
    """Row of each key int64 [KEYS], -1 where it has none. words int64 [2^(64 - shift), 8]."""
    slot = tl.arange(0, 8)[None, :]
    last = (1 << (64 - shift).to(tl.int64)) - 1
    bucket = (_mix(key.to(tl.uint64, bitcast=True)) >> shift.to(tl.uint64)).to(tl.int64)
    row = tl.full(key.shape, -1, tl.int64)
    open_ = key != 0
    passed = last * 0
    while tl.max(open_.to(tl.int32), axis=0) > 0:
        line = tl.load(words + bucket[:, None] * 8 + slot, mask=open_[:, None], other=0)
        same = (line == key[:, None]) & (slot < 5) & open_[:, None]
        place = tl.max(tl.where(same, slot, -1), axis=1)
        # rows are the halves 10 + place, the count the last half
        word = tl.sum(tl.where(slot == 5 + (place >> 1)[:, None], line, 0), axis=1)
        half = tl.where((place & 1) == 0, word, word >> 32) & 0x7FFFFFFF
        row = tl.where(place >= 0, half, row)
        count = tl.sum(tl.where(slot == 7, line, 0), axis=1) >> 32
        open_ = open_ & (place < 0) & (count > 0) & (passed < last)
        bucket = (bucket + 1) & last
        passed += 1
    return row


@_kernel
def _find(words, shift, keys, rows, seen, now, n, TOUCH: tl.constexpr, KEYS: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    key = tl.load(keys + place, mask=place < n, other=0)
    row = _search(words, shift, key)
    tl.store(rows + place, row, mask=place < n)
    if TOUCH:
        # a key that is named twice writes the same number twice
        before = tl.load(seen + row, mask=row >= 0, other=0)
        tl.store(seen + row, tl.maximum(before, now), mask=(row >= 0) & (before < now))


@_kernel
def _read(words, shift, keys, values, out, n, DIM: tl.constexpr, KEYS: tl.constexpr, COLUMNS: tl.constexpr):  # type: ignore[no-untyped-def]
    place = tl.program_id(0).to(tl.int64) * KEYS + tl.arange(0, KEYS)
    key = tl.load(keys + place, mask=place < n, other=0)
    row = _search(words, shift, key)
    for start in tl.static_range(0, DIM, COLUMNS):
        column = start + tl.arange(0, COLUMNS)[None, :]
        held = (row >= 0)[:, None] & (column < DIM)
        numbers = tl.load(values + row[:, None] * DIM + column, mask=held, other=0.0)
        # a result that is written once should not push rows and slots out of the cache
        target = out + place[:, None] * DIM + column
        tl.store(target, numbers, mask=(place < n)[:, None] & (column < DIM), eviction_policy="evict_first")


def find(words: Tensor, bits: int, keys: Tensor) -> Tensor:
    """`DeviceSlots.find`."""
    return _found(words, bits, keys, None, 0)


def touch(words: Tensor, bits: int, keys: Tensor, seen: Tensor, now: int) -> Tensor:
    """`DeviceSlots.touch`."""
    return _found(words, bits, keys, seen, now)


def _found(words: Tensor, bits: int, keys: Tensor, seen: Tensor | None, now: int) -> Tensor:
    rows = torch.empty_like(keys)
    n = len(keys)
    if n:
        beside = rows if seen is None else seen
        with _on(keys.device):
            _find[(triton.cdiv(n, _KEYS),)](
                words, 64 - bits, keys, rows, beside, now, n, TOUCH=seen is not None, KEYS=_KEYS, num_warps=_WARPS
            )
    return rows


def read(words: Tensor, bits: int, keys: Tensor, values: Tensor, out: Tensor) -> None:
    """`DeviceSlots.read`."""
    n, dim = out.shape
    if n:
        columns = min(_COLUMNS, triton.next_power_of_2(dim))
        with _on(keys.device):
            _read[(triton.cdiv(n, _KEYS),)](
                words, 64 - bits, keys, values, out, n, DIM=dim, KEYS=_KEYS, COLUMNS=columns, num_warps=_WARPS
            )


def _on(device: torch.device) -> AbstractContextManager[Any]:
    """Triton launches on torch's current device, whatever the tensors say."""
    return torch.cuda.device(device) if device.type == "cuda" else nullcontext()
