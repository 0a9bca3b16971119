"""Each encoder's layer against its published formula, written out event by event."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest
import torch
from histories import DIM, LENGTHS, batch, shaken
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from mainstem.models.history import HSTU, Pooling, Transformer
from mainstem.models.history.event_input import log_bucket
from mainstem.models.history.packing import Packing
from mainstem.models.history.pooling import decayed_sums, plain_decayed_sums

some = settings(max_examples=15, deadline=None)


@some
@given(lengths=LENGTHS)
def test_the_input_of_an_event_is_the_sum_of_what_it_says(lengths: list[int]) -> None:
    made, h = shaken("hstu-query"), batch(lengths)
    assert isinstance(made, HSTU)
    own, got = made.input, made.input(h)
    assert own.before is not None
    assert own.ahead is not None
    assert h.query_time is not None
    for user, (a, b) in enumerate(pairwise(h.offsets.tolist())):
        for i in range(a, b):
            want = own.project(h.rows[i]) + own.action.weight[h.action[i]] + own.canvas.weight[h.canvas[i]]
            want = want + math.copysign(math.log1p(abs(h.value[i])), h.value[i]) * own.value
            # a first event has a place of its own, after the buckets
            want = want + own.before.weight[32 if i == a else log_bucket(h.time[i] - h.time[i - 1], 32)]
            asked = h.query_time[user] if i == b - 1 else h.time[i + 1]
            torch.testing.assert_close(got[i], want + own.ahead.weight[log_bucket(asked - h.time[i], 32)])


@settings(max_examples=10, deadline=None)
@given(lengths=st.lists(st.integers(0, 8), min_size=1, max_size=4), query=st.booleans())
def test_hstu_is_equations_1_to_3(lengths: list[int], query: bool) -> None:
    made, histories = shaken("hstu-query" if query else "hstu"), batch(lengths)
    assert isinstance(made, HSTU)
    x, times = made.input(histories), histories.time
    asked = histories.asked_at() if query else times
    for layer in made.layers:
        everything = functional.silu(layer.gate_and_attention(layer.norm(x)))
        u, v, q, k = everything.chunk(4, dim=-1)
        mixed = torch.zeros_like(x)
        for a, b in pairwise(histories.offsets.tolist()):
            for i in range(a, b):
                for head in (slice(0, 4), slice(4, 8)):
                    for j in range(a, i + 1):
                        bias = layer.distance_bias[min(i - j, 6)] + layer.time_bias[log_bucket(asked[i] - times[j], 32)]
                        mixed[i, head] += functional.silu(q[i, head] @ k[j, head] + bias) * v[j, head] / (i - a + 1)
        x = x + layer.out(layer.attention_norm(mixed) * u)
    torch.testing.assert_close(made(histories), x)


def rotation(places: int) -> Tensor:
    """Equations 15 and 16 of Su et al. 2021, for heads four wide: two pairs, turned by 1 and by .01 a place."""
    pairs = []
    for angle in (places * 1.0, places * 0.01):
        cos, sin = math.cos(angle), math.sin(angle)
        pairs.append(torch.tensor([[cos, -sin], [sin, cos]], dtype=torch.float64))
    return torch.block_diag(*pairs)


@some
@given(lengths=LENGTHS)
def test_the_transformer_is_its_blocks(lengths: list[int]) -> None:
    made, histories = shaken("transformer"), batch(lengths)
    assert isinstance(made, Transformer)
    x = made.input(histories).clone()
    pieces = list(pairwise(histories.offsets.tolist()))
    for block in made.blocks:
        q, k, v = block.query_key_value(block.attention_norm(x)).chunk(3, dim=-1)
        mixed = torch.zeros_like(x)
        for a, b in pieces:
            for i in range(a, b):
                for head in (slice(0, 4), slice(4, 8)):
                    logits = [q[i, head] @ rotation(j - i) @ k[j, head] / math.sqrt(4) for j in range(a, i + 1)]
                    share = torch.stack(logits).softmax(0)
                    mixed[i, head] = share @ v[a : i + 1, head]
        x = x + block.attention_gate(x).sigmoid() * block.attention_out(mixed)
        gate, content = block.forward_in(block.forward_norm(x)).chunk(2, dim=-1)
        x = x + block.forward_gate(x).sigmoid() * block.forward_out(functional.silu(gate) * content)
    torch.testing.assert_close(made(histories), x)


@some
@given(lengths=LENGTHS)
def test_pooling_is_a_weighted_mean_of_what_lies_before(lengths: list[int]) -> None:
    made, histories = shaken("pooling"), batch(lengths)
    assert isinstance(made, Pooling)
    interest = made.log_interest[histories.action].exp()
    want = []
    for a, b in pairwise(histories.offsets.tolist()):
        for i in range(a, b):
            age = (histories.time[i] - histories.time[a : i + 1]).double()
            weights = [interest[a : i + 1] * torch.exp2(-age / h) for h in made.config.half_lives]
            means = [w / w.sum() @ histories.rows[a : i + 1] for w in weights]
            want.append(made.blend[0] * means[0] + made.blend[1] * means[1] + made.correction(torch.cat(means)))
    torch.testing.assert_close(made(histories), torch.stack(want) if want else torch.zeros(0, DIM, dtype=torch.float64))


@some
@given(lengths=LENGTHS, dtype=st.sampled_from([torch.float32, torch.float64]))
def test_the_compiled_decayed_sums_equal_the_plain_ones(lengths: list[int], dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(sum(lengths))
    total = sum(lengths)
    decay = torch.rand(total, generator=generator, dtype=dtype).index_fill(0, batch(lengths).first(), 0.0)
    values = torch.randn(3, total, generator=generator, dtype=dtype).T  # not contiguous
    slopes = torch.randn(total, 3, generator=generator, dtype=dtype)
    got: list[Tensor] = []
    for sums in (decayed_sums, plain_decayed_sums):
        leaf = values.clone().requires_grad_()
        out = sums(leaf, decay)
        (out * slopes).sum().backward()
        assert leaf.grad is not None
        got += [out.detach(), leaf.grad]
    torch.testing.assert_close(got[0], got[2])
    torch.testing.assert_close(got[1], got[3])


@settings(max_examples=60, deadline=None)
@given(lengths=st.lists(st.integers(0, 60), max_size=30), spread=st.sampled_from([1.0, 1.25, 2.0, math.inf]))
def test_groups_hold_every_event_once_beside_like_lengths(lengths: list[int], spread: float) -> None:
    offsets = torch.tensor([0, *lengths]).cumsum(0)
    packing = Packing.of(offsets, spread)
    events = torch.arange(sum(lengths))
    groups = packing.split(events)
    assert all(torch.equal(group, places) for group, places in zip(groups, packing.places, strict=True))
    if groups:
        assert torch.equal(packing.join([group[..., None] for group in groups])[:, 0], events)
    seen = []
    for group in groups:
        own = torch.searchsorted(offsets, group[:, 0].contiguous(), right=True) - 1
        of_group = torch.tensor(lengths)[own]
        assert int(of_group.max()) == group.shape[1]
        assert int(of_group.max()) <= int(of_group.min()) * spread
        want = offsets[own, None] + torch.arange(group.shape[1]).minimum(of_group[:, None] - 1)
        assert torch.equal(group, want)
        seen += own.tolist()
    assert sorted(seen) == [i for i, length in enumerate(lengths) if length]
    assert len(groups) <= (1 if math.isinf(spread) else 60 if spread == 1 else 1 + math.log(60) / math.log(spread))


def test_a_decay_for_each_event_or_none() -> None:
    with pytest.raises(ValueError, match="decay"):
        decayed_sums(torch.zeros(3, 2), torch.zeros(2))


def test_a_spread_below_one_is_refused() -> None:
    for spread in (0.9, math.nan):
        with pytest.raises(ValueError, match="spread"):
            Packing.of(torch.tensor([0, 1]), spread)


def test_log_buckets_double() -> None:
    gaps = torch.tensor([-5, 0, 999, 1_000, 2_999, 3_000, 3_600_000, 2 * 86_400_000, 70 * 365 * 86_400_000, 2**60])
    assert log_bucket(gaps, 32).tolist() == [0, 0, 0, 1, 1, 2, 11, 17, 31, 31]
    assert log_bucket(gaps, 3).tolist() == [0, 0, 0, 1, 1, 2, 2, 2, 2, 2]
