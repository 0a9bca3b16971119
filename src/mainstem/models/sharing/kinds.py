"""Ways of sharing by name, as a network is asked for them."""

from __future__ import annotations

from mainstem.models.sharing.mmoe import MultiGate, MultiGateConfig
from mainstem.models.sharing.ple import ProgressiveExtraction, ProgressiveExtractionConfig
from mainstem.models.sharing.shared_bottom import SharedBottom, SharedBottomConfig
from mainstem.schema.ranking_config import SharingKind

__all__ = ["SharingModule", "sharing_of"]

SharingModule = SharedBottom | MultiGate | ProgressiveExtraction


def sharing_of(kind: SharingKind, width: int, tasks: int, experts: int, expert_width: int) -> SharingModule | None:
    """A new module from [n, width] to [n, tasks, expert_width]; None where nothing stands between.

    experts: those that all tasks share; `ple` has one more for each task, in both of its layers.
    """
    if kind == "none":
        return None
    if kind == "shared_bottom":
        return SharedBottom(SharedBottomConfig(width, tasks, (expert_width,), expert_width))
    if kind == "mmoe":
        return MultiGate(MultiGateConfig(width, tasks, experts, (expert_width,), expert_width))
    layers = (expert_width, expert_width)
    return ProgressiveExtraction(ProgressiveExtractionConfig(width, tasks, 1, experts, layers, expert_width))
