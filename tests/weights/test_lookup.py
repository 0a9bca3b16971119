import numpy as np
import pytest
import torch

from mainstem.models import TwoTower, TwoTowerConfig
from mainstem.models.losses import log_inclusion, sampled_softmax
from mainstem.schema.ids import key64
from mainstem.weights import Lookup, MemoryTable


def _keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


def test_places_give_each_role_its_own_rows_and_every_key_is_gathered_once() -> None:
    table = MemoryTable(4)
    gathered = Lookup(table).gather({"history": _keys(7, 8, 7), "target": _keys(9, 0, 8), "none": _keys()})
    assert gathered.rows.shape == (4, 4)
    assert gathered.rows.is_leaf
    assert gathered.rows.requires_grad
    assert (gathered.rows[0] == 0).all()
    assert {name: places.tolist() for name, places in gathered.places.items()} == {
        "history": [1, 2, 1],
        "target": [3, 0, 2],
        "none": [],
    }
    want = table.gather(table.find(_keys(9, 0, 8)))
    np.testing.assert_array_equal(gathered.rows[gathered.places["target"]].detach().numpy(), want)


def test_creation_is_per_role_and_what_is_not_created_reads_the_default() -> None:
    table = MemoryTable(4)
    lookup = Lookup(table)
    serving = lookup.gather({"a": _keys(1, 2)}, create=False, gradient=False)
    assert len(table) == 0
    assert (serving.rows == 0).all()
    assert not serving.rows.requires_grad
    mixed = lookup.gather({"a": _keys(1, 2), "b": _keys(2, 3)}, create={"b"})
    assert len(table) == 2
    assert mixed.places["a"][0] == 0
    assert mixed.places["a"][1] == mixed.places["b"][0] > 0
    with pytest.raises(ValueError, match="typo"):
        lookup.gather({"a": _keys(1)}, create={"typo"})


def test_the_gradient_of_a_step_is_applied_once_per_row() -> None:
    table, plain = MemoryTable(2), MemoryTable(2)
    keys = _keys(5, 6, 7)
    rows = plain.find_or_create(keys)
    lookup = Lookup(table)
    gathered = lookup.gather({"a": _keys(5, 5, 6), "b": _keys(5, 7, 0)})
    (2.0 * gathered.rows[gathered.places["a"]].sum() + gathered.rows[gathered.places["b"]].sum()).backward()
    lookup.apply_gradients(0.1)
    # key 5 is met three times: one update with the summed gradient, not three
    plain.update(rows, np.array([[5, 5], [2, 2], [1, 1]], np.float32), 0.1)
    np.testing.assert_array_equal(table.gather(table.find(keys)), plain.gather(rows))
    assert (table.gather(np.array([-1])) == 0).all()
    with pytest.raises(RuntimeError, match="gather"):
        lookup.apply_gradients(0.1)


def test_an_empty_step_and_rows_without_gradient_change_nothing() -> None:
    table = MemoryTable(2)
    lookup = Lookup(table)
    assert lookup.gather({}).rows.shape == (1, 2)
    lookup.gather({"a": _keys(1)})
    before = table.state()["values"]
    lookup.apply_gradients(1.0)
    np.testing.assert_array_equal(table.state()["values"], before)


def test_two_tower_learns_the_checkerboard_through_lookups() -> None:
    """Even users take even items, odd users odd ones; ids are keys, rows are made as they are met."""
    torch.manual_seed(0)
    random = np.random.default_rng(0)
    n, b = 30, 64
    users = np.array([key64("user", str(i)) for i in range(n)], np.uint64)
    items = np.array([key64("item", str(i)) for i in range(n)], np.uint64)
    table = MemoryTable(16)
    lookup, model = Lookup(table), TwoTower(TwoTowerConfig(dim=16, hidden=16, channels=1))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    log_q = log_inclusion(torch.full((b,), 1 / n), b - 1, 0, n)

    def step(who: np.ndarray, what: np.ndarray, history: np.ndarray, train: bool) -> tuple[torch.Tensor, torch.Tensor]:
        roles = {"user": users[who], "history": items[history.ravel()], "target": items[what]}
        gathered = lookup.gather(roles, create=train, gradient=train)
        offsets, weights = torch.arange(len(who) + 1) * 2, torch.ones(2 * len(who), 1)
        places = gathered.places
        u = model.user(gathered.rows, places["user"], places["history"], offsets, weights)
        return u, model.entity(gathered.rows, places["target"], torch.arange(len(what) + 1))

    for _ in range(100):
        who = random.integers(0, n, b)
        what = random.integers(0, n // 2, b) * 2 + who % 2
        history = random.integers(0, n // 2, (b, 2)) * 2 + who[:, None] % 2
        u, v = step(who, what, history, train=True)
        optimizer.zero_grad()
        sampled_softmax(u, v, torch.from_numpy(what), log_q, temperature=0.2).backward()
        optimizer.step()
        lookup.apply_gradients(0.05)
    everyone = np.arange(n)
    with torch.no_grad():
        u, v = step(everyone, everyone, np.tile([0, 2], (n, 1)) + everyone[:, None] % 2, train=False)
        top = (u @ v.T).topk(n // 2).indices
    assert (top % 2 == torch.arange(n)[:, None] % 2).float().mean() == 1.0
    assert len(table) == 2 * n
