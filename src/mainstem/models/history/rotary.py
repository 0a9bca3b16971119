"""Rotary positions: what attention sees of two events' places is how far apart they stand.

Su et al. 2021, "RoFormer: Enhanced Transformer with Rotary Position Embedding", equations 15 and 34: pairs of numbers
of a query and of a key are turned as numbers of the complex plane, by an angle that grows with the place. Their product
then depends on the difference of the places alone. Nothing is learned of it, and no place is beyond the last.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

__all__ = ["turned", "turns"]

BASE = 10_000.0
"""Of the angles, equation 15: pair i of d / 2 turns by BASE ** (-2 i / d) a place, the first by one radian."""


def turns(length: int, width: int) -> NDArray[np.complex128]:
    """By what the pairs at the places 0 to length - 1 are turned: complex [length, width / 2].

    Raises ValueError where width is odd.
    """
    if width % 2:
        raise ValueError(f"width {width} must be even: numbers are turned in pairs")
    rates = BASE ** (-2.0 * np.arange(width // 2) / width)
    out: NDArray[np.complex128] = np.exp(1j * np.outer(np.arange(length), rates))
    return out


def turned(x: Tensor, by: Tensor) -> Tensor:
    """x [..., width] times complex `by` [..., width / 2], where it broadcasts -> [..., width]."""
    pairs = torch.view_as_complex(x.view(*x.shape[:-1], -1, 2))
    return torch.view_as_real(pairs * by).flatten(-2)
