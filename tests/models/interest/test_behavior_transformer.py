import pytest
import torch
from fitting import steps_of_adam
from interest_world import DIM, assert_same_gradients, histories_of, jagged_world
from sizes import LargestTensor
from torch import Tensor, nn
from torch.nn import functional

from mainstem.models.interest import BehaviorTransformer, BehaviorTransformerConfig
from mainstem.models.interest.behavior_transformer import Block, gap_buckets


def _model(layers: int, dtype: torch.dtype = torch.float64) -> BehaviorTransformer:
    torch.manual_seed(0)
    return BehaviorTransformer(BehaviorTransformerConfig(DIM, heads=2, layers=layers)).to(dtype)


def _dense_block(block: Block, x: Tensor, blocked: Tensor) -> Tensor:
    """One block of torch's own attention over a whole sequence x [l, DIM]; blocked bool [l, l]."""
    attention = functional.multi_head_attention_forward
    seen, _ = attention(
        x[:, None], x[:, None], x[:, None], DIM, block.heads,
        torch.cat((block.query.weight, block.key.weight, block.value.weight)), None, None, None, False, 0.0,
        block.joined.weight, None, attn_mask=blocked, need_weights=False,
    )  # fmt: skip
    x = block.first(x + seen[:, 0])
    return block.second(x + block.network(x))


def _plain(model: BehaviorTransformer, world: tuple[Tensor, ...], events_see_candidate: bool) -> Tensor:
    """Each candidate at the end of its own copy of the history."""
    candidates, requests, history, gaps, offsets = world
    out = []
    for candidate, span in zip(candidates, histories_of(requests, offsets), strict=True):
        buckets = gap_buckets(gaps[span], model.config.buckets)
        x = torch.cat((history[span] + model.positions(buckets), candidate[None] + model.positions.weight[:1]))
        blocked = torch.zeros(len(x), len(x), dtype=torch.bool)
        if not events_see_candidate:
            blocked[:-1, -1] = True
        for block in model.blocks:
            x = _dense_block(block, x, blocked)
        out.append(x[-1])
    return torch.stack(out)


@pytest.mark.parametrize("layers", [1, 3])
def test_agrees_with_a_dense_transformer_and_its_gradient(layers: int) -> None:
    model, world = _model(layers), jagged_world()
    got, want = model(*world), _plain(model, world, events_see_candidate=False)
    assert_same_gradients(got, want, [world[0], world[2], *model.parameters()])
    as_published = _plain(model, world, events_see_candidate=True)
    # one layer is the paper's; with more, events that do not see the candidate are another model, as is said
    assert torch.allclose(got, as_published) == (layers == 1)


def test_an_empty_history_leaves_a_number_and_no_candidates_an_empty_answer() -> None:
    model = _model(2)
    candidates, requests, history, gaps, offsets = jagged_world()
    alone = model(candidates[2:4], torch.zeros(2, dtype=torch.int64), history[:0], gaps[:0], torch.tensor([0, 0]))
    torch.testing.assert_close(alone, model(candidates, requests, history, gaps, offsets)[2:4])
    assert alone.isfinite().all()
    assert model(candidates[:0], requests[:0], history, gaps, offsets).shape == (0, DIM)
    with pytest.raises(ValueError, match="fall"):
        model(candidates, requests.flip(0), history, gaps, offsets)


def test_the_history_of_a_request_is_not_copied_for_each_candidate() -> None:
    model = _model(1, torch.float32)
    candidates, history = torch.randn(64, DIM), torch.randn(100, DIM)
    requests, offsets = torch.zeros(64, dtype=torch.int64), torch.tensor([0, 100])
    with LargestTensor() as largest:
        model(candidates, requests, history, torch.ones(100), offsets)
    assert largest.numel <= 64 * 101 * 2  # attention of two heads
    with LargestTensor() as largest:
        history.expand(64, -1, -1).contiguous()
    assert largest.numel > 64 * 101 * 2  # canary: the measure sees a copy


def test_gaps_fall_into_rising_buckets_and_never_into_the_candidates() -> None:
    gaps = torch.tensor([-5.0, 0.0, 1.0, 3.0, 3600.0, 7 * 86_400.0, 1e15])
    assert gap_buckets(gaps, 32).tolist() == [1, 1, 2, 3, 12, 20, 31]
    with pytest.raises(ValueError, match="multiple"):
        BehaviorTransformer(BehaviorTransformerConfig(10, heads=4))


def _fitted(knows_time: bool) -> float:
    """Accuracy on new requests where each has taken the candidate's kind, and only *when* decides."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    kinds, length, n = torch.randn(6, DIM), 4, 1600
    history_kind = torch.rand(n, 6, generator=generator).argsort(dim=1)[:, :length]
    gaps = torch.where(torch.rand(n, length, generator=generator) < 0.5, 60.0, 1e6)
    label = (gaps[:, 0] < 3600).float()
    candidate_kind = history_kind[:, 0]
    model = BehaviorTransformer(BehaviorTransformerConfig(DIM, heads=2))
    head = nn.Linear(DIM, 1)

    def logits(rows: slice) -> Tensor:
        own = gaps[rows].flatten() if knows_time else torch.zeros(gaps[rows].numel())
        count = len(own) // length
        events = kinds[history_kind[rows]].flatten(0, 1)
        offsets = torch.arange(count + 1) * length
        out = model(kinds[candidate_kind[rows]], torch.arange(count), events, own, offsets)
        return head(out)[:, 0]

    def loss(step: int) -> Tensor:
        rows = slice(step * 200 % 1200, step * 200 % 1200 + 200)
        return functional.binary_cross_entropy_with_logits(logits(rows), label[rows])

    steps_of_adam(loss, [*model.parameters(), *head.parameters()], 150, 0.01)
    with torch.no_grad():
        return float(((logits(slice(1200, n)) > 0) == (label[1200:] > 0)).float().mean())


def test_learns_when_the_candidates_kind_was_taken() -> None:
    assert _fitted(knows_time=True) > 0.95
    assert _fitted(knows_time=False) < 0.65  # canary: without the gaps nothing tells
