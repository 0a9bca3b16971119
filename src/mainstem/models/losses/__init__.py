"""What the models minimise: one loss a file, each a function of tensors that returns a scalar.

| loss | trains | data |
|---|---|---|
| `sampled_softmax` | the two towers | (user, positive entity) pairs, sampled negatives |
| `full_softmax` | the two towers | (user, positive entity) pairs, the whole catalogue |
| `listwise_softmax` | the order of a slate | candidates of a slate with gains |
| `pairwise` | the order of a slate | candidates of a slate with gains |
| `binary` | a binary head's probability | candidates with 0/1 labels, sampled negatives |
| `value` | a value head's size | events with a measured value |

`negatives` draws the negatives of `sampled_softmax` and says with which chance.
"""

from mainstem.models.losses.binary import binary
from mainstem.models.losses.listwise_softmax import listwise_softmax
from mainstem.models.losses.pairwise import pairwise
from mainstem.models.losses.sampled_softmax import log_inclusion, sampled_softmax
from mainstem.models.losses.softmax import full_softmax
from mainstem.models.losses.value import value

__all__ = ["binary", "full_softmax", "listwise_softmax", "log_inclusion", "pairwise", "sampled_softmax", "value"]
