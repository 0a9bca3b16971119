"""Recovery age: what does it cost to serve from a snapshot that is some events old?

After a loss, serving and training go on from the newest snapshot that is left. Arms are the model of a trainer that
is up to date, that model as it was 1, 10 and 30 thousand events ago on average (brought up to date whenever it is
twice as old), and as it was at the start: NDCG@10 prequentially, features live in every arm. (Monolith, section
3.3.4, reports tolerable loss for a day.)

`age` is the mean over the stretch of how many events the answering model lags behind: half of what lies between two
updates.

    python benchmarks/recovery_age.py [--dataset completejourney] [--seeds 3] [--days 28] [--sample 600]
"""

from __future__ import annotations

import argparse
import json
from typing import Any

import numpy as np

from _prequential import Arm, Stage, prequential
from bench import Bench, say
from q4_online import interval

AGES = (1_000, 10_000, 30_000)
METRICS = ("ndcg", "fresh")
OLDEST = "as old as the stretch"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="completejourney")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=float, default=28)
    parser.add_argument("--sample", type=int, default=600)
    arguments = parser.parse_args()
    stage = Stage(arguments.dataset)
    cut, end = stage.cut(arguments.days)
    seeds = []
    with Bench("recovery_age", metric="ndcg@10_lost_by_the_oldest", goal=None) as bench:
        for seed in range(arguments.seeds):
            # an arm that is brought up to date every n events is n / 2 events old on average
            arms = [Arm("up to date", 300), *(Arm(f"{age:,} events old", 2 * age) for age in AGES), Arm(OLDEST, None)]
            taken = [0]
            prequential(
                stage, arms, seed=seed, cut=cut, end=end, sample=arguments.sample,
                on_events=lambda _, done, taken=taken: taken.append(done),
            )  # fmt: skip
            ages = {arm.name: (taken[-1] if arm.every is None else arm.every) / 2 for arm in arms}
            seeds.append({arm.name: {m: np.array(getattr(arm.scores, m)) for m in METRICS} for arm in arms})
            say(json.dumps({name: float(np.nanmean(found["ndcg"])) for name, found in seeds[-1].items()}))
        rng, table = np.random.default_rng(0), dict[str, Any]()
        for name in seeds[0]:
            table[name] = {"age": ages[name]}
            for metric in METRICS:
                lost = np.concatenate([seed["up to date"][metric] - seed[name][metric] for seed in seeds])
                mean, low, high = interval(lost, rng)
                means = [float(np.nanmean(seed[name][metric])) for seed in seeds]
                table[name][metric] = {
                    "mean": round(float(np.mean(means)), 5), "spread": round(float(np.std(means)), 5),
                    "lost": round(mean, 5), "interval": [round(low, 5), round(high, 5)],
                }  # fmt: skip
        bench.report(
            ours=table[OLDEST]["ndcg"]["lost"], peer=None, peer_name="up to date", keep=arguments.seeds >= 3,
            ages=table, dataset=arguments.dataset, visits=arguments.sample, seeds=arguments.seeds,
        )  # fmt: skip


if __name__ == "__main__":
    main()
