"""Matrix factorisation of implicit feedback by alternating least squares, as the package `implicit` does it.

Hu, Koren & Volinsky 2008, "Collaborative Filtering for Implicit Feedback Datasets". A user's factors are solved anew
from what they did before the place that is asked for, with the items' factors as they are.
"""

from __future__ import annotations

import itertools
from typing import Any

import numpy as np

from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask, Scorer
from mainstem.evaluate.peers.matrix import histories, interactions
from mainstem.schema.errors import MissingExtra
from mainstem.schema.protocols import Floats

__all__ = ["GRID", "fit"]

ITERATIONS = 15
GRID: tuple[dict[str, Any], ...] = tuple(
    {"factors": factors, "regularization": regularization, "alpha": alpha}
    for factors, regularization, alpha in itertools.product((64, 128), (0.01, 0.1), (1.0, 10.0))
)


def fit(
    data: LeaveOneOut, learned: Mask, /, *, factors: int, regularization: float, alpha: float, seed: int = 0
) -> Scorer:
    """Factors of all items, on one thread. Raises MissingExtra without `implicit`."""
    try:
        from implicit.cpu.als import AlternatingLeastSquares
    except ModuleNotFoundError as error:
        raise MissingExtra("peers", "iALS") from error
    model = AlternatingLeastSquares(
        factors=factors, regularization=regularization, alpha=alpha, iterations=ITERATIONS, num_threads=1,
        random_state=seed,
    )  # fmt: skip
    model.fit(interactions(data, learned), show_progress=False)

    def scores(data: LeaveOneOut, places: Ints) -> Floats:
        users = model.recalculate_user(np.arange(len(places)), histories(data, places))
        found: Floats = users @ model.item_factors.T
        return found

    return scores
