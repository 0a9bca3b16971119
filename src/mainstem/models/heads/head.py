"""Heads by name, as a network is asked for them."""

from __future__ import annotations

from dataclasses import dataclass

from mainstem.models.heads.binary import BinaryHead
from mainstem.models.heads.lifetime_value import LifetimeValueHead
from mainstem.models.heads.ordinal import OrdinalHead
from mainstem.models.heads.value import ValueHead
from mainstem.models.heads.weighted_logistic import WeightedLogisticHead
from mainstem.schema.head_config import HeadType

__all__ = ["Head", "TaskModule", "task_of"]

TaskModule = BinaryHead | ValueHead | OrdinalHead | WeightedLogisticHead | LifetimeValueHead


@dataclass(frozen=True, slots=True)
class Head:
    """One prediction. levels: of `ordinal`; unit: of `weighted_logistic`, each in the unit of the event's value."""

    name: str
    kind: HeadType = "binary"
    levels: tuple[float, ...] = (1.0, 2.0, 3.0, 4.0, 5.0)
    unit: float = 1.0


def task_of(head: Head) -> TaskModule:
    """A new module for it: link, loss and prediction. Raises ValueError on levels that do not rise."""
    match head.kind:
        case "binary":
            return BinaryHead()
        case "value":
            return ValueHead()
        case "ordinal":
            return OrdinalHead(head.levels)
        case "weighted_logistic":
            return WeightedLogisticHead(head.unit)
        case "lifetime_value":
            return LifetimeValueHead()
