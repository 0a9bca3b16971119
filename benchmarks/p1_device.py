"""P1 on a GPU: find + gather of 2M keys out of 10M into a reused buffer, against a gather without hashing.

Ours is `DeviceTable.read_tensor(keys, out=buffer)`: 64-bit keys hashed and found, their rows copied. The peer is
the fastest of torch's gathers on the same card, which is given row numbers and hashes nothing; all of them are told.
All arms take turns, the first one changing; each turn goes through several sets of keys, so that none finds what it
left in the cache, and is timed on the card from the first to the last; medians over the rounds. Keys of a set are
distinct and uniform (the headline), or drawn from a Zipf law. Beside them stand find alone, `find_or_create_tensor` of
known and of new keys, and a step of row-wise Adagrad of distinct rows against the same in plain torch, which looks
neither for rows that are not in use nor for gradients that are not finite. New keys are made twice, in an empty table
that grows and again after all were deleted. `--rows` and `--asked` make it smaller, `--device cpu` tries it; then no
result is kept.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bench import Bench, say
from mainstem.weights.device import DeviceTable
from mainstem.weights.device.words import words_of
from p1_table import zipf

SETS, ROUNDS, RATE, EPSILON = 4, 9, 0.01, 1e-8
GOAL = "ratio of M rows/s"

Arms = dict[str, Callable[[int], object]]


def seconds(device: torch.device, call: Callable[[], object]) -> float:
    """What the call takes on the device, once what was queued before is done."""
    if device.type == "cpu":
        started = time.perf_counter()
        call()
        return time.perf_counter() - started
    event: Any = torch.cuda.Event  # which has no types
    first, last = event(enable_timing=True), event(enable_timing=True)
    torch.cuda.synchronize(device)
    first.record()
    call()
    last.record()
    torch.cuda.synchronize(device)
    return float(first.elapsed_time(last)) / 1000


def rates(device: torch.device, arms: Arms, n: int) -> dict[str, float]:
    """Median M rows/s of each arm for sets of n rows; an arm takes the number of a set."""

    def turn(arm: Callable[[int], object]) -> None:
        for number in range(SETS):
            arm(number)

    taken: dict[str, list[float]] = {name: [] for name in arms}
    names = list(arms)
    for name in names:
        turn(arms[name])
    for number in range(ROUNDS):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            arm = arms[name]
            taken[name].append(SETS * n / seconds(device, partial(turn, arm)) / 1e6)
    return {name: round(statistics.median(values), 2) for name, values in taken.items()}


def plain_step(values: Tensor, squares: Tensor, rows: Tensor, gradients: Tensor) -> None:
    """Row-wise Adagrad of distinct rows as one would write it in torch."""
    total = squares[rows] + (gradients * gradients).mean(1)
    squares[rows] = total
    values.index_add_(0, rows, gradients * (RATE / (total.sqrt() + EPSILON))[:, None], alpha=-1)


def made(table: DeviceTable, keys: Tensor, asked: int) -> float:
    """M keys/s of making rows for keys that have none, `asked` a call."""

    def make() -> None:
        for part in torch.split(keys, asked):
            table.find_or_create_tensor(part)

    return len(keys) / seconds(table.device, make) / 1e6


def measure(bench: Bench, rows: int, asked: int, dim: int, device: torch.device) -> dict[str, float]:
    rng = np.random.default_rng(dim)
    distinct = np.unique(rng.integers(1, 2**63, rows + rows // 100).astype(np.uint64))
    distinct = rng.permutation(distinct)[:rows]
    keys = words_of(distinct, device)
    say(f"d={dim}: {rows:,} rows")
    warm = DeviceTable(dim, device=device)  # compiles what new keys and steps need
    warm.find_or_create_tensor(keys[:5000])
    table = DeviceTable(dim, device=device, most_rows=2 * rows)
    fresh = made(table, keys, asked)

    places = {
        "uniform": [rng.permutation(rows)[:asked] for _ in range(SETS)],
        "zipf": [zipf(rng, rows, asked) for _ in range(SETS)],
    }
    out, matrix = torch.zeros(asked, dim, device=device), torch.ones(rows, dim, device=device)
    found: dict[str, dict[str, float]] = {}
    for law, sets in places.items():
        index = [torch.from_numpy(place).to(device) for place in sets]
        wanted = [keys[each] for each in index]
        n = min(len(each) for each in index)
        index, wanted = [each[:n] for each in index], [each[:n] for each in wanted]
        found[law] = reads(table, matrix, wanted, index, out[:n])
        say(f"d={dim} {law}, M rows/s: {found[law]}")
        for name, value in found[law].items():
            bench.runs.setdefault(f"{name}, d={dim}, {law}", []).append(value)
        peer = best(found[law])
        ratio = found[law]["ours"] / found[law][peer]
        bench.part(f"{law} d={dim} / torch", metric=f"{GOAL}, peer {peer}", ours=ratio, goal=1.0, m_rows_s=found[law])
        if law == "uniform":
            steps(bench, table, matrix, wanted, index)
    bench.part(f"find_or_create, new keys d={dim}", metric="M keys/s, an empty table growing", ours=fresh)
    table.delete(distinct)
    again = made(table, keys, asked)
    bench.part(f"find_or_create, new keys again d={dim}", metric="M keys/s, memory is there", ours=again)
    say(f"d={dim} new keys, M/s: {fresh:.2f}, again {again:.2f}")
    return found["uniform"]


def reads(
    table: DeviceTable, matrix: Tensor, wanted: Sequence[Tensor], index: Sequence[Tensor], out: Tensor
) -> dict[str, float]:
    """M rows/s of reading by key, of the gather alone, and of finding alone."""
    arms: Arms = {
        "ours": lambda number: table.read_tensor(wanted[number], out),
        **peers(matrix, index, out),
        "find": lambda number: table.find_tensor(wanted[number]),
    }
    held = table.find_tensor(wanted[0])
    assert bool((held >= 0).all())
    assert torch.equal(table.read_tensor(wanted[0]), table.gather_tensor(held))
    return rates(table.device, arms, len(out))


def peers(matrix: Tensor, index: Sequence[Tensor], out: Tensor) -> Arms:
    """The ways in which torch gathers rows by number; which one is fastest depends on its version and the card."""
    return {
        "index_select(out=)": lambda number: torch.index_select(matrix, 0, index[number], out=out),
        "index_select": lambda number: torch.index_select(matrix, 0, index[number]),
        "F.embedding": lambda number: torch.nn.functional.embedding(index[number], matrix),
        "matrix[index]": lambda number: matrix[index[number]],
        "gather(out=)": lambda number: torch.gather(matrix, 0, index[number][:, None].expand_as(out), out=out),
    }


def best(found: Mapping[str, float]) -> str:
    """The fastest of torch's ways."""
    return max(found.keys() - {"ours", "find"}, key=lambda name: found[name])


def steps(bench: Bench, table: DeviceTable, matrix: Tensor, wanted: Sequence[Tensor], index: Sequence[Tensor]) -> None:
    """find_or_create of known keys, and a step of the rows that it gives."""
    dim, n = table.dim, len(wanted[0])
    gradients = torch.randn(n, dim, device=table.device, generator=torch.Generator(table.device).manual_seed(dim))
    rows = [table.find_tensor(each) for each in wanted]
    squares = torch.zeros(len(matrix), device=table.device)
    got = rates(
        table.device,
        {
            "known": lambda number: table.find_or_create_tensor(wanted[number], 0, 5000),
            "step": lambda number: table.update_tensor(rows[number], gradients, RATE, distinct=True),
            "plain step": lambda number: plain_step(matrix, squares, index[number], gradients),
        },
        n,
    )
    say(f"d={dim}, M rows/s: {got}")
    bench.part(f"find_or_create, known keys d={dim}", metric="M keys/s", ours=got["known"])
    ratio = got["step"] / got["plain step"]
    bench.part(f"step d={dim} / plain torch", metric=GOAL, ours=ratio, m_rows_s=got)


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__)
    arguments.add_argument("--rows", type=int, default=10_000_000)
    arguments.add_argument("--asked", type=int, default=2_000_000)
    arguments.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    given = arguments.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        raise SystemExit("this benchmark needs a CUDA device; --device cpu tries it and keeps no result")
    if not 1 <= given.asked <= given.rows:
        raise SystemExit("--asked must be 1 to --rows")
    whole = (given.rows, given.asked, given.device) == (10_000_000, 2_000_000, "cuda")
    device = torch.device(given.device)
    card = torch.cuda.get_device_name(device) if given.device == "cuda" else "no card, the processor"
    kernels = "triton" if DeviceTable(1, device=device).compiled else "torch alone"
    metric = f"M rows/s, d=16, {given.asked:,} distinct keys of {given.rows:,}, {card}"
    with Bench("p1_device", metric=metric, goal=1.0, goal_is_ratio=True) as bench:
        measured = {dim: measure(bench, given.rows, given.asked, dim, device) for dim in (16, 64)}
        bench.report(
            ours=measured[16]["ours"],
            peer=measured[16][best(measured[16])],
            peer_name=f"torch {torch.__version__} {best(measured[16])}, rows given, nothing hashed",
            keep=whole,
            reads_by=kernels,
        )


if __name__ == "__main__":
    main()
