"""What the network's last layer means, task by task: link, loss, and a prediction in the event's own unit.

| head | label | predicts |
|---|---|---|
| `BinaryHead` | 0 or 1 | the chance |
| `OrdinalHead` | one of rising grades | the expected grade |
| `ValueHead` | a size, of those that have one | a typical size; after `fit_smearing` the expected one |
| `WeightedLogisticHead` | a size, 0 for most | the expected size |
| `LifetimeValueHead` | a size, 0 for most, known late | the expected size |

A label that is NaN is not known and does not count.
"""

from mainstem.models.heads.binary import BinaryHead
from mainstem.models.heads.head import Head, TaskModule, task_of
from mainstem.models.heads.lifetime_value import LifetimeValueHead, due
from mainstem.models.heads.ordinal import OrdinalHead
from mainstem.models.heads.protocol import ExpectedAmountHead, TaskHead
from mainstem.models.heads.value import ValueHead
from mainstem.models.heads.weighted_logistic import WeightedLogisticHead

__all__ = [
    "BinaryHead",
    "ExpectedAmountHead",
    "Head",
    "LifetimeValueHead",
    "OrdinalHead",
    "TaskHead",
    "TaskModule",
    "ValueHead",
    "WeightedLogisticHead",
    "due",
    "task_of",
]
