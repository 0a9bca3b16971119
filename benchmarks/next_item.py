"""Next item: the one model, with one setting for all data, against tuned peers; leave one out, full ranking.

What `mainstem evaluate --protocol next-item` runs, so its options say what is asked (`mainstem evaluate --help`). Each
set has a result of its own, `next_item_SET.json`, with ours and the peers of the same run; what was trained on a GPU or
by the larger setting has a name of its own, as `next_item_SET_large_cuda.json`. `ours` is NDCG@10 on the test, `peer`
that of the best peer; goals are the best published figures of models that know as much.

RecTools' SASRec runs in an environment of its own, `pip install 'rectools[torch]'`; what it gives every item, our code
ranks. A run that was killed goes on from `--resume`, where with `--at-once` each seed trains in a process of its own.

    python benchmarks/next_item.py amazon-beauty [--seeds 3] [--refit] [--resume FOLDER] [--config FILE]
        [--only mainstem] [--rectools-python FILE [--rectools-minutes 10]] [--users 0.1] [--large] [--device cuda]
        [--at-once]
"""

from __future__ import annotations

import argparse
import math
import os

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # implicit asks for it; read when numpy loads

import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from _sasrec import padded_length
from bench import Bench, say
from mainstem import datasets
from mainstem.evaluate.comparison import Comparison
from mainstem.evaluate.next_item import LeaveOneOut, Outcome, run
from mainstem.next_item import RULES, Actions, Asked, Rules, compare, of_dataset
from mainstem.next_item.compare import SYSTEMS
from mainstem.progress import stages
from mainstem.schema.config import Config
from mainstem.schema.config_file import load
from mainstem.train.device import wants_gpu

OURS, SASREC = SYSTEMS[0], "sasrec (RecTools)"
# set -> (NDCG@10, HR@10) of the best comparable published row: SASRec with 3000 negatives (Klenitskiy & Vasilev 2023);
# SASRec with sampled softmax (NDCG) and eSASRec (HR) (RecSys 2025)
PUBLISHED = {"ml-1m": (0.1857, 0.3159), "amazon-beauty": (0.0531, 0.0928)}
SCRIPT = Path(__file__).parent / "_rectools_sasrec.py"


class Foreign:
    """A peer in another process: it reads `actions.npz` and writes `scores.npy`, float32 [q, items], and `facts.npz`.

    It settles what it settles by its own means, from what is learned from and validation alone. words: what else the
    script is told."""

    name = SASREC

    def __init__(self, python: str, seed: int, words: Sequence[str]) -> None:
        self.python, self.seed, self.words, self.seconds = python, seed, words, 0.0
        self.peak_gib = 0.0
        self._folder = tempfile.TemporaryDirectory()
        self._told: dict[str, Any] = {}

    def choose(self, data: LeaveOneOut, learned: Any, judge: Any) -> None:
        folder = Path(self._folder.name)
        np.savez(
            folder / "actions.npz", item=data.item, offsets=data.offsets, items=data.items, learned=learned,
            validation=data.held("validation"), test=data.held("test"), seed=self.seed,
        )  # fmt: skip
        subprocess.run([self.python, str(SCRIPT), str(folder), *self.words], check=True, stdout=sys.stderr)
        facts = np.load(folder / "facts.npz")
        self.seconds = float(facts["seconds"])
        self.peak_gib = float(facts["peak_gib"])
        self._told = {"epochs": int(facts["epochs"]), "rectools": str(facts["version"])}

    def refit(self, data: LeaveOneOut, learned: Any) -> None:
        raise SystemExit(f"{self.name} is asked without --refit")

    def scores(self, data: LeaveOneOut, places: Any) -> Any:
        kept = np.load(Path(self._folder.name) / "scores.npy", mmap_mode="r")
        return kept[np.searchsorted(data.held("test"), places)]

    def settled(self) -> dict[str, Any]:
        return self._told


def foreign(python: str, words: Sequence[str], actions: Actions, asked: Asked) -> list[Outcome]:
    found = []
    for seed in range(asked.seeds):
        say(f"{SASREC}, seed {seed}")
        peer = Foreign(python, seed, words)
        found.append(replace(run(peer, actions.data, "test", seen=asked.rules.seen), peak_gib=peer.peak_gib))
    return found


def trained_at_once(args: argparse.Namespace) -> None:
    """Each seed of ours in a process of its own, with this command's options: it leaves its checkpoints."""
    told = [argument for argument in sys.argv[1:] if argument != "--at-once"]
    running = [
        subprocess.Popen([sys.executable, __file__, *told, "--seeds", "1", "--first", str(seed), "--only", OURS])
        for seed in range(args.first, args.first + args.seeds)
    ]
    try:
        ended = [child.wait() for child in running]
    finally:
        for child in running:
            child.terminate()  # nothing, where it has ended
    if any(ended):
        raise SystemExit("one of the trainings failed; what it said stands above")


def kept_as(dataset: str, *, large: bool, on_gpu: bool) -> str:
    """The name of a result; the set's alone where anybody can repeat it."""
    return f"next_item_{dataset}" + ("_large" if large else "") + ("_cuda" if on_gpu else "")


def report(dataset: str, name: str, found: Comparison, command: str, seconds: float, keep: bool) -> None:
    told = found.as_dict()
    best = {system: row["metrics"]["ndcg@10"]["mean"] for system, row in told["systems"].items()}
    peers = [system for system in best if system != OURS]
    peer = max(peers, key=lambda system: best[system]) if peers else None
    goal, goal_hr = PUBLISHED.get(dataset, (None, None))
    bench = Bench(name, metric="NDCG@10, next item", goal=goal)
    ours = told["systems"][OURS]["metrics"]
    bench.part("HR@10", metric="HR@10, next item", ours=ours["hr@10"]["mean"], goal=goal_hr)
    if peer is not None:
        gain = told["systems"][peer][f"{OURS} gains ndcg@10"]
        bench.part(f"over {peer}", metric="NDCG@10 gained, lower end of its interval", ours=gain["low"], goal=0.0)
    bench.report(
        ours=ours["ndcg@10"]["mean"], peer=None if peer is None else best[peer], peer_name=peer or "none", keep=keep,
        command=command, seconds_of_all=round(seconds, 1), found=told,
    )  # fmt: skip


def main() -> None:
    # a short form of --at-once would reach the children
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("dataset", choices=datasets.names())
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--refit", action="store_true", help="the final fit with validation added")
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--only", nargs="+", choices=SYSTEMS, default=list(SYSTEMS))
    parser.add_argument(
        "--config", type=Path, help="whose `features`, `model` and `train` lie over the preset; nothing is kept"
    )
    parser.add_argument("--resume", type=Path, help="folder for checkpoints")
    parser.add_argument("--minutes", type=float, default=math.inf, help="of training at most")
    parser.add_argument("--rectools-python", help="the interpreter of an environment with rectools[torch]")
    parser.add_argument(
        "--rectools-minutes", type=float, default=math.inf, help="of its training at most, where no patience ends it"
    )
    parser.add_argument("--large", action="store_true", help="the larger setting")
    parser.add_argument("--device", choices=("cpu", "cuda", "auto"), default="cpu", help="where the networks compute")
    parser.add_argument("--at-once", action="store_true", help="each seed in a process of its own; needs --resume")
    parser.add_argument("--first", type=int, default=0, help="seed to begin with; above 0 nothing is kept")
    args = parser.parse_args()
    began = time.monotonic()
    if args.at_once:
        if args.resume is None or args.rectools_python:
            parser.error("--at-once needs --resume, and goes without --rectools-python")
        if OURS in args.only:
            trained_at_once(args)
    rules = RULES.get(args.dataset, Rules())
    actions = of_dataset(datasets.get(args.dataset), users=args.users, min_count=rules.min_count)
    told = load(args.config).model_dump(exclude_unset=True) if args.config else {}
    changes = Config.model_validate({**told, "train": {**told.get("train", {}), "device": args.device}})
    asked = Asked(
        seeds=args.seeds, systems=args.only, rules=rules, refit=args.refit, changes=changes, resume=args.resume,
        minutes=args.minutes, large=args.large, first=args.first,
    )  # fmt: skip
    with stages() as show:
        found = compare(actions, asked, show, say)
    if args.rectools_python:
        words = ["--minutes", str(args.rectools_minutes), "--length", str(padded_length(args.dataset))]
        other = foreign(args.rectools_python, words, actions, asked)
        found = replace(found, outcomes={**found.outcomes, SASREC: other})
    Console(stderr=True, width=160).print(*found.tables())
    if OURS not in found.outcomes:
        say(f"no result without {OURS}; with --resume the answers of the others are kept")
        return
    whole = (
        args.users == 1.0 and args.seeds >= 3 and args.first == 0 and args.config is None and args.only == list(SYSTEMS)
    )
    bound = f" --minutes {args.minutes:g}" if args.minutes < math.inf else ""
    refit = " --refit" if args.refit else ""
    more = (" --large" if args.large else "") + (f" --device {args.device}" if args.device != "cpu" else "")
    more += " --at-once --resume FOLDER" if args.at_once else ""
    if args.rectools_python:
        bound_of = f" --rectools-minutes {args.rectools_minutes:g}" if args.rectools_minutes < math.inf else ""
        more += f" --rectools-python PYTHON{bound_of}"
    command = f"python benchmarks/next_item.py {args.dataset} --seeds {args.seeds}{refit}{bound}{more}"
    name = kept_as(args.dataset, large=args.large, on_gpu=wants_gpu(args.device))
    report(args.dataset, name, found, command, time.monotonic() - began, keep=whole)


if __name__ == "__main__":
    main()
