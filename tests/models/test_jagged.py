from itertools import pairwise

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.jagged import bag, segment_ids, segment_log_sum_exp, segment_sum

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


def test_an_empty_segment_gives_the_others_finite_gradients() -> None:
    values = torch.randn(3, requires_grad=True)
    offsets = torch.tensor([0, 0, 3])
    segment_log_sum_exp(values, offsets)[1].backward()
    torch.testing.assert_close(values.grad, torch.softmax(values.detach(), 0))
