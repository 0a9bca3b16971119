import numpy as np
import pytest
import torch
from torch import Tensor, nn

from mainstem.models import NumpyUserTower, TwoTower, TwoTowerConfig
from mainstem.models.losses import log_inclusion, sampled_softmax

USERS, ITEMS, DIM = 40, 40, 16


def _offsets(n: int, each: int) -> Tensor:
    return torch.arange(n + 1) * each


def _train(model: TwoTower, table: Tensor, steps: int = 120) -> None:
    """Checkerboard: even users take even items, odd users odd ones. Rows: default, users, items."""
    optimizer = torch.optim.Adam([table, *model.parameters()], lr=0.02)
    log_q = log_inclusion(torch.full((64,), 1 / ITEMS), in_batch=63, uniform=0, catalogue=ITEMS)
    for _ in range(steps):
        users = torch.randint(0, USERS, (64,))
        items = torch.randint(0, ITEMS // 2, (64,)) * 2 + users % 2
        history = torch.randint(0, ITEMS // 2, (64, 3)) * 2 + users[:, None] % 2
        u = model.user(table, 1 + users, 1 + USERS + history.flatten(), _offsets(64, 3), torch.rand(192, 2) + 0.1)
        v = model.entity(table, 1 + USERS + items, _offsets(64, 1))
        loss = sampled_softmax(u, v, items, log_q, temperature=0.2)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def _share_right(model: TwoTower, table: Tensor, with_user_row: bool, with_history: bool) -> float:
    """Share of each user's top half of the items that has the user's parity."""
    n = torch.arange(USERS)
    user_places = 1 + n if with_user_row else torch.zeros_like(n)
    history = (torch.arange(3) * 2)[None, :] + n[:, None] % 2
    weights = torch.ones(3 * USERS, 2) if with_history else torch.zeros(3 * USERS, 2)
    with torch.no_grad():
        u = model.user(table, user_places, 1 + USERS + history.flatten(), _offsets(USERS, 3), weights)
        v = model.entity(table, 1 + USERS + torch.arange(ITEMS), _offsets(ITEMS, 1))
    top = (u @ v.T).topk(ITEMS // 2).indices
    return float((top % 2 == n[:, None] % 2).float().mean())


def test_learns_the_checkerboard_from_history_and_from_ids() -> None:
    torch.manual_seed(0)
    model = TwoTower(TwoTowerConfig(dim=DIM, hidden=32))
    table = nn.Parameter(torch.randn(1 + USERS + ITEMS, DIM) * 0.05)
    before = _share_right(model, table, with_user_row=True, with_history=True)
    _train(model, table)
    assert before < 0.8  # canary: an untrained model must not pass
    assert _share_right(model, table, with_user_row=True, with_history=True) == 1.0
    # a user whose row is not there yet is known by the history alone
    assert _share_right(model, table, with_user_row=False, with_history=True) > 0.99


def test_vectors_are_unit_and_depend_only_on_their_own_segment() -> None:
    torch.manual_seed(1)
    model = TwoTower(TwoTowerConfig(dim=8, hidden=8, channels=1, context=3, content=5))
    for parameter in model.parameters():
        nn.init.normal_(parameter)
    rows = torch.randn(10, 8)
    places, offsets = torch.tensor([1, 2, 3, 4, 5]), torch.tensor([0, 2, 2, 5])
    weights, context, content = torch.rand(5, 1), torch.randn(3, 3), torch.randn(3, 5)
    users = model.user(rows, torch.tensor([7, 8, 0]), places, offsets, weights, context)
    entities = model.entity(rows, places, offsets, content)
    for vectors in (users, entities):
        assert vectors.shape == (3, 8)
        torch.testing.assert_close(vectors.norm(dim=-1), torch.ones(3))
    alone = model.user(rows, torch.tensor([0]), places[2:], torch.tensor([0, 3]), weights[2:], context[2:])
    torch.testing.assert_close(alone[0], users[2])
    torch.testing.assert_close(model.entity(rows, places[:2], torch.tensor([0, 2]), content[:1])[0], entities[0])


def test_history_is_a_mean_not_a_sum() -> None:
    model = TwoTower(TwoTowerConfig(dim=4, hidden=4, channels=1))
    nn.init.normal_(model.user_correction[-1].weight)
    rows = torch.randn(4, 4)
    none = torch.tensor([0])
    once = model.user(rows, none, torch.tensor([1, 2]), torch.tensor([0, 2]), torch.tensor([[1.0], [2.0]]))
    thrice = model.user(rows, none, torch.tensor([1, 2] * 3), torch.tensor([0, 6]), torch.tensor([[5.0], [10.0]] * 3))
    torch.testing.assert_close(once, thrice)


def test_an_unknown_user_without_history_gets_a_finite_vector_and_gradient() -> None:
    model = TwoTower(TwoTowerConfig(dim=4, hidden=4))
    rows = torch.zeros(1, 4, requires_grad=True)
    empty = torch.zeros(0, dtype=torch.int64)
    vector = model.user(rows, torch.tensor([0]), empty, torch.tensor([0, 0]), torch.zeros(0, 2))
    vector.sum().backward()
    assert vector.isfinite().all()
    assert rows.grad is not None
    assert rows.grad.isfinite().all()


def test_what_the_config_asks_for_must_be_passed() -> None:
    model = TwoTower(TwoTowerConfig(dim=4, hidden=4, channels=1, context=2, content=2))
    rows, one, offsets = torch.zeros(1, 4), torch.tensor([0]), torch.tensor([0, 1])
    with pytest.raises(ValueError, match="content"):
        model.entity(rows, one, offsets)
    with pytest.raises(ValueError, match="context"):
        model.user(rows, one, one, offsets, torch.ones(1, 1))
    with pytest.raises(ValueError, match="history_weights"):
        model.user(rows, one, one, offsets, torch.ones(1, 2))


@pytest.mark.parametrize("events", [1, 2, 50])
def test_the_numpy_user_tower_equals_the_module(events: int) -> None:
    torch.manual_seed(events)
    module = TwoTower(TwoTowerConfig(dim=16, hidden=24, channels=2))
    for parameter in module.parameters():  # the residual layers start at zero: give them something to say
        torch.nn.init.normal_(parameter, std=0.3)
    rows, weights = torch.randn(events + 1, 16), torch.rand(events, 2)
    with torch.no_grad():
        places = torch.arange(1, events + 1)
        expected = module.user(rows, torch.tensor([0]), places, torch.tensor([0, events]), weights)[0].numpy()
    fast = NumpyUserTower(module)
    found = fast(rows[0].numpy(), rows[1:].numpy(), weights.numpy())
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert not np.allclose(fast(rows[1].numpy(), rows[1:].numpy(), weights.numpy()), expected)  # canary: not its row
