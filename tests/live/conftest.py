import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# The world with a trained base and an online trainer is the trainer's own.
sys.path.append(str(Path(__file__).parents[1] / "train"))


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small products gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)
