"""P3: vector search, 200,000 x 64 clustered unit vectors, top 200, one query on one thread.

Ours (`mainstem.index`: keys, updates, deletes, locks) against the bare library call on the same vectors in
the same run, queries taken in turn so that both meet the same machine. Recall is measured against exact
search. The headline is the ratio of the median times of the approximate index, medians of three rounds;
the exact index, a selective filter and updates while searching are reported beside it.
`--size` and `--queries` make it smaller.
"""

from __future__ import annotations

import argparse
import threading
import time
from collections.abc import Callable
from typing import Any

import faiss
import numpy as np

from bench import Bench, say
from mainstem import index
from mainstem.schema.protocols import VectorIndex

DIM, LIMIT, ROUNDS = 64, 200, 3
LINKS, CONSTRUCTION, BREADTH = 32, 40, 2.5  # the defaults of hnsw://, given to the peer too

Search = Callable[[np.ndarray], np.ndarray]


def learned_like(rng: np.random.Generator, n: int) -> np.ndarray:
    """float32 [n, DIM]: unit vectors in clusters of Zipf-like sizes, directions of falling weight."""
    spectrum = np.arange(1, DIM + 1) ** -0.5
    clusters = rng.normal(size=(max(8, n // 100), DIM)) * spectrum
    member = np.minimum(rng.zipf(1.3, n) - 1, len(clusters) - 1)
    vectors = (clusters[member] + 0.6 * rng.normal(size=(n, DIM)) * spectrum).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def medians(searches: dict[str, Search], queries: np.ndarray) -> dict[str, float]:
    """Median ms of each search, all of them on each query in turn, the first one changing."""
    taken: dict[str, list[float]] = {name: [] for name in searches}
    names = list(searches)
    for number, query in enumerate(queries):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            searches[name](query)
            taken[name].append(1000 * (time.perf_counter() - start))
    return {name: round(float(np.median(times)), 4) for name, times in taken.items()}


def recall(search: Search, truth: list[np.ndarray], queries: np.ndarray) -> float:
    """Mean share of the true scores' range reached: whoever equals the last true score counts."""
    shares = [(search(query) >= true[-1] - 1e-6).mean() for query, true in zip(queries, truth, strict=True)]
    return round(float(np.mean(shares)), 5)


class Updates:
    """While entered, replaces 1 % of the vectors a second, 50 times a second."""

    def __init__(self, held: list[VectorIndex], keys: np.ndarray, vectors: np.ndarray) -> None:
        self.held, self.keys, self.vectors = held, keys, vectors
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self.run)

    def run(self) -> None:
        rng, batch = np.random.default_rng(1), max(1, len(self.keys) // 5000)
        while not self.stop.wait(0.02):
            rows = rng.choice(len(self.keys), batch, replace=False)
            moved = self.vectors[rows] + 0.01 * rng.normal(size=(batch, DIM)).astype(np.float32)
            for held in self.held:
                held.upsert(self.keys[rows], moved)

    def __enter__(self) -> None:
        self.thread.start()

    def __exit__(self, *exc: object) -> None:
        self.stop.set()
        self.thread.join()


def peers(vectors: np.ndarray) -> dict[str, Search]:
    """The bare calls: faiss flat and faiss HNSW at the same settings."""
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    graph = faiss.IndexHNSWFlat(DIM, LINKS, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = CONSTRUCTION
    graph.add(vectors)
    graph.hnsw.efSearch = int(BREADTH * LIMIT)
    return {
        "faiss flat": lambda query: flat.search(query[None], LIMIT)[0][0],
        "faiss hnsw": lambda query: graph.search(query[None], LIMIT)[0][0],
    }


def filtered(
    exact: VectorIndex, graph: VectorIndex, keys: np.ndarray, vectors: np.ndarray, queries: np.ndarray
) -> dict[str, float]:
    """Median ms with a filter that passes 1 %: the peer is given its bit map, ours asks a function of the keys."""
    may = np.random.default_rng(2).random(len(keys) + 1) < 0.01
    bits = np.packbits(may[keys.astype(np.int64)], bitorder="little")
    flat = faiss.IndexFlatIP(DIM)
    flat.add(vectors)
    swig: Any = faiss  # its types are of C++ alone
    selected = swig.SearchParameters(sel=swig.IDSelectorBitmap(bits))
    return medians(
        {
            "faiss flat, bit map given": lambda query: flat.search(query[None], LIMIT, params=selected)[0][0],
            "exact": lambda query: exact.search(query, LIMIT, lambda k: may[k.astype(np.int64)]).scores,
            "hnsw": lambda query: graph.search(query, LIMIT, lambda k: may[k.astype(np.int64)]).scores,
        },
        queries,
    )


def measure(bench: Bench, size: int, asked: int) -> None:
    rng = np.random.default_rng(0)
    vectors, keys = learned_like(rng, size), rng.permutation(np.arange(1, size + 1)).astype(np.uint64)
    queries = vectors[rng.integers(0, size, asked)] + 0.05 * rng.normal(size=(asked, DIM)).astype(np.float32)
    say("building the peers, then ours")
    searches = peers(vectors)
    exact, graph = (index.open(url, DIM, version="bench") for url in ("exact://", "hnsw://"))
    for held in (exact, graph):
        held.upsert(keys, vectors)
    searches["exact"] = lambda query: exact.search(query, LIMIT).scores
    searches["hnsw"] = lambda query: graph.search(query, LIMIT).scores

    # The threads of OpenMP help no single query, and wait for each other where cores are shared.
    faiss.omp_set_num_threads(1)
    truth = [searches["faiss flat"](query) for query in queries]
    recalls = {name: recall(search, truth, queries) for name, search in searches.items()}
    say(f"recall@{LIMIT}: {recalls}")
    for _ in range(ROUNDS):
        times = medians(searches, queries)
        say(f"p50 ms: {times}")
        for name, value in times.items():
            bench.runs.setdefault(name, []).append(value)
    median = {name: float(np.median(values)) for name, values in bench.runs.items()}

    ratio = median["exact"] / median["faiss flat"]
    bench.part("exact", metric="exact / faiss flat, p50", ours=ratio, goal=1.1, p50_ms=median)
    times = filtered(exact, graph, keys, vectors, queries)
    ratio = min(times["exact"], times["hnsw"]) / times["faiss flat, bit map given"]
    bench.part("filtered", metric="1 % pass: our better / faiss flat with a bit map, p50", ours=ratio, p50_ms=times)
    with Updates([exact, graph], keys, vectors):
        times = medians(searches, queries)
    ratio = times["hnsw"] / times["faiss hnsw"]
    bench.part("updated", metric="while 1 % a second change: ours / a still faiss hnsw, p50", ours=ratio, p50_ms=times)
    for name in ("hnsw", "faiss hnsw"):
        if recalls[name] < 0.99:
            raise SystemExit(f"p3_vectors: recall of {name} is {recalls[name]}, below .99: its times do not count")
    peer_name = f"faiss {faiss.__version__} IndexHNSWFlat, same settings"
    bench.report(ours=median["hnsw"], peer=median["faiss hnsw"], peer_name=peer_name, recall=recalls, size=size)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--size", type=int, default=200_000)
    arguments.add_argument("--queries", type=int, default=200)
    given = arguments.parse_args()
    metric = f"p50 ms, approximate top-{LIMIT} of {given.size} x {DIM} at recall >= .99"
    with Bench("p3_vectors", metric=metric, goal=1.2, lower_is_better=True, goal_is_ratio=True) as bench:
        measure(bench, given.size, given.queries)


if __name__ == "__main__":
    main()
