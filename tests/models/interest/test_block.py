"""The interest as a part of the ranking network: in torch and without, and what it can see that a sum cannot."""

from __future__ import annotations

from typing import Literal

import numpy as np
import pytest
import torch
from interest_world import jagged_world

from mainstem.models import NumpyInterest, Ranker, RankerConfig, numpy_scorer
from mainstem.models.interest import InterestBlock, InterestConfig, Meeting

Kind = Literal["target_attention", "transformer"]
KINDS: tuple[Kind, ...] = ("target_attention", "transformer")
ACTIONS = 3


def block_of(kind: Kind, dim: int, heads: int = 1) -> InterestBlock:
    """With weights as training may leave them: nothing is at its first zeros."""
    torch.manual_seed(1)
    block = InterestBlock(InterestConfig(kind, dim, ACTIONS, width=5, heads=heads))
    with torch.no_grad():
        for parameter in block.parameters():
            parameter.copy_(torch.randn(parameter.shape) * 0.3)
    return block


def meeting_of(n: int, m: int, dim: int, seed: int = 0) -> Meeting:
    """One request; entities that nothing is known of among both."""
    generator = torch.Generator().manual_seed(seed)
    candidates, events = (torch.randn(k, dim, generator=generator) for k in (n, m))
    candidates, events = (torch.nn.functional.normalize(each, dim=1) for each in (candidates, events))
    candidates[::7], events[::5] = 0.0, 0.0
    gaps = 10 ** (9 * torch.rand(m, generator=generator)) - 1
    actions = torch.randint(ACTIONS, (m,), generator=generator)
    return Meeting(candidates, torch.zeros(n, dtype=torch.int64), events, actions, gaps, torch.tensor([0, m]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(("n", "m", "dim"), [(200, 50, 64), (65, 1, 8), (3, 0, 8), (0, 4, 8), (500, 50, 20)])
def test_numpy_and_torch_give_the_same(kind: Kind, n: int, m: int, dim: int) -> None:
    block, meeting = block_of(kind, dim, heads=4), meeting_of(n, m, dim)
    interest = NumpyInterest(block)
    arrays = [each.numpy() for each in (meeting.candidates, meeting.events, meeting.actions, meeting.gaps)]
    before = [array.copy() for array in arrays]
    with torch.no_grad():
        want = block(meeting).numpy()
    got = interest(*arrays)
    assert got.shape == (n, 5)
    assert got.dtype == np.float32
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * max(float(np.abs(want).max(initial=0)), 1))
    kept = got.copy()
    interest(arrays[0][::-1][: n // 2], *arrays[1:])
    np.testing.assert_array_equal(got, kept)  # scratch buffers never reach the caller
    for array, was in zip(arrays, before, strict=True):
        np.testing.assert_array_equal(array, was)


@pytest.mark.parametrize("kind", KINDS)
def test_requests_do_not_see_each_other(kind: Kind) -> None:
    candidates, requests, history, gaps, offsets = (each.detach() for each in jagged_world(torch.float32))
    block = block_of(kind, candidates.shape[1])
    actions = torch.arange(len(history)) % ACTIONS
    together = block(Meeting(candidates, requests, history, actions, gaps, offsets))
    for request in range(len(offsets) - 1):
        mine, span = requests == request, slice(int(offsets[request]), int(offsets[request + 1]))
        alone = Meeting(
            candidates[mine], torch.zeros(int(mine.sum()), dtype=torch.int64), history[span], actions[span],
            gaps[span], torch.tensor([0, span.stop - span.start]),
        )  # fmt: skip
        torch.testing.assert_close(block(alone), together[mine], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
def test_what_an_event_was_and_when_makes_a_difference(kind: Kind) -> None:
    block, meeting = block_of(kind, 8), meeting_of(6, 4, 8)
    base = block(meeting)
    assert not torch.allclose(block(meeting._replace(actions=(meeting.actions + 1) % ACTIONS)), base, atol=1e-3)
    assert not torch.allclose(block(meeting._replace(gaps=meeting.gaps + 1e6)), base, atol=1e-3)
    order = torch.tensor([3, 1, 0, 2])
    moved = meeting._replace(events=meeting.events[order], actions=meeting.actions[order], gaps=meeting.gaps[order])
    torch.testing.assert_close(block(moved), base, rtol=1e-4, atol=1e-5)  # time is told by ages, not by places


@pytest.mark.parametrize("kind", KINDS)
def test_training_begins_at_the_network_without_it(kind: Kind) -> None:
    interest = InterestConfig(kind, 8, ACTIONS)
    torch.manual_seed(0)
    ranker = Ranker(RankerConfig(4, embeddings=interest.width, interest=interest))
    assert ranker.interest is not None
    block = ranker.interest(meeting_of(20, 6, 8))
    assert block.shape == (20, interest.width)
    assert (block == 0).all()
    x = torch.randn(20, 4)
    logits = ranker(x, embeddings=block)
    logits.sum().backward()
    assert ranker.interest.out.weight.grad is not None
    assert ranker.interest.out.weight.grad.abs().sum() > 0  # and goes on from there
    np.testing.assert_allclose(
        numpy_scorer(ranker).logits(x.numpy(), embeddings=block.detach().numpy()), logits.detach(), atol=1e-5
    )
    with pytest.raises(ValueError, match="columns"):
        Ranker(RankerConfig(4, interest=interest))
