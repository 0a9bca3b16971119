"""Torch modules and losses: tensors in, tensors out. No files, no clock; no keys but those that `cross_keys` makes.

`TwoTower` makes the vectors of retrieval, `Ranker` the scores of ranking (one output per head), `losses`
what they minimise. Embedding rows come in as one gathered leaf tensor that places index (law 7); who
gathers them, and who applies their gradient, is `mainstem.weights`. `NumpyScorer` and `NumpyUserTower` are
the ranker and the user tower without torch, for answering one request on one thread.

Parts from which larger networks are put together, each with the equations it follows; today's product does not use
them yet:

    history/     what a user did -> a state per event
    interest/    candidates against histories -> part of the input
    sharing/     input -> one representation a task
    heads/       what a task's last layer means: loss, and a prediction in the event's own unit
    wide         crosses of categorical fields, one weight each
    logistic     the small baseline
    calibration  predicted against observed
"""

from mainstem.models.logistic import logistic
from mainstem.models.numpy_scorer import NumpyScorer, numpy_scorer
from mainstem.models.numpy_towers import NumpyUserTower
from mainstem.models.ranker import Head, Ranker, RankerConfig
from mainstem.models.two_tower import TwoTower, TwoTowerConfig
from mainstem.models.wide import Wide, cross_keys

__all__ = [
    "Head",
    "NumpyScorer",
    "NumpyUserTower",
    "Ranker",
    "RankerConfig",
    "TwoTower",
    "TwoTowerConfig",
    "Wide",
    "cross_keys",
    "logistic",
    "numpy_scorer",
]
