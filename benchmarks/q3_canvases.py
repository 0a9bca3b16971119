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
The goal: on every canvas within one standard error of the paired difference over seeds, or better.

Ablations of `one`, one seed: --ablate.

    python benchmarks/q3_canvases.py [--seeds 3] [--epochs 20] [--ablate] [--valid] [--users 0.2]
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
from mainstem.schema.config import CanvasConfig, Config
from mainstem.schema.ids import Keys
from mainstem.schema.position import START
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.canvases import Requests
from mainstem.train.interactions import Interactions, Positives
from mainstem.train.threads import torch_threads

CANVASES = {"search": "query", "next": "events", "related": "previous"}
AT = 10
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


def configure(canvases: dict[str, str], epochs: int = 1, seed: int = 0, **model: Any) -> Config:
    base = Config.model_validate(dict(datasets.get("amazon-beauty").config))
    update: dict[str, Any] = {
        "canvases": {name: CanvasConfig(learns_from=how, share=1.0) for name, how in canvases.items()}  # type: ignore[arg-type]
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
    place = np.full(b, canvases.place(canvas))
    source = batch.previous if canvas == "related" else nothing
    query = batch.query if canvas == "search" else nothing
    return Requests(np.arange(b), place, np.full(b, canvas != "related"), source, nothing, query)


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


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=20)
    parser.add_argument("--users", type=float, default=1.0)
    parser.add_argument("--valid", action="store_true", help="score validation after each epoch of `one`, no report")
    parser.add_argument("--model", default="{}", help="JSON of changes to `model`")
    parser.add_argument("--alone", default="", help="with --valid: one canvas alone")
    args = parser.parse_args()
    shop = load(args.users)
    changes = json.loads(args.model)
    if args.valid:
        canvases = {args.alone: CANVASES[args.alone]} if args.alone else CANVASES
        config = configure(canvases, args.epochs, **typed(changes))

        def each(epoch: int, trainer: RetrievalTrainer) -> None:
            found = {canvas: score(shop, trainer, canvas, 1) for canvas in canvases}
            say(
                "    "
                + ", ".join(f"{c}: HR {s['hr'].mean():.4f} NDCG {s['ndcg'].mean():.4f}" for c, s in found.items())
            )

        with torch_threads(1):
            train(shop, config, each)
        return


def typed(changes: dict[str, Any]) -> dict[str, Any]:
    from mainstem.schema.config import ModelConfig

    whole = ModelConfig.model_validate(changes)
    return {name: getattr(whole, name) for name in changes}


if __name__ == "__main__":
    main()
