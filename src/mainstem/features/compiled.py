"""Compilation of the sequential kernels: machine code, kept on disk, run without the interpreter's lock."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar, cast

import numba

__all__ = ["compiled"]

F = TypeVar("F", bound=Callable[..., Any])


def compiled(function: F) -> F:
    """`function` compiled on first call (cached between processes)."""
    return cast(F, numba.njit(cache=True, nogil=True)(function))
