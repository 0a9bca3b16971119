"""What the models minimise: one loss a file, each a function of tensors that returns a scalar.

| loss | trains | data |
|---|---|---|
| `sampled_softmax` | the two towers | (user, positive entity) pairs, sampled negatives |
| `listwise_softmax` | the order of a slate | candidates of a slate with gains |
| `binary` | a binary head's probability | candidates with 0/1 labels, sampled negatives |
| `value` | a value head's size | events with a measured value |
"""

from mainstem.models.losses.binary import binary
from mainstem.models.losses.listwise_softmax import listwise_softmax
from mainstem.models.losses.sampled_softmax import log_inclusion, sampled_softmax
from mainstem.models.losses.value import value

__all__ = ["binary", "listwise_softmax", "log_inclusion", "sampled_softmax", "value"]
