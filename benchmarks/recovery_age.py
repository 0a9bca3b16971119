"""Recovery age: what does it cost to serve from a snapshot that is some events old?

After a loss, serving and training go on from the newest snapshot that is left. The runs are those of q4_online.py, read
the other way: an arm that is brought up to date every n events answers from a model that is n / 2 events old on
average. NDCG@10 lost against the arm that is brought up to date every 300, scored prequentially, features live in every
arm. (Monolith, section 3.3.4, reports tolerable loss for a day.) q4_online.py writes this result too.

    python benchmarks/recovery_age.py [--dataset completejourney] [--seeds 3] [--days 28] [--sample 500]
"""

from __future__ import annotations

from typing import Any

import numpy as np

import q4_online
from bench import Bench

METRICS = ("ndcg", "fresh")
NEWEST = "every 300"


def report(dataset: str, seeds: list[dict[str, dict[str, np.ndarray]]], events: int, visits: int) -> None:
    """Write the result; seeds: per seed, arm and metric the scores of each visit; events: of the stretch."""
    rng, table = np.random.default_rng(0), dict[str, Any]()
    for name, every in q4_online.EVERY.items():
        table[name] = {"age": (events if every is None else every) / 2}
        for metric in METRICS:
            lost = np.concatenate([seed[NEWEST][metric] - seed[name][metric] for seed in seeds])
            mean, low, high = q4_online.interval(lost, rng)
            means = [float(np.nanmean(seed[name][metric])) for seed in seeds]
            table[name][metric] = {
                "mean": round(float(np.mean(means)), 5), "spread": round(float(np.std(means)), 5),
                "lost": round(mean, 5), "interval": [round(low, 5), round(high, 5)],
            }  # fmt: skip
    with Bench("recovery_age", metric="NDCG@10 lost by a model as old as the stretch", goal=None) as bench:
        bench.report(
            ours=table["frozen"]["ndcg"]["lost"], peer=None, peer_name="up to date", keep=len(seeds) >= 3,
            ages=table, dataset=dataset, visits=visits, seeds=len(seeds),
        )  # fmt: skip


if __name__ == "__main__":
    q4_online.main(["completejourney"])
