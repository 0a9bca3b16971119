"""P1: collisionless table, find + gather of 2M keys out of 10M into a reused buffer, against a gather without hashing.

Ours is `SlabTable.read(keys, out=buffer)`: 64-bit keys hashed and found, their rows copied. The peer is
`torch.index_select(matrix, 0, rows, out=buffer)`, which is given row numbers and hashes nothing: once with the matrix
in torch's own memory, once in huge pages like ours. All arms take turns on the same keys and rows, two threads
each; medians over the rounds. Keys are distinct and uniform (the headline), or drawn from a Zipf law. Beside them
stand the same reads through `SharedReader` from files in /dev/shm and on disk, `find_or_create` of known and of new
keys, and a read of 51 rows, as one slate makes. A new row takes memory that the process did not have; so new keys are
made twice, in an empty table and again after all were deleted, where memory is there, and beside them stands how long
the system alone takes to hand out as much: a virtual machine may have to ask its host for it page by page. `--rows` and
`--asked` make it smaller; then no result is kept.
"""

from __future__ import annotations

import argparse
import gc
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path

import numpy as np
import torch

from bench import Bench, say
from mainstem.weights.blocks import Block, Column
from mainstem.weights.shared import SharedReader
from mainstem.weights.slabs import SlabTable

THREADS, ROUNDS, SLATE = 2, 9, 51

Arms = dict[str, Callable[[], object]]


def rates(arms: Arms, n: int, rounds: int = ROUNDS) -> dict[str, float]:
    """Median M rows/s of each arm for calls of n rows, in turns, the first one changing."""
    taken: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for name in names:
        arms[name]()
    for number in range(rounds):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            start = time.perf_counter()
            arms[name]()
            taken[name].append(n / (time.perf_counter() - start) / 1e6)
    return {name: round(float(np.median(values)), 2) for name, values in taken.items()}


def huge(rows: int, dim: int) -> torch.Tensor:
    """A matrix in the same kind of memory as the table's."""
    column = Column(rows, (dim,), np.float32)
    column.use(rows)
    return torch.from_numpy(column.array).fill_(1.0)


@contextmanager
def shared(table: SlabTable, parent: Path | None) -> Iterator[SharedReader]:
    """A reader of a copy of the table in files of its own."""
    folder = Path(tempfile.mkdtemp(dir=parent))
    try:
        copy = SlabTable(table.dim, folder=folder, most_rows=table.most_rows)
        copy.load({name: array for name, array in table.state().items() if name in ("keys", "values")})
        yield SharedReader(folder)
        copy.close()
    finally:
        shutil.rmtree(folder)


def zipf(rng: np.random.Generator, rows: int, asked: int) -> np.ndarray:
    """Row numbers [asked], the k-th most frequent about as often as k^-1.1."""
    drawn = rng.zipf(1.1, 4 * asked)
    return rng.permutation(rows)[drawn[drawn <= rows][:asked] - 1]


def measure(bench: Bench, rows: int, asked: int, dim: int) -> dict[str, float]:
    rng = np.random.default_rng(dim)
    keys = np.unique(rng.integers(1, 2**63, rows + rows // 100).astype(np.uint64))
    keys = rng.permutation(keys)[:rows]
    table = SlabTable(dim, most_rows=2 * rows)
    say(f"d={dim}: {rows:,} rows")
    fresh = made(table, keys, asked)

    places = {"uniform": rng.permutation(rows)[:asked], "zipf": zipf(rng, rows, asked)}
    out = torch.zeros(asked, dim)
    matrix, paged = torch.ones(rows, dim), huge(rows, dim)
    found: dict[str, dict[str, float]] = {}
    for law, place in places.items():
        wanted, index = keys[place], torch.from_numpy(place)
        found[law] = rates(
            {
                "ours": partial(table.read, wanted, out=out.numpy()),
                "torch": partial(torch.index_select, matrix, 0, index, out=out),
                "torch, huge pages": partial(torch.index_select, paged, 0, index, out=out),
                "F.embedding": partial(torch.nn.functional.embedding, index, matrix),
            },
            len(place),
        )
        say(f"d={dim} {law}, M rows/s: {found[law]}")
        for name, value in found[law].items():
            bench.runs.setdefault(f"{name}, d={dim}, {law}", []).append(value)
        for peer in ("torch", "torch, huge pages"):
            ratio = found[law]["ours"] / found[law][peer]
            bench.part(f"{law} d={dim} / {peer}", metric="ratio of M rows/s", ours=ratio, goal=1.0, m_rows_s=found[law])
    del paged
    gc.collect()
    wanted, index = keys[places["uniform"]], torch.from_numpy(places["uniform"])
    for name, parent in (("/dev/shm", Path("/dev/shm")), ("disk", None)):
        if parent is not None and not parent.is_dir():
            continue
        with shared(table, parent) as reader:
            got = rates(
                {
                    "ours, shared": partial(reader.read, wanted, out=out.numpy()),
                    "ours, private": lambda: table.read(wanted, out=out.numpy()),
                    "torch": lambda: torch.index_select(matrix, 0, index, out=out),
                },
                asked,
                5,
            )
        say(f"d={dim} files in {name}, M rows/s: {got}")
        ratio = got["ours, shared"] / got["torch"]
        bench.part(f"shared, {name} d={dim}", metric="SharedReader / torch, M rows/s", ours=ratio, m_rows_s=got)
    creation(bench, table, wanted, fresh, dim)
    renewal(bench, table, keys, asked)
    return found["uniform"]


def made(table: SlabTable, keys: np.ndarray, asked: int) -> float:
    """M keys/s of making rows for keys that have none, `asked` a call."""
    start = time.perf_counter()
    for first in range(0, len(keys), asked):
        table.find_or_create(keys[first : first + asked])
    return len(keys) / (time.perf_counter() - start) / 1e6


def renewal(bench: Bench, table: SlabTable, keys: np.ndarray, asked: int) -> None:
    """New keys where memory is there, and what the system takes to hand out that memory."""
    taken = table.explain().total
    table.delete(keys)
    again = made(table, keys, asked)
    bench.part(f"find_or_create, new keys again d={table.dim}", metric="M keys/s, memory is there", ours=again)
    block = Block(taken)
    block.use(taken)
    start = time.perf_counter()
    block.bytes[::4096] = 1
    alone = len(keys) / (time.perf_counter() - start) / 1e6
    bench.part(f"memory of new keys d={table.dim}", metric="M keys/s, its first touch alone", ours=alone, bytes=taken)
    say(f"d={table.dim} new keys again {again:.2f} M/s; the first touch of their memory alone {alone:.2f} M keys/s")


def creation(bench: Bench, table: SlabTable, wanted: np.ndarray, fresh: float, dim: int) -> None:
    """find_or_create, and the read of a single slate."""
    known = rates({"known": lambda: table.find_or_create(wanted, 0, 5000)}, len(wanted), 5)["known"]
    bench.part(f"find_or_create, known keys d={dim}", metric="M keys/s", ours=known)
    bench.part(f"find_or_create, new keys d={dim}", metric="M keys/s, an empty table growing, one thread", ours=fresh)
    rng, buffer = np.random.default_rng(1), np.empty((SLATE, dim), np.float32)
    slates = [rng.choice(wanted, SLATE) for _ in range(2000)]
    taken = []
    for slate in slates:
        start = time.perf_counter()
        table.read(slate, out=buffer)
        taken.append(1e6 * (time.perf_counter() - start))
    bench.part(f"one slate d={dim}", metric=f"p50 us, {SLATE} cold rows", ours=float(np.median(taken)))
    say(f"d={dim} find_or_create: known {known} M/s, new {fresh:.2f} M/s; a slate {np.median(taken):.2f} us")


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--asked", type=int, default=2_000_000)
    given = arguments.parse_args()
    torch.set_num_threads(THREADS)
    whole = (given.rows, given.asked) == (10_000_000, 2_000_000)
    metric = f"M rows/s, d=16, {given.asked:,} distinct keys of {given.rows:,}, {THREADS} threads"
    with Bench("p1_table", metric=metric, goal=1.0, goal_is_ratio=True) as bench:
        measured = {}
        for dim in (16, 64):
            measured[dim] = measure(bench, given.rows, given.asked, dim)
            gc.collect()
        bench.report(
            ours=measured[16]["ours"],
            peer=measured[16]["torch"],
            peer_name=f"torch {torch.__version__} index_select(out=), rows given, nothing hashed",
            keep=whole,
        )


if __name__ == "__main__":
    main()
