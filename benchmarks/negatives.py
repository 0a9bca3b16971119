"""Negatives: which negatives, or the whole catalogue, teach retrieval best? Two sets, on validation.

The same model, the same positives and epochs; what differs is what each positive is told from (`train.retrieval`):

    in batch    the positives of the batch
    + uniform   and 1,024 even draws
    + popular   and 1,024 draws by share^0.75 besides
    + hard      and 4 a visit of the 200 that its request scores best, mined every 50 steps
    + queue     and the positives of the 4 batches before
    full        the whole catalogue

A share of the users of each set. Beauty: the last but one action of each, among all items but those that the user had
before; the last one is not looked at. completejourney: purchases in the four weeks before the last four, which are not
looked at, among all products bought before them. NDCG@10 and recall@100 of the entity that was taken, ties counted
before it, mean over seeds; and the CPU seconds of training.

    python benchmarks/negatives.py [--seeds 3] [--sets amazon-beauty completejourney] [--arms full] [--users 1]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import q3_canvases
from bench import Bench, say
from mainstem import catalog as catalogs
from mainstem import datasets
from mainstem.catalog import MemoryCatalog
from mainstem.join.sessions import session_starts
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.position import START
from mainstem.schema.time import DAY
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.interactions import Positives
from mainstem.train.threads import torch_threads

ARMS: dict[str, dict[str, Any]] = {
    "in batch": {"uniform": 0},
    "+ uniform": {},
    "+ popular": {"popular": {"draws": 1024}},
    "+ hard": {"hard": {"draws": 4, "among": 200, "every": 50}},
    "+ queue": {"queue": 4},
    "full": {"softmax": "full"},
}
EPOCHS = {"amazon-beauty": 3, "completejourney": 1}
USERS = {"amazon-beauty": 0.3, "completejourney": 0.05}  # shares
PLAIN = "+ uniform"
AT, RECALL_AT = 10, 100
ASKED = 2_000
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Task:
    """What is learned (places, rising), and what is asked for afterwards."""

    config: Config
    catalog: MemoryCatalog
    positives: Positives
    learned: Ints
    asked: Ints
    new_only: bool


def beauty(users: float) -> Task:
    shop = q3_canvases.load(users)
    config = q3_canvases.configure({"next": "events"}, EPOCHS["amazon-beauty"])
    learned = np.flatnonzero(shop.data.learned())
    return Task(config, shop.catalog, shop.positives, learned, shop.data.held("validation"), True)


def journey(users: float) -> Task:
    known = datasets.get("completejourney")
    config, records = Config.model_validate(dict(known.config)), known.load()
    catalog = catalogs.open("memory://", entities=config.entities)
    catalog.write(list(records.entities()), START)
    kept = [event for event in records.events() if int(event.user) % 1000 < 1000 * users]
    events = EventBatch.of(kept, range(len(kept)))
    end = int(events.time.max()) + 1
    positives = Positives.of(events, config.interest(), session_starts)
    time_of, known_by = positives.time, positives.time < end - 56 * DAY
    held = np.flatnonzero((time_of >= end - 56 * DAY) & (time_of < end - 28 * DAY))
    held = held[np.isin(positives.entity[held], positives.entity[known_by])]
    asked = np.sort(np.random.default_rng(0).permutation(held)[:ASKED])
    return Task(config, catalog, positives, np.flatnonzero(known_by), asked, False)


SETS: dict[str, Callable[[float], Task]] = {"amazon-beauty": beauty, "completejourney": journey}


def scores(task: Task, trainer: RetrievalTrainer, chunk: int = 512) -> dict[str, float]:
    """Mean NDCG@10 and recall@100 of what was asked for, among all that was learned from."""
    data, towers = task.positives, trainer.towers
    entities = np.unique(data.entity if task.new_only else data.entity[task.learned])
    vectors = torch.from_numpy(towers.entity_vectors(entities))
    ranks = []
    for rows in np.split(task.asked, np.arange(chunk, len(task.asked), chunk)):
        batch = data.batch(rows)
        found = torch.from_numpy(towers.vectors_before(batch)) @ vectors.T
        target = np.searchsorted(entities, batch.entity)
        if task.new_only:
            for i, row in enumerate(rows.tolist()):
                had = np.searchsorted(entities, data.entity[data.begin[row] : row])
                found[i, had[had != target[i]]] = -2.0
        own = found[torch.arange(len(rows)), torch.from_numpy(target)]
        ranks.append((found >= own[:, None]).sum(dim=1).numpy() - 1)
    rank = np.concatenate(ranks)
    gains = np.where(rank < AT, 1 / np.log2(rank + 2.0), 0.0)
    return {f"ndcg@{AT}": float(gains.mean()), f"recall@{RECALL_AT}": float((rank < RECALL_AT).mean())}


def one(task: Task, arm: str, seed: int, epochs: int) -> dict[str, float]:
    """Train one arm, and score it."""
    retrieval = task.config.train.retrieval.model_validate(ARMS[arm])
    train = task.config.train.model_copy(update={"retrieval": retrieval, "seed": seed})
    config = task.config.model_copy(update={"train": train})
    torch.manual_seed(seed)
    trainer = RetrievalTrainer(new_towers(config, task.catalog), task.positives, config.model, config.train)
    rng, began, steps = np.random.default_rng(seed), time.process_time(), 0
    for epoch in range(epochs):
        steps += sum(1 for _ in trainer.epoch(task.learned, rng, epoch))
    seconds = time.process_time() - began
    return scores(task, trainer) | {"seconds": seconds, "ms a step": 1e3 * seconds / steps}


def measure(bench: Bench, name: str, arms: list[str], seeds: int, users: float, epochs: int) -> dict[str, float]:
    """Report each arm on one set; the mean NDCG@10 of each."""
    task = SETS[name](users)
    catalogue = len(np.unique(task.positives.entity[task.learned]))
    say(f"{name}: {len(task.learned):,} positives of {catalogue:,} entities learned, {len(task.asked):,} asked")
    means = {}
    for arm in arms:
        found = [one(task, arm, seed, epochs) for seed in range(seeds)]
        mean = {key: float(np.mean([each[key] for each in found])) for key in found[0]}
        spread = float(np.std([each[f"ndcg@{AT}"] for each in found], ddof=1)) if seeds > 1 else None
        say(f"{name}, {arm}: " + ", ".join(f"{key} {value:.4f}" for key, value in mean.items()))
        means[arm] = mean[f"ndcg@{AT}"]
        bench.part(
            f"{name}, {arm}", metric=f"NDCG@{AT}", ours=mean[f"ndcg@{AT}"], spread=spread,
            recall=round(mean[f"recall@{RECALL_AT}"], 4), cpu_seconds=round(mean["seconds"], 1),
            ms_a_step=round(mean["ms a step"], 1), epochs=epochs, entities=catalogue,
            positives=len(task.learned), seeds=[round(each[f"ndcg@{AT}"], 5) for each in found],
        )  # fmt: skip
    return means


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--sets", nargs="+", choices=list(SETS), default=list(SETS))
    parser.add_argument("--arms", nargs="+", choices=list(ARMS), default=list(ARMS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="of each set, instead of its own")
    parser.add_argument("--users", type=float, help="share of them, instead of each set's own")
    args = parser.parse_args()
    whole = args.arms == list(ARMS) and args.sets == list(SETS) and args.epochs is args.users is None
    with torch_threads(1), Bench("negatives", metric=f"NDCG@{AT}, Beauty, validation, best arm", goal=None) as bench:
        found = {}
        for name in args.sets:
            users, epochs = args.users or USERS[name], args.epochs or EPOCHS[name]
            found[name] = measure(bench, name, args.arms, args.seeds, users, epochs)
        first = found[args.sets[0]]
        bench.report(
            ours=max(first.values()), peer=first.get(PLAIN), peer_name=f"in batch {PLAIN}", keep=whole,
            users=USERS,
        )  # fmt: skip


if __name__ == "__main__":
    main()
