"""Attention over jagged sequences with little padding.

Only attention needs sequences side by side; everything else works on the packed events. So sequences of like length
are put into padded groups for the attention alone. Padding stands at the end, where a causal mask already hides
it from every real event: no other mask is needed.

    events   a b c d | e | f g h           groups   a b c d    e
    offsets  0 4 5 8                                f g h .
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

__all__ = ["SPREAD", "Packing"]

SPREAD = 1.5
"""Attention pays for the square of a group's length, and for each group a little. Between 1.25 and 2 the two are in
balance on the CPU for histories of tens and of hundreds of events. Packing several histories into one block under a
block-diagonal mask is no faster there, and needs memory for that mask."""
DEVICE_SPREAD = 4.0
"""The least on a GPU, where a group costs the launch of many small kernels and padding costs little."""


@dataclass(frozen=True, slots=True)
class Packing:
    """Which event stands where in the padded groups, and the way back.

    places: per group int64 [n, length], the event at each place; a place after the end repeats the last event.
    back int64 [t]: where each event stands in the groups, flattened and laid end to end.
    """

    places: tuple[Tensor, ...]
    back: Tensor

    @staticmethod
    def of(offsets: Tensor, spread: float = SPREAD) -> Packing:
        """Group the sequences by length.

        offsets int64 [b + 1]; spread >= 1: how many times as long as its shortest the longest of a group may be.
        math.inf makes one group of all: the plain padded path; on a GPU `DEVICE_SPREAD` at least. Groups: at most
        1 + log(longest) / log(spread).

        Raises ValueError where spread is below 1.
        """
        if not spread >= 1:
            raise ValueError(f"spread {spread} must be at least 1")
        if offsets.device.type != "cpu":
            spread = max(spread, DEVICE_SPREAD)
        bounds = offsets.cpu().numpy()
        lengths = np.diff(bounds)
        order = np.argsort(-lengths, kind="stable")[: np.count_nonzero(lengths)]
        places, back = [], np.empty(bounds[-1], np.int64)
        begin = base = 0
        while begin < len(order):
            longest = lengths[order[begin]]
            # lengths fall along `order`: the group ends before the first that is too short
            end = int(np.searchsorted(-lengths[order], -longest / spread, side="right"))
            group, column = order[begin:end], np.arange(longest)
            last = lengths[group, None] - 1
            events = bounds[group, None] + np.minimum(column, last)
            real = np.flatnonzero(column <= last)
            back[events.reshape(-1)[real]] = base + real
            places.append(torch.from_numpy(events).to(offsets.device))
            begin, base = end, base + events.size
        return Packing(tuple(places), torch.from_numpy(back).to(offsets.device))

    def split(self, events: Tensor) -> list[Tensor]:
        """events [t, ...] -> per group [n, length, ...]."""
        return [events.index_select(0, p.reshape(-1)).view(*p.shape, *events.shape[1:]) for p in self.places]

    def join(self, groups: list[Tensor]) -> Tensor:
        """Per group [n, length, width] -> the events again: [t, width]. There is at least one group."""
        return torch.cat([group.flatten(0, 1) for group in groups]).index_select(0, self.back)
