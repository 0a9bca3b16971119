import pytest
import torch
from sizes import LargestTensor
from torch import Tensor

from mainstem.models.losses import full_softmax, softmax
from mainstem.models.losses.softmax import plain_full_softmax

B, N, D = 12, 100, 5
# pairs to leave out: of user 3 every entity, of others some, each of the three more than once
PAIRS = torch.tensor([[0, 0, 5, 5, *[3] * N], [7, 99, 0, 0, *range(N)]])


def _world(dtype: torch.dtype = torch.float64, n: int = N) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    users = torch.randn(B, D, dtype=dtype, generator=generator).requires_grad_()
    entities = torch.randn(n, D, dtype=dtype, generator=generator).requires_grad_()
    return users, entities, torch.randint(n, (B,), generator=generator), torch.rand(B, dtype=dtype, generator=generator)


@pytest.mark.parametrize("chunk", [1, 7, 50, 100, 8192, None])
@pytest.mark.parametrize("temperature", [1.0, 0.01])
@pytest.mark.parametrize("excluded", [None, PAIRS])
def test_chunks_agree_with_the_plain_loss_and_its_gradient(
    chunk: int | None, temperature: float, excluded: Tensor | None
) -> None:
    users, entities, targets, weights = _world()
    got = full_softmax(users, entities, targets, temperature, weights=weights, excluded=excluded, chunk=chunk)
    want = plain_full_softmax(users, entities, targets, temperature, weights=weights, excluded=excluded)
    torch.testing.assert_close(got, want)
    torch.testing.assert_close(
        torch.autograd.grad(got, (users, entities)), torch.autograd.grad(want, (users, entities))
    )
    torch.testing.assert_close(
        full_softmax(users, entities, targets, temperature, excluded=excluded, chunk=chunk),
        plain_full_softmax(users, entities, targets, temperature, excluded=excluded),
    )
    if excluded is not None:  # canary: the pairs count
        assert not torch.isclose(got, plain_full_softmax(users, entities, targets, temperature, weights=weights))


def test_who_has_nothing_left_but_the_own_positive_loses_and_learns_nothing() -> None:
    users, entities, targets, _ = _world()
    loss = full_softmax(users, entities, targets, excluded=PAIRS, weights=torch.arange(B) == 3)
    assert float(loss.detach()) == 0
    assert all(not gradient.any() for gradient in torch.autograd.grad(loss, (users, entities)))


def test_its_gradient_is_its_slope_and_only_what_is_asked_for() -> None:
    users, entities, targets, _ = _world(n=9)
    assert torch.autograd.gradcheck(lambda u, e: full_softmax(u, e, targets, 0.7, chunk=4), (users, entities))
    frozen = full_softmax(users, entities.detach(), targets, 0.7, chunk=4)
    torch.testing.assert_close(
        torch.autograd.grad(frozen, users),
        torch.autograd.grad(plain_full_softmax(users, entities, targets, 0.7), users),
    )
    only_entities = full_softmax(users.detach(), entities, targets, 0.7, chunk=4)
    torch.testing.assert_close(
        torch.autograd.grad(only_entities, entities),
        torch.autograd.grad(plain_full_softmax(users, entities, targets, 0.7), entities),
    )


@pytest.mark.parametrize("chunk", [2, None])
def test_the_matrix_of_logits_never_exists(chunk: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(softmax, "PIECE", 2 * 4096)
    monkeypatch.setattr(softmax, "LEAST", 1)
    users, entities, targets, _ = _world(torch.float32, n=4096)
    sizes = {}
    for name in ("chunks", "plain"):
        with LargestTensor() as largest:
            if name == "chunks":
                loss = full_softmax(users, entities, targets, chunk=chunk)
            else:
                loss = plain_full_softmax(users, entities, targets)
            torch.autograd.grad(loss, (users, entities))
        sizes[name] = largest.numel
    assert sizes["chunks"] <= 4096 * D  # the gradient of the entities
    assert sizes["plain"] >= B * 4096  # canary: the measure sees the matrix where it is made


def test_far_logits_stay_finite_and_weights_of_zero_count_nothing() -> None:
    users, entities, targets, _ = _world(torch.float32)
    loss = full_softmax(1e3 * users, entities, targets, 0.01, chunk=7)
    assert loss.isfinite()
    assert all(gradient.isfinite().all() for gradient in torch.autograd.grad(loss, (users, entities)))
    assert full_softmax(users, entities, targets, weights=torch.zeros(B)) == 0
    with pytest.raises(ValueError, match="chunk"):
        full_softmax(users, entities, targets, chunk=0)
