"""How many threads torch uses for one operation, for as long as a stage of training lasts."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["torch_threads"]


@contextmanager
def torch_threads(count: int) -> Iterator[None]:
    """`count` threads within, as many as before afterwards. The setting is the whole process's.

    Matrices of a few thousand rows are slower with more than one thread, much slower on a busy machine, where
    every operation waits for the thread that is not running.
    """
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
