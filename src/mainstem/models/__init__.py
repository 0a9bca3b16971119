"""Torch modules and losses: tensors in, tensors out. No files, no clock, no keys.

`TwoTower` makes the vectors of retrieval, `Ranker` the scores of ranking (one output per head), `losses`
what they minimise; `history` holds encoders of what a user did. Embedding rows come in as one gathered leaf
tensor that places index (law 7); who gathers them, and who applies their gradient, is `mainstem.weights`.
`NumpyScorer` and `NumpyUserTower` are the ranker and the user tower without torch, for answering one request on one
thread.
"""

from mainstem.models.numpy_scorer import NumpyScorer, numpy_scorer
from mainstem.models.numpy_towers import NumpyUserTower
from mainstem.models.ranker import Head, Ranker, RankerConfig
from mainstem.models.two_tower import TwoTower, TwoTowerConfig

__all__ = [
    "Head",
    "NumpyScorer",
    "NumpyUserTower",
    "Ranker",
    "RankerConfig",
    "TwoTower",
    "TwoTowerConfig",
    "numpy_scorer",
]
