"""The one setting of the model for the next item, whatever the data, and what a configuration changes of it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from mainstem.schema.config import Config
from mainstem.train.device import wants_gpu

__all__ = ["AVERAGE", "CANVAS", "LARGE", "PRESET", "configured"]

CANVAS = "home"
"""The only canvas there is: what the user takes next."""

AVERAGE = 0.5
"""Of the weights over epochs (`averaging`): what it keeps of itself with each, so the last two or so count."""

PRESET: dict[str, Any] = {
    # What `history.length` reads must be kept.
    "features": {"history": 200},
    "model": {
        "dim": 128,
        # Of 0.1, 0.07 and 0.05: the lower learn long histories faster, short ones as well.
        "temperature": 0.07,
        # The order is what says most, and a history is read whole, a window at a time.
        "history": {
            "encoder": "transformer",
            "layers": 4,
            "heads": 4,
            "length": 200,
            "windows": "sliding",
            "dropout": 0.3,
        },
    },
    "train": {
        "retrieval_batch": 2048,
        # Every item is a negative of every action, as long as that is not too many.
        "retrieval": {"softmax": "auto", "full_up_to": 5_000},
        # The most epochs; validation says which one is kept, and ends it after `patience` without a better one.
        "retrieval_epochs": 200,
        "patience": 5,
    },
}
"""Changes to the default configuration."""

LARGE: dict[str, Any] = {"model": {"dim": 256, "history": {"layers": 8}}}
"""Over `PRESET`, for who has a GPU: about eight times the work of a step."""

ON_GPU: dict[str, Any] = {"train": {"retrieval_batch": 8192}}
"""Over `PRESET` where the networks compute on a GPU: a step there takes about as long for 8,192 positives as for 2,048.
On the CPU it takes four times as long, and many small steps come further in the first epochs."""


def configured(config: Config, changes: Config | None = None, seed: int = 0, *, large: bool = False) -> Config:
    """`config` for the next item: its events and entities, one canvas, `PRESET`, with `large` `LARGE`, on a GPU
    `ON_GPU`, and over it what `changes` sets of `features`, `model` and `train`. A mapping is changed key by key,
    everything else as a whole."""
    given = changes.model_dump(exclude_unset=True) if changes is not None else {}
    told = config.model_dump(exclude_unset=True)
    # a set's own sizes are no part of the setting; what its features are of is
    below = _over(PRESET, LARGE) if large else PRESET
    if wants_gpu(given.get("train", {}).get("device", "cpu")):
        below = _over(below, ON_GPU)
    below = {**below, "features": _over(told.get("features", {}), PRESET["features"])}
    sections = {name: _over(preset, given.get(name, {})) for name, preset in below.items()}
    sections["train"] = {**sections["train"], "seed": seed}
    entity_type = "item" if "item" in config.entities else next(iter(config.entities))
    canvases = {CANVAS: {"entity_type": entity_type, "learns_from": "events", "share": 1.0}}
    return Config.model_validate({**told, **sections, "canvases": canvases})


def _over(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    out = dict(below)
    for name, value in above.items():
        both = isinstance(value, Mapping) and isinstance(out.get(name), Mapping)
        out[name] = _over(out[name], value) if both else value
    return out
