"""Sequence step: ms of a training step for the next item on one thread, by part; and what bfloat16 would gain here.

The setting of next_item.py on its data, after some steps: where a step's time goes, as the profiler of Python sees the
functions that make it (cumulative; `loss` holds the gradient of the softmax, which is made with it, and `backward` that
of all else). Then the products that take most of it, in float32 and in bfloat16, GFLOP/s each: the latter gains where
the processor multiplies it (AVX512-BF16, AMX), and costs where it must be emulated. Training is in float32.

    python benchmarks/sequence_step.py [amazon-beauty] [--steps 60]
"""

from __future__ import annotations

import argparse
import cProfile
import itertools
import pstats
import statistics
import time
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from bench import Bench, say
from mainstem import datasets
from mainstem.next_item import RULES, Actions, Rules, of_dataset
from mainstem.next_item.preset import configured
from mainstem.schema.config import Config
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.threads import torch_threads

WARM = 20
PARTS = {
    "positives of the step": ("interactions.py", "window_batch"),
    "what is asked": ("canvases.py", "prepare"),
    "candidates": ("negatives.py", "candidates"),
    "look-up": ("towers.py", "gather"),
    "bodies": ("towers.py", "bodies"),
    "history encoder": ("unified.py", "states"),
    "requests": ("unified.py", "request"),
    "entities": ("towers.py", "entity_batch"),
    "loss": ("retrieval.py", "_loss"),
    "backward": ("_tensor.py", "backward"),
    "networks' update": ("optimizer.py", "wrapper"),
    "rows' update": ("lookup.py", "apply_gradients"),
}
"""Part -> file and name of the function that makes it."""


def profiled(trainer: RetrievalTrainer, rows: Any, steps: int) -> tuple[dict[str, float], float, float]:
    """ms of each part a step, ms of the whole step, and positives in one."""
    rng = np.random.default_rng(0)
    taking = itertools.chain.from_iterable(trainer.epoch(rows, rng, number) for number in itertools.count())
    for _ in range(WARM):
        next(taking)
    profile, positives, began = cProfile.Profile(), 0, time.perf_counter()
    with profile:
        for _ in range(steps):
            positives += next(taking)[1]
    whole = (time.perf_counter() - began) / steps * 1e3
    found = pstats.Stats(profile).stats  # type: ignore[attr-defined]
    spent: dict[str, float] = {}
    for (file, _, name), (_, _, _, cumulative, _) in found.items():
        for part, (of_file, of_name) in PARTS.items():
            if name == of_name and file.endswith(of_file):
                spent[part] = spent.get(part, 0.0) + cumulative / steps * 1e3
    absent = PARTS.keys() - spent.keys()
    if absent:
        raise SystemExit(f"no call of {', '.join(sorted(absent))} was seen: the parts name functions that went")
    return spent, whole, positives / steps


def gigaflops(m: int, k: int, n: int, kind: torch.dtype) -> float:
    """Of [m, k] @ [k, n], the best of some."""
    left, right = torch.randn(m, k).to(kind), torch.randn(k, n).to(kind)
    taken = []
    for _ in range(15):
        began = time.perf_counter()
        left @ right
        taken.append(time.perf_counter() - began)
    return 2 * m * k * n / min(taken) / 1e9


def trained(actions: Actions, config: Config) -> RetrievalTrainer:
    torch.manual_seed(0)
    towers = new_towers(config, actions.catalog)
    positives = replace(actions.positives, length=config.history_length())
    return RetrievalTrainer(towers, positives, config.model, config.train)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", nargs="?", default="amazon-beauty", choices=datasets.names())
    parser.add_argument("--steps", type=int, default=60, help="that are profiled; fewer than 60 are not kept")
    options = parser.parse_args()
    actions = of_dataset(datasets.get(options.dataset), min_count=RULES.get(options.dataset, Rules()).min_count)
    config = configured(actions.config)
    with torch_threads(1), Bench(
        f"sequence_step_{options.dataset}", metric="ms of a training step, one thread", goal=None
    ) as bench:  # fmt: skip
        trainer = trained(actions, config)
        spent, whole, positives = profiled(trainer, np.flatnonzero(actions.data.learned()), options.steps)
        for part, ms in sorted(spent.items(), key=lambda each: -each[1]):
            say(f"sequence_step: {part}: {ms:.1f} ms")
            bench.part(part, metric="ms a step", ours=ms)
        bench.part("all else", metric="ms a step", ours=whole - sum(spent.values()))
        dim, among = config.model.dim, min(len(trainer.entities), 4096)
        shapes = {"logits": (256, dim, among), "feed forward": (2048, dim, 4 * dim)}
        speeds = {
            f"{name} {kind}": [gigaflops(*shape, getattr(torch, kind)) for _ in range(3)]
            for name, shape in shapes.items() for kind in ("float32", "bfloat16")
        }  # fmt: skip
        bench.report(
            ours=whole, peer=None, peer_name="none", keep=options.steps >= 60, positives_a_step=round(positives),
            positives_a_second=round(positives / whole * 1e3),
            gflops={name: round(statistics.median(values), 1) for name, values in speeds.items()},
        )  # fmt: skip


if __name__ == "__main__":
    main()
