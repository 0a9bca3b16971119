"""Q5: do collisionless tables pay? The same towers with a row for every key, and with keys that share rows.

Arms: collisionless; keys hashed as in the Monolith paper's set-up (7.73 % of users and 2.86 % of items meet another);
into half as many rows as there are ids; into a tenth. Trained on all but the last stretch, in the same order with the
same seeds; scored by full ranking of the catalogue on positives of the last stretch: recall@100 and NDCG@10 of the
towers alone. Three seeds; the difference to collisionless is paired by seed.

    python benchmarks/q5_collisions.py [--dataset completejourney ml-1m] [--seeds 3] [--users 0.25] [--epochs 1]
"""

from __future__ import annotations

import argparse
import json
import math
from typing import Any

import numpy as np
import torch

from _prequential import Stage
from bench import Bench, say
from mainstem.schema.ids import Keys
from mainstem.schema.keyrows import compiled, mix
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.interactions import Positives
from mainstem.weights import SlabTable

# Ids per row: users, items. In a space of m rows the share of n ids that meet another is 1 - exp(-n / m) or so.
ARMS: dict[str, tuple[float, float] | None] = {
    "collisionless": None,
    "as in the paper": (-math.log(1 - 0.0773), -math.log(1 - 0.0286)),
    "half the rows": (2.0, 2.0),
    "a tenth of the rows": (10.0, 10.0),
}
TEST_POSITIVES = 5_000


@compiled
def _shared(keys: Keys, rows: np.uint64) -> Keys:
    out = np.empty_like(keys)
    for i in range(len(keys)):
        out[i] = np.uint64(0) if keys[i] == np.uint64(0) else mix(keys[i]) % rows + np.uint64(1)
    return out


class Collided(SlabTable):
    """A table in which keys of a kind share so many rows; users, items and everything else never meet each other."""

    users: Keys
    sizes: tuple[int, int]

    def _meet(self, keys: Keys) -> Keys:
        place = np.minimum(np.searchsorted(self.users, keys), len(self.users) - 1)
        is_user = self.users[place] == keys
        found = _shared(keys, np.uint64(self.sizes[1])) + np.uint64(1 << 40)
        found[is_user] = _shared(keys[is_user], np.uint64(self.sizes[0]))
        found[keys == 0] = 0
        return found

    def find(self, keys: Keys) -> Any:
        return super().find(self._meet(keys))

    def find_or_create(self, keys: Keys, family: int = 0, time: int = 0, sights: Any = None) -> Any:
        return super().find_or_create(self._meet(keys), family, time, sights)


def one(stage: Stage, seed: int, arm: str, users: float, epochs: int, days: float) -> dict[str, float]:
    """Train and score one arm."""
    source, config = stage.source, stage.config
    train = config.train.model_copy(update={"seed": seed})
    config = config.model_copy(update={"train": train})
    events = source.events
    if users < 1:
        kept = np.unique(events.user)
        kept = kept[np.random.default_rng(99).random(len(kept)) < users]
        events = events.take(np.isin(events.user, kept))
    positives = Positives.of(events, config.interest(), source.session_starts)
    cut, _ = stage.cut(days)
    torch.manual_seed(seed)
    towers = new_towers(config, source.catalog)
    ids = np.unique(positives.user), np.unique(positives.entity)
    ratio = ARMS[arm]
    if ratio is not None:
        table = Collided(config.model.dim, towers.table.families, seed=seed)
        table.users, table.sizes = ids[0], (max(int(len(ids[0]) / ratio[0]), 1), max(int(len(ids[1]) / ratio[1]), 1))
        towers = type(towers)(towers.module, table, source.catalog, ())
    else:
        towers = type(towers)(towers.module, towers.table, source.catalog, ())
    trainer = RetrievalTrainer(towers, positives, config.model, train)
    rng = np.random.default_rng(seed)
    before = np.flatnonzero(positives.time < cut)
    for _ in range(epochs):
        for _loss in trainer.epoch(before, rng):
            pass
    after = np.flatnonzero(positives.time >= cut)
    sample = np.sort(np.random.default_rng(1).permutation(after)[:TEST_POSITIVES])
    found = {"recall@100": trainer.recall(sample, 100), "ndcg@10": _ndcg(trainer, sample)}
    found |= {"rows": float(len(towers.table)), "bytes": float(towers.table.explain().total)}
    return found


@torch.no_grad()
def _ndcg(trainer: RetrievalTrainer, rows: np.ndarray, k: int = 10) -> float:
    vectors = torch.from_numpy(trainer.towers.entity_vectors(trainer.entities))
    total = 0.0
    for some in np.array_split(rows, max(len(rows) // 512, 1)):
        batch = trainer.positives.batch(some)
        best = (torch.from_numpy(trainer.towers.vectors_before(batch)) @ vectors.T).topk(k, dim=1).indices.numpy()
        hits = best == np.searchsorted(trainer.entities, batch.entity)[:, None]
        total += float((hits / np.log2(np.arange(2, k + 2))).sum())
    return total / max(len(rows), 1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", nargs="*", default=["completejourney"])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--users", type=float, default=0.25, help="share of the users")
    parser.add_argument("--epochs", type=int, default=1)
    parser.add_argument("--days", type=float, default=28)
    arguments = parser.parse_args()
    with Bench("q5_collisions", metric="ndcg@10 of the towers", goal=1.0, goal_is_ratio=True) as bench:
        for name in arguments.dataset:
            stage = Stage(name)
            rows: dict[str, list[dict[str, float]]] = {arm: [] for arm in ARMS}
            for seed in range(arguments.seeds):
                for arm in ARMS:
                    rows[arm].append(one(stage, seed, arm, arguments.users, arguments.epochs, arguments.days))
                    say(f"{name} seed {seed} {arm}: {json.dumps(rows[arm][-1])}")
            table = {}
            for arm, found in rows.items():
                own = rows["collisionless"]
                pairs = np.array([a["ndcg@10"] - b["ndcg@10"] for a, b in zip(found, own, strict=True)])
                error = float(pairs.std(ddof=1) / np.sqrt(len(pairs))) if len(pairs) > 1 else float("nan")
                table[arm] = {
                    **{m: round(float(np.mean([f[m] for f in found])), 5) for m in found[0]},
                    "spread": round(float(np.std([f["ndcg@10"] for f in found])), 5),
                    "difference": round(float(pairs.mean()), 5),
                    "standard_error": round(error, 5),
                }
            bench.parts[name] = {
                "metric": "ndcg@10, by arm", "ours": table["collisionless"]["ndcg@10"], "goal": None, "met": None,
                "arms": table, "seeds": arguments.seeds, "users": arguments.users, "epochs": arguments.epochs,
            }  # fmt: skip
            say(json.dumps(table, indent=1))
        first = bench.parts[arguments.dataset[0]]["arms"]
        bench.report(
            ours=first["collisionless"]["ndcg@10"], peer=first["a tenth of the rows"]["ndcg@10"],
            peer_name="the same towers with a tenth of the rows", keep=arguments.seeds >= 3,
        )  # fmt: skip


if __name__ == "__main__":
    main()
