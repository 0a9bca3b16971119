"""The average of weights over epochs: what it is by hand, that training goes on from the newest ones, and a canary."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from cycle import CHANGES, cycle
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.next_item import Actions, SequenceModel, configured
from mainstem.next_item.averaging import averaged


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Actions:
    return cycle(tmp_path_factory.mktemp("cycle"))


def learned(keys: list[int], seed: int) -> dict[str, Any]:
    rng = np.random.default_rng(seed)
    module = {"weight": torch.from_numpy(rng.normal(size=(2, 3)).astype(np.float32)), "count": torch.tensor(seed)}
    values = rng.normal(size=(len(keys), 4)).astype(np.float32)
    return {"module": module, "table": {"keys": np.array(keys, np.uint64), "values": values, "seen": np.arange(9)}}


@settings(deadline=None)
@given(
    st.lists(st.integers(1, 30), unique=True), st.lists(st.integers(1, 30), unique=True),
    st.sampled_from([0.0, 0.25, 0.75, 0.99]),
)  # fmt: skip
def test_it_is_the_mix_by_key(old: list[int], new: list[int], keep: float) -> None:
    before, after = learned(sorted(old), 1), learned(sorted(new), 2)
    untouched = before["table"]["values"].copy(), after["table"]["values"].copy()
    found = averaged(before, after, keep)
    expected = dict(zip(sorted(new), after["table"]["values"], strict=True))
    for key, value in zip(sorted(old), before["table"]["values"], strict=True):
        if key in expected:
            expected[key] = keep * value + (1 - keep) * expected[key]
    assert found["table"]["keys"].tolist() == sorted(new)
    for value, key in zip(found["table"]["values"], sorted(new), strict=True):
        np.testing.assert_allclose(value, expected[key], rtol=1e-5, atol=1e-6)
    mixed = keep * before["module"]["weight"] + (1 - keep) * after["module"]["weight"]
    torch.testing.assert_close(found["module"]["weight"], mixed)
    assert found["module"]["count"] == 2, "what counts is not averaged"
    assert np.array_equal(before["table"]["values"], untouched[0])
    assert np.array_equal(after["table"]["values"], untouched[1])


def test_the_first_average_is_what_was_learned() -> None:
    first = learned([1, 2], 1)
    assert averaged(None, first, 0.75)["table"]["values"] is first["table"]["values"]


@pytest.mark.parametrize("keep", [-0.1, 1.0])
def test_a_share_outside_its_range_is_refused(keep: float) -> None:
    with pytest.raises(ValueError, match="share"):
        averaged(None, learned([1], 1), keep)


def trained(world: Actions, keep: float) -> tuple[list[np.ndarray], list[float]]:
    """The rows that each of four epochs was judged by, and the losses of these epochs."""
    config = configured(world.config, CHANGES, 0)
    config = config.model_copy(update={"train": config.train.model_copy(update={"retrieval_epochs": 4, "patience": 9})})
    model = SequenceModel(world, config, average=keep)
    judged: list[np.ndarray] = []

    def judge() -> float:
        judged.append(model.trainer.towers.table.state()["values"].copy())
        return 0.0

    model.choose(world.data, world.data.learned(), judge)
    return judged, [each.loss for each in model.chosen.epochs]


def test_epochs_are_judged_by_the_average_and_learning_goes_on_from_the_newest(world: Actions) -> None:
    newest, losses = trained(world, 0.0)
    judged, same = trained(world, 0.75)
    assert same == losses, "the average changes nothing of the training"
    average = newest[0]
    np.testing.assert_array_equal(judged[0], average)
    for after, found in zip(newest[1:], judged[1:], strict=True):
        average = 0.75 * average + 0.25 * after
        np.testing.assert_allclose(found, average, rtol=1e-4, atol=1e-6)
    assert np.abs(judged[-1] - newest[-1]).max() > 1e-3, "canary: it is another model"
