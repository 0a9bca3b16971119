"""The approximate index against the exact one, on vectors such as a trained tower gives."""

from __future__ import annotations

import numpy as np
import pytest

from mainstem import index
from mainstem.index.switching import SwitchingIndex
from mainstem.schema.protocols import VectorIndex

DIM, LIMIT = 64, 100


def learned_like(rng: np.random.Generator, n: int, dim: int = DIM) -> np.ndarray:
    """Unit vectors in clusters of Zipf-like sizes whose directions fall off in weight, as trained ones do."""
    spectrum = np.arange(1, dim + 1) ** -0.5
    clusters = rng.normal(size=(max(8, n // 100), dim)) * spectrum
    member = np.minimum(rng.zipf(1.3, n) - 1, len(clusters) - 1)
    vectors = (clusters[member] + 0.6 * rng.normal(size=(n, dim)) * spectrum).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def recall(found: VectorIndex, truth: VectorIndex, queries: np.ndarray, limit: int = LIMIT, allowed=None) -> float:
    """Share of the true best `limit`, by score: whoever equals the last true score counts."""
    shares = []
    for query in queries:
        wanted, got = truth.search(query, limit, allowed).scores, found.search(query, limit, allowed).scores
        assert len(got) == len(wanted)
        shares.append(float((got >= wanted[-1] - 1e-6).mean()))
    return float(np.mean(shares))


def pair(n: int, url: str = "hnsw://") -> tuple[VectorIndex, VectorIndex, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    vectors, keys = learned_like(rng, n), rng.permutation(np.arange(1, n + 1)).astype(np.uint64)
    both = index.open("exact://", DIM, version="v"), index.open(url, DIM, version="v")
    for held in both:
        held.upsert(keys, vectors)
    queries = vectors[rng.integers(0, n, 60)] + 0.05 * rng.normal(size=(60, DIM)).astype(np.float32)
    return *both, keys, queries


@pytest.fixture(scope="module")
def grown() -> tuple[VectorIndex, VectorIndex, np.ndarray, np.ndarray]:
    return pair(12_000)


def test_recall_at_the_default_setting(grown: tuple[VectorIndex, VectorIndex, np.ndarray, np.ndarray]) -> None:
    exact, graph, _, queries = grown
    assert recall(graph, exact, queries) >= 0.99
    assert recall(graph, exact, queries, 10) >= 0.99


def test_the_recall_check_rejects_a_poor_graph() -> None:
    """The canary: the same check on a graph with too few links and too narrow a search must fail."""
    exact, poor, _, queries = pair(6_000, "hnsw://?links=2&construction=2&breadth=1")
    assert recall(poor, exact, queries) < 0.99


@pytest.mark.parametrize("share", [0.002, 0.02, 0.2, 0.7])
def test_recall_of_filtered_search(
    grown: tuple[VectorIndex, VectorIndex, np.ndarray, np.ndarray], share: float
) -> None:
    exact, graph, keys, queries = grown
    may = np.random.default_rng(1).random(len(keys) + 1) < share
    assert recall(graph, exact, queries[:20], LIMIT, lambda keys: may[keys.astype(int)]) >= 0.99


def test_recall_after_many_updates_and_deletes() -> None:
    exact, graph, keys, queries = pair(8_000)
    rng = np.random.default_rng(2)
    for _ in range(8):
        changed = rng.choice(keys, 300, replace=False)
        vectors = learned_like(rng, 300)
        gone = rng.choice(keys, 100, replace=False)
        for held in (exact, graph):
            held.upsert(changed, vectors)
            held.delete(gone)
    assert len(exact) == len(graph)
    assert recall(graph, exact, queries) >= 0.99
    assert isinstance(graph, SwitchingIndex)
    assert graph.settle(60)
    assert recall(graph, exact, queries) >= 0.99


@pytest.mark.slow
def test_recall_at_a_hundred_thousand() -> None:
    exact, graph, _, queries = pair(100_000)
    assert recall(graph, exact, queries, 200) >= 0.99
