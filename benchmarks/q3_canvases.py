"""Q3: one model for many canvases against one model each: search, next item and related items on Amazon Beauty.

Every user's last action is the test, the one before it validation, the rest is learned from; histories are the latest
50. The whole catalogue is ranked for each test action, without what the user had before; ties by key. Three canvases:

    search    given user, history and query: the words of the category path of what was bought (after Ai et al., SIGIR
              2017, HEM)
    next      given user and history
    related   given only the item that the user took before

`one`: one model, learned from the examples of all three. `search alone`, `next alone`, `related alone`: a model that
knows the one canvas, and sees as many examples of it as `one` did. So all three together see what `one` saw; their
seconds are added up. All read histories with the same encoder (`MODEL`). `one` encodes a history once for all canvases,
where three models do it three times, and is wider for that (`ONE`): as many examples in about the same time, with two
thirds of the three models' parameters. `--one '{}'` gives it the width of each of the three. Epochs were chosen on
validation, and are the same for all. `--weights` changes what canvases count in `one` (`canvases.X.weight`).
The goal: on every canvas within one standard error of the paired difference over seeds, or better.

    python benchmarks/q3_canvases.py [--seeds 3] [--epochs 8] [--valid] [--users 0.2] [--model JSON] [--one JSON]
        [--weights JSON]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import Bench, say
from mainstem import datasets
from mainstem.evaluate.next_item import Split, hit, ndcg, ranks_of
from mainstem.next_item import Actions, of_dataset
from mainstem.next_item.model import scorer
from mainstem.schema.config import CanvasConfig, Config, ModelConfig
from mainstem.schema.records import Entity
from mainstem.schema.settings import Setting
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.canvases import Requests
from mainstem.train.interactions import Interactions
from mainstem.train.threads import torch_threads

CANVASES = {"search": "query", "next": "events", "related": "previous"}
AT = 10
EPOCHS = 8
MODEL: dict[str, Any] = {"history": {"encoder": "transformer", "windows": "sliding", "dropout": 0.2}}
ONE: dict[str, Any] = {"dim": 128}


def load(share: float = 1.0) -> Actions:
    """The data set, its events carrying the query that would find them."""
    return of_dataset(datasets.get("amazon-beauty"), users=share, queries=query_for)


def query_for(entity: Entity) -> str:
    found = entity.attributes.get("categories")
    return " ".join(found) if isinstance(found, list) else ""


def configure(
    canvases: dict[str, str], epochs: int = 1, seed: int = 0, weights: dict[str, float] | None = None, **model: Any
) -> Config:
    base = Config.model_validate(dict(datasets.get("amazon-beauty").config))
    update: dict[str, Any] = {
        "canvases": {
            name: CanvasConfig(learns_from=how, share=1.0, weight=(weights or {}).get(name, 1.0))  # type: ignore[arg-type]
            for name, how in canvases.items()
        }
    }
    update["model"] = base.model.model_copy(update=model)
    update["train"] = base.train.model_copy(update={"retrieval_epochs": epochs, "seed": seed})
    return base.model_copy(update=update)


def train(
    shop: Actions, config: Config, each: Callable[[int, RetrievalTrainer], None] = lambda *_: None
) -> RetrievalTrainer:
    torch.manual_seed(config.train.seed)
    rng = np.random.default_rng(config.train.seed)
    trainer = RetrievalTrainer(new_towers(config, shop.catalog), shop.positives, config.model, config.train)
    rows = np.flatnonzero(shop.data.learned())
    for epoch in range(config.train.retrieval_epochs):
        began, losses = time.monotonic(), [loss for loss, _ in trainer.epoch(rows, rng, epoch)]
        say(f"  epoch {epoch + 1}: loss {np.mean(losses):.4f}, {time.monotonic() - began:.1f} s")
        each(epoch, trainer)
    return trainer


def asked(trainer: RetrievalTrainer, batch: Interactions, canvas: str) -> Requests:
    """What each canvas knows of a test action."""
    b, canvases = len(batch), trainer.towers.canvases
    nothing = np.zeros(b, np.uint64)
    place = np.full(b, canvases.places.of(canvas))
    source = batch.previous if canvas == "related" else nothing
    query = batch.query if canvas == "search" else nothing
    nowhere = np.zeros((b, len(Setting._fields)), np.uint64)
    return Requests(np.arange(b), place, np.full(b, canvas != "related"), source, nothing, query, nowhere)


def score(shop: Actions, trainer: RetrievalTrainer, canvas: str, split: Split) -> dict[str, NDArray[np.float64]]:
    """HR@10 and NDCG@10 of the action of each user that is asked for: float64 [u] each."""
    scores = scorer(shop, trainer, lambda batch: asked(trainer, batch, canvas))
    rank = ranks_of(scores, shop.data, shop.data.held(split))
    return {"hr": hit(rank, AT), "ndcg": ndcg(rank, AT)}


def arms(
    shop: Actions, epochs: int, seed: int, model: dict[str, Any], one: dict[str, Any], weights: dict[str, float]
) -> dict[str, Any]:
    """Test scores of users by canvas, of `one` and of each canvas' own model; and the seconds that each took.

    model: changes to the configuration's; one: to that of `one` besides.
    """
    out: dict[str, Any] = {"scores": {}, "seconds": {}}
    for name, canvases in {"one": CANVASES, **{f"{c} alone": {c: how} for c, how in CANVASES.items()}}.items():
        began = time.monotonic()
        counts, changes = (weights, {**model, **one}) if name == "one" else (None, model)
        trainer = train(shop, configure(canvases, epochs, seed, counts, **changes))
        out["seconds"][name] = round(time.monotonic() - began, 1)
        out["scores"][name] = {canvas: score(shop, trainer, canvas, "test") for canvas in canvases}
        for canvas, found in out["scores"][name].items():
            say(f"seed {seed} {name}, {canvas}: " + ", ".join(f"{m} {v.mean():.4f}" for m, v in found.items()))
    return out


def report(bench: Bench, seeds: list[dict[str, Any]], keep: bool, **settings: Any) -> None:
    good = 0
    for canvas in CANVASES:
        for metric in ("ndcg", "hr"):
            one, alone = (
                np.array([seed["scores"][name][canvas][metric].mean() for seed in seeds])
                for name in ("one", f"{canvas} alone")
            )
            error = float((one - alone).std(ddof=1) / len(seeds) ** 0.5) if len(seeds) > 1 else float("nan")
            gain = float((one - alone).mean())
            bench.part(
                f"{canvas}, {metric}@{AT}", metric="gain of one model over its own", ours=gain,
                goal=-error if len(seeds) > 1 else None, one=round(float(one.mean()), 4),
                alone=round(float(alone.mean()), 4), error=round(error, 5),
                seeds={"one": one.round(5).tolist(), "alone": alone.round(5).tolist()},
            )  # fmt: skip
            good += metric == "ndcg" and gain >= -error
    seconds = {name: [seed["seconds"][name] for seed in seeds] for name in seeds[0]["seconds"]}
    bench.report(
        ours=good, peer=None, peer_name="a model for each canvas", keep=keep, seconds_of=seconds, **settings,
    )  # fmt: skip


def section(changes: dict[str, Any]) -> dict[str, Any]:
    """The parts of the `model` section that are changed, whole and checked."""
    return {name: getattr(ModelConfig.model_validate(changes), name) for name in changes}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--valid", action="store_true", help="score validation after each epoch, and report nothing")
    parser.add_argument("--model", default=json.dumps(MODEL), help="JSON of changes to `model`")
    parser.add_argument("--one", default=json.dumps(ONE), help="JSON of further changes for `one`")
    parser.add_argument("--weights", default="{}", help='what canvases count, as {"search": 0.4}; 1 if not named')
    parser.add_argument("--alone", choices=list(CANVASES), help="with --valid: this canvas alone")
    args = parser.parse_args()
    settings = {name: json.loads(getattr(args, name)) for name in ("model", "one", "weights")}
    shop, weights = load(args.users), settings["weights"]
    model, wider = (section(settings[name]) for name in ("model", "one"))
    with torch_threads(1):
        if args.valid:
            canvases = {args.alone: CANVASES[args.alone]} if args.alone else CANVASES

            def each(epoch: int, trainer: RetrievalTrainer) -> None:
                found = {canvas: score(shop, trainer, canvas, "validation") for canvas in canvases}
                lines = (f"{c}: HR {s['hr'].mean():.4f} NDCG {s['ndcg'].mean():.4f}" for c, s in found.items())
                say("    " + ", ".join(lines))

            changes = model if args.alone else {**model, **wider}
            train(shop, configure(canvases, args.epochs, weights=weights, **changes), each)
            return
        bench = Bench("q3_canvases", metric="canvases on which one model is not worse", goal=len(CANVASES))
        found = [arms(shop, args.epochs, seed, model, wider, weights) for seed in range(args.seeds)]
    report(bench, found, keep=args.users == 1.0 and args.seeds >= 3, epochs=args.epochs, **settings)


if __name__ == "__main__":
    main()
