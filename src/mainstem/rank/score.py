"""Stage 3: scores per head from the model in use."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from mainstem.index import Neighbourhood
from mainstem.schema.canvases import canvas_inputs
from mainstem.schema.errors import NotReady
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.pasts import Pasts
from mainstem.schema.protocols import FeatureView, Floats, VectorIndex
from mainstem.schema.records import Context

__all__ = ["RELATION", "Met", "ModelVersion", "RankInputs", "Reads", "extra_inputs", "rank_inputs"]

EXTRA = ("two_tower", "near_cooccurrence", "near_vector")
# Neighbours of the source entities that are told apart.
NEIGHBOURS = 2_000

# Not a head of the network: how strongly the similarity sources tie a candidate to the source entities.
RELATION = "relation"


@dataclass(frozen=True, slots=True)
class Met:
    """The candidates and the history that they meet, by the vectors of the index: zeros for what is not in it.

    vectors float32 [n, dim]: the candidates'; past: one, m events; events float32 [m, dim]; gaps float32 [m]: seconds
    from each event to the request.
    """

    vectors: Floats
    past: Pasts
    events: Floats
    gaps: Floats


@dataclass(frozen=True, slots=True)
class RankInputs:
    """What the ranking network eats of one request: values float32 [n, f] of the candidates keys uint64 [n], and met
    where it reads the history."""

    values: Floats
    keys: Keys
    met: Met | None = None


@dataclass(frozen=True, slots=True)
class Reads:
    """What a ranking network reads of the history: kinds of events, and how `past(view)` of them is found."""

    kinds: tuple[str, ...]
    past: Callable[[FeatureView], Pasts]


@dataclass(frozen=True, slots=True)
class ModelVersion:
    """One trained version, ready to answer: towers, their index (law 8: they swap together), ranking network.

    `request_vector(context, view, tenant)` -> float32 [dim], zeros where nothing is known; `embed(keys)` -> unit
    vectors [n, dim] for the index; `scores(inputs)` -> float32 [n, len(heads)], probabilities or values; `inputs`
    names the columns of its values: the features and what `rank_inputs` adds; `reads`: what it reads of the history,
    None for nothing; `canvases`: those that it tells apart. version: of the dense part; sparse_version: of the rows.
    neighbourhoods: weights between items by the source that reads them, or why there are none.
    """

    line: str
    version: str
    heads: tuple[str, ...]
    inputs: tuple[str, ...]
    canvases: tuple[str, ...]
    index: VectorIndex
    request_vector: Callable[[Context, FeatureView, str], Floats]
    scores: Callable[[RankInputs], Floats]
    embed: Callable[[Keys], Floats]
    sparse_version: str | None = None
    reads: Reads | None = None
    neighbourhoods: Mapping[str, Neighbourhood | str] = field(default_factory=dict)

    def neighbourhood(self, source: str) -> Neighbourhood:
        """The weights that a source reads. Raises NotReady where there are none."""
        found = self.neighbourhoods.get(source, f"{self.version} has no weights for it")
        if isinstance(found, str):
            raise NotReady(found)
        return found


def extra_inputs(canvases: Sequence[str]) -> tuple[str, ...]:
    """Names of the columns that `rank_inputs` adds to the features, for these canvases."""
    return (*EXTRA, *canvas_inputs(canvases))


def rank_inputs(model: ModelVersion, context: Context, view: FeatureView, tenant: str, keys: Keys) -> RankInputs:
    """What the ranking network eats: feature values, then how near each candidate is to the request (`two_tower`) and
    to its source entities (in the graph and by vector; 0 without sources), then which canvas asks: [n, f]. And the
    history, where the network reads it.

    The one definition used by serving and by training's replay alike.
    """
    vectors = model.index.vectors(keys)
    asked = model.request_vector(context, view, tenant)
    extra = np.zeros((len(keys), len(EXTRA) + len(model.canvases)), np.float32)
    extra[:, 0] = vectors @ asked if asked.any() else 0.0
    if context.sources:
        sources = keys64(context.source_type, context.sources, tenant)
        extra[:, 1] = _near(view, sources, keys)
        extra[:, 2] = vectors @ model.index.vectors(sources).mean(axis=0)
    if context.canvas in model.canvases:
        extra[:, len(EXTRA) + model.canvases.index(context.canvas)] = 1.0
    values = np.column_stack([view.values(keys), extra]).astype(np.float32, copy=False)
    if model.reads is None:
        return RankInputs(values, keys)
    past = model.reads.past(view)
    gaps = past.gaps(np.array([view.time], np.int64))
    return RankInputs(values, keys, Met(vectors, past, model.index.vectors(past.entity), gaps))


def _near(view: FeatureView, sources: Keys, keys: Keys) -> Floats:
    """How strongly each candidate co-occurs with the sources: float32 [n]."""
    found = view.neighbours(sources, np.ones(len(sources), np.float32), NEIGHBOURS)
    if not len(found):
        return np.zeros(len(keys), np.float32)
    order = np.argsort(found.keys)
    at = order[np.minimum(np.searchsorted(found.keys, keys, sorter=order), len(found) - 1)]
    return np.where(found.keys[at] == keys, found.scores[at], np.float32(0))
