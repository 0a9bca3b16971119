"""Sources of negatives: the chance they state is the one they draw by, and with it the full softmax is learned."""

from collections.abc import Callable

import pytest
import torch
from fitting import minimise
from torch import Tensor

from mainstem.models.losses import log_inclusion, sampled_softmax
from mainstem.models.losses.negatives import (
    ByPopularity,
    Hard,
    InBatch,
    NegativeSource,
    Queue,
    Uniform,
    draw,
)

N, B, SAMPLES = 16, 5, 600
# What two kinds of user take, each of the N entities: skewed by popularity, and not alike.
POPULAR = torch.arange(1, N + 1).float() ** -1.2
TASTE = torch.stack((POPULAR * (1 + torch.arange(N) % 2 * 3), POPULAR * (4 - torch.arange(N) % 2 * 3)))
TAKES = TASTE / TASTE.sum(dim=1, keepdim=True)
SHARE = TAKES.mean(dim=0)
LISTS = TAKES.topk(6, dim=1).indices

Make = Callable[[Tensor, torch.Generator], list[NegativeSource]]


def _positives(count: int, generator: torch.Generator) -> Tensor:
    return torch.multinomial(SHARE, count, replacement=True, generator=generator)


def _in_batch(share: Tensor, generator: torch.Generator) -> list[NegativeSource]:
    return [InBatch(_positives(B, generator), share)]


def _uniform(share: Tensor, generator: torch.Generator) -> list[NegativeSource]:
    return [Uniform(N, 5)]


def _by_popularity(share: Tensor, generator: torch.Generator) -> list[NegativeSource]:
    return [ByPopularity(share, 5, power=0.75)]


def _hard(share: Tensor, generator: torch.Generator) -> list[NegativeSource]:
    return [Hard(LISTS, 2), Uniform(N, 3)]


def _queue(share: Tensor, generator: torch.Generator) -> list[NegativeSource]:
    queue = Queue(share, batches=2)
    for _ in range(3):
        queue.push(_positives(3, generator))
    return [queue]


SOURCES: dict[str, Make] = {
    "in batch": _in_batch,
    "uniform": _uniform,
    "by popularity": _by_popularity,
    "mined": _hard,
    "queue": _queue,
    "mixed": lambda share, generator: [*_in_batch(share, generator), *_queue(share, generator), Uniform(N, 2)],
}


def _drawn(make: Make, samples: int) -> tuple[Tensor, Tensor]:
    """Which entities each of `samples` steps drew, bool [samples, N], without a user's own positive; log Q [N]."""
    generator = torch.Generator().manual_seed(0)
    sets = torch.zeros(samples, N, dtype=torch.bool)
    for i in range(samples):
        for source in make(SHARE, generator):
            drawn = source.draw(generator)
            sets[i, drawn[1:] if isinstance(source, InBatch) else drawn] = True
    missed = sum(source.log_missed(torch.arange(N)) for source in make(SHARE, generator))
    assert isinstance(missed, Tensor)
    return sets, torch.log(-torch.expm1(missed)).float()


def _fitted(sets: Tensor, log_q: Tensor) -> Tensor:
    """log P [2, N] that minimises the sampled loss over these draws, in expectation over kinds of user and positives.

    Each row is one kind, one draw, one positive; what the draw has not is excluded.
    """
    kind, sample, target = torch.meshgrid(torch.arange(2), torch.arange(len(sets)), torch.arange(N), indexing="ij")
    kind, sample, target = kind.flatten(), sample.flatten(), target.flatten()
    users, weights, pairs = torch.eye(2)[kind], TAKES[kind, target], (~sets[sample]).nonzero().T
    scores = torch.zeros(2, N, requires_grad=True)

    def loss() -> Tensor:
        keys = torch.arange(N)
        sampled = sampled_softmax(users, scores.T, keys, log_q, 1.0, targets=target, weights=weights, excluded=pairs)
        return sampled + 1e-4 * scores.mean(dim=1).square().sum()  # the constant of each kind's scores is free

    minimise(loss, scores, steps=40)
    return scores.detach().log_softmax(dim=1)


@pytest.mark.parametrize("name", SOURCES)
def test_the_stated_chance_is_the_one_drawn_by(name: str) -> None:
    sets, log_q = _drawn(SOURCES[name], 3000)
    seen = sets.float().mean(dim=0)
    spread = (log_q.exp() * (1 - log_q.exp()) / 3000).sqrt()
    assert float(((seen - log_q.exp()).abs() / spread).max()) < 4.0
    expected_count = -torch.log1p(-log_q.exp()) if name != "mined" else 2 * log_q.exp()
    assert float(((seen - expected_count).abs() / spread).max()) > 6.0  # canary: the expected count is not the chance


@pytest.mark.parametrize("name", SOURCES)
def test_with_the_correction_the_scores_are_those_of_the_full_softmax(name: str) -> None:
    sets, log_q = _drawn(SOURCES[name], SAMPLES)
    want = TAKES.log()  # the optimum of the full softmax

    def error(log_q: Tensor) -> float:
        return float((_fitted(sets, log_q) - want).abs().mean())

    right = error(log_q)
    assert right < 0.15
    # canaries: the sign flipped, none, and an estimate of Q that takes the rare for the popular. Where Q is even they
    # are all the same, and what must be caught is an estimate that is not even.
    wrong = [SHARE.log()] if name == "uniform" else [-log_q, torch.zeros(N), log_q.flip(0)]
    assert min(error(estimate) for estimate in wrong) > 3 * right + 0.1


def test_in_batch_and_uniform_are_log_inclusion() -> None:
    generator = torch.Generator().manual_seed(0)
    positives = _positives(B, generator)
    keys, log_q, targets, drawn = draw([InBatch(positives, SHARE), Uniform(N, 7)], positives, generator)
    torch.testing.assert_close(log_q, log_inclusion(SHARE[keys], B - 1, 7, N))
    assert drawn.all()
    assert (keys.diff() > 0).all()
    assert (keys[targets] == positives).all()
    again = draw([InBatch(positives, SHARE), Uniform(N, 7)], positives, torch.Generator().manual_seed(1))
    once_more = draw([InBatch(positives, SHARE), Uniform(N, 7)], positives, torch.Generator().manual_seed(1))
    assert again.keys.tolist() == once_more.keys.tolist()
    assert again.keys.tolist() != keys.tolist()


def test_a_positive_that_no_source_reaches_is_refused() -> None:
    generator = torch.Generator().manual_seed(0)
    unlisted = torch.tensor([N - 1])
    with pytest.raises(ValueError, match="no chance"):
        draw([Hard(LISTS, 2)], unlisted, generator)
    assert draw([Hard(LISTS, 2), Uniform(N, 1)], unlisted, generator).log_q.isfinite().all()


def test_popularity_never_draws_what_has_no_share() -> None:
    share = torch.tensor([0.5, 0.0, 0.5, 0.0])
    for power in (0.0, 0.75):
        source = ByPopularity(share, 200, power)
        drawn = source.draw(torch.Generator().manual_seed(0))
        assert set(drawn.tolist()) == {0, 2}
        assert source.log_missed(torch.arange(4))[[1, 3]].tolist() == [0.0, 0.0]


def test_mined_lists_draw_without_replacement_and_whole_lists_for_certain() -> None:
    drawn = Hard(LISTS, 2).draw(torch.Generator().manual_seed(0)).reshape(2, 2)
    assert all(set(row.tolist()) <= set(own.tolist()) for row, own in zip(drawn, LISTS, strict=True))
    assert (drawn[:, 0] != drawn[:, 1]).all()
    whole = Hard(LISTS, LISTS.shape[1]).log_missed(torch.arange(N))
    listed = torch.zeros(N, dtype=torch.bool).index_fill(0, LISTS.flatten(), True)
    assert (whole[listed] == -torch.inf).all()
    assert (whole[~listed] == 0).all()
    for draws in (0, 7):
        with pytest.raises(ValueError, match="between"):
            Hard(LISTS, draws)


def test_a_queue_forgets_the_oldest_and_corrects_by_the_share_at_the_time() -> None:
    generator = torch.Generator().manual_seed(0)
    share = torch.full((4,), 0.25)
    queue = Queue(share, batches=2)
    assert queue.draw(generator).tolist() == []
    assert queue.log_missed(torch.arange(4)).tolist() == [0.0] * 4
    for batch in ([3, 3], [0, 1], [0]):
        queue.push(torch.tensor(batch))
    assert queue.draw(generator).tolist() == [0, 1, 0]
    assert len(queue) == 3
    share.copy_(torch.tensor([0.01, 0.01, 0.49, 0.49]))  # what the queue holds has gone out of fashion
    got = 1 - queue.log_missed(torch.arange(4)).exp()
    old, new = 1 - 0.75**3, 1 - 0.51**3
    torch.testing.assert_close(got, torch.tensor([old, old, new, new], dtype=torch.float64))
    queue.push(torch.tensor([0]))  # it comes again, rarely now: its newest share counts
    assert float(queue.log_missed(torch.tensor([0])).exp()) == pytest.approx(0.99**2)
    with pytest.raises(ValueError, match="at least one"):
        Queue(share, 0)


def test_what_no_source_drew_is_a_positive_alone() -> None:
    """Whose chance to be drawn is Uniform's must not be a negative because another user took it."""
    generator = torch.Generator().manual_seed(0)
    positives = torch.tensor([3, 5, 3])
    keys, log_q, targets, drawn = draw([Uniform(N, 2)], positives, generator)
    assert keys[~drawn].tolist() == sorted({3, 5} - set(keys[drawn].tolist()))
    users, vectors = torch.randn(3, 4, generator=generator), torch.randn(len(keys), 4, generator=generator)
    got = sampled_softmax(users, vectors, None, log_q, 1.0, targets=targets, drawn=drawn)
    logits = users @ vectors.T - log_q
    own = torch.nn.functional.one_hot(targets, len(keys)).bool()
    want = torch.nn.functional.cross_entropy(logits.masked_fill(~(drawn | own), -torch.inf), targets)
    torch.testing.assert_close(got, want)
    assert not torch.isclose(got, torch.nn.functional.cross_entropy(logits, targets))  # canary


def test_a_lone_candidate_is_right_whatever_its_chance() -> None:
    alone = torch.tensor([4])
    keys, log_q, targets, drawn = draw([InBatch(alone, SHARE)], alone, torch.Generator().manual_seed(0))
    assert (keys.tolist(), log_q.tolist(), targets.tolist(), drawn.tolist()) == ([4], [0.0], [0], [True])
    users, vectors = torch.randn(1, 4, requires_grad=True), torch.randn(1, 4)
    loss = sampled_softmax(users, vectors, None, log_q, targets=targets)
    assert float(loss.detach()) == 0
    assert torch.autograd.grad(loss, users)[0].tolist() == [[0.0] * 4]
