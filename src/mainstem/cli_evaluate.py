"""`mainstem evaluate`: the end of the log replayed, or the next item on any data in which users did something."""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from cyclopts import Group, Parameter
from rich.console import Console

from mainstem.cli_config import DEFAULT, ConfigFile, configuration, err, say
from mainstem.progress import stages
from mainstem.schema.errors import MainstemError

if TYPE_CHECKING:
    from mainstem.next_item import Actions, Rules
    from mainstem.progress import Show
    from mainstem.schema.config import Config

__all__ = ["evaluate"]

MOST_DAYS = 36_500
MOST_K, MOST_SEEDS = 1_000, 100

REPLAY = Group("With --protocol replay", sort_key=1)
NEXT = Group("With --protocol next-item", sort_key=2)


def _next(help: str) -> Parameter:
    return Parameter(group=NEXT, help=help)


Protocol = Annotated[
    Literal["replay", "next-item"],
    Parameter(help="replay: the end of the log as live traffic; next-item: each user's last action, full ranking"),
]
Json = Annotated[bool, Parameter(name="--json", help="one line of JSON instead of tables")]
Days = Annotated[float, Parameter(group=REPLAY, help="the stretch at the end of the log that is replayed")]
Most = Annotated[int, Parameter(group=REPLAY, help="requests at most, evenly sampled")]
Report = Annotated[Path | None, Parameter(group=REPLAY, help="folder for evaluation.json and evaluation.html")]
Dataset = Annotated[
    str | None,
    _next(
        "a public set (see `mainstem datasets list`) or a file: Parquet, CSV, TSV or JSON lines, with columns user, "
        "item and time or order; without it the configured log"
    ),
]
Items = Annotated[
    Path | None, _next("beside a file: what items are; a column of their ids, the others are text or attributes")
]
Map = Annotated[list[str] | None, _next("of a file: FIELD=COLUMN, e.g. --map user=household_id; repeatable")]
Split = Annotated[Literal["test", "validation"], _next("test: each user's last action; validation: the one before it")]
K = Annotated[
    list[int] | None, Parameter(name="--k", group=NEXT, help="HR@k and NDCG@k; repeatable, 10 and 5 by default")
]
Seeds = Annotated[int, _next("trainings of all that draws numbers: mean and spread")]
Only = Annotated[list[str] | None, _next("recommenders by name, e.g. --only mainstem; repeatable, all by default")]
Refit = Annotated[
    bool, _next("for the test: train anew with validation added, by the epochs that brought something without it")
]
MinCount = Annotated[
    int | None, _next("leave out items with fewer actions; by default as is usual for the set, else 1")
]
Seen = Annotated[
    Literal["filter", "keep"] | None,
    _next(
        "filter: leave out what the user had before, never the target; keep: rank it too; by default as is usual for "
        "the set, else filter"
    ),
]
Users = Annotated[float, _next("share of the users, for a first look")]
Resume = Annotated[
    Path | None, _next("folder for checkpoints and answers; after a kill the same command goes on there")
]
Minutes = Annotated[
    float | None, _next("of each training at most, without asking validation: its last epoch is cut, its best counts")
]
Large = Annotated[bool, _next("the larger setting, 256 wide with 8 layers: for a GPU (train.device)")]
Plot = Annotated[Path | None, _next("HTML file for bar charts of it all")]


def evaluate(
    *,
    protocol: Protocol = "replay",
    config: ConfigFile = DEFAULT,
    json_: Json = False,
    days: Days = 7,
    most: Most = 1000,
    report: Report = None,
    dataset: Dataset = None,
    items: Items = None,
    map: Map = None,
    split: Split = "test",
    k: K = None,
    seeds: Seeds = 1,
    only: Only = None,
    refit: Refit = False,
    min_count: MinCount = None,
    seen: Seen = None,
    users: Users = 1.0,
    resume: Resume = None,
    minutes: Minutes = None,
    large: Large = False,
    plot: Plot = None,
) -> None:
    """How good are the answers? Tables beside baselines, JSON, plots.

    replay: train on all but the end of the log, replay the end, compare with baselines.
    next-item: train the one model, with one setting for all data, on everything but each user's last two actions, and
    rank the whole catalogue for the last one; popularity and tuned peers beside it.

      mainstem evaluate --days 14
      mainstem evaluate --protocol next-item --dataset amazon-beauty --seeds 3
      mainstem evaluate --protocol next-item --dataset purchases.csv --items products.csv --plot found.html

    `features`, `model` and `train` of the configuration change the setting; anything else of it counts for the log
    alone.
    """
    if protocol == "replay":
        _replay(config, days, most, report, json_)
        return
    ks = _checked(k, seeds, users, min_count, minutes)
    settings = configuration(config)
    with stages(err) as show:
        from mainstem.next_item import Asked, compare

        systems = _systems(only)
        rules = _rules(dataset, min_count, seen)
        if split == "validation" and refit:
            raise MainstemError("--refit learns from validation, so --split validation says nothing then")
        actions = _actions(dataset, items, map, users, rules, settings, config, show)
        asked = Asked(split, ks, seeds, systems, rules, refit, settings, resume, minutes or math.inf, large)
        found = compare(actions, asked, show, say)
    if plot:
        say(f"wrote {found.write(plot, f'Next item: {actions.name}')}")
    if json_:
        print(found.json())
    else:
        Console().print(*found.tables())


def _checked(
    k: list[int] | None, seeds: int, users: float, min_count: int | None, minutes: float | None
) -> tuple[int, ...]:
    ks = tuple(dict.fromkeys(k or (10, 5)))
    for each in ks:
        if not 1 <= each <= MOST_K:
            raise MainstemError(f"--k: {each} must be from 1 to {MOST_K:,}")
    if not 1 <= seeds <= MOST_SEEDS:
        raise MainstemError(f"--seeds: {seeds} must be from 1 to {MOST_SEEDS}")
    if not 0 < users <= 1:
        raise MainstemError(f"--users: {users:g} must be above 0 and at most 1")
    if min_count is not None and min_count < 1:
        raise MainstemError(f"--min-count: {min_count} must be at least 1")
    if minutes is not None and not minutes > 0:  # not true of nan either
        raise MainstemError(f"--minutes: {minutes:g} must be above 0")
    return ks


def _systems(only: list[str] | None) -> tuple[str, ...]:
    from mainstem.next_item.compare import SYSTEMS
    from mainstem.schema.config_file import nearest

    for name in only or ():
        if name not in SYSTEMS:
            near = nearest(name, SYSTEMS)
            raise MainstemError(f"--only: there is no {name!r};{near} there are: {', '.join(SYSTEMS)}")
    return tuple(name for name in SYSTEMS if not only or name in only)


def _rules(dataset: str | None, min_count: int | None, seen: Literal["filter", "keep"] | None) -> Rules:
    from mainstem.next_item import RULES, Rules

    usual = RULES.get(dataset or "", Rules())
    return Rules(usual.min_count if min_count is None else min_count, seen or usual.seen)


def _actions(
    dataset: str | None, items: Path | None, map: list[str] | None, users: float, rules: Rules, settings: Config,
    config: Path, show: Show,
) -> Actions:  # fmt: skip
    from mainstem import datasets, next_item

    path = Path(dataset) if dataset is not None and dataset not in datasets.names() else None
    if path is None and (items or map):
        raise MainstemError("--items and --map go with a file as --dataset")
    if path is not None:
        if not path.exists() and not path.suffix and os.sep not in str(path):
            datasets.get(str(path))  # says which there are
        mapping = dict(pair.split("=", 1) for pair in map or [] if "=" in pair)
        if len(mapping) != len(map or []):
            raise MainstemError("--map wants FIELD=COLUMN, as in --map user=household_id")
        return next_item.of_file(path, items, mapping=mapping, users=users, min_count=rules.min_count)
    if dataset is not None:
        known = datasets.get(dataset)
        return next_item.of_dataset(known, users=users, min_count=rules.min_count)
    if users < 1:
        raise MainstemError("--users goes with --dataset: the log is taken whole")
    from mainstem.assemble import open_log

    log = open_log(settings, config.parent)
    try:
        return next_item.of_log(settings, log, show, min_count=rules.min_count)
    finally:
        log.close()


def _replay(config: Path, days: float, most: int, report: Path | None, json_: bool) -> None:
    if not 0 < days <= MOST_DAYS:  # not true of nan either
        raise MainstemError(f"--days: {days:g} must be above 0 and at most {MOST_DAYS:,}")
    if most < 1:
        raise MainstemError(f"--most: {most} must be at least 1")
    from mainstem.assemble import open_log, open_texts
    from mainstem.evaluation import evaluate_log

    settings = configuration(config)
    log = open_log(settings, config.parent)
    with stages(err) as show:
        texts = open_texts(settings, config.parent)
        evaluation, _ = evaluate_log(settings, log, days=days, most=most, progress=show, texts=texts)
    log.close()
    if report:
        say(f"wrote {', '.join(str(path) for path in evaluation.write(report))}")
    if json_:
        print(evaluation.json())
    else:
        Console().print(evaluation.table(), *(head.table() for head in evaluation.calibration))
    if evaluation.failures:
        raise MainstemError("below the gate: " + "; ".join(evaluation.failures))
