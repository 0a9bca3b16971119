from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.jagged import bag, plain_bag, segment_ids, segment_log_sum_exp, segment_sum

LENGTHS = st.lists(st.integers(0, 5), min_size=1, max_size=8)


def _jagged(lengths: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    torch.manual_seed(sum(lengths))
    return torch.randn(sum(lengths), dtype=torch.float64), torch.tensor([0, *lengths]).cumsum(0)


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_segments_agree_with_a_plain_loop(lengths: list[int]) -> None:
    values, offsets = _jagged(lengths)
    pieces = [values[a:b] for a, b in pairwise(offsets)]
    assert segment_ids(offsets, len(values)).tolist() == [i for i, n in enumerate(lengths) for _ in range(n)]
    torch.testing.assert_close(segment_sum(values, offsets), torch.stack([p.sum() for p in pieces]))
    got = segment_log_sum_exp(100 * values, offsets)
    filled = torch.tensor(lengths) > 0
    if filled.any():
        want = torch.stack([torch.logsumexp(100 * p, 0) for p in pieces if len(p)])
        torch.testing.assert_close(got[filled], want)
    assert (got[~filled] == -torch.inf).all()


@settings(max_examples=40, deadline=None)
@given(LENGTHS)
def test_the_fused_bag_and_its_gradient_agree_with_a_plain_loop(lengths: list[int]) -> None:
    weights, offsets = _jagged(lengths)
    places = torch.randint(0, 6, (len(weights),))
    fast = torch.randn(6, 3, dtype=torch.float64).requires_grad_()
    plain = fast.detach().clone().requires_grad_()
    out = bag(fast, places, offsets, weights)
    loop = torch.stack(
        [
            sum((weights[j] * plain[places[j]] for j in range(int(a), int(b))), 0.0 * plain[0])
            for a, b in pairwise(offsets)
        ]
    )
    torch.testing.assert_close(out, loop)
    target = torch.randn_like(loop)
    (out * target).sum().backward()
    (loop * target).sum().backward()
    torch.testing.assert_close(fast.grad, plain.grad)


def _bagged(
    which: object, lengths: list[int], dtype: torch.dtype, weighted: bool, dim: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor | None]:
    """What a bag gives, and its gradients by rows and by weights."""
    generator = torch.Generator().manual_seed(sum(lengths) + dim)
    offsets, total = torch.tensor([0, *lengths]).cumsum(0), sum(lengths)
    rows = torch.randn(7, dim, dtype=dtype, generator=generator).requires_grad_()
    places = torch.randint(0, 7, (total,), generator=generator)
    weights = torch.randn(total, dtype=dtype, generator=generator).requires_grad_() if weighted else None
    assert callable(which)
    out = which(rows, places, offsets, weights)
    out.backward(torch.randn(out.shape, dtype=dtype, generator=generator))
    assert rows.grad is not None
    return out.detach(), rows.grad, None if weights is None else weights.grad


@settings(max_examples=60, deadline=None)
@given(LENGTHS, st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.sampled_from([1, 3, 16, 37]))
def test_the_compiled_gradient_of_a_bag_is_that_of_torch(
    lengths: list[int], dtype: torch.dtype, weighted: bool, dim: int
) -> None:
    fast, plain = (_bagged(which, lengths, dtype, weighted, dim) for which in (bag, plain_bag))
    torch.testing.assert_close(fast, plain)


def test_the_compiled_gradient_of_a_bag_is_its_slope() -> None:
    """Against finite differences, in rows and in weights at once; a gradient without the weights is none."""
    torch.manual_seed(1)
    rows = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    weights = torch.randn(6, dtype=torch.float64, requires_grad=True)
    places, offsets = torch.tensor([4, 0, 4, 1, 1, 3]), torch.tensor([0, 3, 3, 6])
    assert torch.autograd.gradcheck(lambda r, w: bag(r, places, offsets, w), (rows, weights))
    assert torch.autograd.gradcheck(lambda r: bag(r, places, offsets), (rows,))
    (by_rows,) = torch.autograd.grad(bag(rows, places, offsets, weights).sum(), rows)
    (canary,) = torch.autograd.grad(bag(rows, places, offsets).sum(), rows)
    assert not torch.allclose(by_rows, canary)


def test_the_gradient_of_a_bag_takes_what_lies_otherwise_in_memory() -> None:
    rows = torch.randn(4, 6).T.requires_grad_()  # [6, 4], columns first
    places, weights = torch.tensor([[5, 0], [2, 0], [5, 0]])[:, 0], torch.tensor([[1.0, 2.0]] * 3)[:, 1]
    got = torch.autograd.grad(bag(rows, places, torch.tensor([0, 1, 3]), weights).sum(), rows)[0]
    want = torch.zeros(6, 4)
    want[5], want[2] = 4.0, 2.0
    torch.testing.assert_close(got, want)


@pytest.mark.parametrize("weights", [None, torch.ones(2)])
def test_a_bag_refuses_places_and_offsets_that_lie_outside(weights: torch.Tensor | None) -> None:
    rows = torch.randn(6, 3, requires_grad=True)
    for place in (-1, 6):
        with pytest.raises(RuntimeError, match="range"):
            bag(rows, torch.tensor([0, place]), torch.tensor([0, 2]), weights)
    for offsets in ([1, 2], [0, 3]):
        with pytest.raises(RuntimeError, match="offsets"):
            bag(rows, torch.tensor([0, 1]), torch.tensor(offsets), weights)


def test_an_empty_segment_gives_the_others_finite_gradients() -> None:
    values = torch.randn(3, requires_grad=True)
    offsets = torch.tensor([0, 0, 3])
    segment_log_sum_exp(values, offsets)[1].backward()
    torch.testing.assert_close(values.grad, torch.softmax(values.detach(), 0))
