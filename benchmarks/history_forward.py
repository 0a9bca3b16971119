"""History forward: ms for the newest state of one history on one thread, numpy against torch, by encoder and length.

What serving runs for each request before it can search, `models.numpy_history`, against the torch modules that it
copies. Pooling of 64 numbers; the transformer of `model.history` with its defaults at 64 and at 128. One thread, as a
request has; arms in turn; each round's figure is the median of its calls, and the result the median of the rounds.

    python benchmarks/history_forward.py [--rounds 7] [--calls 40]
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy is loaded

import numpy as np
import torch

from bench import Bench, milliseconds
from mainstem.models.history import EventConfig, Histories, HistoryEncoder, PoolingConfig, TransformerConfig
from mainstem.models.numpy_history import Past, numpy_history
from mainstem.models.unified import encoder_of

ACTIONS, CANVASES, HOUR = 3, 5, 3_600_000
Arm = Callable[[], Any]


def encoder(name: str, dim: int) -> HistoryEncoder:
    torch.manual_seed(0)
    events = EventConfig(dim, ACTIONS, CANVASES)
    made = encoder_of(
        PoolingConfig(dim, (1.0,) * ACTIONS) if name == "pooling" else TransformerConfig(events, dim, hidden=4 * dim)
    )
    for parameter in made.parameters():  # training leaves no zeros
        torch.nn.init.normal_(parameter, std=0.1)
    return made.eval()


def past(dim: int, events: int) -> Past:
    rng = np.random.default_rng(0)
    time_of = 1_700_000_000_000 + np.cumsum(rng.integers(0, 100 * HOUR, events))
    return Past(
        rng.normal(size=(events, dim)).astype(np.float32), rng.integers(0, ACTIONS, events),
        rng.integers(0, CANVASES, events), np.ones(events, np.float32), time_of, int(time_of[-1]) + HOUR,
    )  # fmt: skip


def arms(name: str, dim: int, events: int) -> dict[str, Arm]:
    """The same state by both ways, checked."""
    module, said = encoder(name, dim), past(dim, events)
    fast = numpy_history(module)
    bodies, action, canvas, value, at = (torch.from_numpy(column) for column in said[:5])
    histories = Histories(bodies, action, canvas, value, at, torch.tensor([0, events]), torch.tensor([said.asked]))

    def eager() -> torch.Tensor:
        with torch.inference_mode():
            found: torch.Tensor = module(histories)[-1]
        return found

    np.testing.assert_allclose(fast(said), eager().numpy(), rtol=1e-3, atol=1e-3)
    return {"numpy": lambda: fast(said), "torch": eager}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--calls", type=int, default=40)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = [(name, dim, events) for name, dim in (("pooling", 64), ("transformer", 64), ("transformer", 128))
             for events in (50, 200)]  # fmt: skip
    made = {f"{name} {dim}, {events} events": arms(name, dim, events) for name, dim, events in asked}
    with Bench(
        "history_forward", metric="ms, transformer of 64, 50 events, one thread", goal=1.0, lower_is_better=True,
        goal_is_ratio=True,
    ) as bench:  # fmt: skip
        for _ in range(options.rounds):
            for case, both in made.items():
                for how, arm in both.items():
                    bench.runs.setdefault(f"{case}, {how}", []).append(milliseconds(arm, options.calls))
        found = {name: statistics.median(values) for name, values in bench.runs.items()}
        for case in made:
            bench.part(
                case, metric="ms, numpy", ours=found[f"{case}, numpy"], torch_ms=round(found[f"{case}, torch"], 3)
            )
        first = "transformer 64, 50 events"
        bench.report(
            ours=found[f"{first}, numpy"], peer=found[f"{first}, torch"], peer_name=f"torch {torch.__version__}, eager",
            keep=options.rounds >= 5,
        )  # fmt: skip


if __name__ == "__main__":
    main()
