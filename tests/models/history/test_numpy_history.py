"""Encoders without torch say what the torch modules say, of histories of any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from histories import DIM, batch, shaken
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.history import Histories
from mainstem.models.numpy_history import Past, has_numpy, numpy_history

ENCODERS = {
    "pooling": shaken("pooling"),
    "one block": shaken("transformer", layers=1),
    "two blocks": shaken("transformer"),
    "three blocks": shaken("transformer", layers=3),
    "as wide as the rows": shaken("transformer", width=DIM),
    "query time": shaken("transformer-query"),
    "blind to time": shaken("transformer-timeless"),
}


def past(histories: Histories) -> Past:
    """A batch of one history, as serving has it."""
    assert histories.query_time is not None
    h, asked = histories, int(histories.query_time[0])
    bodies, value = (each.float().numpy() for each in (h.rows, h.value))
    return Past(bodies, h.action.numpy(), h.canvas.numpy(), value, h.time.numpy(), asked)


@pytest.mark.parametrize("name", ENCODERS)
@given(events=st.integers(1, 30), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_without_torch_the_newest_state_is_the_same(name: str, events: int, seed: int) -> None:
    said = batch([events], seed)
    with torch.no_grad():
        want = ENCODERS[name](said)[-1].numpy()
    found = numpy_history(ENCODERS[name])(past(said))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, want, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changed", ["bodies", "action", "canvas", "value", "time", "asked"])
def test_every_column_is_read(changed: str) -> None:
    said, other = past(batch([9], 1)), past(batch([9], 2))
    other = other._replace(asked=said.asked + 10**10)  # months later: another bucket for sure
    encode = numpy_history(ENCODERS["query time"])
    assert np.abs(encode(said) - encode(said._replace(**{changed: getattr(other, changed)}))).max() > 1e-3


def test_what_has_no_such_form_says_so() -> None:
    encoder = shaken("hstu")
    assert not has_numpy(encoder)
    with pytest.raises(ValueError, match="HSTU has no form without torch"):
        numpy_history(encoder)
    assert all(has_numpy(each) for each in ENCODERS.values())
