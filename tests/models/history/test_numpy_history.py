"""Encoders without torch say what the torch modules say, of histories of any length."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

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
from mainstem.models.numpy_history import Past, has_numpy, numpy_history

DIM, ACTIONS, CANVASES, LONGEST = 8, 3, 4, 30
SECOND = 1000


def disturbed(encoder: HistoryEncoder) -> HistoryEncoder:
    """No weight is where it begins: zeros and ones would hide what is left out."""
    torch.manual_seed(0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.add_(0.3 * torch.randn_like(parameter))
    return encoder.eval()


def transformer(layers: int = 2, *, width: int = DIM, query_time: bool = False, time_buckets: int = 32) -> Transformer:
    events = EventConfig(DIM, ACTIONS, CANVASES, time_buckets, query_time)
    return Transformer(TransformerConfig(events, width, layers, 2, 12, positions=LONGEST // 2, dropout=0.5))


ENCODERS = {
    "pooling": disturbed(Pooling(PoolingConfig(DIM, (1.0, 0.5, 2.0), hidden=12))),
    "one block": disturbed(transformer(1)),
    "two blocks": disturbed(transformer(2)),
    "three blocks": disturbed(transformer(3)),
    "wider": disturbed(transformer(2, width=12)),
    "query time": disturbed(transformer(2, query_time=True)),
    "blind to time": disturbed(transformer(2, time_buckets=0)),
}


def past(events: int, seed: int) -> Past:
    rng = np.random.default_rng(seed)
    gaps = np.where(rng.random(events) < 0.2, 0, (SECOND * 2 ** rng.uniform(0, 25, events)).astype(np.int64))
    time = 1_700_000_000_000 + np.cumsum(gaps)
    return Past(
        rng.normal(size=(events, DIM)).astype(np.float32), rng.integers(0, ACTIONS, events),
        rng.integers(0, CANVASES, events), rng.normal(size=events, scale=20).astype(np.float32), time,
        int(time[-1]) + int(rng.integers(0, 10**9)),
    )  # fmt: skip


def newest(encoder: HistoryEncoder, said: Past) -> np.ndarray:
    """What torch says."""
    bodies, action, canvas, value, time = (torch.from_numpy(column) for column in said[:5])
    offsets, asked = torch.tensor([0, len(said.bodies)]), torch.tensor([said.asked])
    histories = Histories(bodies, action, canvas, value, time, offsets, asked)
    with torch.no_grad():
        found: np.ndarray = encoder(histories)[-1].numpy()
    return found


@pytest.mark.parametrize("name", ENCODERS)
@given(events=st.integers(1, LONGEST), seed=st.integers(0, 2**32 - 1))
@settings(max_examples=30, deadline=None)
def test_without_torch_the_newest_state_is_the_same(name: str, events: int, seed: int) -> None:
    said = past(events, seed)
    found = numpy_history(ENCODERS[name])(said)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, newest(ENCODERS[name], said), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("changed", ["bodies", "action", "canvas", "value", "time", "asked"])
def test_every_column_is_read(changed: str) -> None:
    said, other = past(9, 1), past(9, 2)
    encode = numpy_history(ENCODERS["query time"])
    assert np.abs(encode(said) - encode(said._replace(**{changed: getattr(other, changed)}))).max() > 1e-3


def test_what_has_no_such_form_says_so() -> None:
    encoder = HSTU(HSTUConfig(EventConfig(DIM), DIM, layers=1))
    assert not has_numpy(encoder)
    with pytest.raises(ValueError, match="HSTU has no form without torch"):
        numpy_history(encoder)
    assert all(has_numpy(each) for each in ENCODERS.values())
