"""Q7: ranking models on tabular data: MovieLens-1M against DCN V2 as published, and two census tasks by way of sharing.

    ctr      The protocol of Wang et al. 2021, "DCN V2": ratings of 1 and 2 are 0, of 4 and 5 are 1, of 3 are left out;
             80 % of what is left are learned from, 10 % are validation, 10 % test, at random. Inputs are ids and
             attributes of both sides: user, movie, gender, age, occupation, zip code, and the movie's genres, the mean
             of their rows; 30 numbers a field. Variants: logistic regression; the deep network alone; cross and deep
             network. As the split is random, a movie's later ratings are known when an earlier one is asked for: this
             checks the network against a published one, and says nothing of the future.
    census   Census-Income, its official test half, split at random into thirds for training, validation and test. Two
             tasks, after Ma et al. 2018 (MMoE): income above 50,000, and never married. Neither label nor
             instance_weight is an input; household columns that all but tell who is married are. 20,898 rows are equal
             to an earlier one but for their weight, so the thirds share some. A model for each task against one model
             for both by each `model.ranking.sharing`, all of about PARAMETERS trainable numbers, rows included; the two
             models of one task have half each.

Both splits are drawn once (SPLIT), from the ratings ordered by user and movie and from the rows of the file as they
are; seeds differ in first weights and the order of training. The grid of each variant is trained by the first seed, and
the point of the least logloss on validation is taken; so is, in every run, the epoch. What the grids leave fixed was
chosen by hand on the same validation part. Test is scored after that.
Errors of test figures: spread is over seeds, sampling error over draws of the test examples with replacement.

A part that a run leaves out keeps its last result.

    python benchmarks/q7_tabular.py [--only ctr] [--seeds 3] [--epochs 1] [--quick]
"""

from __future__ import annotations

import argparse
import bisect
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import torch
from numpy.typing import NDArray

from _tabular import Columns, Fit, Settings, Tabular, fit, keys_of, parts_of, sampling_error, scores_of
from bench import RESULTS, Bench, say
from mainstem import datasets
from mainstem.models.sharing import parameter_count

SPLIT = 0
PUBLISHED = {"DCN-V2": {"logloss": 0.3170, "auc": 0.8950}, "DCN-Mix": {"logloss": 0.3160, "auc": 0.8964}}
FULL = "cross and deep"
QUICK = 0.1  # share of the examples

Sets = tuple[Columns, Columns, Columns]  # learned from, validation, test
Grid = Mapping[str, Sequence[Any]]  # settings' names, and the values that are tried of each with all of the others

# ---- ratings -------------------------------------------------------------------------------------

PERSON = ("gender", "age", "occupation", "zip")
CTR = Settings(dim=30, hidden=(128, 64), rank=32, dropout=0.2, batch=2048, epochs=6, dense_rate=3e-3, row_rate=1e-2)
PENALTIES = (4e-4, 8e-4)
CTR_VARIANTS: dict[str, tuple[Settings, Grid]] = {
    "logistic": (replace(CTR, hidden=(), cross_layers=0), {"row_rate": (3e-3, 1e-2), "penalty": (0.0, 1e-4)}),
    "deep": (replace(CTR, cross_layers=0), {"penalty": PENALTIES}),
    FULL: (CTR, {"cross_layers": (1, 2), "penalty": PENALTIES}),
}


def liked(ratings: NDArray[Any]) -> tuple[NDArray[np.bool_], NDArray[np.float32]]:
    """Which ratings of 1 to 5 count, and the labels of those: 0 up to two stars, 1 from four."""
    counts = ratings != 3
    return counts, (ratings[counts] > 3).astype(np.float32)


def films() -> Columns:
    """The ratings of MovieLens-1M that count, by user and movie. Raises SystemExit where the set is not there."""
    source = datasets.get("ml-1m")
    folder = source.find()
    if folder is None or not (folder / "users.parquet").exists():
        raise SystemExit(f"q7_tabular needs the Parquet form of {source.title}; {source.how()}")
    ratings, users, movies = (pq.read_table(folder / f"{name}.parquet") for name in ("ratings", "users", "movies"))
    user, movie, rating = (ratings[name].to_numpy() for name in ("user_id", "movie_id", "rating"))
    order = np.lexsort((movie, user))
    counts, labels = liked(rating[order])
    user, movie = user[order][counts], movie[order][counts]
    person = np.column_stack([keys_of(name, users[name].to_pylist()) for name in PERSON])
    genres = [keys_of("genre", told.split("|")) for told in movies["genres"].to_pylist()]
    most = max(map(len, genres))
    of_movie = np.array([np.pad(keys, (0, most - len(keys))) for keys in genres])
    own = [keys_of("user", user.tolist()), keys_of("movie", movie.tolist())]
    told = person[_places(users["user_id"].to_numpy(), user)], of_movie[_places(movies["movie_id"].to_numpy(), movie)]
    return Columns(np.column_stack([*own, *told]), np.zeros((len(user), 0), np.float32), labels[:, None], most)


def _places(ids: NDArray[Any], asked: NDArray[Any]) -> NDArray[np.int64]:
    """Where in `ids`, each once, those that are asked for stand."""
    order = np.argsort(ids)
    found: NDArray[np.int64] = order[np.searchsorted(ids, asked, sorter=order)]
    return found


# ---- census --------------------------------------------------------------------------------------

TASKS = ("income", "never married")
LEFT_OUT = ("income_50k", "marital_stat", "instance_weight")
AMOUNTS = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
NUMBERS = ("age", "num_emp", "weeks_worked")
PARAMETERS = 80_000
ALONE = "a model each"
CENSUS = Settings(dim=8, cross_layers=1, rank=16, hidden=(64,), batch=512, epochs=6, row_rate=1e-2)
CENSUS_GRID: Grid = {"dense_rate": (2e-3, 5e-3)}
SHAPES: dict[str, Callable[[int], Settings]] = {
    ALONE: lambda width: replace(CENSUS, hidden=(width,)),
    "none": lambda width: replace(CENSUS, hidden=(width,)),
    "shared_bottom": lambda width: replace(CENSUS, sharing="shared_bottom", expert_width=width),
    "mmoe": lambda width: replace(CENSUS, sharing="mmoe", experts=4, expert_width=width),
    "ple": lambda width: replace(CENSUS, sharing="ple", experts=2, expert_width=width),
}


def census_file() -> Path:
    """Where it is. Raises SystemExit where it is not."""
    name, file = "census-income-test", "census_income.parquet"
    places = [datasets.cache_folder(name)]
    if root := os.environ.get("MAINSTEM_DATA"):
        places.insert(0, Path(root) / name)
    for place in places:
        if (place / file).is_file():
            return place / file
    raise SystemExit(f"q7_tabular looked for {file} in {' and '.join(map(str, places))}")


def people(table: Mapping[str, Sequence[Any]]) -> Columns:
    """Both tasks' examples from the file's columns: whole numbers as they are or, of money, log(1 + x); every other
    input is a category."""
    inputs = [name for name in table if name not in LEFT_OUT]
    keys = [keys_of(name, table[name]) for name in inputs if name not in AMOUNTS + NUMBERS]
    money = [np.log1p(np.array(table[name], np.float32)) for name in AMOUNTS]
    numbers = [np.array(table[name], np.float32) for name in NUMBERS]
    rich = [value == "50000+." for value in table["income_50k"]]
    single = [value == "Never married" for value in table["marital_stat"]]
    labels = np.array([rich, single], np.float32).T.copy()
    return Columns(np.column_stack(keys), np.column_stack([*money, *numbers]), labels)


def sized(shape: Callable[[int], Settings], examples: Columns, budget: int) -> Settings:
    """shape(width) at the largest width of at most `budget` trainable numbers, rows included."""
    values = len(np.unique(examples.keys[examples.keys > 0]))

    def size(width: int) -> int:
        settings = shape(width)
        return parameter_count(Tabular(examples, settings, seed=0).ranker) + values * settings.dim

    return shape(bisect.bisect_right(range(1, 2049), budget, key=size))


# ---- runs ----------------------------------------------------------------------------------------


def points(settings: Settings, grid: Grid) -> Iterator[dict[str, Any]]:
    """Every combination of the grid's values."""
    for values in product(*grid.values()):
        yield dict(zip(grid, values, strict=True))


def chosen(name: str, sets: Sets, settings: Settings, grid: Grid) -> tuple[Settings, list[dict[str, Any]], Fit]:
    """The point of the grid with the least logloss on validation, what all of them had there, and its fit."""
    tried, best, kept = [], settings, None
    for point in points(settings, grid):
        found = fit(sets[0], sets[1], replace(settings, **point), seed=0)
        tried.append(point | {"validation": _rounded(scores_of(found.model, sets[1])), "epoch": found.best})
        say(f"  {name} {point}: {tried[-1]['validation']}, epoch {found.best}, {found.seconds:.0f} s")
        if kept is None or min(found.validation) < min(kept.validation):
            best, kept = replace(settings, **point), found
    assert kept is not None
    return best, tried, kept


def trained(name: str, sets: Sets, settings: Settings, grid: Grid, seeds: int) -> dict[str, Any]:
    """One variant: its grid, then every seed at the point that was taken; scores of each task on test, by seed."""
    settings, tried, first = chosen(name, sets, settings, grid)
    fits = [first, *(fit(sets[0], sets[1], settings, seed) for seed in range(1, seeds))]
    scores = [scores_of(found.model, sets[2]) for found in fits]
    say(f"  {name}: {[_rounded(score) for score in scores]}")
    return {
        "parameters": first.model.parameters,
        "settings": asdict(settings),
        "grid": tried,
        "epochs": [found.best for found in fits],
        "seconds": round(float(np.mean([found.seconds for found in fits])), 1),
        "scores": scores,
        "sampling": sampling_error(first.model, sets[2]),
    }


def summary(scores: Sequence[Mapping[str, float]], sampling: Mapping[str, float]) -> dict[str, Any]:
    """Of one task: mean, spread over seeds and error of sampling, of each metric."""
    told: dict[str, Any] = {}
    for metric in scores[0]:
        values = np.array([score[metric] for score in scores])
        told[metric] = {
            "mean": round(float(values.mean()), 5),
            "spread": round(float(values.std(ddof=1)), 5) if len(values) > 1 else None,
            "sampling_error": round(sampling[metric], 5),
            "seeds": [round(float(value), 5) for value in values],
        }
    return told


def gains(ours: Sequence[Mapping[str, float]], theirs: Sequence[Mapping[str, float]]) -> dict[str, Any]:
    """By how much one arm differs from another, paired by seed: mean and its standard error, of each metric."""
    told = {}
    for metric in ours[0]:
        apart = np.array([a[metric] - b[metric] for a, b in zip(ours, theirs, strict=True)])
        error = float(apart.std(ddof=1) / np.sqrt(len(apart))) if len(apart) > 1 else None
        told[metric] = {
            "mean": round(float(apart.mean()), 5), "standard_error": None if error is None else round(error, 5),
        }  # fmt: skip
    return told


def _rounded(scores: Sequence[Mapping[str, float]]) -> list[dict[str, float]]:
    return [{metric: round(value, 5) for metric, value in score.items()} for score in scores]


def split(examples: Columns, shares: Sequence[float], quick: bool) -> Sets:
    first, second, third = (examples.take(rows) for rows in parts_of(len(examples), shares, SPLIT))
    few = QUICK if quick else 1.0
    return tuple(part.take(np.arange(int(len(part) * few))) for part in (first, second, third))  # type: ignore[return-value]


def adjusted(settings: Settings, epochs: int | None) -> Settings:
    return settings if epochs is None else replace(settings, epochs=epochs)


def ctr(bench: Bench, given: argparse.Namespace) -> None:
    sets = split(films(), (0.8, 0.1, 0.1), given.quick)
    told: dict[str, Any] = {}
    scores = {}
    for name, (settings, grid) in CTR_VARIANTS.items():
        found = trained(f"ctr, {name}", sets, adjusted(settings, given.epochs), grid, given.seeds)
        scores[name] = [score[0] for score in found.pop("scores")]
        told[name] = summary(scores[name], found.pop("sampling")[0]) | found
    for name in told:
        if name != FULL:
            told[name][f"{FULL} minus this"] = gains(scores[FULL], scores[name])
    bench.part(
        "ctr", metric=f"AUC on test, {FULL}", ours=told[FULL]["auc"]["mean"],
        goal=PUBLISHED["DCN-Mix"]["auc"], published=PUBLISHED, variants=told,
        ones=round(float(sets[0].labels.mean()), 4), examples=[len(part) for part in sets], seeds=given.seeds,
    )  # fmt: skip


def census(bench: Bench, given: argparse.Namespace) -> None:
    sets = split(people(pq.read_table(census_file()).to_pydict()), (1 / 3, 1 / 3, 1 / 3), given.quick)
    told: dict[str, Any] = {}
    scores = {}
    for name, shape in SHAPES.items():
        if name == ALONE:
            apart = [tuple(part.task(task) for part in sets) for task in range(len(TASKS))]
            settings = sized(shape, apart[0][0], PARAMETERS // 2)
            found = [
                trained(f"census, {task} alone", one, adjusted(settings, given.epochs), CENSUS_GRID, given.seeds)  # type: ignore[arg-type]
                for task, one in zip(TASKS, apart, strict=True)
            ]
        else:
            settings = sized(shape, sets[0], PARAMETERS)
            found = [trained(f"census, {name}", sets, adjusted(settings, given.epochs), CENSUS_GRID, given.seeds)]
        each = [one.pop("scores") for one in found]
        scores[name] = [[score for one in seed for score in one] for seed in zip(*each, strict=True)]
        errors = [error for one in found for error in one.pop("sampling")]
        told[name] = {"parameters": sum(one["parameters"] for one in found), "models": found}
        for i, task in enumerate(TASKS):
            told[name][task] = summary([seed[i] for seed in scores[name]], errors[i])
            if name != ALONE:
                apart_by = gains([seed[i] for seed in scores[name]], [seed[i] for seed in scores[ALONE]])
                told[name][task][f"minus {ALONE}"] = apart_by
    bench.part(
        "census", metric="AUC on test, mean of both tasks, mmoe",
        ours=float(np.mean([told["mmoe"][task]["auc"]["mean"] for task in TASKS])), variants=told,
        ones={task: round(float(sets[0].labels[:, i].mean()), 4) for i, task in enumerate(TASKS)},
        examples=[len(part) for part in sets], seeds=given.seeds,
    )  # fmt: skip


PARTS = {"ctr": ctr, "census": census}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=list(PARTS))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, help="instead of each part's own")
    parser.add_argument("--quick", action="store_true", help="a tenth of the examples; to try")
    given = parser.parse_args()
    torch.set_num_threads(1)
    goal = PUBLISHED["DCN-Mix"]["auc"]
    with Bench("q7_tabular", metric="AUC on MovieLens-1M's test ratings", goal=goal) as bench:
        for name, part in PARTS.items():
            if given.only in (None, name):
                part(bench, given)
        # read only now: a run of the other part may have ended meanwhile
        kept = RESULTS / "q7_tabular.json"
        before = json.loads(kept.read_text())["parts"] if kept.exists() else {}
        bench.parts = dict(sorted((before | bench.parts).items(), reverse=True))
        if "ctr" not in bench.parts:
            print(json.dumps(bench.parts))
            raise SystemExit("q7_tabular: nothing is kept, as there is no result of ctr, which is the headline")
        whole = given.seeds >= 3 and given.epochs is None and not given.quick
        bench.report(
            ours=bench.parts["ctr"]["ours"],
            peer=PUBLISHED["DCN-V2"]["auc"],
            peer_name="DCN-V2, as published",
            keep=whole,
        )


if __name__ == "__main__":
    main()
