"""Where the networks of a training compute: this processor, or a GPU that torch sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

import torch

from mainstem.schema.errors import ConfigError

__all__ = ["Device", "device_of", "matmul_precision"]

Device = Literal["cpu", "cuda", "auto"]


def device_of(name: Device) -> torch.device:
    """What `train.device` names; `auto` is a GPU where torch sees one. Raises ConfigError where it sees none."""
    if name == "cpu" or (name == "auto" and not torch.cuda.is_available()):
        return torch.device("cpu")
    if not torch.cuda.is_available():
        raise ConfigError(
            f"train.device is cuda, and torch {torch.__version__} sees no GPU: install a build of torch for it (see "
            "pytorch.org), or set train.device to auto or cpu"
        )
    return torch.device("cuda")


@contextmanager
def matmul_precision(device: torch.device) -> Iterator[None]:
    """On a GPU products of float32 matrices may be made of TensorFloat-32 within: ten bits of mantissa, several times
    as fast. On the CPU nothing changes."""
    before = torch.get_float32_matmul_precision()
    if device.type == "cuda":
        torch.set_float32_matmul_precision("high")
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before)
