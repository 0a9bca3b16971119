"""What retrieval learns against: the whole catalogue, or negatives drawn from it."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from mainstem.schema.section import Section

__all__ = ["HardConfig", "PopularConfig", "RetrievalConfig"]


class PopularConfig(Section):
    """Negatives drawn by how often they are taken."""

    draws: int = Field(default=0, ge=0, le=1_000_000)
    """A step."""
    power: float = Field(default=0.75, ge=0, le=2)
    """1 draws by the share of positives, as a batch does; 0 evenly among what is taken at all."""


class HardConfig(Section):
    """Negatives drawn from the entities that a visit's request scores best. In `mainstem train` alone."""

    draws: int = Field(default=0, ge=0, le=1_000)
    """For each visit of a batch."""
    among: int = Field(default=200, ge=1, le=10_000)
    """So many of the best."""
    every: int = Field(default=50, ge=1, le=1_000)
    """Steps for which the best are found at once, each time against the whole catalogue; these batches wait in
    memory."""


class RetrievalConfig(Section):
    """What retrieval learns against (see the-model.md). Whatever is drawn, log Q corrects for how."""

    softmax: Literal["auto", "full", "sampled"] = "sampled"
    """`full`: every entity that was ever taken, in each step; `sampled`: the negatives below; `auto`: full while there
    are at most `full_up_to` of these entities. Learning from the stream takes `full` for `auto`."""
    full_up_to: int = Field(default=2_000, ge=0)
    """Entities; by default about as many as the candidates of a sampled step."""
    in_batch: bool = True
    """The positives of a batch are negatives of its other users."""
    uniform: int = Field(default=1_024, ge=0, le=1_000_000)
    """Even draws a step from all that was ever taken."""
    popular: PopularConfig = PopularConfig()
    hard: HardConfig = HardConfig()
    queue: int = Field(default=0, ge=0, le=1_000)
    """Positives of so many batches before are negatives too."""

    @model_validator(mode="after")
    def _negatives_reach_every_positive(self) -> Self:
        # Q of a positive that nothing could have drawn is 0, and there is no correcting for it.
        everything = self.uniform or self.popular.draws
        if not (everything or self.in_batch):
            raise ValueError("no negatives reach every entity: set in_batch, uniform or popular.draws")
        if self.hard.draws and not everything:
            raise ValueError("hard negatives need uniform or popular.draws beside them, which reach every entity")
        if self.hard.draws > self.hard.among:
            raise ValueError(f"hard.draws {self.hard.draws} must be at most hard.among {self.hard.among}")
        return self
