"""Q4: does learning while serving pay? Frozen against a sync every 30,000, 3,000 and 300 events, scored before learned.

All arms start from one base and share live features; one learner goes through the events, and each arm's parameters
follow it at its own pace. Every sampled visit is asked of every arm before it is learned: NDCG@10 of any entity, of
what is new to the user, and logloss of the first head over one pool of candidates. Three seeds; 95 % intervals of the
paired difference to the frozen arm by bootstrap over visits. What each arm loses by the age of its model goes into
recovery_age.json (see recovery_age.py). Data sets that a run does not name keep their part of the
last result.

    python benchmarks/q4_online.py [--dataset completejourney ...] [--seeds 3] [--days 28] [--skip-days 0]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from typing import Any

import numpy as np

from _prequential import Arm, Stage, prequential
from bench import RESULTS, Bench, say

EVERY = {"frozen": None, "every 30,000": 30_000, "every 3,000": 3_000, "every 300": 300}
METRICS = ("ndcg", "fresh", "logloss")
RESAMPLES = 2_000


def interval(differences: np.ndarray, rng: np.random.Generator) -> tuple[float, float, float]:
    """Mean of paired differences and its 95 % bootstrap interval; NaN pairs are left out."""
    known = differences[np.isfinite(differences)]
    means = rng.choice(known, (RESAMPLES, len(known))).mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(known.mean()), float(low), float(high)


def one_seed(stage: Stage, seed: int, arguments: argparse.Namespace) -> dict[str, dict[str, np.ndarray]]:
    arms = [Arm(name, every) for name, every in EVERY.items()]
    cut, end = stage.cut(arguments.days, arguments.skip_days)
    began = time.monotonic()
    prequential(stage, arms, seed=seed, cut=cut, end=end, sample=arguments.sample, pools=arguments.pools)
    found = {arm.name: {metric: np.array(getattr(arm.scores, metric)) for metric in METRICS} for arm in arms}
    for name, scores in found.items():
        say(f"{stage.name} seed {seed} {name}: " + ", ".join(f"{m} {np.nanmean(v):.5f}" for m, v in scores.items()))
    say(f"{stage.name} seed {seed}: {time.monotonic() - began:.0f} s")
    return found


def summary(seeds: list[dict[str, dict[str, np.ndarray]]]) -> dict[str, Any]:
    """Means and spread over seeds, and the paired gain over frozen with visits of all seeds."""
    rng = np.random.default_rng(0)
    out: dict[str, Any] = {}
    for name in EVERY:
        row: dict[str, Any] = {}
        for metric in METRICS:
            means = [float(np.nanmean(seed[name][metric])) for seed in seeds]
            pooled = np.concatenate([seed[name][metric] - seed["frozen"][metric] for seed in seeds])
            mean, low, high = interval(pooled, rng)
            row[metric] = {
                "mean": round(float(np.mean(means)), 5), "spread": round(float(np.std(means)), 5),
                "gain": round(mean, 5), "interval": [round(low, 5), round(high, 5)],
            }  # fmt: skip
        out[name] = row
    return out


def drift(seeds: list[dict[str, dict[str, np.ndarray]]], name: str, parts: int = 4) -> list[float]:
    """Mean NDCG gain over frozen in each quarter of the stretch: does it grow with the age of the frozen model?"""
    gains = [seed[name]["ndcg"] - seed["frozen"]["ndcg"] for seed in seeds]
    return [
        round(float(np.nanmean(np.concatenate(q))), 5)
        for q in zip(*(np.array_split(g, parts) for g in gains), strict=True)
    ]


def main(datasets: Sequence[str] = ("completejourney", "movietweetings")) -> None:
    import recovery_age  # which reads the arms of this file

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", nargs="*", default=list(datasets))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--days", type=float, default=28)
    parser.add_argument(
        "--skip-days", type=float, default=0, help="leave out so much of the end: for choosing settings"
    )
    parser.add_argument("--sample", type=int, default=500)
    parser.add_argument(
        "--pools", type=float, default=0.15, help="share of the visits that go on record with candidates"
    )
    parser.add_argument("--set", nargs="*", default=[], help="train.online settings, as ranking_learning_rate=3e-4")
    arguments = parser.parse_args()
    measured = arguments.skip_days == 0 and not arguments.set and arguments.seeds >= 3
    with Bench("q4_online", metric="ndcg@10_gain_over_frozen", goal=0.0) as bench:
        kept = RESULTS / "q4_online.json"
        bench.parts |= json.loads(kept.read_text()).get("parts", {}) if kept.exists() else {}
        for name in arguments.dataset:
            stage = Stage(name, online=dict(each.split("=") for each in arguments.set))
            seeds = [one_seed(stage, seed, arguments) for seed in range(arguments.seeds)]
            found = summary(seeds)
            bench.parts[name] = {
                "metric": "prequential, by arm", "ours": found["every 300"]["ndcg"]["gain"], "goal": None, "met": None,
                "arms": found, "gain_by_quarter": {arm: drift(seeds, arm) for arm in EVERY if arm != "frozen"},
                "visits": arguments.sample, "seeds": arguments.seeds, "days": arguments.days, "pools": arguments.pools,
            }  # fmt: skip
            say(json.dumps(found, indent=1))
            if name == arguments.dataset[0] and measured:
                cut, end = stage.cut(arguments.days)
                events = int(np.sum((stage.source.events.time >= cut) & (stage.source.events.time < end)))
                recovery_age.report(name, seeds, events, arguments.sample)
        first = bench.parts[arguments.dataset[0]]["arms"]
        bench.report(
            ours=first["every 300"]["ndcg"]["mean"], peer=first["frozen"]["ndcg"]["mean"], peer_name="frozen",
            keep=measured,
        )  # fmt: skip


if __name__ == "__main__":
    assert RESULTS.exists()
    main()
