"""P4: how soon does training reach what RecTools' and RecBole's SASRec reach in half an hour? Next item, validation.

Each peer trains for `--minutes` on one thread as we do: both at our width, blocks, heads, history and dropout, and
RecTools once more in the size that next_item.py asks it in, which is smaller and comes further in the time. RecTools
draws 32 negatives a position, with which it comes furthest in little time (`_rectools_sasrec.py`); RecBole, which draws
one or none, has the whole softmax. They answer validation, and the better of a peer's best epoch (by its own figure
there) and its last counts.

Then ours trains once, by the one setting of next_item.py. It is looked at after every `--every` seconds of training,
by its newest weights, and after each epoch, by their average, until it is as good as the better peer in NDCG@10, which
our code computes for all. Seconds are of training alone: ours and RecBole's without what asking validation takes,
RecTools' with the loss on validation that it computes after each epoch. The `ratio` is ours by the peer's, the worst
of the peers'; each has a part of its own. 0.1 is the goal. Where ours ends below a peer there is no ratio, the goal is
not met, and what was reached is kept. One seed: the time is what is asked for.

The peers live in environments of their own: pip install 'rectools[torch]'; pip install recbole 'numpy<2' 'pandas<2.3'
'scipy<1.12' 'setuptools<81'. `--resume` keeps what they answered: no peer is asked the same again.

    python benchmarks/p4_sequence_training.py SET [--rectools-python FILE] [--recbole-python FILE] [--minutes 30]
        [--every 20] [--users 1.0] [--resume FOLDER]
"""

from __future__ import annotations

import argparse
import hashlib
import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import msgspec
import numpy as np

from _sasrec import padded_length
from bench import Bench, say
from mainstem import datasets
from mainstem.evaluate.next_item import LeaveOneOut, Seen, ndcg, ranks_of
from mainstem.evaluate.peak_memory import PeakMemory
from mainstem.next_item import RULES, Actions, Rules, of_dataset
from mainstem.next_item.model import SequenceModel, scorer
from mainstem.next_item.preset import configured
from mainstem.next_item.runs import Run, Watch
from mainstem.schema.config import Config

GOAL = 0.1


@dataclass(frozen=True)
class Peer:
    """A SASRec of a Python package, which `script` trains. more: what it is told besides, or instead of, what all are
    told."""

    name: str
    package: str
    script: Path
    more: Mapping[str, Any] = field(default_factory=dict)


RECTOOLS, RECBOLE = (Path(__file__).parent / f"_{package}_sasrec.py" for package in ("rectools", "recbole"))
TO_THE_END = {"--ask": "validation", "--epochs": 10_000, "--patience": 10_000}
SMALLER = {"--factors": 64, "--blocks": 2, "--heads": 2, "--dropout": 0.2}
PEERS = (
    Peer("RecTools SASRec", "rectools", RECTOOLS, TO_THE_END),
    Peer("RecTools SASRec, 64 wide, 2 blocks", "rectools", RECTOOLS, {**TO_THE_END, **SMALLER}),
    Peer("RecBole SASRec", "recbole", RECBOLE),
)


class Trained(msgspec.Struct, frozen=True):
    """What a peer reached: NDCG@10 on validation, after so many seconds and epochs of training. best_and_last: its
    best epoch's and its last's NDCG@10. earlier: whether it was asked in a run before, and its answer kept."""

    ndcg: float
    best_and_last: tuple[float, float]
    seconds: float
    epochs: float
    peak_gib: float
    version: str
    earlier: bool = False


class Reached(Exception):
    """Raised when ours is as good as the best peer."""


class Look(NamedTuple):
    """NDCG@10 on validation after so many seconds of training."""

    seconds: float
    ndcg: float


class Until(Watch):
    """Looks at a training within its epochs, by `judge`, every so many seconds, and ends it at the first look or epoch
    that is as good as `goal`. What looking takes is no part of the seconds."""

    def __init__(self, goal: float, judge: Callable[[], float], every: float) -> None:
        self.goal, self.judge, self.every = goal, judge, every
        self.looks: list[Look] = []
        self._before = self._looking = 0.0  # seconds of the epochs that are over, and of all looks within epochs
        self._began = self._looked = time.monotonic()  # the epoch, and the newest look

    def begin(self, stage: str, run: Run, most: int, patience: int, actions: int) -> None:
        self._began = self._looked = time.monotonic()

    def step(self, actions: int) -> None:
        now = time.monotonic()
        if now - self._looked < self.every:
            return
        seconds = self._before + now - self._began - self._looking
        found = self.judge()
        self._looked = time.monotonic()
        self._looking += self._looked - now
        self._note("within an epoch", Look(seconds, found))

    def epoch(self, run: Run) -> None:
        last, self._before = run.epochs[-1], run.seconds
        if last.validation is not None:
            self._note(f"epoch {last.number}", Look(last.seconds - self._looking, last.validation))
        self._began = self._looked = time.monotonic()

    def _note(self, where: str, look: Look) -> None:
        self.looks.append(look)
        say(f"ours, {where}: validation NDCG@10 {look.ndcg:.4f}, {look.seconds:.0f} s")
        if look.ndcg >= self.goal:
            raise Reached


def reached(looks: Sequence[Look], goal: float) -> float | None:
    """Seconds of training until the first look that was as good as `goal`; None: there is none."""
    return next((look.seconds for look in looks if look.ndcg >= goal), None)


def judged(data: LeaveOneOut, scores: Any, seen: Seen) -> float:
    """NDCG@10 on validation of what `scores` says, for all users at once or as a recommender."""
    places = data.held("validation")
    said = scores if callable(scores) else lambda _, some: scores[np.searchsorted(places, some)]
    return float(ndcg(ranks_of(said, data, places, seen=seen), 10).mean())


def words(peer: Peer, name: str, config: Config, minutes: float) -> list[str]:
    """What a peer's script is told of a set."""
    history = config.model.history
    told = {
        "--minutes": minutes, "--factors": config.model.dim, "--blocks": history.layers, "--heads": history.heads,
        "--length": padded_length(name), "--dropout": history.dropout, **peer.more,
    }  # fmt: skip
    return [str(word) for pair in told.items() for word in pair]


def question(peer: Peer, data: LeaveOneOut, told: list[str], seen: Seen) -> str:
    """All that a peer's answer depends on, but its environment: a digest."""
    digest = hashlib.sha256(peer.script.read_bytes())
    for array in (data.item, data.offsets):
        digest.update(array.tobytes())
    digest.update(f"{data.items} {told} {seen}".encode())
    return digest.hexdigest()[:16]


def trained(peer: Peer, python: str, data: LeaveOneOut, told: list[str], seen: Seen) -> Trained:
    """`peer`, trained in its own environment and judged in ours."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        np.savez(
            folder / "actions.npz", item=data.item, offsets=data.offsets, items=data.items, learned=data.learned(),
            validation=data.held("validation"), test=data.held("test"), seed=0,
        )  # fmt: skip
        subprocess.run([python, str(peer.script), name, *told], check=True, stdout=sys.stderr)
        facts = dict(np.load(folder / "facts.npz"))
        best, last = (judged(data, np.load(folder / file, mmap_mode="r"), seen) for file in ("scores.npy", "last.npy"))
    return Trained(
        ndcg=max(best, last), best_and_last=(best, last), seconds=float(facts["seconds"]),
        epochs=round(float(facts["epochs"]), 3), peak_gib=float(facts["peak_gib"]), version=str(facts["version"]),
    )  # fmt: skip


def asked(peer: Peer, python: str, data: LeaveOneOut, told: list[str], seen: Seen, resume: Path | None) -> Trained:
    """What `peer` answers, or answered when it was asked the same before and `resume` kept it."""
    kept = resume / f"{peer.script.stem}-{question(peer, data, told, seen)}.json" if resume else None
    if kept is not None and kept.exists():
        found = msgspec.structs.replace(msgspec.json.decode(kept.read_bytes(), type=Trained), earlier=True)
    else:
        found = trained(peer, python, data, told, seen)
        if kept is not None:
            kept.parent.mkdir(parents=True, exist_ok=True)
            whole = kept.with_suffix(".new")
            whole.write_bytes(msgspec.json.encode(found))
            whole.replace(kept)
    best, last = found.best_and_last
    say(f"{peer.name}: validation NDCG@10 best {best:.4f}, last {last:.4f}, {found.epochs:g} epochs")
    return found


def ours(actions: Actions, config: Config, goal: float, every: float, seen: Seen) -> tuple[list[Look], float | None]:
    """The looks until the goal, or until the training ended below it, and peak GiB."""
    watch = Until(goal, lambda: judged(actions.data, scorer(model.actions, model.trainer), seen), every)
    model = SequenceModel(actions, config, watch=watch)
    with PeakMemory() as peak:
        try:
            model.choose(actions.data, actions.data.learned(), lambda: judged(actions.data, model.scores, seen))
            say(f"ours: the training ended below {goal:.4f}")
        except Reached:
            say(f"ours: reached {goal:.4f}")
    return watch.looks, peak.gib


def report(
    bench: Bench, looks: Sequence[Look], peers: Mapping[str, Trained], keep: bool, **more: Any
) -> dict[str, Any]:
    """A part for each peer; the figure of all is that of the peer against which ours is worst."""
    at = {name: reached(looks, each.ndcg) for name, each in peers.items()}
    for name, each in peers.items():
        seconds = at[name]
        bench.part(
            name, metric="seconds to its validation NDCG@10, ours / peer", goal=GOAL,
            ours=None if seconds is None else seconds / each.seconds, seconds=seconds, peer=msgspec.to_builtins(each),
        )  # fmt: skip

    def badness(name: str) -> tuple[float, float]:
        seconds = at[name]
        return math.inf if seconds is None else seconds / peers[name].seconds, peers[name].ndcg

    worst = max(peers, key=badness)
    return bench.report(
        ours=at[worst], peer=peers[worst].seconds, peer_name=worst, keep=keep, reached=max(look.ndcg for look in looks),
        looks=[{"seconds": round(look.seconds, 1), "ndcg": round(look.ndcg, 5)} for look in looks], **more,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("dataset", choices=datasets.names())
    for package in dict.fromkeys(peer.package for peer in PEERS):
        parser.add_argument(f"--{package}-python", help=f"the interpreter of an environment with {package}")
    parser.add_argument("--minutes", type=float, default=30.0, help="of each peer's training; fewer are not kept")
    parser.add_argument("--every", type=float, default=20.0, help="seconds of our training between two looks at it")
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--resume", type=Path, help="folder for the peers' answers")
    args = parser.parse_args()
    pythons = [(peer, python) for peer in PEERS if (python := getattr(args, f"{peer.package}_python"))]
    if not pythons:
        parser.error("at least one peer's interpreter is needed")
    rules = RULES.get(args.dataset, Rules())
    actions = of_dataset(datasets.get(args.dataset), users=args.users, min_count=rules.min_count)
    config = configured(actions.config)
    bench = Bench(
        f"p4_sequence_training_{args.dataset}", metric="seconds to the peer's validation NDCG@10", goal=GOAL,
        lower_is_better=True, goal_is_ratio=True,
    )  # fmt: skip
    peers = {}
    for peer, python in pythons:
        told = words(peer, actions.name, config, args.minutes)
        peers[peer.name] = asked(peer, python, actions.data, told, rules.seen, args.resume)
    looks, peak = ours(actions, config, max(each.ndcg for each in peers.values()), args.every, rules.seen)
    report(
        bench, looks, peers, keep=args.users == 1.0 and args.minutes >= 30, peak_gib=peak, threads=config.train.threads,
        command=f"python benchmarks/p4_sequence_training.py {args.dataset} --minutes {args.minutes:g}",
    )  # fmt: skip


if __name__ == "__main__":
    main()
