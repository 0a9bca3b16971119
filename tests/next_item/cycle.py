"""A world with a known answer: after item i comes i + 1, around a circle. Who reads the order knows what is next."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mainstem.next_item import Actions, of_file
from mainstem.schema.config import Config

ITEMS, USERS = 16, 120
CHANGES = Config.model_validate(
    {
        "model": {"dim": 16, "history": {"layers": 1, "dropout": 0.0}},
        "train": {"retrieval_batch": 128, "retrieval_epochs": 40, "patience": 3},
    }
)


def cycle_csv(folder: Path) -> Path:
    """Each user walks 5 to 8 steps from somewhere on the circle."""
    rng = np.random.default_rng(0)
    lines = ["user,item,order"]
    for user in range(USERS):
        start, length = int(rng.integers(ITEMS)), int(rng.integers(5, 9))
        lines += [f"u{user},i{(start + step) % ITEMS},{step}" for step in range(length)]
    path = folder / "cycle.csv"
    path.write_text("\n".join(lines) + "\n")
    return path


def cycle(folder: Path) -> Actions:
    return of_file(cycle_csv(folder))
