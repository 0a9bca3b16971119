"""64-bit words in int64 tensors: torch has no arithmetic for unsigned ones.

A key's tensor holds its bits. Sums and products wrap as they do for uint64; a logical shift masks what an arithmetic
one fills in; unsigned order is signed order once the top bit is turned.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from mainstem.schema.ids import Keys

__all__ = ["TOP", "first_values", "keys_of", "mix", "mix_top", "signed", "words_of"]

TOP = -(2**63)
"""The top bit alone: `x ^ TOP` turns unsigned order into signed order."""

_GOLDEN = 0x9E3779B97F4A7C15
_NUMBERS = 1 << 24  # made at once: some 100 MB each for a few tensors


def signed(word: int) -> int:
    """The number in -2^63 .. 2^63 - 1 with the same 64 bits."""
    word &= 2**64 - 1
    return word - (word >> 63 << 64)


def words_of(keys: Keys, device: torch.device) -> Tensor:
    """uint64 [n], writable and contiguous -> int64 [n] with the same bits on the device."""
    return torch.from_numpy(keys.view(np.int64)).to(device)


def keys_of(words: Tensor) -> Keys:
    """int64 [n] -> uint64 [n] with the same bits, in memory of its own."""
    keys: Keys = np.array(words.cpu().numpy()).view(np.uint64)
    return keys


def _shifted(x: Tensor, by: int) -> Tensor:
    return (x >> by) & ((1 << (64 - by)) - 1)


def mix(x: Tensor) -> Tensor:
    """`schema.keyrows.mix` of int64 of any shape."""
    x = (x ^ _shifted(x, 30)) * signed(0xBF58476D1CE4E5B9)
    x = (x ^ _shifted(x, 27)) * signed(0x94D049BB133111EB)
    return x ^ _shifted(x, 31)


def mix_top(x: Tensor, bits: int) -> Tensor:
    """The top `bits` of mixed int64 [n], 1 or more, as numbers of 0 and above."""
    return _shifted(mix(x), 64 - bits)


def first_values(keys: Tensor, dim: int, seed: int, scale: float, values: Tensor, rows: Tensor) -> None:
    """The new rows of keys int64 [n] into values float32 [capacity, dim] at rows int64 [n]: the same to the bit as
    `weights.changing` makes them."""
    salt = mix(torch.tensor(signed(seed + _GOLDEN), dtype=torch.int64, device=keys.device))
    steps = torch.tensor([signed((c + 1) * _GOLDEN) for c in range(dim)], dtype=torch.int64, device=keys.device)
    chunk = max(1, _NUMBERS // dim)
    for start in range(0, len(keys), chunk):
        state = mix(keys[start : start + chunk] ^ salt)
        units = _shifted(mix(state[:, None] + steps), 40).to(torch.float64) / 16777216.0
        values[rows[start : start + chunk]] = ((2.0 * units - 1.0) * scale).to(torch.float32)
