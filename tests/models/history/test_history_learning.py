"""Made-up worlds whose answer is known: who must learn each, and who cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from histories import encoder
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.history import Histories, HistoryEncoder

ITEMS, DIM, USERS = 10, 16, 128
MINUTE, DAY = 60_000, 86_400_000

World = Callable[[], tuple[Tensor, Tensor, Tensor, Tensor, Tensor]]
"""items [t], time [t], offsets [b + 1], query_time [b], answer [b]."""


def _jagged(least: int = 1) -> tuple[Tensor, Tensor]:
    """offsets of USERS histories of up to 6 events, and each event's place in its own."""
    lengths = torch.randint(least, 7, (USERS,))
    offsets = torch.cat((torch.zeros(1, dtype=torch.int64), lengths.cumsum(0)))
    return offsets, torch.arange(int(offsets[-1])) - torch.repeat_interleave(offsets[:-1], lengths)


def checkerboard() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Even users take even items: the answer is the parity, as any item of it."""
    offsets, place = _jagged()
    parity = torch.arange(USERS) % 2
    items = torch.randint(0, ITEMS // 2, (len(place),)) * 2 + torch.repeat_interleave(parity, offsets.diff())
    return items, place * DAY, offsets, offsets.diff() * DAY, torch.randint(0, ITEMS // 2, (USERS,)) * 2 + parity


def successor() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Views come at random in one second; what is bought is the item after the last one viewed."""
    offsets, place = _jagged(2)
    items = torch.randint(0, ITEMS, (len(place),))
    return items, place, offsets, offsets.diff(), (items[offsets[1:] - 1] + 1) % ITEMS


def pause() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The last item again if it came a minute after the one before, the item five further if it came a day after."""
    offsets, place = _jagged(2)
    items, long = torch.randint(0, ITEMS, (len(place),)), torch.randint(0, 2, (USERS,))
    ends = offsets[1:] - 1
    time = place * MINUTE
    time[ends] += long * DAY
    return items, time, offsets, time[ends] + MINUTE, (items[ends] + 5 * long) % ITEMS


def absence() -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The same, but for the time from the last event to the query."""
    offsets, place = _jagged()
    items, long = torch.randint(0, ITEMS, (len(place),)), torch.randint(0, 2, (USERS,))
    ends = offsets[1:] - 1
    time = place * MINUTE
    return items, time, offsets, time[ends] + MINUTE + long * DAY, (items[ends] + 5 * long) % ITEMS


def _logits(made: HistoryEncoder, table: Tensor, seen: tuple[Tensor, ...]) -> Tensor:
    items, time, offsets, query_time, _ = seen
    nothing = torch.zeros_like(items)
    histories = Histories(table[items], nothing, nothing, nothing.float(), time, offsets, query_time)
    return made.last(made(histories), offsets) @ table.T


def share_right(name: str, world: World, steps: int) -> float:
    """Train with the full softmax, then ask for fresh users: the share whose first item is the answer.

    In the checkerboard, where no one item is, the share of the upper half of all items that is of the user's parity.
    """
    torch.manual_seed(0)
    made = encoder(name, width=DIM, dim=DIM, layers=1)
    table = nn.Parameter(torch.randn(ITEMS, DIM) * 0.3)
    optimizer = torch.optim.Adam([table, *made.parameters()], lr=0.01)
    for _ in range(steps):
        seen = world()
        loss = functional.cross_entropy(_logits(made, table, seen), seen[-1])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    rights = []
    with torch.no_grad():
        for _ in range(4):
            seen = world()
            best = _logits(made, table, seen).topk(ITEMS // 2 if world is checkerboard else 1).indices
            apart = best - seen[-1][:, None]
            rights.append((apart % 2 if world is checkerboard else apart) == 0)
    return float(torch.cat(rights).float().mean())


STEPS = 100


@pytest.mark.parametrize(
    ("world", "name"),
    [
        (checkerboard, "pooling"),
        (checkerboard, "transformer"),
        (checkerboard, "hstu"),
        (successor, "transformer-timeless"),
        (successor, "hstu-timeless"),
        (pause, "transformer"),
        (pause, "hstu"),
        (absence, "transformer-query"),
        (absence, "hstu-query"),
    ],
)
def test_a_world_is_learned(world: World, name: str) -> None:
    assert share_right(name, world, STEPS) > 0.95


@pytest.mark.parametrize(
    ("world", "name", "chance"),
    [
        (successor, "pooling", 1 / 4),  # any of the items seen, four on average, may be the last
        (pause, "transformer-timeless", 1 / 2),
        (pause, "hstu-timeless", 1 / 2),
        (absence, "pooling", 1 / 2),
        (absence, "transformer", 1 / 2),
        (absence, "hstu", 1 / 2),
    ],
)
def test_canary_who_cannot_know_does_not_learn(world: World, name: str, chance: float) -> None:
    assert share_right(name, world, STEPS) < chance + 0.15


@pytest.mark.parametrize("name", ["pooling", "transformer", "hstu"])
def test_canary_the_untrained_do_not_pass(name: str) -> None:
    assert share_right(name, checkerboard, 0) < 0.8
