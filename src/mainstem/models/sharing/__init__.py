"""How tasks share a network: x [n, width] in, one representation a task [n, tasks, out] out.

| variant | tasks share | where they conflict |
|---|---|---|
| `SharedBottom` | everything but the last layer | they pull at the same weights |
| `MultiGate` (MMoE) | experts, by gates of their own | a gate can turn away from an expert |
| `ProgressiveExtraction` (CGC) | some experts; some are a task's alone | each has experts that nobody else moves |
| `ProgressiveExtraction` (PLE: stacked) | as CGC, and a path between the layers | as CGC, but they meet on that path |

Each config counts its `parameters`; `at_budget` makes variants of equal size.
"""

from mainstem.models.sharing.kinds import SharingModule, sharing_of
from mainstem.models.sharing.mmoe import MultiGate, MultiGateConfig
from mainstem.models.sharing.ple import ProgressiveExtraction, ProgressiveExtractionConfig
from mainstem.models.sharing.protocol import Sharing, SharingConfig, at_budget, parameter_count
from mainstem.models.sharing.shared_bottom import SharedBottom, SharedBottomConfig

__all__ = [
    "MultiGate",
    "MultiGateConfig",
    "ProgressiveExtraction",
    "ProgressiveExtractionConfig",
    "SharedBottom",
    "SharedBottomConfig",
    "Sharing",
    "SharingConfig",
    "SharingModule",
    "at_budget",
    "parameter_count",
    "sharing_of",
]
