import random
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from mainstem.schema.errors import StoreError
from mainstem.weights import SnapshotMeta, Snapshots
from mainstem.weights.checkpoints import flatten, random_states, restore_random, unflatten

TREES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner) | st.tuples(inner, inner) | st.dictionaries(st.text() | st.integers(), inner),
    max_leaves=12,
)


@settings(max_examples=100, deadline=None)
@given(TREES)
def test_any_tree_comes_back_with_its_types(tree: object) -> None:
    arrays, packed = flatten(tree)
    back = unflatten(arrays, packed)
    assert repr(back) == repr(tree)
    assert not arrays


def test_arrays_and_tensors_come_back_as_they_were() -> None:
    state = {"a.b": torch.ones(2), "a": {"b": torch.zeros(3), 3: np.arange(2)}, "scalar": torch.tensor(4.0)}
    arrays, tree = flatten(state)
    back = unflatten(arrays, tree)
    assert torch.equal(back["a.b"], state["a.b"])
    assert torch.equal(back["a"]["b"], state["a"]["b"])
    assert back["scalar"].shape == ()
    np.testing.assert_array_equal(back["a"][3], [0, 1])
    with pytest.raises(TypeError, match=r"state\.x\.1: .* set"):
        flatten({"x": [1, {2}]})
    with pytest.raises(StoreError):
        unflatten({}, tree)
    with pytest.raises(StoreError):
        unflatten({}, {"pickle": "x"})


def _losses(
    model: nn.Module, optimizer: torch.optim.Optimizer, generator: np.random.Generator, steps: int
) -> list[float]:
    losses = []
    for _ in range(steps):
        x = torch.from_numpy(generator.normal(size=(8, 4)).astype(np.float32)) + 0.1 * torch.randn(8, 4)
        loss = (model(x) - x.sum(1, keepdim=True) - random.random()).pow(2).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    return losses


def test_training_resumes_exactly_where_it_stopped(tmp_path: Path) -> None:
    def fresh(seed: int) -> tuple[nn.Module, torch.optim.Optimizer, np.random.Generator]:
        torch.manual_seed(seed)
        model = nn.Linear(4, 1)
        return model, torch.optim.Adam(model.parameters(), lr=0.1, betas=(0.8, 0.9)), np.random.default_rng(seed)

    snapshots = Snapshots(tmp_path)
    model, optimizer, generator = fresh(1)
    _losses(model, optimizer, generator, 5)
    state = {
        "step": 5,
        "model": dict(model.state_dict()),
        "optimizer": optimizer.state_dict(),
        "random": random_states(generator),
    }
    arrays, tree = flatten(state)
    version = snapshots.save("main-training", arrays, None, SnapshotMeta(extras={"state": tree}))
    straight_on = _losses(model, optimizer, generator, 5)

    model, optimizer, generator = fresh(2)
    snapshot = snapshots.load("main-training", version)
    loaded = unflatten(snapshot.tensors, snapshot.manifest.extras["state"])
    assert loaded["step"] == 5
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(loaded["optimizer"])
    assert _losses(model, optimizer, generator, 5) != straight_on  # canary: without the generators it differs
    model.load_state_dict(loaded["model"])
    optimizer.load_state_dict(unflatten(snapshot.tensors, snapshot.manifest.extras["state"])["optimizer"])
    restore_random(loaded["random"], generator)
    assert _losses(model, optimizer, generator, 5) == straight_on
    with pytest.raises(StoreError, match="numpy generator"):
        restore_random(loaded["random"])
