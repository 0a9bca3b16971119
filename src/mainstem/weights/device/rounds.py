"""Going round the rows in the order of their keys' mixed bits: what a sweep looks at, whom an eviction drops.

The table keeps no such order. A call looks at all rows (8 bytes each pass) and sorts those that it needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mainstem.weights.changing import LOOKS
from mainstem.weights.device.words import TOP, mix

__all__ = ["next_rows", "victims"]

_CHUNK = 1 << 24  # rows looked at together: what is made of them takes 30 bytes each


def next_rows(keys: Tensor, wanted: Tensor, hand: int, most: int) -> tuple[Tensor, int]:
    """(rows int64 [at most `most`] of the next keys from `hand` on and round, in order; where the hand ends).

    keys int64 [high], by row; wanted bool [high]: the rows to look at. hand: as int64, and stays where none is found.
    """
    rows = torch.empty(0, dtype=torch.int64, device=keys.device)
    away = rows
    for start in range(0, len(keys) if most > 0 else 0, _CHUNK):
        chunk = start + torch.nonzero(wanted[start : start + _CHUNK])[:, 0]
        rows = torch.cat((rows, chunk))
        # signed order is the unsigned order of the distance from the hand
        away = torch.cat((away, (mix(keys[chunk]) - hand) ^ TOP))
        away, order = torch.topk(away, min(most, len(away)), largest=False, sorted=True)
        rows = rows[order]
    return rows, _after(keys, rows, hand)


def victims(keys: Tensor, wanted: Tensor, seen: Tensor, hand: int, count: int) -> tuple[Tensor, int]:
    """(rows int64 [at most `count`] to evict, in order; where the hand ends).

    Each is the least recently seen (seen int32 [high]) of the next `LOOKS` that are wanted and left; of equals the
    first. Windows that do not meet are looked at together.
    """
    queue, _ = next_rows(keys, wanted, hand, LOOKS * count)
    column = torch.arange(LOOKS, device=keys.device)
    chosen = [queue[:0]]
    while count and len(queue):
        whole = min(count, len(queue) // LOOKS)
        width = LOOKS if whole else len(queue)
        whole = max(whole, 1)
        windows = queue[: whole * width].view(whole, width)
        # the column breaks ties, as argmin may return any
        oldest = (seen[windows].to(torch.int64) * LOOKS + column[:width]).argmin(1)
        dropped = column[:width] == oldest[:, None]
        hand = _after(keys, windows[-1], hand)
        chosen.append(windows[dropped])
        queue = torch.cat((queue[whole * width :], windows[~dropped]))
        count -= whole
    return torch.cat(chosen), hand


def _after(keys: Tensor, rows: Tensor, hand: int) -> int:
    """The hand after the last of these rows."""
    return int(mix(keys[rows[-1:]]) + 1) if len(rows) else hand
