"""Triton kernels against torch: on a GPU, or on the CPU with TRITON_INTERPRET=1 where Triton is there."""

from __future__ import annotations

import os

import numpy as np
import pytest
import torch

from mainstem.weights.device.slab import UNKNOWN, clock
from mainstem.weights.device.slots import DeviceSlots
from mainstem.weights.device.words import words_of

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
if not INTERPRETED and not torch.cuda.is_available():
    pytest.skip("needs a CUDA device, or TRITON_INTERPRET=1", allow_module_level=True)
pytest.importorskip("triton")

from mainstem.weights.device import kernels  # noqa: E402

DEVICE = torch.device("cpu" if INTERPRETED else "cuda:0")


def filled(bits: int, count: int) -> tuple[torch.Tensor, DeviceSlots, DeviceSlots]:
    """(keys, slots in torch alone, the same memory with kernels); a third of the keys were deleted again."""
    slots = DeviceSlots(bits, DEVICE)
    keys = words_of(np.random.default_rng(bits).integers(1, 2**64, count, np.uint64), DEVICE)
    slots.put(keys, torch.randperm(count, device=DEVICE))
    slots.take_out(keys[::3])
    fast = DeviceSlots(bits, DEVICE, kernels)
    fast.words, fast.halves = slots.words, slots.halves
    return keys, slots, fast


def asked(keys: torch.Tensor) -> torch.Tensor:
    """Known keys, deleted ones, absent ones and key 0."""
    return torch.cat((keys, torch.arange(-70, 70, device=DEVICE), keys[:5]))


# keys for buckets of five: hardly any; the most there may be; all that there is room for, so that searches go far
@pytest.mark.parametrize(("bits", "count"), [(3, 0), (3, 1), (3, 32), (3, 40), (9, 2048), (9, 2560)])
def test_find_is_that_of_torch(bits: int, count: int) -> None:
    keys, slow, fast = filled(bits, count)
    wanted = asked(keys)
    assert torch.equal(fast.find(wanted), slow.find(wanted))
    assert (slow.find(keys) >= 0).sum() == count - len(keys[::3])
    for n in (0, 1, 63, 64, 65):
        assert torch.equal(fast.find(wanted[:n]), slow.find(wanted[:n]))


def test_canary_a_search_that_ends_too_soon_is_noticed() -> None:
    keys, slow, fast = filled(9, 2560)
    fast.words = slow.words.clone()
    fast.words.view(torch.int32)[:, 15] = 0
    assert not torch.equal(fast.find(keys), slow.find(keys))


@pytest.mark.parametrize("dim", [1, 3, 16, 64, 100, 128, 200])
def test_read_is_find_and_gather(dim: int) -> None:
    keys, slow, fast = filled(9, 2000)
    wanted = asked(keys)
    values = torch.randn(2000, dim, device=DEVICE)
    want, got = (torch.full((len(wanted) + 1, dim), 9.0, device=DEVICE) for _ in range(2))
    slow.read(wanted, values, want[:-1])
    fast.read(wanted, values, got[:-1])
    assert torch.equal(got, want)
    assert (got[-1] == 9).all(), "nothing is written past the end"
    assert (got[:-1] == 0).all(1).sum() >= 100, "absent keys read zeros"
    assert torch.equal(got[:2000][slow.find(keys) >= 0], values[slow.find(keys)[slow.find(keys) >= 0]])


def test_touch_finds_and_never_sets_a_time_back() -> None:
    keys, slow, fast = filled(9, 2000)
    wanted = asked(keys)
    one = torch.full((2000,), UNKNOWN, dtype=torch.int32, device=DEVICE)
    one[::2] = clock(2**32 - 1)
    other = one.clone()
    for second in (5, 3, 2**31 + 7):
        assert torch.equal(
            fast.touch(wanted[:1500], other, clock(second)), slow.touch(wanted[:1500], one, clock(second))
        )
        assert torch.equal(one, other)
    assert (one == clock(2**31 + 7)).sum() > 300
    assert (one == UNKNOWN).sum() > 100
    assert (one == clock(2**32 - 1)).sum() == 1000
