"""What a feature family asks of its rows: how they start, learn, earn their place and leave.

A family is a kind of key (user, item, category ...). Families of one table share its dimension and its memory
(unified embedding: Coleman et al. 2023, "Unified Embedding: Battle-Tested Feature Representations for Web-Scale ML
Systems"); everything else is each family's own.
"""

from __future__ import annotations

from dataclasses import dataclass, field

__all__ = ["Adagrad", "Adam", "Family", "Ftrl", "Optimizer", "RowwiseAdagrad"]


@dataclass(frozen=True, slots=True)
class RowwiseAdagrad:
    """One accumulator a row: the mean of its squared gradients (Naumov et al. 2019, "DLRM"; Duchi et al. 2011)."""

    epsilon: float = 1e-8

    def state_width(self, dim: int) -> int:
        """float32 numbers of optimizer state beside each row."""
        return 1


@dataclass(frozen=True, slots=True)
class Adagrad:
    """One accumulator a coordinate (Duchi et al. 2011, section 1.1)."""

    epsilon: float = 1e-8

    def state_width(self, dim: int) -> int:
        return dim


@dataclass(frozen=True, slots=True)
class Adam:
    """Lazy Adam: only rows with a gradient move, each with a step count of its own for the bias correction
    (Kingma & Ba 2015, algorithm 1)."""

    beta1: float = 0.9
    beta2: float = 0.999
    epsilon: float = 1e-8

    def state_width(self, dim: int) -> int:
        return 2 * dim + 1


@dataclass(frozen=True, slots=True)
class Ftrl:
    """FTRL-Proximal, for sparse wide weights (McMahan et al. 2013, "Ad Click Prediction", algorithm 1).
    The learning rate of the step is its alpha."""

    beta: float = 1.0
    l1: float = 0.0
    l2: float = 0.0

    def state_width(self, dim: int) -> int:
        return 2 * dim


Optimizer = RowwiseAdagrad | Adagrad | Adam | Ftrl


@dataclass(frozen=True, slots=True)
class Family:
    """One kind of key.

    scale: new rows are uniform in (-scale, scale), made from the table's seed and the key alone
    optimizer: how its rows learn
    admit_after: a key earns its row at this sight of it; sights are counted in bounded memory
    admit_probability: each sight (from `admit_after` on) earns the row with this chance
    expire: ms of event time; a row not looked up for training for so long is swept. None: never
    capacity: rows at most; one more evicts the least recently seen of a few that are looked at. None: no bound
    """

    name: str = "default"
    scale: float = 0.05
    optimizer: Optimizer = field(default_factory=RowwiseAdagrad)
    admit_after: int = 1
    admit_probability: float = 1.0
    expire: int | None = None
    capacity: int | None = None

    def __post_init__(self) -> None:
        if not self.name:
            raise ValueError("a family needs a name")
        if not 0 < self.scale < float("inf") and self.scale != 0:
            raise ValueError(f"family {self.name}: scale {self.scale} must be 0 or more and finite")
        if self.admit_after < 1 or self.admit_after > 255:
            raise ValueError(f"family {self.name}: admit_after {self.admit_after} must be 1 to 255")
        if not 0 < self.admit_probability <= 1:
            raise ValueError(
                f"family {self.name}: admit_probability {self.admit_probability} must be above 0, at most 1"
            )
        if self.expire is not None and self.expire < 1000:
            raise ValueError(f"family {self.name}: expire {self.expire} ms is below a second, the clock of rows")
        if self.capacity is not None and self.capacity < 1:
            raise ValueError(f"family {self.name}: capacity {self.capacity} must be at least 1")
