"""Ranking forward: ms for 500 candidates against 50 events on one thread, numpy against torch, by kind of interest.

The network at the product's sizes (119 inputs, 64-32 hidden, vectors of 64), without interest, with target attention
(DIN) and with a transformer layer (BST): what serving runs for a request, `NumpyScorer` and `NumpyInterest`, against
the torch modules that they copy; then torch.compile (which needs a C++ compiler on the machine that serves) and
torch.export of these modules, or why they do not work. One thread, as a request has; arms in turn; each round's figure
is the median of its calls, and the result the median of the rounds.

    python benchmarks/ranking_forward.py [--rounds 7] [--calls 40]
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
from collections.abc import Callable
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is loaded

import numpy as np
import torch

from bench import Bench, milliseconds, say
from mainstem.models import Head, InterestConfig, Meeting, NumpyInterest, Ranker, RankerConfig, numpy_scorer

CANDIDATES, EVENTS, FEATURES, DIM, HIDDEN, ACTIONS = 500, 50, 119, 64, (64, 32), 6
KINDS = ("none", "target_attention", "transformer")
Arm = Callable[[], Any]


class Scored(torch.nn.Module):
    """Ranker and interest as one module: what a compiler is given."""

    def __init__(self, ranker: Ranker) -> None:
        super().__init__()
        self.ranker = ranker

    def forward(self, x: torch.Tensor, *met: torch.Tensor) -> torch.Tensor:
        interest = self.ranker.interest
        read = None if interest is None else interest(Meeting(*met))
        return self.ranker.scores(x, embeddings=read)


def module_of(kind: str) -> Scored:
    torch.manual_seed(0)
    block = None if kind == "none" else InterestConfig(kind, DIM, ACTIONS, heads=4)  # type: ignore[arg-type]
    width = 0 if block is None else block.width
    ranker = Ranker(RankerConfig(FEATURES, (Head("purchase"),), HIDDEN, embeddings=width, interest=block))
    for parameter in ranker.parameters():  # training leaves no zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return Scored(ranker).eval()


def inputs() -> tuple[torch.Tensor, ...]:
    """x, and the fields of a Meeting of one request."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(CANDIDATES, FEATURES, generator=generator)
    vectors = torch.nn.functional.normalize(torch.randn(CANDIDATES + EVENTS, DIM, generator=generator), dim=1)
    candidates, events = vectors[:CANDIDATES].contiguous(), vectors[CANDIDATES:].contiguous()
    requests = torch.zeros(CANDIDATES, dtype=torch.int64)
    actions, gaps = torch.arange(EVENTS) % ACTIONS, torch.linspace(60, 1e7, EVENTS)
    return x, candidates, requests, events, actions, gaps, torch.tensor([0, EVENTS])


def ours(module: Scored, given: tuple[torch.Tensor, ...]) -> Arm:
    scorer, ranker = numpy_scorer(module.ranker), module.ranker
    x, candidates, _, events, actions, gaps, _ = (each.numpy() for each in given)
    if ranker.interest is None:
        return lambda: scorer(x)
    interest = NumpyInterest(ranker.interest)
    return lambda: scorer(x, embeddings=interest(candidates, events, actions, gaps))


def eager(module: Callable[..., torch.Tensor], given: tuple[torch.Tensor, ...], kind: str) -> Arm:
    some = given[:1] if kind == "none" else given

    def call() -> torch.Tensor:
        with torch.inference_mode():
            return module(*some)

    return call


def translated(how: str, module: Scored, given: tuple[torch.Tensor, ...], kind: str) -> tuple[Arm | None, str]:
    """The module by torch.compile or torch.export, or why not."""
    some = given[:1] if kind == "none" else given
    try:
        made = torch.compile(module) if how == "compile" else torch.export.export(module, some).module()
        arm = eager(made, given, kind)
        found, want = arm(), eager(module, given, kind)()
        if not torch.allclose(found, want, atol=1e-4):
            return None, "it gives other scores"
    except Exception as error:  # noqa: BLE001 - whatever it is, it is the answer to "why not"
        return None, f"{type(error).__name__}: {str(error).strip().splitlines()[0][:160]}"
    return arm, ""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    given, arms, why = inputs(), dict[str, Arm](), dict[str, str]()
    for kind in KINDS:
        module = module_of(kind)
        arms[f"{kind} numpy"], arms[f"{kind} torch"] = ours(module, given), eager(module, given, kind)
        np.testing.assert_allclose(arms[f"{kind} numpy"](), arms[f"{kind} torch"]().numpy(), atol=1e-4)
        for how in ("compile", "export"):
            arm, reason = translated(how, module, given, kind)
            if arm is None:
                why[f"{kind} {how}"] = reason
                say(f"{kind} {how}: {reason}")
            else:
                arms[f"{kind} {how}"] = arm
    with Bench(
        "ranking_forward", metric="ms, target attention, 500 candidates x 50 events, one thread", goal=1.0,
        lower_is_better=True, goal_is_ratio=True,
    ) as bench:  # fmt: skip
        for arm in arms.values():
            milliseconds(arm, 10)
        for _ in range(options.rounds):
            for name, arm in arms.items():
                bench.runs.setdefault(name, []).append(milliseconds(arm, options.calls))
        found = {name: statistics.median(values) for name, values in bench.runs.items()}
        for kind in KINDS:
            others = {
                f"torch_{how}_ms": round(found[f"{kind} {name}"], 3) if f"{kind} {name}" in found else None
                for how, name in (("eager", "torch"), ("compile", "compile"), ("export", "export"))
            }
            bench.part(kind, metric="ms, numpy", ours=found[f"{kind} numpy"], **others)
        bench.report(
            ours=found["target_attention numpy"], peer=found["target_attention torch"],
            peer_name=f"torch {torch.__version__}, eager", keep=options.rounds >= 5,
            candidates=CANDIDATES, events=EVENTS, inputs=FEATURES, dim=DIM, why_not=why,
            compiler=shutil.which("c++") is not None,
        )  # fmt: skip


if __name__ == "__main__":
    main()
