"""The moving average of what a training learned, over its epochs.

Late in a training each epoch moves the weights about a point that is better than any place it visits. Polyak & Juditsky
1992, "Acceleration of Stochastic Approximation by Averaging"; Izmailov et al. 2018, "Averaging Weights Leads to Wider
Optima and Better Generalization": once an epoch; Tarvainen & Valpola 2017, "Mean teachers are better role models": with
exponential weights, which forget the first epochs.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from mainstem.schema.protocols import Floats
from mainstem.train import RetrievalTrainer

__all__ = ["averaged", "learned_by", "restore"]

Learned = Mapping[str, Any]
"""module: the networks' weights by name; table: the table's state, see `Table.state`."""


def learned_by(trainer: RetrievalTrainer) -> dict[str, Any]:
    """A copy of all that scores come from: the networks' weights and the table's rows."""
    named = trainer.towers.module.state_dict().items()
    module = {name: value.detach().to("cpu", copy=True) for name, value in named}
    return {"module": module, "table": trainer.towers.table.state()}


def restore(trainer: RetrievalTrainer, kept: Learned) -> None:
    """Go back to what `learned_by` copied."""
    trainer.towers.module.load_state_dict(kept["module"])
    trainer.towers.table.load(kept["table"])


def averaged(before: Learned | None, learned: Learned, keep: float) -> dict[str, Any]:
    """keep * before + (1 - keep) * learned, for the networks' weights and for every row; `learned` where there was
    nothing before. Rows that `learned` has no more are gone, all else of the table is as there. Changes neither.

    keep: in [0, 1).
    """
    if not 0 <= keep < 1:
        raise ValueError(f"the average must keep a share in [0, 1) of itself, not {keep}")
    if before is None:
        return dict(learned)
    module = {}
    for name, value in learned["module"].items():
        module[name] = torch.lerp(value, before["module"][name], keep) if value.is_floating_point() else value
    return {"module": module, "table": {**learned["table"], "values": _rows(before["table"], learned["table"], keep)}}


def _rows(before: Mapping[str, Any], learned: Mapping[str, Any], keep: float) -> Floats:
    """Values float32 [n, dim] of the rows of `learned`."""
    values: Floats = learned["values"].copy()
    _, old, new = np.intersect1d(before["keys"], learned["keys"], assume_unique=True, return_indices=True)
    values[new] += np.float32(keep) * (before["values"][old] - values[new])
    return values
