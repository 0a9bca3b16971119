"""What each part of the one model brings on search, next item and related items: Amazon Beauty, validation actions.

The setting of q3_canvases, on the action before each user's last one (the last ones are the test and are not looked
at). One model of all three canvases is trained without one part, or with another history encoder, and every canvas is
scored after each epoch; the epoch with the best mean NDCG@10 over canvases counts. `gain` is against the whole model,
paired by user.

    whole            as q3_canvases has it, 64 wide: the transformer in sliding windows, words, no user rows
    128 wide         as wide as the one model of q3_canvases
    without words    `model.words: 0`: entities by id and category alone; a query says nothing then
    with user rows   each user has a row of their own besides
    without history  histories of no event: the user's row alone speaks
    other encoders and ways over the past by name

    python benchmarks/q3_ablation.py [--seeds 1] [--only "whole" "with user rows"] [--users 1.0]
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench import Bench, say
from mainstem.next_item import Actions
from mainstem.train import RetrievalTrainer
from mainstem.train.interactions import Interactions, Positives
from mainstem.train.threads import torch_threads
from q3_canvases import CANVASES, EPOCHS, MODEL, ONE, configure, load, score, section, train

METRIC = "ndcg"
Scores = dict[str, NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Variant:
    """Changes to `MODEL`, and how many epochs are looked at. past: whether histories have events."""

    model: dict[str, Any] = field(default_factory=dict)
    epochs: int = EPOCHS
    past: bool = True


def encoder(name: str, windows: str, epochs: int = EPOCHS) -> Variant:
    return Variant({"history": {**MODEL["history"], "encoder": name, "windows": windows}}, epochs)


USER_ROWS = {"user_rows": True}
VARIANTS = {
    "whole": Variant(),
    "128 wide": Variant(ONE),
    "without words": Variant({"words": 0}),
    "with user rows": Variant(USER_ROWS),
    "without history": Variant(USER_ROWS, past=False),
    "pooling, sessions": encoder("pooling", "sessions"),
    "pooling, sliding windows": encoder("pooling", "sliding"),
    "transformer, sessions": encoder("transformer", "sessions"),
    # an epoch of these looks at less
    "transformer, last window": encoder("transformer", "last", 2 * EPOCHS),
    "transformer, mixed windows": encoder("transformer", "mixed", 2 * EPOCHS),
    "hstu, sliding windows": encoder("hstu", "sliding"),
}


class WithoutPast(Positives):
    """The same positives, their histories empty."""

    def batch(self, rows: NDArray[np.int64]) -> Interactions:
        whole = super().batch(rows)
        return replace(whole, state=np.full(len(rows), -1), sequences=whole.sequences.take(np.zeros(0, np.int64)))


def one(shop: Actions, variant: Variant, seed: int) -> dict[str, Any]:
    """Scores of users by canvas in the best epoch, and its number."""
    if not variant.past:
        fields = {name: getattr(shop.positives, name) for name in Positives.__dataclass_fields__}
        shop = replace(shop, positives=WithoutPast(**fields))
    model = section({**MODEL, **variant.model})
    best: dict[str, Any] = {}

    def each(epoch: int, trainer: RetrievalTrainer) -> None:
        scores = {canvas: score(shop, trainer, canvas, "validation") for canvas in CANVASES}
        mean = float(np.mean([found[METRIC].mean() for found in scores.values()]))
        say("    " + ", ".join(f"{canvas} {found[METRIC].mean():.4f}" for canvas, found in scores.items()))
        if not best or mean > best["mean"]:
            best.update(mean=mean, epoch=epoch + 1, scores=scores)

    train(shop, configure(CANVASES, variant.epochs, seed, **model), each)
    return best


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--users", type=float, default=1.0, help="share of the users; below 1 nothing is kept")
    parser.add_argument("--only", nargs="+", choices=list(VARIANTS), default=list(VARIANTS))
    given = parser.parse_args()
    shop = load(given.users)
    names = list(dict.fromkeys(["whole", *given.only]))
    found: dict[str, list[dict[str, Any]]] = {}
    with Bench("q3_ablation", metric="mean NDCG@10 over canvases, validation", goal=None) as bench, torch_threads(1):
        for name in names:
            for seed in range(given.seeds):
                say(f"{name}, seed {seed}")
                found.setdefault(name, []).append(one(shop, VARIANTS[name], seed))
            bench.part(name, **row(found[name], found["whole"]))
        bench.report(
            ours=bench.parts["whole"]["ours"], peer=None, peer_name="none", seeds=given.seeds,
            keep=given.users == 1.0 and len(names) == len(VARIANTS),
        )  # fmt: skip


def row(mine: list[dict[str, Any]], whole: list[dict[str, Any]]) -> dict[str, Any]:
    """A part of the report: NDCG@10 by canvas, and what is gained over the whole model, with its standard error."""
    canvases = {}
    for canvas in CANVASES:
        values = np.mean([run["scores"][canvas][METRIC] for run in mine], axis=0)
        gain = values - np.mean([run["scores"][canvas][METRIC] for run in whole], axis=0)
        canvases[canvas] = {
            METRIC: round(float(values.mean()), 4),
            "hr": round(float(np.mean([run["scores"][canvas]["hr"].mean() for run in mine])), 4),
            "gain": round(float(gain.mean()), 4),
            "error": round(float(gain.std(ddof=1) / len(gain) ** 0.5), 4),
        }
    return {
        "metric": "mean NDCG@10 over canvases", "ours": float(np.mean([run["mean"] for run in mine])),
        "canvases": canvases, "epoch": [run["epoch"] for run in mine],
    }  # fmt: skip


if __name__ == "__main__":
    main()
