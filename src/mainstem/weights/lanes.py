"""Formulas over float32 rows as vector instructions.

numba's loops over a row of 16 numbers stay scalar: the compiler does not know that the rows do not overlap, nor that
they are short. Here a formula in Python's operators is written once and made into instructions on 16 numbers at a time,
then 4, then 1 for what is left of the row; LLVM cuts wider vectors than the processor has.

    def formula(w: Lanes, g: Lanes, a: Lanes, rate: Lanes) -> tuple[Lanes, Lanes]:  # the new w and a
        a = a + g * g
        return w - rate * g / a.root(), a

    step = row_formula(formula, planes=1, numbers=1)
    step(address of w, address of g, address of a, dim, rate)   # inside compiled functions only

Addresses are bytes, of float32 rows that must not overlap; a formula's second state row lies right behind its first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from llvmlite import ir
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

__all__ = ["Lanes", "add_row", "dot_row", "number_at", "row_formula", "set_number"]

_WIDTHS = (16, 4, 1)
_FLOAT, _LONG = ir.FloatType(), ir.IntType(64)


class Lanes:
    """Some float32 numbers in a register, while code for them is made: operators between two of equal count."""

    def __init__(self, builder: Any, value: Any) -> None:
        self.builder, self.value = builder, value

    def __add__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fadd(self.value, other.value))

    def __sub__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fsub(self.value, other.value))

    def __mul__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fmul(self.value, other.value))

    def __truediv__(self, other: Lanes) -> Lanes:
        return Lanes(self.builder, self.builder.fdiv(self.value, other.value))

    def root(self) -> Lanes:
        """Square roots."""
        return self._call("llvm.sqrt", self)

    def size(self) -> Lanes:
        """Absolute values."""
        return self._call("llvm.fabs", self)

    def signed(self, sign: Lanes) -> Lanes:
        """Its own size, the sign of `sign`."""
        return self._call("llvm.copysign", self, sign)

    def at_least(self, least: Lanes) -> Lanes:
        """The greater of the two."""
        greater = self.builder.fcmp_ordered(">", self.value, least.value)
        return Lanes(self.builder, self.builder.select(greater, self.value, least.value))

    def _call(self, name: str, *given: Lanes) -> Lanes:
        kind = self.value.type
        function = _intrinsic(self.builder, name, kind, ir.FunctionType(kind, [kind] * len(given)))
        return Lanes(self.builder, self.builder.call(function, [each.value for each in given]))


def _intrinsic(builder: Any, name: str, kind: Any, function: Any) -> Any:
    """LLVM's intrinsic of that name for that kind of number; llvmlite knows no names for vectors."""
    suffix = f"v{kind.count}f32" if isinstance(kind, ir.VectorType) else "f32"
    return cgutils.get_or_insert_function(builder.module, function, f"{name}.{suffix}")  # type: ignore[no-untyped-call]


def _kind(width: int) -> Any:
    return _FLOAT if width == 1 else ir.VectorType(_FLOAT, width)


def _spread(builder: Any, number: Any, width: int) -> Lanes:
    """`number` in every lane."""
    if width == 1:
        return Lanes(builder, number)
    kind = _kind(width)
    first = builder.insert_element(ir.Constant(kind, ir.Undefined), number, ir.IntType(32)(0))
    mask = ir.Constant(ir.VectorType(ir.IntType(32), width), None)
    return Lanes(builder, builder.shuffle_vector(first, ir.Constant(kind, ir.Undefined), mask))


def _pointer(builder: Any, address: Any, width: int) -> Any:
    return builder.inttoptr(address, _kind(width).as_pointer())


def _cut(builder: Any, dim: Any, make: Callable[[Any, int], None]) -> None:
    """Code that runs through a row of `dim` numbers: make(bytes from its beginning, width) for each stretch."""
    done: Any = _LONG(0)
    for width in _WIDTHS:
        stretches = builder.udiv(builder.sub(dim, done), _LONG(width))
        with cgutils.for_range(builder, stretches) as loop:
            place = builder.add(done, builder.mul(loop.index, _LONG(width)))
            make(builder.mul(place, _LONG(4)), width)
        done = builder.add(done, builder.mul(stretches, _LONG(width)))


def row_formula(formula: Callable[..., Any], planes: int, numbers: int) -> Any:
    """step(w, g, state, dim, *numbers): `formula(w, g, *state rows, *numbers)` over whole rows, in place.

    It returns the new w, followed by the new state rows if `planes` is 1 or more.
    """

    def made(_: Any, w: Any, g: Any, state: Any, dim: Any, *given: Any) -> Any:
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
            target, gradient, beside, length, *factors = arguments

            def make(offset: Any, width: int) -> None:
                bases = [target] + [
                    builder.add(beside, builder.mul(length, _LONG(4 * plane))) for plane in range(planes)
                ]
                places = [_pointer(builder, builder.add(base, offset), width) for base in bases]
                kept = [Lanes(builder, builder.load(place, align=4)) for place in places]
                slope = builder.load(_pointer(builder, builder.add(gradient, offset), width), align=4)
                spread = [_spread(builder, factor, width) for factor in factors]
                result = formula(kept[0], Lanes(builder, slope), *kept[1:], *spread)
                for place, lanes in zip(places, result if planes else (result,), strict=True):
                    builder.store(lanes.value, place, align=4)

            _cut(builder, length, make)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64, types.int64, types.int64, *[types.float32] * numbers), generate

    return intrinsic(_with_arity(made, numbers))


def _with_arity(made: Callable[..., Any], numbers: int) -> Callable[..., Any]:
    """numba asks an intrinsic for names, not for `*given`."""
    takers: dict[int, Callable[..., Any]] = {
        0: lambda typing, w, g, state, dim: made(typing, w, g, state, dim),
        1: lambda typing, w, g, state, dim, a: made(typing, w, g, state, dim, a),
        2: lambda typing, w, g, state, dim, a, b: made(typing, w, g, state, dim, a, b),
        5: lambda typing, w, g, state, dim, a, b, c, d, e: made(typing, w, g, state, dim, a, b, c, d, e),
        7: lambda typing, w, g, state, dim, a, b, c, d, e, f, h: made(typing, w, g, state, dim, a, b, c, d, e, f, h),
    }
    return takers[numbers]


def _dot_row(_: Any, left: Any, right: Any, dim: Any) -> Any:
    """dot_row(left, right, dim): the sum of products of two rows, float32."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        one, other, length = given
        total = cgutils.alloca_once_value(builder, ir.Constant(_FLOAT, 0.0))  # type: ignore[no-untyped-call]

        def make(offset: Any, width: int) -> None:
            a = builder.load(_pointer(builder, builder.add(one, offset), width), align=4)
            b = builder.load(_pointer(builder, builder.add(other, offset), width), align=4)
            product = builder.fmul(a, b)
            so_far = builder.load(total)
            if width == 1:
                builder.store(builder.fadd(so_far, product), total)
                return
            kind = ir.FunctionType(_FLOAT, [_FLOAT, product.type])
            add = _intrinsic(builder, "llvm.vector.reduce.fadd", product.type, kind)
            # any order of the lanes: a tree of sums, the same one each time
            builder.store(builder.call(add, [so_far, product], fastmath=("reassoc",)), total)

        _cut(builder, length, make)
        return builder.load(total)

    return types.float32(types.int64, types.int64, types.int64), generate


def _number_at(_: Any, address: Any) -> Any:
    """number_at(address): the float32 there."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        return builder.load(_pointer(builder, given[0], 1), align=4)

    return types.float32(types.int64), generate


def _set_number(_: Any, address: Any, number: Any) -> Any:
    """set_number(address, number): make the float32 there this one."""

    def generate(context: Any, builder: Any, signature: Any, given: Any) -> Any:
        builder.store(given[1], _pointer(builder, given[0], 1), align=4)
        return context.get_dummy_value()

    return types.void(types.int64, types.float32), generate


dot_row: Any = intrinsic(_dot_row)
number_at: Any = intrinsic(_number_at)
set_number: Any = intrinsic(_set_number)

add_row: Any = row_formula(lambda w, g: w + g, planes=0, numbers=0)
"""add_row(w, g, anything, dim): w += g."""
