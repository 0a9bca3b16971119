"""Which candidates meet which histories, for the ranking network's interest: places in one table of vectors."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mainstem.models import Meeting
from mainstem.schema.examples import Examples
from mainstem.schema.ids import Keys
from mainstem.schema.protocols import Floats

__all__ = ["Meetings", "Vectors"]

Vectors = Callable[[Keys], Floats]
"""Entities uint64 [n] -> [n, dim]: what they are to the retrieval model now."""


@dataclass(frozen=True, slots=True)
class Meetings:
    """The candidates and histories of g groups of examples.

    table [u, dim]: a vector for each entity, once; candidate int64 [n], event int64 [t]: places in it; action int64
    [t]; gap [t], seconds; sizes int64 [g]: candidates of each group; offsets int64 [g + 1]: its events

    A table holds for the while that the towers stand still: an offline run of the ranking network, an online step.
    """

    table: Tensor
    candidate: Tensor
    event: Tensor
    action: Tensor
    gap: Tensor
    sizes: Tensor
    offsets: Tensor

    @classmethod
    def of(cls, examples: Examples, vectors: Vectors) -> Meetings:
        """Raises ValueError where the examples have no histories."""
        pasts = examples.pasts
        if pasts is None:
            raise ValueError("the network reads the users' histories, and these examples have none")
        entities, place = np.unique(np.concatenate([examples.keys, pasts.entity]), return_inverse=True)
        candidate, event = np.split(place, [len(examples.keys)])
        return cls(
            table=torch.from_numpy(vectors(entities)),
            candidate=torch.from_numpy(candidate),
            event=torch.from_numpy(event),
            action=torch.from_numpy(pasts.action.astype(np.int64)),
            gap=torch.from_numpy(pasts.gaps(examples.time)),
            sizes=torch.from_numpy(np.diff(examples.offsets)),
            offsets=torch.from_numpy(pasts.offsets),
        )

    def groups(self, which: Tensor, rows: Tensor) -> Meetings:
        """Those of the groups at these places, in this order; rows: the places of their candidates."""
        events = self.offsets.diff()[which]
        offsets = torch.cat((events.new_zeros(1), events.cumsum(0)))
        places = torch.arange(int(offsets[-1])) + torch.repeat_interleave(self.offsets[which] - offsets[:-1], events)
        return Meetings(
            self.table, self.candidate[rows], self.event[places], self.action[places], self.gap[places],
            self.sizes[which], offsets,
        )  # fmt: skip

    def meeting(self) -> Meeting:
        """With the vectors laid out, for the network."""
        return Meeting(
            candidates=self.table.index_select(0, self.candidate),
            requests=torch.repeat_interleave(torch.arange(len(self.sizes)), self.sizes),
            events=self.table.index_select(0, self.event),
            actions=self.action,
            gaps=self.gap,
            offsets=self.offsets,
        )
