"""History encoders: what a user did, as one causal state per event.

`Histories` is the jagged batch, `HistoryEncoder` what each encoder offers; `chunks` says which part of a long history
an epoch reads. An encoder is built from one config.

| encoder | reads | order | time | cost of a history of n events |
|---|---|---|---|---|
| `Pooling` | rows, action | only through time | as decay | n |
| `Transformer` | all | relative, by rotation | gaps at the input | n^2 |
| `HSTU` | all | relative | gaps at the input and between all pairs | n^2, in memory too |

Rows come in gathered (law 7); the encoders own only small vocabularies: actions, canvases, distances, buckets of time.
"""

from mainstem.models.history.batch import Histories
from mainstem.models.history.encoder import HistoryEncoder
from mainstem.models.history.event_input import EventConfig
from mainstem.models.history.hstu import HSTU, HSTUConfig
from mainstem.models.history.pooling import Pooling, PoolingConfig
from mainstem.models.history.sliding import Chunks, How, chunks
from mainstem.models.history.transformer import Transformer, TransformerConfig

__all__ = [
    "HSTU",
    "Chunks",
    "EventConfig",
    "HSTUConfig",
    "Histories",
    "HistoryEncoder",
    "How",
    "Pooling",
    "PoolingConfig",
    "Transformer",
    "TransformerConfig",
    "chunks",
]
