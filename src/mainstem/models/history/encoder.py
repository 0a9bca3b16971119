"""What every history encoder offers."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from mainstem.models.history.batch import Histories

__all__ = ["HistoryEncoder"]


class HistoryEncoder(nn.Module, ABC):
    """`Histories` to one causal state per event, of `width` numbers that are not normalised.

    events   a b c | | d e        states   a ab abc | | d de        last   abc, empty, de

    A state knows the events of its own history up to its own, and nothing of other histories. An encoder built with
    `query_time` knows besides when what follows was asked for (`Histories.asked_at`).
    """

    width: int

    def __init__(self, width: int) -> None:
        super().__init__()
        self.width = width
        self.empty = nn.Parameter(torch.zeros(width))

    @abstractmethod
    def forward(self, histories: Histories) -> Tensor:
        """States [t, width], in the order of the events."""

    def last(self, states: Tensor, offsets: Tensor) -> Tensor:
        """The newest state of each history: [b, width]; the learned vector `empty` where a history has no event.

        states [t, width]; offsets int64 [b + 1].
        """
        places = torch.where(offsets.diff() > 0, offsets[1:] - 1, len(states))
        return torch.cat((states, self.empty[None])).index_select(0, places)
