"""The edge over a test double. `make_engine` is the one place to swap in the real engine."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from doubles import CONFIG, MemoryEngine
from litestar.testing import TestClient

from mainstem.schema.config import Config
from mainstem.serve import create_app


@pytest.fixture
def config() -> Config:
    return CONFIG


@pytest.fixture
def make_engine() -> Callable[[], MemoryEngine]:
    return lambda: MemoryEngine(CONFIG)


@pytest.fixture
def engine(make_engine: Callable[[], MemoryEngine]) -> MemoryEngine:
    return make_engine()


@pytest.fixture
def client(engine: MemoryEngine) -> Iterator[TestClient]:
    with TestClient(create_app(engine, max_body=200_000), raise_server_exceptions=False) as client:
        yield client
