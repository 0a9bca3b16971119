"""P2: training step, 26 fields x 100,000 ids x 16, MLP 256-128, batch 4096: examples a second of the whole step.

Look-up, forward, backward, sparse update and dense update (Adam) of the same network from the same values, fp32. Ours
starts from 64-bit keys (hashing, de-duplication, admission, a `SlabTable`); the peers are given plain row numbers and
hash nothing:

    torch sparse Adagrad   one nn.Embedding(sparse=True) of all fields' rows, torch.optim.Adagrad
    torch SparseAdam       the same, torch.optim.SparseAdam
    fbgemm                 its fused row-wise Adagrad on the CPU, in an environment of its own (--fbgemm)
    MLP alone              on one fixed input: what no table can exceed

All arms run in turn, some steps each; figures are medians of the rounds. The headline compares Adagrad with Adagrad,
the faster of torch's two. After the last round all have seen the same batches, and the held-out loss of an arm and its
peer of the same optimizer must agree (TOLERANCE). fbgemm's environment, which needs numpy and no part of Mainstem:

    python -m venv /tmp/fbgemm
    /tmp/fbgemm/bin/pip install "torch==2.13.0" numpy tensordict "torchmetrics==1.0.3" tqdm pyre-extensions
    /tmp/fbgemm/bin/pip install --no-deps "torchrec==1.8.0" "fbgemm-gpu-cpu==1.8.0"
    python benchmarks/p2_training_step.py --fbgemm /tmp/fbgemm/bin/python

`--rounds`, `--steps` and `--threads` change how long and on what it runs; `--zipf 1.05` draws some ids far more often
than others.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from _training_step import BATCH, EPSILON, FIELDS, IDS, RATES, WIDTH, Arm, initial_rows
from bench import Bench, say
from mainstem.weights import Adagrad, Adam, Family, Lookup, RowwiseAdagrad, SlabTable
from mainstem.weights.family import Optimizer

TOLERANCE = {"row-wise Adagrad": 1e-3, "Adagrad": 1e-3, "Adam": 5e-3}
"""Largest difference of held-out logloss, natural units. Adam's is wider: torch's SparseAdam corrects the bias of all
rows by the matrix's step count and puts epsilon elsewhere, ours by each row's own count."""
FIRST_ROW = np.arange(FIELDS) * IDS
PEERS = {"Adagrad": "torch sparse Adagrad", "Adam": "torch SparseAdam", "row-wise Adagrad": "fbgemm"}


class Trainable(Protocol):
    def train(self, steps: int) -> float: ...

    def loss(self) -> float: ...


def keys_of(rows: np.ndarray) -> np.ndarray:
    """A 64-bit key for each row number, spread like hashes; none is 0."""
    return (rows.astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)


def ours(optimizer: Optimizer, rate: float, zipf: float) -> Arm:
    table = SlabTable(WIDTH, (Family(optimizer=optimizer),))
    all_rows = np.arange(FIELDS * IDS)
    # met in another order than rows are numbered here, as in life
    order = np.random.default_rng(4).permutation(all_rows)
    table.write(keys_of(order), initial_rows()[order])
    lookup = Lookup(table)

    def look_up(ids: np.ndarray) -> Tensor:
        keys = keys_of((ids + FIRST_ROW).ravel())
        learning = torch.is_grad_enabled()
        gathered = lookup.gather({"fields": keys}, create=learning, gradient=learning)
        return gathered.take("fields").view(BATCH, FIELDS * WIDTH)

    return Arm(look_up, lambda: lookup.apply_gradients(rate), zipf)


def torch_sparse(kind: str, zipf: float) -> Arm:
    embedding = torch.nn.Embedding(FIELDS * IDS, WIDTH, sparse=True)
    with torch.no_grad():
        embedding.weight.copy_(torch.from_numpy(initial_rows()))
    optimizer: Any  # SparseAdam has no types
    if kind == "Adam":
        optimizer = torch.optim.SparseAdam(embedding.parameters(), lr=RATES[kind], eps=EPSILON)
    else:
        optimizer = torch.optim.Adagrad(embedding.parameters(), lr=RATES[kind], eps=EPSILON)

    def update() -> None:
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    def look_up(ids: np.ndarray) -> Tensor:
        rows: Tensor = embedding(torch.from_numpy(ids + FIRST_ROW))
        return rows.view(BATCH, FIELDS * WIDTH)

    return Arm(look_up, update, zipf)


def mlp_alone(zipf: float) -> Arm:
    fixed = torch.randn(BATCH, FIELDS * WIDTH, generator=torch.Generator().manual_seed(0)).requires_grad_()
    return Arm(lambda _: fixed, lambda: None, zipf)


class Elsewhere:
    """The fbgemm arm, in the process of another interpreter."""

    def __init__(self, python: str, zipf: float, threads: int) -> None:
        script = Path(__file__).with_name("_fbgemm_step.py")
        self.process = subprocess.Popen(
            [python, script, str(zipf), str(threads)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        self.version = self._ask("version")

    def train(self, steps: int) -> float:
        return float(self._ask(f"train {steps}"))

    def loss(self) -> float:
        return float(self._ask("loss"))

    def close(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait(timeout=60)

    def _ask(self, line: str) -> str:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        print(line, file=self.process.stdin, flush=True)
        answer = self.process.stdout.readline().strip()
        if not answer:
            raise SystemExit(f"p2_training_step: fbgemm's process ended at {line!r}; see what it wrote above")
        return answer


def measure(bench: Bench, arms: dict[str, Trainable], rounds: int, steps: int) -> dict[str, float]:
    """Median examples a second of each arm, all in turn, the first one changing."""
    names = list(arms)
    for arm in arms.values():
        arm.train(2)  # what is compiled or reserved on first use
    for number in range(rounds):
        first = number % len(names)
        for name in names[first:] + names[:first]:
            speed = steps * BATCH / arms[name].train(steps)
            bench.runs.setdefault(name, []).append(speed)
        say(f"round {number + 1}/{rounds}: " + ", ".join(f"{name} {bench.runs[name][-1]:,.0f}/s" for name in names))
    return {name: statistics.median(values) for name, values in bench.runs.items()}


def compare(bench: Bench, medians: dict[str, float], losses: dict[str, float]) -> None:
    """A part for each pair of one optimizer; stops where their losses differ, as the times then compare nothing."""
    for kind, peer in PEERS.items():
        if peer not in medians:
            continue
        mine = f"ours, {kind}"
        difference = abs(losses[mine] - losses[peer])
        if difference > TOLERANCE[kind]:
            raise SystemExit(f"p2_training_step: loss of {mine} {losses[mine]:.5f}, of {peer} {losses[peer]:.5f}")
        bench.part(
            kind,
            metric=f"{mine} / {peer}, examples/s",
            ours=medians[mine] / medians[peer],
            goal=1.2 if peer == "fbgemm" else 2.0,
            examples_per_second={mine: round(medians[mine]), peer: round(medians[peer])},
            loss={mine: round(losses[mine], 6), peer: round(losses[peer], 6)},
            tolerance=TOLERANCE[kind],
        )


def run(bench: Bench, given: argparse.Namespace) -> None:
    torch.set_num_threads(given.threads)
    say("making the arms")
    arms: dict[str, Trainable] = {"MLP alone": mlp_alone(given.zipf)}
    elsewhere = Elsewhere(given.fbgemm, given.zipf, given.threads) if given.fbgemm else None
    optimizers: dict[str, Optimizer] = {
        "Adagrad": Adagrad(EPSILON),
        "Adam": Adam(epsilon=EPSILON),
        "row-wise Adagrad": RowwiseAdagrad(EPSILON),
    }
    for kind, optimizer in optimizers.items():
        arms[f"ours, {kind}"] = ours(optimizer, RATES[kind], given.zipf)
    for kind in ("Adagrad", "Adam"):
        arms[PEERS[kind]] = torch_sparse(kind, given.zipf)
    more: dict[str, Any] = {"threads": given.threads, "steps": 2 + given.rounds * given.steps, "zipf": given.zipf}
    if elsewhere:
        arms["fbgemm"] = elsewhere
        more["fbgemm"] = elsewhere.version
    else:
        more["fbgemm"] = "not measured"
        say("FBGEMM IS NOT MEASURED: pass --fbgemm PYTHON; this file's docstring says how to make its environment")
    try:
        medians = measure(bench, arms, given.rounds, given.steps)
        losses = {name: arm.loss() for name, arm in arms.items() if name != "MLP alone"}
    finally:
        if elsewhere:
            elsewhere.close()
    compare(bench, medians, losses)
    more["examples_per_second"] = {name: round(value) for name, value in medians.items()}
    bench.report(
        ours=medians["ours, Adagrad"],
        peer=medians["torch sparse Adagrad"],
        peer_name=f"torch {torch.__version__} nn.Embedding(sparse=True) with Adagrad",
        keep=given.zipf == 0 and given.rounds >= 5,
        **more,
    )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--fbgemm", help="a Python interpreter that can import fbgemm_gpu")
    arguments.add_argument("--rounds", type=int, default=9)
    arguments.add_argument("--steps", type=int, default=20, help="of each arm a round")
    arguments.add_argument("--threads", type=int, default=2)
    arguments.add_argument("--zipf", type=float, default=0.0)
    given = arguments.parse_args()
    metric = "examples/s, whole training step, Adagrad, 26 fields x 100k ids x 16, MLP 256-128, batch 4096"
    with Bench("p2_training_step", metric=metric, goal=2.0, goal_is_ratio=True) as bench:
        run(bench, given)


if __name__ == "__main__":
    main()
