"""The contract of a VectorIndex, on every implementation: laws, checked against a dict of vectors."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainstem import index
from mainstem.index.hnsw import HnswIndex
from mainstem.index.switching import SwitchingIndex, compacting
from mainstem.schema.errors import ConfigError
from mainstem.schema.protocols import VectorIndex

DIM = 8
Open = Callable[[], VectorIndex]


def unit(rng: np.random.Generator, n: int, dim: int = DIM) -> np.ndarray:
    vectors = rng.normal(size=(n, dim)).astype(np.float32)
    return vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def oracle(content: dict[int, np.ndarray], query: np.ndarray, limit: int, allowed: set[int] | None = None) -> list[int]:
    """The best keys by float64 products; equal ones by ascending key."""
    keys = [key for key in content if allowed is None or key in allowed]
    scored = sorted((-float(content[key].astype(float) @ query.astype(float)), key) for key in keys)
    return [key for _, key in scored[:limit]]


def settle(held: VectorIndex) -> None:
    if isinstance(held, SwitchingIndex):
        assert held.settle(60)


@pytest.fixture(params=["exact", "hnsw", "auto", "auto-small"])
def opened(request: pytest.FixtureRequest) -> Open:
    """Opens an empty index. `auto-small` switches to the graph and back during the tests."""
    url, below = (f"{request.param}://", 200_000) if request.param != "auto-small" else ("auto://", 20)
    return lambda: index.open(url, DIM, version="dense-1", exact_below=below)


def test_an_empty_index_answers_nothing(opened: Open) -> None:
    held = opened()
    assert len(held) == 0
    assert held.version == "dense-1"
    assert len(held.search(np.ones(DIM, np.float32), 5)) == 0
    assert list(held.items()) == []
    assert not held.vectors(np.array([3], np.uint64)).any()
    held.delete(np.array([3], np.uint64))
    held.upsert(np.zeros(0, np.uint64), np.zeros((0, DIM), np.float32))
    assert len(held) == 0


def test_a_write_is_visible_to_the_next_search(opened: Open) -> None:
    held, axes = opened(), np.eye(DIM, dtype=np.float32)
    held.upsert(np.arange(1, DIM + 1, dtype=np.uint64), axes)
    assert held.search(axes[2], 1).keys.tolist() == [3]
    held.upsert(np.array([3], np.uint64), -axes[2:3])
    assert held.search(-axes[2], 1).keys.tolist() == [3]
    assert held.search(axes[2], DIM).keys.tolist()[-1] == 3
    assert len(held) == DIM
    held.delete(np.array([3, 3, 77], np.uint64))
    assert len(held) == DIM - 1
    assert 3 not in held.search(-axes[2], DIM).keys
    np.testing.assert_array_equal(held.vectors(np.array([3, 4], np.uint64)), [np.zeros(DIM), axes[3]])
    held.upsert(np.array([3], np.uint64), axes[2:3])
    assert held.search(axes[2], 1).keys.tolist() == [3]


def test_results_are_scored_sorted_and_typed(opened: Open) -> None:
    held, rng = opened(), np.random.default_rng(1)
    keys, vectors = np.arange(1, 101, dtype=np.uint64), unit(rng, 100)
    held.upsert(keys, vectors)
    settle(held)
    query = unit(rng, 1)[0]
    found = held.search(query, 10)
    assert (found.keys.dtype, found.scores.dtype) == (np.uint64, np.float32)
    np.testing.assert_allclose(found.scores, vectors[found.keys.astype(int) - 1] @ query, rtol=1e-5)
    assert (np.diff(found.scores) <= 0).all()
    assert found.keys.tolist() == oracle(dict(zip(keys.tolist(), vectors, strict=True)), query, 10)
    assert len(held.search(query, 1000)) == 100
    assert len(held.search(query, 0)) == 0
    np.testing.assert_array_equal(held.search(query.astype(np.float64), 10).keys, found.keys)


def test_equal_scores_come_by_key_wherever_they_lie(opened: Open) -> None:
    held, same = opened(), np.ones((1, DIM), np.float32)
    order = np.random.default_rng(2).permutation(np.arange(1, 61)).astype(np.uint64)
    for key in order:
        held.upsert(np.array([key]), same)
    settle(held)
    assert held.search(same[0], 7).keys.tolist() == [1, 2, 3, 4, 5, 6, 7]
    odd = held.search(same[0], 7, lambda keys: keys % np.uint64(2) == 1)
    assert odd.keys.tolist() == [1, 3, 5, 7, 9, 11, 13]


def test_of_a_key_given_twice_the_last_vector_stays(opened: Open) -> None:
    held, axes = opened(), np.eye(DIM, dtype=np.float32)
    held.upsert(np.array([5, 6, 5], np.uint64), axes[:3])
    assert len(held) == 2
    np.testing.assert_array_equal(held.vectors(np.array([5, 6], np.uint64)), axes[[2, 1]])


@pytest.mark.parametrize("share", [0.0, 0.001, 0.01, 0.3, 1.0])
def test_a_filtered_search_gives_the_best_of_what_passes(opened: Open, share: float) -> None:
    held, rng = opened(), np.random.default_rng(3)
    keys, vectors = rng.permutation(np.arange(1, 2501)).astype(np.uint64), unit(rng, 2500)
    held.upsert(keys, vectors)
    settle(held)
    may = rng.random(2501) < share
    content = dict(zip(keys.tolist(), vectors, strict=True))
    for query in unit(rng, 5):
        found = held.search(query, 10, lambda keys: may[keys.astype(int)])
        assert may[found.keys.astype(int)].all()
        assert found.keys.tolist() == oracle(content, query, 10, set(np.flatnonzero(may).tolist()))


def test_a_filter_against_the_query_finds_the_far_side(opened: Open) -> None:
    held, rng = opened(), np.random.default_rng(4)
    vectors = unit(rng, 3000)
    held.upsert(np.arange(1, 3001, dtype=np.uint64), vectors)
    settle(held)
    query = unit(rng, 1)[0]
    far = vectors @ query < -0.6
    found = held.search(query, 15, lambda keys: far[keys.astype(int) - 1])
    content = {row + 1: vectors[row] for row in np.flatnonzero(far)}
    assert found.keys.tolist() == oracle(content, query, 15)


def test_items_give_everything(opened: Open) -> None:
    held, rng = opened(), np.random.default_rng(5)
    keys, vectors = np.arange(1, 201, dtype=np.uint64), unit(rng, 200)
    held.upsert(keys, vectors)
    held.delete(keys[::3])
    settle(held)
    content = {int(key): vector for chunk in held.items() for key, vector in zip(*chunk, strict=True)}
    assert sorted(content) == [key for key in range(1, 201) if (key - 1) % 3]
    assert all((content[key] == vectors[key - 1]).all() for key in content)


def test_what_cannot_be_indexed_is_refused_and_changes_nothing(opened: Open) -> None:
    held, one = opened(), np.ones((1, DIM), np.float32)
    for keys, vectors in (
        ([0], one),
        ([1, 2], one),
        ([[1]], one),
        ([1], one[:, 1:]),
        ([1], one * np.nan),
        ([1], one * np.inf),
        ([1], one * 1e30),
    ):
        with pytest.raises(ValueError, match=r"must be|means none"):
            held.upsert(np.array(keys, np.uint64), vectors)
    assert len(held) == 0
    for query in (one, one[0, 1:], one[0] * np.nan):
        with pytest.raises(ValueError, match="query"):
            held.search(query, 3)


Step = tuple[str, list[int], int]
KEYS = st.lists(st.integers(1, 60), min_size=1, max_size=30)
steps = st.lists(
    st.tuples(st.sampled_from(["upsert", "upsert", "delete", "search", "filter"]), KEYS, st.integers(0, 2**31)),
    max_size=25,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=steps)
def test_any_history_agrees_with_a_dict(opened: Open, script: list[Step]) -> None:
    held: VectorIndex = opened()
    content: dict[int, np.ndarray] = {}
    for what, numbers, seed in script:
        rng, keys = np.random.default_rng(seed), np.array(numbers, np.uint64)
        if what == "upsert":
            vectors = unit(rng, len(keys))
            held.upsert(keys, vectors)
            content.update(zip(numbers, vectors, strict=True))
        elif what == "delete":
            held.delete(keys)
            content = {key: vector for key, vector in content.items() if key not in numbers}
        else:
            query, may = unit(rng, 1)[0], set(numbers) if what == "filter" else None
            allowed = None if may is None else lambda keys: np.isin(keys, numbers)  # noqa: B023 (called at once)
            # Two keys may hold one vector here; rows of the kernel's last few may differ from it in the last bit.
            found, best = held.search(query, 10, allowed).keys.tolist(), oracle(content, query, 10, may)
            assert len(set(found)) == len(found) == len(best)
            assert may is None or set(found) <= may
            scores = [[float(content[key] @ query) for key in keys] for keys in (found, best)]
            np.testing.assert_allclose(scores[0], scores[1], atol=1e-6)
        assert len(held) == len(content)
    settle(held)
    assert len(held) == len(content)
    everything = np.arange(1, 61, dtype=np.uint64)
    expected = np.array([content.get(key, np.zeros(DIM, np.float32)) for key in range(1, 61)])
    np.testing.assert_array_equal(held.vectors(everything), expected)


def torn(vectors: np.ndarray) -> np.ndarray:
    """Which vectors are not constant in all places, as every one that is written is."""
    return (vectors != vectors[:, :1]).any(axis=1)


def test_a_torn_vector_would_show() -> None:
    """The canary of the test below, for what it looks at and for what it searches."""
    half = np.array([[17.0] * DIM, [17.0] * 3 + [27.0] * 5], np.float32)
    assert torn(half).tolist() == [False, True]
    assert (half @ contrast() != 0).tolist() == [False, True]


def contrast() -> np.ndarray:
    query = np.zeros(DIM, np.float32)
    query[0], query[-1] = 1, -1
    return query


def test_readers_never_see_half_a_vector_or_a_key_without_its_vector(opened: Open) -> None:
    """Each vector is constant in all places, its last digit a function of the key: any mix shows."""
    held, count, stop = opened(), 300, threading.Event()
    keys = np.arange(1, count + 1, dtype=np.uint64)
    wrong: list[str] = []

    def write() -> None:
        rng = np.random.default_rng(6)
        try:
            for turn in range(1, 60):
                some = rng.choice(keys, 40, replace=False)
                values = (some % np.uint64(7)).astype(np.float32) + 10 * turn
                held.upsert(some, np.repeat(values, DIM).reshape(-1, DIM))
                held.delete(rng.choice(keys, 15, replace=False))
        finally:
            stop.set()

    def read() -> None:
        while not stop.is_set():
            for limit in (5, count):  # 5 walks a graph, all of them are scanned
                found = held.search(contrast(), limit)
                if (found.scores != 0).any() or len(np.unique(found.keys)) != len(found):
                    wrong.append(f"search {found}")
            for some, vectors in held.items():
                if torn(vectors).any() or (vectors[:, 0] % 10 != some % np.uint64(7)).any():
                    wrong.append("items")

    threads = [threading.Thread(target=read) for _ in range(3)] + [threading.Thread(target=write)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    settle(held)
    assert stop.is_set()
    assert not wrong


# ---- growing -----------------------------------------------------------------------------------


def test_auto_switches_both_ways_and_loses_nothing_while_written_to() -> None:
    held = index.open("auto://", DIM, version="v", exact_below=2000)
    assert isinstance(held, SwitchingIndex)
    rng, content = np.random.default_rng(7), {}
    kinds = []
    for turn in range(40):
        keys = rng.choice(np.arange(1, 6001), 300, replace=False).astype(np.uint64)
        vectors = unit(rng, 300)
        held.upsert(keys, vectors)
        content.update(zip(keys.tolist(), vectors, strict=True))
        gone = rng.choice(list(content), 20, replace=False).astype(np.uint64)
        held.delete(gone)
        for key in gone.tolist():
            del content[key]
        kinds.append(type(held.in_use).__name__)
        assert len(held) == len(content), turn
    settle(held)
    assert kinds[0] == "ExactIndex"
    assert isinstance(held.in_use, HnswIndex)
    everything = np.fromiter(content, np.uint64)
    np.testing.assert_array_equal(held.vectors(everything), np.array(list(content.values())))
    held.delete(everything[900:])
    settle(held)
    assert type(held.in_use).__name__ == "ExactIndex"
    np.testing.assert_array_equal(held.vectors(everything[:900]), np.array(list(content.values()))[:900])
    assert len(held) == 900


def test_a_stale_graph_is_built_anew_beside_itself() -> None:
    held = index.open("hnsw://", DIM, version="v")
    assert isinstance(held, SwitchingIndex)
    rng = np.random.default_rng(8)
    keys, vectors = np.arange(1, 3001, dtype=np.uint64), unit(rng, 3000)
    held.upsert(keys, vectors)
    first = held.in_use
    held.upsert(keys, vectors)
    assert held.in_use is first, "the same vectors again leave nothing stale"
    held.upsert(keys[:1500], unit(rng, 1500))
    settle(held)
    assert held.in_use is not first
    assert isinstance(held.in_use, HnswIndex)
    assert held.in_use.stale == 0
    assert len(held) == 3000


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_a_build_that_fails_leaves_the_index_in_use_and_is_tried_again() -> None:
    attempts = []

    def graph() -> HnswIndex:
        attempts.append(1)
        if len(attempts) == 1:
            raise MemoryError("no room")
        return HnswIndex(DIM, version="v")

    rng = np.random.default_rng(9)
    held = SwitchingIndex(HnswIndex(DIM, version="v"), compacting(graph))
    keys = np.arange(1, 2001, dtype=np.uint64)
    held.upsert(keys, unit(rng, 2000))
    held.upsert(keys, unit(rng, 2000))
    settle(held)
    assert len(held.search(unit(rng, 1)[0], 5)) == 5
    held.upsert(keys[:1], unit(rng, 1))
    settle(held)
    assert len(attempts) == 2
    assert isinstance(held.in_use, HnswIndex)
    assert held.in_use.stale == 0


# ---- opening -----------------------------------------------------------------------------------


@pytest.mark.parametrize("url", ["", "exact", "exact://x", "faiss://", "hnsw:///path"])
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="exact://, hnsw://, auto://"):
        index.open(url, DIM, version="v")


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("exact://?links=3", "no settings"),
        ("hnsw://?link=3", "links, construction"),
        ("auto://?links=x", "must be a number"),
    ],
)
def test_wrong_settings_are_named(url: str, says: str) -> None:
    with pytest.raises(ConfigError, match=says):
        index.open(url, DIM, version="v")


def test_settings_reach_the_graph() -> None:
    held = index.open("hnsw://?links=8&construction=50&breadth=3", DIM, version="v")
    assert isinstance(held, SwitchingIndex)
    assert isinstance(held.in_use, HnswIndex)
    assert held.in_use.breadth == 3
    assert held.in_use._graph.hnsw.efConstruction == 50
    for wrong in ("links=1", "construction=0", "breadth=0.5"):
        with pytest.raises(ValueError, match="at least"):
            index.open(f"hnsw://?{wrong}", DIM, version="v")
