"""Q3: one model for many canvases against one model each: search, next item and related items on Amazon Beauty.

Every user's last action is the test, the one before it validation, the rest is learned from; histories are the latest
50. The whole catalogue is ranked for each test action, without what the user had before; ties by key. Three canvases:

    search    given user, history and query: the words of the category path of what was bought (after Ai et al., SIGIR
              2017, HEM)
    next      given user and history
    related   given only the item that the user took before

`one`: one model, learned from the examples of all three. `search alone`, `next alone`, `related alone`: a model of the
same configuration that knows the one canvas, and sees as many examples of it as `one` did. So all three together see
what `one` saw; their seconds are added up. Epochs were chosen on validation for `next`, and are the same for all.
`--weights` changes what canvases count in `one` (`canvases.X.weight`).
The goal: on every canvas within one standard error of the paired difference over seeds, or better.

    python benchmarks/q3_canvases.py [--seeds 3] [--epochs 3] [--valid] [--users 0.2] [--model JSON] [--weights JSON]
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import msgspec
import numpy as np
import torch
from numpy.typing import NDArray

from bench import Bench, say
from mainstem import catalog as catalogs
from mainstem import datasets
from mainstem.catalog import MemoryCatalog
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, Config, ModelConfig
from mainstem.schema.ids import Keys
from mainstem.schema.position import START
from mainstem.schema.settings import Setting
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.canvases import Requests
from mainstem.train.interactions import Interactions, Positives
from mainstem.train.threads import torch_threads

CANVASES = {"search": "query", "next": "events", "related": "previous"}
AT = 10
EPOCHS = 3
Ints = NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Shop:
    """The data set, its events carrying the query that would find them. `last` [n]: 0 for a user's last action."""

    catalog: MemoryCatalog
    positives: Positives
    last: Ints

    def learned(self) -> Ints:
        return np.flatnonzero(self.last >= 2)


def load(share: float = 1.0) -> Shop:
    records = datasets.get("amazon-beauty").load()
    catalog = catalogs.open("memory://", entities=configure({}).entities)
    entities = list(records.entities())
    catalog.write(entities, START)
    queries = {entity.entity: " ".join(entity.attributes.get("categories") or []) for entity in entities}
    events = [
        msgspec.structs.replace(event, query=queries.get(event.entity or "") or None) for event in records.events()
    ]
    if share < 1:
        users = {event.user for event in events}
        kept = set(sorted(users)[: round(share * len(users))])
        events = [event for event in events if event.user in kept]
    batch = EventBatch.of(events, range(len(events)))
    # the set has an order and no times: every action is a session of its own
    positives = Positives.of(batch, configure({}).interest(), lambda _, order: np.ones(len(order), np.bool_))
    ends = np.append(np.flatnonzero(np.diff(positives.begin)), len(positives) - 1)
    last = ends[np.searchsorted(ends, np.arange(len(positives)))] - np.arange(len(positives))
    return Shop(catalog, positives, last)


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
    shop: Shop, config: Config, each: Callable[[int, RetrievalTrainer], None] = lambda *_: None
) -> RetrievalTrainer:
    torch.manual_seed(config.train.seed)
    rng = np.random.default_rng(config.train.seed)
    trainer = RetrievalTrainer(new_towers(config, shop.catalog), shop.positives, config.model, config.train)
    rows = shop.learned()
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


def score(
    shop: Shop, trainer: RetrievalTrainer, canvas: str, nth_last: int, chunk: int = 1024
) -> dict[str, NDArray[np.float64]]:
    """HR@10 and NDCG@10 of each user's `nth_last` action: float64 [u] each."""
    data, rows = shop.positives, np.flatnonzero(shop.last == nth_last)
    entities: Keys = np.unique(data.entity)
    vectors = torch.from_numpy(trainer.towers.entity_vectors(entities))
    place = np.searchsorted(entities, data.entity)
    hits, gains = [], []
    for start in range(0, len(rows), chunk):
        some = rows[start : start + chunk]
        batch = data.batch(some)
        users = torch.from_numpy(trainer.towers.vectors_of(batch, asked(trainer, batch, canvas)))
        scores = users @ vectors.T
        for i, row in enumerate(some.tolist()):
            target = place[row]
            had = place[data.begin[row] : row]
            scores[i, had[had != target]] = -2.0
        own = scores[torch.arange(len(some)), torch.from_numpy(place[some])]
        before = scores > own[:, None]
        ties = (scores == own[:, None]) & (torch.arange(len(entities)) < torch.from_numpy(place[some])[:, None])
        rank = (before | ties).sum(dim=1).numpy()
        hits.append(rank < AT)
        gains.append(np.where(rank < AT, 1 / np.log2(rank + 2.0), 0.0))
    return {"hr": np.concatenate(hits).astype(np.float64), "ndcg": np.concatenate(gains)}


def arms(
    shop: Shop, epochs: int, seed: int, model: dict[str, Any], weights: dict[str, float] | None = None
) -> dict[str, Any]:
    """Test scores of users by canvas, of `one` and of each canvas' own model; and the seconds that each took."""
    out: dict[str, Any] = {"scores": {}, "seconds": {}}
    for name, canvases in {"one": CANVASES, **{f"{c} alone": {c: how} for c, how in CANVASES.items()}}.items():
        began = time.monotonic()
        counts = weights if name == "one" else None
        trainer = train(shop, configure(canvases, epochs, seed, counts, **model))
        out["seconds"][name] = round(time.monotonic() - began, 1)
        out["scores"][name] = {canvas: score(shop, trainer, canvas, 0) for canvas in canvases}
        for canvas, found in out["scores"][name].items():
            say(f"seed {seed} {name}, {canvas}: " + ", ".join(f"{m} {v.mean():.4f}" for m, v in found.items()))
    return out


def report(
    bench: Bench, seeds: list[dict[str, Any]], epochs: int, model: dict[str, Any], weights: dict[str, float], keep: bool
) -> None:
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
        ours=good, peer=None, peer_name="a model for each canvas", keep=keep, seconds_of=seconds, epochs=epochs,
        model=model, weights=weights,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--valid", action="store_true", help="score validation after each epoch, and report nothing")
    parser.add_argument("--model", default="{}", help="JSON of changes to `model`")
    parser.add_argument("--weights", default="{}", help='what canvases count, as {"search": 0.4}; 1 if not named')
    parser.add_argument("--alone", choices=list(CANVASES), help="with --valid: this canvas alone")
    args = parser.parse_args()
    shop, changes, weights = load(args.users), json.loads(args.model), json.loads(args.weights)
    model = {name: getattr(ModelConfig.model_validate(changes), name) for name in changes}
    with torch_threads(1):
        if args.valid:
            canvases = {args.alone: CANVASES[args.alone]} if args.alone else CANVASES

            def each(epoch: int, trainer: RetrievalTrainer) -> None:
                found = {canvas: score(shop, trainer, canvas, 1) for canvas in canvases}
                lines = (f"{c}: HR {s['hr'].mean():.4f} NDCG {s['ndcg'].mean():.4f}" for c, s in found.items())
                say("    " + ", ".join(lines))

            train(shop, configure(canvases, args.epochs, weights=weights, **model), each)
            return
        bench = Bench("q3_canvases", metric="canvases on which one model is not worse", goal=len(CANVASES))
        found = [arms(shop, args.epochs, seed, model, weights) for seed in range(args.seeds)]
    report(bench, found, args.epochs, changes, weights, keep=args.users == 1.0 and args.seeds >= 3)


if __name__ == "__main__":
    main()
