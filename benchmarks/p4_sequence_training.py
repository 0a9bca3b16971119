"""P4: how soon does training reach what RecTools' SASRec reaches in half an hour? Next item, validation.

The peer trains for `--minutes` at our width, blocks, heads, history and dropout, on as many threads, with the whole
softmax, and answers validation; the better of its best epoch (by its own loss there) and its last counts. Then ours
trains, by the one setting of next_item.py, until an epoch reaches that NDCG@10, which our code computes for both.
Seconds are of training alone: ours without what asking validation takes, the peer's with the loss on validation that
it computes after each epoch. `ratio` is ours by the peer's; 0.1 is the goal. One seed: the time is what is asked for.

RecTools lives in an environment of its own: pip install 'rectools[torch]'.

    python benchmarks/p4_sequence_training.py SET --rectools-python FILE [--minutes 30] [--users 1.0] [--resume FOLDER]
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from bench import Bench, say
from mainstem import datasets
from mainstem.evaluate.next_item import LeaveOneOut, Seen, ndcg, ranks_of
from mainstem.evaluate.peak_memory import PeakMemory
from mainstem.next_item import RULES, Actions, Rules, of_dataset
from mainstem.next_item.checkpoints import Checkpoints
from mainstem.next_item.compare import Asked, identity
from mainstem.next_item.model import SequenceModel
from mainstem.next_item.preset import configured
from mainstem.next_item.runs import Run, Watch
from mainstem.schema.config import Config

SCRIPT = Path(__file__).parent / "_rectools_sasrec.py"
LENGTH = {"amazon-beauty": 50}  # of the peer's histories, which it pads: what its protocol says; ours packs them


class Reached(Exception):
    """Raised by an epoch that is as good as the peer."""


class Until(Watch):
    """Ends a training at the first epoch whose validation reaches `goal`."""

    def __init__(self, goal: float) -> None:
        self.goal = goal
        self.run = Run()

    def epoch(self, run: Run) -> None:
        self.run, last = run, run.epochs[-1]
        say(f"ours, epoch {last.number}: validation NDCG@10 {last.validation:.4f}, {last.seconds:.0f} s")
        if last.validation is not None and last.validation >= self.goal:
            raise Reached


def judged(data: LeaveOneOut, scores: Any, seen: Seen) -> float:
    """NDCG@10 on validation of what `scores` says, for all users at once or as a recommender."""
    places = data.held("validation")
    said = scores if callable(scores) else lambda _, some: scores[np.searchsorted(places, some)]
    return float(ndcg(ranks_of(said, data, places, seen=seen), 10).mean())


def peer(python: str, actions: Actions, config: Config, minutes: float, seen: Seen) -> dict[str, Any]:
    """NDCG@10 on validation, seconds, epochs and peak GiB of RecTools' SASRec."""
    data, history = actions.data, config.model.history
    with tempfile.TemporaryDirectory() as folder:
        np.savez(
            Path(folder) / "actions.npz", item=data.item, offsets=data.offsets, items=data.items,
            learned=data.learned(), validation=data.held("validation"), test=data.held("test"), seed=0,
        )  # fmt: skip
        told = {
            "--minutes": minutes, "--ask": "validation", "--negatives": 0, "--factors": config.model.dim,
            "--blocks": history.layers, "--heads": history.heads, "--length": LENGTH.get(actions.name, 200),
            "--dropout": history.dropout, "--epochs": 10_000, "--patience": 10_000,
        }  # fmt: skip
        words = [str(word) for pair in told.items() for word in pair]
        subprocess.run([python, str(SCRIPT), folder, *words], check=True, stdout=sys.stderr)
        facts = dict(np.load(Path(folder) / "facts.npz"))
        found = [judged(data, np.load(Path(folder) / name, mmap_mode="r"), seen) for name in ("scores.npy", "last.npy")]
    say(f"rectools: validation NDCG@10 best {found[0]:.4f}, last {found[1]:.4f}, {facts['epochs']} epochs")
    return {
        "ndcg": max(found), "seconds": float(facts["seconds"]), "epochs": int(facts["epochs"]),
        "peak_gib": float(facts["peak_gib"]), "version": str(facts["version"]),
    }  # fmt: skip


def ours(actions: Actions, config: Config, goal: float, resume: Path | None, seen: Seen) -> tuple[Run, float | None]:
    """The epochs until the goal, and peak GiB."""
    watch = Until(goal)
    kept = None if resume is None else Checkpoints(resume, 0, identity(actions, config, Asked()))
    model = SequenceModel(actions, config, kept, watch)
    with PeakMemory() as peak:
        try:
            model.choose(actions.data, actions.data.learned(), lambda: judged(actions.data, model.scores, seen))
            say(f"ours: the training ended below {goal:.4f}")
        except Reached:
            say(f"ours: reached {goal:.4f}")
    return watch.run, peak.gib


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=datasets.names())
    parser.add_argument(
        "--rectools-python", required=True, help="the interpreter of an environment with rectools[torch]"
    )
    parser.add_argument("--minutes", type=float, default=30.0, help="of the peer's training; fewer are not kept")
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--resume", type=Path, help="folder for our checkpoints")
    args = parser.parse_args()
    rules = RULES.get(args.dataset, Rules())
    actions = of_dataset(datasets.get(args.dataset), users=args.users, min_count=rules.min_count)
    config = configured(actions.config)
    bench = Bench(
        f"p4_sequence_training_{args.dataset}", metric="seconds to the peer's validation NDCG@10", goal=0.1,
        lower_is_better=True, goal_is_ratio=True,
    )  # fmt: skip
    theirs = peer(args.rectools_python, actions, config, args.minutes, rules.seen)
    run, peak = ours(actions, config, theirs["ndcg"], args.resume, rules.seen)
    best = max(run.figures())
    if best < theirs["ndcg"]:
        raise SystemExit(f"ours ended at {best:.4f}, below the peer's {theirs['ndcg']:.4f}: there is no ratio")
    bench.report(
        ours=run.seconds, peer=theirs["seconds"], peer_name="RecTools SASRec",
        keep=args.users == 1.0 and args.minutes >= 30, theirs=theirs, peak_gib=peak,
        reached=best, threads=config.train.threads, validation=run.figures(),
        command=f"python benchmarks/p4_sequence_training.py {args.dataset} --minutes {args.minutes:g}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
