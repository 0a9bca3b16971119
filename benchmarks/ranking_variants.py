"""Ranking variants: losses, heads and ways of sharing on a year of real purchases, on validation slates.

The Complete Journey without its last 28 days, which nothing is chosen on; of the rest the last 28 days are validation.
An event's value is what was paid. The towers learn on what lies before the ranking examples, as in `mainstem train`,
once; then examples are made once, by replay with serving's own candidates, and kept in a file. `--quick` takes a tenth
of the households, as the demo does.

Training slates hold drawn negatives, as configured. The slates that are scored hold all candidates of their request,
and are none of those that stop the training early and calibrate it. So this compares networks on the same candidates;
it says nothing of what retrieval does not find.

    losses    the purchase head alone, by each `model.ranking.loss`
    heads     listwise; what further heads do to the purchase head, and how good they are themselves
    sharing   all four heads, by each `model.ranking.sharing`, at equal numbers of parameters
    wide      the purchase head alone, with and without remembered crosses, by the deep network and by a logistic one

A head that a variant does not have is there without weight, so that all see the same network and the same examples.

NDCG@10 is of purchases (gain 1), NDCG@10 new of those among what the household never had, NDCG@10 paid of purchases
with what was paid as gain, ordered by the head `paid`. Differences are paired, slate by slate, over seeds.

    python benchmarks/ranking_variants.py [--quick] [--seeds 3] [--slates 3000] [--cache FILE] [--only losses]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from copy import copy
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory, gettempdir
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench import Bench, say
from mainstem import catalog as catalogs
from mainstem import datasets, eventlog, weights
from mainstem.catalog import MemoryCatalog
from mainstem.curriculum import Curriculum
from mainstem.demo.baskets import LIVE, Baskets
from mainstem.models import Ranker, numpy_scorer
from mainstem.models.sharing import parameter_count
from mainstem.schema.config import Config, HeadConfig, RankingConfig
from mainstem.schema.examples import Examples
from mainstem.schema.pasts import Pasts
from mainstem.schema.position import START
from mainstem.schema.protocols import Log
from mainstem.schema.records import Event
from mainstem.train import Towers, Trainer, Wide, fit_ranker, new_ranker, new_wide

AT = 10
SCORED = 500
LOADED = 20_000
PARAMETERS = 30_000
HEADS = {
    "purchase": HeadConfig(event="purchase", window="1h"),
    "price": HeadConfig(event="purchase", type="value", window="1h"),
    "paid": HeadConfig(event="purchase", type="weighted_logistic", unit=3, window="1h"),
    "worth": HeadConfig(event="purchase", type="lifetime_value", window="14d"),
}
CROSSES = {
    "category": [["latest.product_category", "candidate.product_category"]],
    "type": [["latest.product_type", "candidate.product_type"], ["canvas", "candidate.product_type"]],
    "entity": [["latest.product_type", "candidate"], ["canvas", "candidate"]],
}
Sets = dict[str, Examples]
Scores = dict[str, NDArray[np.float64]]


def configure(slates: int) -> Config:
    config = Config.model_validate(dict(datasets.get("completejourney").config))
    train = config.train.model_copy(update={"validation": "28d", "ranking_slates": slates})
    # the history comes with examples where a cross asks for it
    model = config.model.model_copy(update={"ranking": RankingConfig.model_validate({"wide": crossing("category")})})
    return config.model_copy(update={"heads": HEADS, "train": train, "model": model})


def crossing(*names: str) -> dict[str, Any]:
    """`model.ranking.wide` with these crosses."""
    return {"crosses": [cross for name in names for cross in CROSSES[name]]}


def catalog_of(config: Config) -> MemoryCatalog:
    catalog = catalogs.open("memory://", entities=config.entities)
    catalog.write(list(Baskets(datasets.get("completejourney")).entities()), START)
    return catalog


def log_of(config: Config, quick: bool) -> Log:
    """The data set without its last 28 days, what was paid as the value of each event."""
    baskets = Baskets(datasets.get("completejourney"), quick)
    log = eventlog.open("memory://", history="file:///nowhere", config=config.log)
    log.append(list(baskets.entities()))
    events = [priced(event) for event in baskets.events()]  # in time order
    past = [event for event in events if event.time < events[-1].time - LIVE]
    for start in range(0, len(past), LOADED):
        log.append(past[start : start + LOADED])
    return log


def priced(event: Event) -> Event:
    paid = event.extras.get("amount")
    return msgspec.structs.replace(event, value=max(float(paid), 0.0) if isinstance(paid, int | float) else 0.0)


class Captured(Exception):
    """Raised once the examples are made: the rest of a training run is not needed."""


class Source:
    """A curriculum that makes examples with the towers it is given, and stops there."""

    def __init__(self, source: Curriculum) -> None:
        self.source, self.sets = source, Sets()

    def __getattr__(self, name: str) -> Any:
        return getattr(self.source, name)

    def examples(self, towers: Towers, start: int, cut: int, progress: Callable[[int, int], None]) -> None:
        train, valid = self.source.examples(towers, start, cut, progress)
        # no negative is left out, and there is nothing before `cut`: validation has a quarter of the slates
        whole, config = copy(self.source), self.source.config
        more = {"negatives": 1_000_000, "ranking_slates": 4 * SCORED}
        whole.config = config.model_copy(update={"train": config.train.model_copy(update=more)})
        _, scored = whole.examples(towers, cut, cut, progress)
        known = set(zip(scored.user.tolist(), scored.time.tolist(), strict=True))
        others = [pair not in known for pair in zip(valid.user.tolist(), valid.time.tolist(), strict=True)]
        self.sets = {"train": train, "valid": valid.groups(np.flatnonzero(others)), "scored": scored}
        raise Captured


def made(config: Config, quick: bool) -> tuple[Sets, tuple[str, ...]]:
    """The examples to train on, to stop and calibrate by, and to score; and the names of their inputs."""
    seen: set[str] = set()

    def progress(stage: str, done: int, total: int) -> None:
        if stage not in seen:
            say(f"  {stage}")
        seen.add(stage)

    log = log_of(config, quick)
    with TemporaryDirectory() as folder, closing(Curriculum(config, log, progress)) as curriculum:
        source = Source(curriculum)
        try:
            Trainer(config, curriculum.catalog, weights.open(f"file://{folder}")).run(source, progress)  # type: ignore[arg-type]
        except Captured:
            return source.sets, source.inputs
    raise AssertionError("training went on without examples")


def cached(path: Path, config: Config, quick: bool) -> tuple[Sets, tuple[str, ...]]:
    """The examples in the file, or new ones, which are written there; and the names of their inputs."""
    if not path.exists():
        sets, inputs = made(config, quick)
        columns = {f"{name}/{column}": array for name, part in sets.items() for column, array in flat(part).items()}
        np.savez(path, inputs=np.array(inputs), **columns)  # type: ignore[arg-type]
    with np.load(path) as kept:
        names = dict.fromkeys(key.partition("/")[0] for key in kept if "/" in key)
        return {name: unflat(name, kept) for name in names}, tuple(kept["inputs"].tolist())


def flat(part: Examples) -> dict[str, NDArray[Any]]:
    """The columns of examples with histories."""
    assert part.pasts is not None
    found = {f.name: getattr(part, f.name) for f in fields(Examples) if f.name != "pasts"}
    return found | {f"pasts.{f.name}": getattr(part.pasts, f.name) for f in fields(Pasts)}


def unflat(name: str, kept: Any) -> Examples:
    pasts = Pasts(**{f.name: kept[f"{name}/pasts.{f.name}"] for f in fields(Pasts)})
    return Examples(**{f.name: kept[f"{name}/{f.name}"] for f in fields(Examples) if f.name != "pasts"}, pasts=pasts)


# ---- scores --------------------------------------------------------------------------------------


def ndcg(score: NDArray[np.float64], gain: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Of each slate: [g], NaN where nothing in it has a gain; ties by place."""
    out = np.full(len(offsets) - 1, np.nan)
    discount = 1 / np.log2(np.arange(AT) + 2)
    for i, (start, end) in enumerate(pairwise(offsets.tolist())):
        own = gain[start:end]
        ideal = -np.sort(-own)[:AT]
        if ideal.any():
            best = own[np.argsort(-score[start:end], kind="stable")[:AT]]
            out[i] = best @ discount[: len(best)] / (ideal @ discount[: len(ideal)])
    return out


def slates_of(values: NDArray[np.float64], offsets: NDArray[np.int64]) -> NDArray[np.float64]:
    """Means over each slate's candidates: [g]."""
    return np.add.reduceat(values, offsets[:-1]) / np.diff(offsets)


def scored(
    ranker: Ranker, examples: Examples, heads: dict[str, HeadConfig], wide: Wide | None
) -> tuple[Scores, dict[str, float]]:
    """By slate: what is better when higher (NDCG) or lower (logloss); and sums of predictions against what came."""
    names, learned = list(heads), [name for name, head in heads.items() if head.weight]
    scorer = numpy_scorer(ranker)
    parts = [examples.groups(some) for some in np.array_split(np.arange(len(examples)), max(len(examples) // 16, 1))]
    said = [None if wide is None else wide.of_requests(p.inputs, p.keys, p.offsets, p.pasts) for p in parts]
    scores = [scorer(part.inputs, crossed=crossed) for part, crossed in zip(parts, said, strict=True)]
    found = np.concatenate(scores).astype(np.float64)
    chance = np.clip(found[:, 0], 1e-7, 1 - 1e-7)
    label, offsets = examples.labels[:, 0].astype(np.float64), examples.offsets
    loss = -np.where(label > 0, np.log(chance), np.log1p(-chance))
    out = {
        "NDCG@10": ndcg(found[:, 0], label, offsets),
        "NDCG@10 new": ndcg(np.where(examples.fresh, found[:, 0], -1.0), label * examples.fresh, offsets),
        "logloss": slates_of(loss, offsets),
    }
    ratios = {}
    if "paid" in learned:
        paid = examples.labels[:, names.index("paid")].astype(np.float64)
        out["NDCG@10 paid"] = ndcg(found[:, names.index("paid")], paid, offsets)
        out["NDCG@10 paid, by purchase"] = ndcg(found[:, 0], paid, offsets)
    for name in learned:
        column = names.index(name)
        known = np.isfinite(examples.labels[:, column])
        if known.any():
            ratios[name] = float(found[known, column].sum() / examples.labels[known, column].sum())
    return out, ratios


# ---- variants ------------------------------------------------------------------------------------


class Variants:
    """Trains and scores one variant after the other; `results` holds them by name."""

    def __init__(self, config: Config, sets: Sets, inputs: tuple[str, ...], seeds: int) -> None:
        self.config, self.sets, self.inputs, self.seeds = config, sets, inputs, seeds
        self.catalog = catalog_of(config)
        self.results: dict[str, dict[str, Any]] = {}
        self.slates: dict[str, Scores] = {}

    def run(self, name: str, heads: dict[str, HeadConfig], hidden: list[int], **ranking: Any) -> None:
        """Scores are means over seeds."""
        found: list[tuple[Scores, dict[str, float]]] = []
        began, size = time.monotonic(), 0
        for seed in range(self.seeds):
            model = self.config.model.model_copy(
                update={"hidden": hidden, "ranking": RankingConfig.model_validate(ranking)}
            )
            config = self.config.model_copy(update={"heads": heads, "model": model})
            torch.manual_seed(seed)
            train, valid, held = (self.sets[part] for part in ("train", "valid", "scored"))
            ranker, wide = new_ranker(config, train.inputs.shape[1]), new_wide(config, self.catalog, self.inputs)
            settings = config.train.model_copy(update={"seed": seed})
            fit_ranker(ranker, train, valid, list(heads.values()), settings, wide=wide)
            size = parameter_count(ranker) + (0 if wide is None else len(wide.table) * wide.table.dim)
            found.append(scored(ranker.eval(), held, heads, wide))
        each = {metric: np.stack([scores[metric] for scores, _ in found]) for metric in found[0][0]}
        self.slates[name] = {metric: values.mean(axis=0) for metric, values in each.items()}
        self.results[name] = {
            "parameters": size,
            "seconds": round((time.monotonic() - began) / self.seeds, 1),
            "scores": {metric: round(float(np.nanmean(values)), 5) for metric, values in each.items()},
            "spread over seeds": {
                metric: round(float(np.nanmean(values, axis=1).std(ddof=1)), 5) if self.seeds > 1 else None
                for metric, values in each.items()
            },
            "predicted / observed": {
                head: round(float(np.mean([ratios[head] for _, ratios in found])), 3) for head in found[0][1]
            },
        }
        say(f"  {name}: {self.results[name]}")

    def against(self, name: str, other: str) -> None:
        """Note by how much `name` differs from `other`: mean and standard error of the paired differences by slate."""
        told = {}
        for metric in self.slates[name].keys() & self.slates[other].keys():
            apart = self.slates[name][metric] - self.slates[other][metric]
            apart = apart[np.isfinite(apart)]
            told[metric] = [round(float(apart.mean()), 5), round(float(apart.std(ddof=1) / np.sqrt(len(apart))), 5)]
        self.results[name][f"minus {other}"] = dict(sorted(told.items()))


def largest(config: Config, inputs: int, make: Callable[[int], dict[str, Any]]) -> dict[str, Any]:
    """make(width) at the largest width of at most PARAMETERS: a variant's `hidden` and `model.ranking`."""

    def size(width: int) -> int:
        asked = make(width)
        ranking = RankingConfig(**{name: value for name, value in asked.items() if name != "hidden"})
        model = config.model.model_copy(update={"hidden": asked["hidden"], "ranking": ranking})
        return parameter_count(new_ranker(config.model_copy(update={"model": model}), inputs))

    return make(max(width for width in range(2, 513, 2) if size(width) <= PARAMETERS))


def weighted(*names: str) -> dict[str, HeadConfig]:
    """All four heads, those that are not named without weight."""
    return {n: head.model_copy(update={"weight": float(n in names)}) for n, head in HEADS.items()}


def losses(variants: Variants) -> None:
    hidden = list(variants.config.model.hidden)
    for loss in ("listwise", "pairwise", "pointwise"):
        variants.run(f"loss {loss}", weighted("purchase"), hidden, loss=loss)
        if loss != "listwise":
            variants.against(f"loss {loss}", "loss listwise")


def heads(variants: Variants) -> None:
    hidden, alone = list(variants.config.model.hidden), "loss listwise"
    if alone not in variants.results:
        variants.run(alone, weighted("purchase"), hidden)
    for more in (("paid",), ("worth",), ("price", "paid", "worth")):
        name = " + ".join(("heads purchase", *more))
        variants.run(name, weighted("purchase", *more), hidden)
        variants.against(name, alone)


def sharing(variants: Variants) -> None:
    config, inputs = variants.config, variants.sets["train"].inputs.shape[1]
    hidden = list(config.model.hidden)
    makers: dict[str, Callable[[int], dict[str, Any]]] = {
        "none": lambda width: {"hidden": [2 * width, width]},
        "shared_bottom": lambda width: {"hidden": hidden, "sharing": "shared_bottom", "expert_width": width},
        "mmoe": lambda width: {"hidden": hidden, "sharing": "mmoe", "experts": 4, "expert_width": width},
        "ple": lambda width: {"hidden": hidden, "sharing": "ple", "experts": 2, "expert_width": width},
    }
    for kind, make in makers.items():
        asked = largest(config, inputs, make)
        variants.run(f"sharing {kind}", HEADS, **asked)
        variants.results[f"sharing {kind}"]["shape"] = asked
        if kind != "none":
            variants.against(f"sharing {kind}", "sharing none")


def wide(variants: Variants) -> None:
    hidden, alone = list(variants.config.model.hidden), "loss listwise"
    if alone not in variants.results:
        variants.run(alone, weighted("purchase"), hidden)
    for network in ("deep", "logistic"):
        for name in (*([] if network == "deep" else ["none"]), *CROSSES):
            told = f"wide {name}, {network}"
            crosses = {} if name == "none" else {"wide": crossing(name)}
            variants.run(told, weighted("purchase"), hidden, network=network, **crosses)
            variants.against(told, alone)


STAGES = {"losses": losses, "heads": heads, "sharing": sharing, "wide": wide}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--slates", type=int, default=3_000)
    parser.add_argument("--cache", type=Path, default=None)
    parser.add_argument("--only", choices=list(STAGES))
    given = parser.parse_args()
    config = configure(given.slates)
    cache = given.cache or Path(gettempdir()) / f"mainstem-ranking-examples-{given.slates}{'-quick' * given.quick}.npz"
    with Bench("ranking_variants", metric="NDCG@10 of purchases on validation slates, listwise", goal=None) as bench:
        variants = Variants(config, *cached(cache, config, given.quick), given.seeds)
        for name, stage in STAGES.items():
            if given.only in (None, name):
                stage(variants)
        finish(bench, variants, given.only is None, "a tenth" if given.quick else "all")


def finish(bench: Bench, variants: Variants, whole: bool, households: str) -> None:
    results = variants.results
    for name, metric, value in figures(results):
        bench.part(f"{name}, {metric}", metric=metric, ours=value)
    rows = {name: {"slates": len(part), "candidates": len(part.keys)} for name, part in sorted(variants.sets.items())}
    first = next(iter(results.values()))["scores"]["NDCG@10"]
    peer = results.get("loss pointwise", {}).get("scores", {}).get("NDCG@10")
    bench.report(
        ours=first,
        peer=peer,
        peer_name="pointwise",
        keep=whole,
        households=households,
        examples=rows,
        seeds=variants.seeds,
        variants=results,
    )


def figures(results: dict[str, dict[str, Any]]) -> Iterator[tuple[str, str, float]]:
    """What stands under `parts`: NDCG@10 and logloss of every variant."""
    for name, result in results.items():
        for metric in ("NDCG@10", "logloss"):
            yield name, metric, result["scores"][metric]


if __name__ == "__main__":
    main()
