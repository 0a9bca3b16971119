"""Encoders of every kind and jagged batches for them."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from mainstem.models.history import (
    HSTU,
    EventConfig,
    Histories,
    HistoryEncoder,
    HSTUConfig,
    Pooling,
    PoolingConfig,
    Transformer,
    TransformerConfig,
)
from mainstem.models.history.packing import SPREAD

DIM, ACTIONS, CANVASES = 4, 3, 2
LENGTHS = st.lists(st.integers(0, 9), min_size=1, max_size=8)

TIMED = EventConfig(dim=DIM, actions=ACTIONS, canvases=CANVASES)
QUERIED = replace(TIMED, query_time=True)
TIMELESS = replace(TIMED, time_buckets=0)
ENCODERS = (
    "pooling",
    "transformer",
    "transformer-timeless",
    "transformer-query",
    "hstu",
    "hstu-timeless",
    "hstu-query",
)
ATTENTIVE = ENCODERS[1:]


def encoder(name: str, *, spread: float = SPREAD, width: int = 8, layers: int = 2, dim: int = DIM) -> HistoryEncoder:
    """A fresh one by name: `kind` or `kind-events`."""
    kind, _, suffix = name.partition("-")
    events = replace({"": TIMED, "query": QUERIED, "timeless": TIMELESS}[suffix], dim=dim)
    if kind == "pooling":
        return Pooling(PoolingConfig(dim=dim, interest=(1.0,) * ACTIONS, half_lives=(20_000, 2_000), hidden=8))
    if kind == "transformer":
        return Transformer(TransformerConfig(events, width, layers, hidden=2 * width, spread=spread))
    return HSTU(HSTUConfig(events, width, layers, positions=7, spread=spread))


def shaken(name: str, *, spread: float = SPREAD, seed: int = 0, width: int = 8, layers: int = 2) -> HistoryEncoder:
    """In float64 and with every parameter away from where it starts: what begins at zero hides mistakes."""
    torch.manual_seed(seed)
    made = encoder(name, spread=spread, width=width, layers=layers).double()
    for parameter in made.parameters():
        nn.init.normal_(parameter, std=0.5)
    return made


def plain(name: str) -> HistoryEncoder:
    """`shaken`, all padded to one length."""
    return shaken(name, spread=math.inf)


def batch(lengths: list[int], seed: int = 0) -> Histories:
    """Random events, in float64, seconds apart on a log scale, asked for some time after the last."""
    generator = torch.Generator().manual_seed(seed)
    total, b = sum(lengths), len(lengths)
    gaps = (10 ** (6 * torch.rand(total, generator=generator))).long()
    times = [piece.cumsum(0) for piece in gaps.split(lengths)]
    newest = torch.tensor([int(t[-1]) if len(t) else 0 for t in times], dtype=torch.int64)
    return Histories(
        rows=torch.randn(total, DIM, generator=generator, dtype=torch.float64),
        action=torch.randint(0, ACTIONS, (total,), generator=generator),
        canvas=torch.randint(0, CANVASES, (total,), generator=generator),
        value=10 * torch.randn(total, generator=generator, dtype=torch.float64),
        time=torch.cat([gaps[:0], *times]),
        offsets=torch.tensor([0, *lengths]).cumsum(0),
        query_time=newest + (10 ** (6 * torch.rand(b, generator=generator))).long(),
    )


def piece(histories: Histories, users: slice, start: int = 0, stop: int | None = None) -> Histories:
    """A run of users; of a single one, the events from start to stop."""
    offsets = histories.offsets[users.start : users.stop + 1]
    begin, end = int(offsets[0]), int(offsets[-1])
    if len(offsets) == 2:
        begin, end = begin + start, end if stop is None else begin + stop
        offsets = torch.tensor([begin, end])
    fields = {name: getattr(histories, name)[begin:end] for name in ("rows", "action", "canvas", "value", "time")}
    asked = None if histories.query_time is None else histories.query_time[users]
    return Histories(**fields, offsets=offsets - begin, query_time=asked)


def states_and_gradients(made: HistoryEncoder, histories: Histories) -> dict[str, Tensor]:
    """States, and the gradients of a fixed random sum of them and of the last ones by rows and parameters."""
    rows = histories.rows.detach().clone().requires_grad_()
    made.zero_grad()
    states = made(replace(histories, rows=rows))
    last = made.last(states, histories.offsets)
    generator = torch.Generator().manual_seed(1)
    sums = [(x * torch.randn(x.shape, generator=generator, dtype=x.dtype)).sum() for x in (states, last)]
    (sums[0] + sums[1] + 0.0 * rows.sum()).backward()
    out = {"states": states.detach(), "last": last.detach()}
    out["rows"] = rows.grad if rows.grad is not None else torch.zeros_like(rows)
    for name, parameter in made.named_parameters():
        out[name] = torch.zeros_like(parameter) if parameter.grad is None else parameter.grad.clone()
    return out
