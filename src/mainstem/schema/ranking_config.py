"""`model.ranking` of the configuration: the shape of the ranking network, and what it minimises."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, ValidationInfo, field_validator

from mainstem.schema.section import Section
from mainstem.schema.wide_config import WideConfig

__all__ = ["OrderLoss", "RankingConfig", "SharingKind"]

OrderLoss = Literal["listwise", "pairwise", "pointwise"]
SharingKind = Literal["none", "shared_bottom", "mmoe", "ple"]


class RankingConfig(Section):
    """The ranking network."""

    network: Literal["deep", "logistic"] = "deep"
    """`deep`: cross and deep layers beside a linear part; `logistic`: the linear part alone, a small baseline."""
    wide: WideConfig = WideConfig()
    loss: OrderLoss = "listwise"
    """How binary heads learn the order: by a softmax over the slate, by its pairs, or candidate by candidate."""
    sharing: SharingKind = "none"
    """What heads have to themselves above the joint layer: nothing but their weights, a layer (`shared_bottom`), a mix
    of experts (`mmoe`), or some experts of their own as well (`ple`)."""
    interest: Literal["none", "target_attention", "transformer"] = "none"
    """What it sees of how a candidate goes with the user's history: `target_attention` (DIN) weighs each event by the
    candidate, `transformer` (BST) lets the candidate attend to them; `none` has the features and the dot product."""
    experts: int = Field(default=4, ge=1, le=64)
    """Experts that all heads share; of `mmoe` and `ple`."""
    expert_width: int = Field(default=32, ge=1, le=1024)
    """Width of each expert, and of a head's own layer."""

    @field_validator("sharing", "interest")
    @classmethod
    def _a_line_has_no_layers(cls, chosen: str, info: ValidationInfo) -> str:
        if info.data.get("network") == "logistic" and chosen != "none":
            raise ValueError(f"{chosen!r} is of `network: deep` alone")
        return chosen
