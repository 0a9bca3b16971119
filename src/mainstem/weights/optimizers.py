"""One step of each touched row's optimizer, compiled: the sparse half of a training step.

The gradients of a row that is named several times are summed first, in float32 and in the order in which they stand.
Rows are dealt to threads by a hash of their number, or in stretches where the caller knows that none is named twice, so
that each row is one thread's alone: the result does not depend on how many threads there are (`weights.parts` says how
their number is set).
"""

from __future__ import annotations

import math
from functools import lru_cache

import numba
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.keyrows import compiled, mix, slots_for
from mainstem.schema.protocols import Floats
from mainstem.weights.address import prefetch
from mainstem.weights.family import Adagrad, Adam, Ftrl, Optimizer, RowwiseAdagrad
from mainstem.weights.lanes import Lanes, add_row, dot_row, number_at, row_formula, set_number
from mainstem.weights.parts import compiled_in_parts, owner, parts
from mainstem.weights.table import Rows

__all__ = ["all_finite", "apply"]

_ROWWISE_ADAGRAD, _ADAGRAD, _ADAM, _FTRL = range(4)
_LEAST = 1024  # rows a thread must get: below, waking it costs more than it saves

_AHEAD = 16  # rows fetched ahead of the one that is worked on
_LINE = 64  # bytes of a cache line
_TABLED = 4096  # steps of a row for which Adam's corrections are looked up, as powers are slow
_NONE = np.empty((0, 2))

Places = NDArray[np.int32]
Corrections = NDArray[np.float64]
Address = int | np.int64
Settings = tuple[float, float, float]


def apply(
    optimizer: Optimizer,
    values: Floats,
    state: Floats,
    rows: Rows,
    gradients: Floats,
    learning_rate: float,
    *,
    distinct: bool = False,
) -> None:
    """One step of `optimizer` for `rows`, in place.

    values     float32 [capacity, dim], C-contiguous
    state      float32 [capacity, width], C-contiguous; its first `optimizer.state_width(dim)` columns are this one's,
               zeros before a row's first step
    rows       int64 [n]; they may repeat, and -1 is skipped
    gradients  float32 [n, dim], C-contiguous; finite (not looked at here)
    distinct   that no row is named twice: then no row's gradients are looked for, and rows are met as they stand

    RowwiseAdagrad  state a: a += mean(g^2); w -= rate * g / (sqrt(a) + epsilon)
    Adagrad         state a [dim]: a += g^2; w -= rate * g / (sqrt(a) + epsilon)
    Adam            state m, v [dim], t: Kingma & Ba 2015, algorithm 1, with the row's own t
    Ftrl            state z, n [dim]: McMahan et al. 2013, algorithm 1, with rate as alpha. It makes w from z, so rows
                    should start at 0 (`Family(scale=0)`): any other start fades with the first steps.

    Raises ValueError, changing nothing, where shapes, types or rows do not fit.
    """
    _check(optimizer, values, state, rows, gradients)
    if not math.isfinite(learning_rate) or (isinstance(optimizer, Ftrl) and learning_rate <= 0):
        raise ValueError(f"learning rate {learning_rate} must be finite, and above 0 for Ftrl")
    kind, settings = _settings(optimizer)
    corrections = _corrections(optimizer.beta1, optimizer.beta2) if isinstance(optimizer, Adam) else _NONE
    given = (rows, gradients, values, state, kind, learning_rate, settings, corrections)
    with parts(len(rows), _LEAST) as count:
        if distinct:
            (_stretch if count == 1 else _all_stretches)(0, count, *given)
        else:
            chains = np.empty((2, len(rows)), np.int32)
            (_part if count == 1 else _all_parts)(0, count, slots_for(len(rows)), chains, *given)


def all_finite(gradients: Floats) -> bool:
    """Whether no number of gradients (float32 [n, dim], C-contiguous) is infinite or NaN."""
    found = np.zeros(len(gradients) // _LEAST + 1, np.bool_)
    with parts(len(gradients), _LEAST) as count:
        run = _not_finite if count == 1 else _all_not_finite
        run(0, count, gradients, found)
    return not found.any()


def _check(optimizer: Optimizer, values: Floats, state: Floats, rows: Rows, gradients: Floats) -> None:
    for name, array, kind, dims in (
        ("values", values, np.float32, 2),
        ("state", state, np.float32, 2),
        ("rows", rows, np.int64, 1),
        ("gradients", gradients, np.float32, 2),
    ):
        if array.dtype != kind or array.ndim != dims or not array.flags.c_contiguous:
            raise ValueError(
                f"{name} must be C-contiguous {np.dtype(kind)} of {dims} dimensions, not {array.dtype} {array.shape}"
            )
    capacity, dim = values.shape
    if gradients.shape != (len(rows), dim):
        raise ValueError(f"gradients must be [{len(rows)}, {dim}], not {list(gradients.shape)}")
    width = optimizer.state_width(dim)
    if len(state) != capacity or state.shape[1] < width:
        raise ValueError(f"state must be [{capacity}, {width} or more], not {list(state.shape)}")
    if len(rows) and (rows.min() < -1 or rows.max() >= capacity):
        raise ValueError(f"rows must lie in -1 .. {capacity - 1}")
    if len(rows) >= 1 << 31:
        raise ValueError("at most 2^31 - 1 rows a step")


def _settings(optimizer: Optimizer) -> tuple[int, Settings]:
    """What the compiled code takes: the kind of optimizer and up to three numbers."""
    if isinstance(optimizer, RowwiseAdagrad):
        return _ROWWISE_ADAGRAD, (optimizer.epsilon, 0.0, 0.0)
    if isinstance(optimizer, Adagrad):
        return _ADAGRAD, (optimizer.epsilon, 0.0, 0.0)
    if isinstance(optimizer, Adam):
        return _ADAM, (optimizer.epsilon, optimizer.beta1, optimizer.beta2)
    return _FTRL, (optimizer.beta, optimizer.l1, optimizer.l2)


@lru_cache(maxsize=16)
def _corrections(beta1: float, beta2: float) -> Corrections:
    """float64 [t, 2] for t = 0 .. _TABLED - 1: 1 / (1 - beta1^t) and 1 / sqrt(1 - beta2^t); row 0 is never read."""
    t = np.arange(_TABLED, dtype=np.float64)
    t[0] = 1.0
    return np.column_stack((1.0 / (1.0 - beta1**t), 1.0 / np.sqrt(1.0 - beta2**t)))


def _descend(w: Lanes, g: Lanes, step: Lanes) -> Lanes:
    return w - step * g


def _adagrad(w: Lanes, g: Lanes, a: Lanes, rate: Lanes, epsilon: Lanes) -> tuple[Lanes, Lanes]:
    a = a + g * g
    return w - rate * g / (a.root() + epsilon), a


def _adam(
    w: Lanes, g: Lanes, m: Lanes, v: Lanes, keep1: Lanes, add1: Lanes, keep2: Lanes, add2: Lanes,
    step: Lanes, spread: Lanes, epsilon: Lanes,
) -> tuple[Lanes, Lanes, Lanes]:  # fmt: skip
    """step is rate / (1 - beta1^t), spread 1 / sqrt(1 - beta2^t)."""
    m = keep1 * m + add1 * g
    v = keep2 * v + add2 * g * g
    return w - step * m / (v.root() * spread + epsilon), m, v


def _ftrl(
    w: Lanes, g: Lanes, z: Lanes, n: Lanes, over_rate: Lanes, beta: Lanes, l1: Lanes, l2: Lanes, tiny: Lanes
) -> tuple[Lanes, Lanes, Lanes]:
    """over_rate is 1 / alpha. sqrt(n + g^2) - sqrt(n) is written as g^2 / (their sum), which does not cancel."""
    before, square = n.root(), g * g
    n = n + square
    after = n.root()
    sigma = square / (after + before).at_least(tiny) * over_rate
    z = z + g - sigma * w
    shrunk = (z.size() - l1).at_least(tiny - tiny)
    return (tiny - tiny) - shrunk.signed(z) / ((beta + after) * over_rate + l2), z, n


_descend_row = row_formula(_descend, planes=0, numbers=1)
_adagrad_row = row_formula(_adagrad, planes=1, numbers=2)
_adam_row = row_formula(_adam, planes=2, numbers=7)
_ftrl_row = row_formula(_ftrl, planes=2, numbers=5)
# its difference to itself is NaN for what is not finite, else 0; and NaN stays
_meet_row = row_formula(lambda w, g: w + (g - g), planes=0, numbers=0)


@compiled
def _step(
    w: Address, state: Address, g: Address, dim: int, kind: int, rate: float, settings: Settings,
    corrections: Corrections,
) -> None:  # fmt: skip
    """The step of the row at address w, with its state and its gradient."""
    first, second, third = settings
    if kind == _ROWWISE_ADAGRAD:
        total = number_at(state) + dot_row(g, g, dim) / np.float32(dim)
        set_number(state, total)
        _descend_row(w, g, state, dim, np.float32(rate / (math.sqrt(np.float64(total)) + first)))
    elif kind == _ADAGRAD:
        _adagrad_row(w, g, state, dim, np.float32(rate), np.float32(first))
    elif kind == _ADAM:
        steps = state + 8 * dim
        t = np.int64(number_at(steps)) + 1
        set_number(steps, np.float32(t))
        if t < len(corrections):
            correct1, correct2 = corrections[t, 0], corrections[t, 1]
        else:
            correct1, correct2 = 1.0 / (1.0 - second**t), 1.0 / math.sqrt(1.0 - third**t)
        _adam_row(
            w, g, state, dim,
            np.float32(second), np.float32(1.0 - second), np.float32(third), np.float32(1.0 - third),
            np.float32(rate * correct1), np.float32(correct2), np.float32(first),
        )  # fmt: skip
    else:
        _ftrl_row(
            w, g, state, dim,
            np.float32(1.0 / rate), np.float32(first), np.float32(second), np.float32(third), np.float32(1e-30),
        )  # fmt: skip


@compiled
def _link(part: int, count: int, slots: int, chains: Places, rows: Rows, mine: Places) -> int:
    """Chain the places of each row that is this part's. How many rows.

    The first place of each goes into `mine`; chains[0] holds the place after each place, -1 after the last.
    """
    mask = np.uint64(slots - 1)
    table = np.full(slots, -1, np.int32)
    following, latest = chains[0], chains[1]
    found = 0
    for i in range(len(rows)):
        row = rows[i]
        mixed = mix(np.uint64(row))
        if row < 0 or owner(mixed, count) != part:
            continue
        slot = mixed & mask
        while table[slot] >= 0 and rows[table[slot]] != row:
            slot = (slot + np.uint64(1)) & mask
        head = table[slot]
        following[i] = -1
        if head < 0:
            table[slot] = i
            latest[i] = i
            mine[found] = i
            found += 1
        else:
            following[latest[head]] = i
            latest[head] = i
    return found


@compiled
def _fetch(start: Address, size: Address) -> None:
    """Ask for `size` bytes of memory: rows of a large table lie in no cache, and each would be waited for."""
    for offset in range(0, size, _LINE):
        prefetch(start + offset)
    prefetch(start + size - 4)  # a row may begin in the middle of a line


@compiled
def _part(
    part: int, count: int, slots: int, chains: Places, rows: Rows, gradients: Floats, values: Floats, state: Floats,
    kind: int, rate: float, settings: Settings, corrections: Corrections,
) -> None:  # fmt: skip
    """The steps of the rows that are this part's."""
    mine = np.empty(len(rows), np.int32)
    found = _link(part, count, slots, chains, rows, mine)
    following = chains[0]
    dim = gradients.shape[1]
    total = np.empty(dim, np.float32)
    w, beside = np.int64(values.ctypes.data), np.int64(state.ctypes.data)
    g, summed = np.int64(gradients.ctypes.data), np.int64(total.ctypes.data)
    size, width = np.int64(4 * dim), np.int64(4 * state.shape[1])
    for k in range(found):
        # the last rows are asked for again and again, which costs nothing
        ahead = rows[mine[min(k + _AHEAD, found - 1)]]
        _fetch(w + ahead * size, size)
        _fetch(beside + ahead * width, width)
        place = np.int64(mine[k])
        row = rows[place]
        gradient = g + place * size
        place = np.int64(following[place])
        if place >= 0:
            total[:] = gradients[mine[k]]
            while place >= 0:
                add_row(summed, g + place * size, 0, dim)
                place = np.int64(following[place])
            gradient = summed
        _step(w + row * size, beside + row * width, gradient, dim, kind, rate, settings, corrections)


@compiled_in_parts
def _all_parts(
    _: int, count: int, slots: int, chains: Places, rows: Rows, gradients: Floats, values: Floats, state: Floats,
    kind: int, rate: float, settings: Settings, corrections: Corrections,
) -> None:  # fmt: skip
    for part in numba.prange(count):
        _part(part, count, slots, chains, rows, gradients, values, state, kind, rate, settings, corrections)


@compiled
def _stretch(
    part: int, count: int, rows: Rows, gradients: Floats, values: Floats, state: Floats,
    kind: int, rate: float, settings: Settings, corrections: Corrections,
) -> None:  # fmt: skip
    """The steps of this part's stretch of rows, which are distinct."""
    dim = gradients.shape[1]
    w, beside, g = np.int64(values.ctypes.data), np.int64(state.ctypes.data), np.int64(gradients.ctypes.data)
    size, width = np.int64(4 * dim), np.int64(4 * state.shape[1])
    stop = len(rows) * (part + 1) // count
    for i in range(len(rows) * part // count, stop):
        ahead = rows[min(i + _AHEAD, stop - 1)]
        if ahead >= 0:
            _fetch(w + ahead * size, size)
            _fetch(beside + ahead * width, width)
        row = rows[i]
        if row >= 0:
            _step(w + row * size, beside + row * width, g + i * size, dim, kind, rate, settings, corrections)


@compiled_in_parts
def _all_stretches(
    _: int, count: int, rows: Rows, gradients: Floats, values: Floats, state: Floats,
    kind: int, rate: float, settings: Settings, corrections: Corrections,
) -> None:  # fmt: skip
    for part in numba.prange(count):
        _stretch(part, count, rows, gradients, values, state, kind, rate, settings, corrections)


@compiled
def _not_finite(part: int, count: int, gradients: Floats, found: NDArray[np.bool_]) -> None:
    """found[part]: whether this part's stretch of rows has such a number."""
    dim = gradients.shape[1]
    met = np.zeros(dim, np.float32)
    column, g = np.int64(met.ctypes.data), np.int64(gradients.ctypes.data)
    for i in range(part * len(gradients) // count, (part + 1) * len(gradients) // count):
        _meet_row(column, g + i * np.int64(4 * dim), 0, dim)
    found[part] = np.isnan(met).any()


@compiled_in_parts
def _all_not_finite(_: int, count: int, gradients: Floats, found: NDArray[np.bool_]) -> None:
    for part in numba.prange(count):
        _not_finite(part, count, gradients, found)
