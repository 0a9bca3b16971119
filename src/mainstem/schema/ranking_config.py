"""The section `model.ranking` of the configuration."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel

__all__ = ["RankingConfig"]


class RankingConfig(BaseModel, extra="forbid", frozen=True, use_attribute_docstrings=True):
    """What the ranking network is made of."""

    interest: Literal["none", "target_attention", "transformer"] = "none"
    """What it sees of how a candidate goes with the user's history: `target_attention` (DIN) weighs each event by the
    candidate, `transformer` (BST) lets the candidate attend to them; `none` has the features and the dot product."""
