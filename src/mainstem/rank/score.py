"""Stage 3: scores per head from the model in use."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from mainstem.schema.ids import Keys
from mainstem.schema.protocols import FeatureView, Floats, VectorIndex
from mainstem.schema.records import Context

__all__ = ["RELATION", "ModelVersion", "rank_inputs"]

# Not a head of the network: how strongly the similarity sources tie a candidate to the source entities.
RELATION = "relation"


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One trained version, ready to answer: towers, their index (law 8: they swap together), ranking network.

    `user_vector(context, view, tenant)` -> float32 [dim]; `embed(keys)` -> unit vectors [n, dim] for the index;
    `scores(x [n, f])` -> float32 [n, len(heads)], probabilities or values; `inputs` names the columns of x: the
    features and what `rank_inputs` adds. version: of the dense part; sparse_version: of the rows.
    """

    line: str
    version: str
    heads: tuple[str, ...]
    inputs: tuple[str, ...]
    index: VectorIndex
    user_vector: Callable[[Context, FeatureView, str], Floats]
    scores: Callable[[Floats], Floats]
    embed: Callable[[Keys], Floats]
    sparse_version: str | None = None


def rank_inputs(model: ModelVersion, context: Context, view: FeatureView, tenant: str, keys: Keys) -> Floats:
    """What the ranking network eats: feature values, then the retrieval score (`two_tower`): [n, f].

    The one definition used by serving and by training's replay alike.
    """
    values = view.values(keys)
    user = model.user_vector(context, view, tenant)
    affinity = model.index.vectors(keys) @ user if user.any() else np.zeros(len(keys), np.float32)
    return np.column_stack([values, affinity]).astype(np.float32, copy=False)
