"""Where the networks of a training compute: this processor, or a GPU that torch sees."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from mainstem.schema.errors import ConfigError

__all__ = ["device_of", "matmul_precision", "wants_gpu"]


def wants_gpu(name: str) -> bool:
    """Whether this `train.device` means a GPU; `auto` does where torch sees one."""
    return name == "cuda" or (name == "auto" and torch.cuda.is_available())


def device_of(name: str) -> torch.device:
    """What `train.device` names. Raises ConfigError where it means a GPU and torch sees none."""
    if not wants_gpu(name):
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
