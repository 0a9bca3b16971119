"""The one model: every part of a request is learned from, what is lacking is a sentinel, requests do not mix."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch import Tensor, nn

from mainstem.models import Asked, Unified, UnifiedConfig
from mainstem.models.history import EventConfig, Histories, HSTUConfig, PoolingConfig, TransformerConfig
from mainstem.models.losses import sampled_softmax
from mainstem.models.unified import EncoderConfig

USERS, ITEMS, DIM = 40, 40, 16
ENCODERS: dict[str, EncoderConfig] = {
    "pooling": PoolingConfig(dim=DIM, hidden=16),
    "transformer": TransformerConfig(EventConfig(DIM), DIM, layers=1, hidden=16),
    "hstu": HSTUConfig(EventConfig(DIM), DIM, layers=1),
}
# Canvases of the checkerboard, in which even users take even items: what each knows of the answer's parity.
PARTS = ("user", "history", "sources", "query", "field")


def model_of(encoder: str = "pooling") -> Unified:
    torch.manual_seed(0)
    return Unified(UnifiedConfig(ENCODERS[encoder], dim=DIM, hidden=16, canvases=1 + len(PARTS), fields=1))


def histories(rows: Tensor, items: Tensor) -> Histories:
    """items int64 [b, k]: places of what each took, one after the other."""
    b, k = items.shape
    none = torch.zeros(b * k, dtype=torch.int64)
    time = torch.arange(k).repeat(b) * 60_000
    return Histories(rows[items.flatten()], none, none, torch.ones(b * k), time, torch.arange(b + 1) * k)


def asked(model: Unified, rows: Tensor, parity: Tensor, part: str) -> Asked:
    """Requests that know `part` alone. rows: default, users, items, one word and one field value a parity."""
    b = len(parity)
    item = 1 + USERS + torch.randint(0, ITEMS // 2, (b, 3)) * 2 + parity[:, None]
    last = 1 + USERS + ITEMS
    no, nothing = torch.zeros(b, dtype=torch.bool), torch.zeros(b, DIM)
    states = model.states(histories(rows, item))
    empty = torch.full((b,), -1)
    out = Asked(
        canvas=torch.full((b,), 1 + PARTS.index(part)), user=nothing, knows_user=no,
        history=model.at(states, torch.arange(b) * 3 + 2 if part == "history" else empty),
        sources=nothing, has_sources=no, fields=nothing[:, None], has_field=no[:, None], query=nothing, has_query=no,
    )  # fmt: skip
    users = 1 + torch.randint(0, USERS // 2, (b,)) * 2 + parity
    values = {
        "user": {"user": rows[users], "knows_user": ~no},
        "sources": {"sources": rows[item[:, 0]], "has_sources": ~no},
        "query": {"query": rows[last + parity], "has_query": ~no},
        "field": {"fields": rows[last + 2 + parity][:, None], "has_field": ~no[:, None]},
        "history": {},
    }
    return dataclasses.replace(out, **values[part])


def vectors(model: Unified, rows: Tensor) -> Tensor:
    places = 1 + USERS + torch.arange(ITEMS)
    return model.entity(model.body(rows, places, torch.arange(ITEMS + 1)))


def train(model: Unified, table: Tensor, steps: int = 60) -> None:
    optimizer = torch.optim.Adam([table, *model.parameters()], lr=0.02)
    keys, log_q = torch.arange(ITEMS), torch.zeros(ITEMS)
    for _ in range(steps):
        loss = torch.zeros(())
        for part in PARTS:
            parity = torch.randint(0, 2, (32,))
            items = torch.randint(0, ITEMS // 2, (32,)) * 2 + parity
            users = model.request(asked(model, table, parity, part))
            loss = loss + sampled_softmax(users, vectors(model, table), keys, log_q, temperature=0.2, targets=items)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def share_right(model: Unified, table: Tensor, part: str) -> float:
    """Share of the top half of the items that has the right parity."""
    with torch.no_grad():
        parity = torch.arange(20) % 2
        users = model.request(asked(model, table, parity, part))
        top = (users @ vectors(model, table).T).topk(ITEMS // 2).indices
        return float((top % 2 == parity[:, None]).float().mean())


@pytest.mark.parametrize("encoder", list(ENCODERS))
def test_learns_the_checkerboard_from_every_part(encoder: str) -> None:
    model = model_of(encoder)
    table = nn.Parameter(torch.randn(1 + USERS + ITEMS + 4, DIM) * 0.05)
    before = [share_right(model, table, part) for part in PARTS]
    assert sum(before) / len(before) < 0.8  # canary: an untrained model must not pass
    train(model, table)
    for part in PARTS:
        assert share_right(model, table, part) > 0.97, part


def requests(model: Unified, b: int) -> Asked:
    mask = torch.arange(b) % 2 == 0
    return Asked(
        canvas=torch.arange(b) % 3, user=torch.randn(b, DIM), knows_user=mask, history=torch.randn(b, DIM),
        sources=torch.randn(b, DIM), has_sources=~mask, fields=torch.randn(b, 1, DIM), has_field=mask[:, None],
        query=torch.randn(b, DIM), has_query=~mask,
    )  # fmt: skip


def shaken() -> Unified:
    model = model_of()
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    return model


def test_vectors_are_unit_and_requests_do_not_mix() -> None:
    model = shaken()
    some = requests(model, 6)
    found = model.request(some)
    torch.testing.assert_close(found.norm(dim=-1), torch.ones(6))
    alone = Asked(*(getattr(some, field.name)[2:3] for field in dataclasses.fields(Asked)))
    torch.testing.assert_close(model.request(alone)[0], found[2])
    body = model.body(torch.randn(5, DIM), torch.tensor([1, 2, 3]), torch.tensor([0, 2, 2, 3]))
    torch.testing.assert_close(model.entity(body).norm(dim=-1), torch.ones(3))


def plain_request(model: Unified, some: Asked) -> Tensor:
    """All parts side by side through the whole network: the oracle."""
    values = torch.stack((some.user, model.history(some.history), some.sources, some.query), dim=1)
    values = torch.cat((values, some.fields), dim=1)
    known = torch.stack((some.knows_user, torch.ones_like(some.knows_user), some.has_sources, some.has_query), dim=1)
    values = torch.where(torch.cat((known, some.has_field), dim=1)[..., None], values, model.sentinels)
    summed = (model.mix[some.canvas][..., None] * values).sum(dim=1)
    everything = torch.cat((values.flatten(1), model.canvas(some.canvas)), dim=1)
    return nn.functional.normalize(summed + model.request_correction(everything), dim=-1)


@pytest.mark.parametrize("lacking", [(), ("knows_user", "has_query"), ("has_sources", "has_field")])
def test_part_by_part_is_all_at_once_and_so_is_its_gradient(lacking: tuple[str, ...]) -> None:
    model = shaken().double()
    some = requests(model, 6)
    doubles = {name: getattr(some, name).double() for name in ("user", "history", "sources", "fields", "query")}
    some = dataclasses.replace(some, **doubles, **{name: torch.zeros_like(getattr(some, name)) for name in lacking})
    toward = torch.randn(6, DIM, dtype=torch.float64)
    found = [
        (vector, torch.autograd.grad((vector * toward).sum(), list(model.parameters()), allow_unused=True))
        for vector in (model.request(some), plain_request(model, some))
    ]
    torch.testing.assert_close(found[0][0], found[1][0])
    for ours, plain in zip(found[0][1], found[1][1], strict=True):
        torch.testing.assert_close(ours, plain)
    assert sum(gradient is not None for gradient in found[0][1]) >= 6  # canary: there was something to compare


@pytest.mark.parametrize("value", ["user", "sources", "fields", "query"])
def test_what_a_request_lacks_is_not_read(value: str) -> None:
    model, some = shaken(), requests(model_of(), 6)
    other = dataclasses.replace(some, **{value: torch.randn_like(getattr(some, value))})
    mask = {
        "user": some.knows_user,
        "sources": some.has_sources,
        "fields": some.has_field[:, 0],
        "query": some.has_query,
    }
    before, after = model.request(some), model.request(other)
    torch.testing.assert_close(before[~mask[value]], after[~mask[value]])
    assert not torch.allclose(before[mask[value]], after[mask[value]])  # canary


def test_each_canvas_weighs_the_parts_its_own_way() -> None:
    model, some = model_of(), requests(model_of(), 6)
    with torch.no_grad():
        model.mix[1] = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0])  # canvas 1 reads the query alone
    found = model.request(some)
    only = some.canvas == 1
    query = torch.where(some.has_query[:, None], some.query, 0.0)
    torch.testing.assert_close(found[only], nn.functional.normalize(query[only], dim=-1))


def test_no_history_is_the_learned_state() -> None:
    model = shaken()
    states = torch.randn(4, DIM)
    found = model.at(states, torch.tensor([3, -1, 0]))
    torch.testing.assert_close(found, torch.stack((states[3], model.encoder.empty, states[0])))
