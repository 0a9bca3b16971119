from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from stream_world import World, online_config


@pytest.fixture(autouse=True, scope="session")
def _one_thread() -> Iterator[None]:
    """Small products gain nothing from threads, and lose much on a busy machine."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained base, to be copied."""
    folder = tmp_path_factory.mktemp("base")
    World(folder / "weights", online_config())
    return folder / "weights"
