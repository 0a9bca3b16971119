"""Torch modules and losses: tensors in, tensors out. No files, no clock; no keys but those that `cross_keys` makes.

`Unified` makes the vectors of retrieval for any canvas, reading histories by one of the encoders of `history`; `Ranker`
the scores of ranking, one a head; `losses` what they minimise. Embedding rows come in as one gathered leaf tensor that
places index (law 7); who gathers them, and who applies their gradient, is `mainstem.weights`. `NumpyScorer`,
`NumpyInterest` and `NumpyRequests` are the ranker, its interest and the request side without torch, for answering one
request on one thread.

The parts, each with the equations it follows:

    interest/    candidates against histories -> part of the input
    sharing/     input -> one representation a task
    wide         crosses of categorical fields, remembered one by one
    logistic     the ranker without layers, the small baseline
    heads/       what a task's last layer means: loss, and a prediction in the event's own unit
    calibration  predicted against observed

what needs no training loop, and no torch:

    neighbourhood/  weights between items, from who took what
"""

from mainstem.models.interest import InterestConfig, Meeting
from mainstem.models.logistic import logistic
from mainstem.models.numpy_interest import NumpyInterest
from mainstem.models.numpy_requests import NumpyRequests
from mainstem.models.numpy_scorer import NumpyScorer, numpy_scorer
from mainstem.models.ranker import Head, Ranker, RankerConfig
from mainstem.models.unified import Asked, Unified, UnifiedConfig
from mainstem.models.wide import cross_keys, crossed

__all__ = [
    "Asked",
    "Head",
    "InterestConfig",
    "Meeting",
    "NumpyInterest",
    "NumpyRequests",
    "NumpyScorer",
    "Ranker",
    "RankerConfig",
    "Unified",
    "UnifiedConfig",
    "cross_keys",
    "crossed",
    "logistic",
    "numpy_scorer",
]
