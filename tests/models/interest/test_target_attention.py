import pytest
import torch
from fitting import steps_of_adam
from interest_world import DIM, assert_same_gradients, histories_of, jagged_world
from sizes import LargestTensor
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.interest import TargetAttention, TargetAttentionConfig

HIDDEN = 6


def _model(block: int = 1 << 16, dtype: torch.dtype = torch.float64) -> TargetAttention:
    torch.manual_seed(0)
    return TargetAttention(TargetAttentionConfig(DIM, hidden=HIDDEN, block=block)).to(dtype)


def _plain(model: TargetAttention, candidates: Tensor, requests: Tensor, history: Tensor, offsets: Tensor) -> Tensor:
    """Equation 3 as it is written, one candidate at a time."""
    out = []
    for c, span in zip(candidates, histories_of(requests, offsets), strict=True):
        h = history[span]
        c = c.expand_as(h)
        hidden = model.activation(model.unit(torch.cat((h, c, h - c, h * c), dim=1)))
        out.append((model.out(hidden) * h).sum(dim=0))
    return torch.stack(out)


@pytest.mark.parametrize("block", [1, 4, 1 << 16])
def test_agrees_with_the_plain_form_and_its_gradient(block: int) -> None:
    model = _model(block)
    candidates, requests, history, _, offsets = jagged_world()
    leaves = [candidates, history, *model.parameters()]
    got = model(candidates, requests, history, offsets)
    assert_same_gradients(got, _plain(model, candidates, requests, history, offsets), leaves)
    assert (got[2:4] == 0).all()  # request 1 has no history
    with torch.no_grad():
        torch.testing.assert_close(model(candidates, requests, history, offsets), got)
    order = torch.randperm(len(requests), generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(model(candidates[order], requests[order], history, offsets), got[order])
    none = model(candidates[:0], requests[:0], history, offsets)
    assert none.shape == (0, DIM)


def test_no_more_pairs_are_laid_out_at_once_than_a_block_holds() -> None:
    candidates, history = torch.randn(50, DIM, requires_grad=True), torch.randn(100, DIM, requires_grad=True)
    requests, offsets = torch.zeros(50, dtype=torch.int64), torch.tensor([0, 100])
    sizes = {}
    for block in (256, 5000):
        model = _model(block, torch.float32)
        with LargestTensor() as largest:
            model(candidates, requests, history, offsets).square().sum().backward()
        sizes[block] = largest.numel
    assert sizes[256] <= 2 * 5000  # numbers of a pair are kept, never its hidden layer
    assert sizes[5000] == 5000 * HIDDEN  # canary: in one block they are, and nothing larger


def _fitted(pool: str) -> float:
    """Accuracy, on new requests, at saying from the interest *alone* whether an event is of the candidate's kind."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    kinds, length, n = functional.normalize(torch.randn(12, DIM)), 4, 2000
    history_kind = torch.randint(12, (n, length), generator=generator)
    other, own = torch.randint(12, (n,), generator=generator), history_kind[:, 0]
    candidate_kind = torch.where(torch.arange(n) % 2 == 0, own, other)
    label = (history_kind == candidate_kind[:, None]).any(dim=1).float()
    model, head = TargetAttention(TargetAttentionConfig(DIM, hidden=16)), nn.Linear(DIM, 1)

    def logits(rows: slice) -> Tensor:
        history = kinds[history_kind[rows]].flatten(0, 1)
        candidates = kinds[candidate_kind[rows]]
        offsets = torch.arange(len(candidates) + 1) * length
        if pool == "mean":
            return head(history.unflatten(0, (-1, length)).mean(dim=1))[:, 0]
        found = model(candidates, torch.arange(len(candidates)), history, offsets)
        return head(found * candidates)[:, 0]

    def loss(step: int) -> Tensor:
        rows = slice(step * 200 % 1600, step * 200 % 1600 + 200)
        return functional.binary_cross_entropy_with_logits(logits(rows), label[rows])

    steps_of_adam(loss, [*model.parameters(), *head.parameters()], 300, 0.02)
    with torch.no_grad():
        return float(((logits(slice(1600, n)) > 0) == (label[1600:] > 0)).float().mean())


def test_learns_which_events_go_with_the_candidate() -> None:
    assert _fitted("attention") > 0.97
    assert _fitted("mean") < 0.7  # canary: a pooling that knows no candidate cannot
