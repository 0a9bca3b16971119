import numpy as np
import torch
from fitting import minimise

from mainstem.models import logistic, numpy_scorer
from mainstem.models.losses import binary


def test_logistic_recovers_its_own_world() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(20_000, 3, generator=generator) * torch.tensor([1.0, 100.0, 0.0]) + torch.tensor([0.0, 5e3, 7.0])
    slopes, bias = torch.tensor([1.5, -0.01, 0.0]), 48.5  # in raw units
    label = torch.bernoulli((x @ slopes + bias).sigmoid(), generator=generator)
    model = logistic(3)
    model.fit_normaliser(x)
    minimise(lambda: binary(model(x)[:, 0], label), *model.parameters())
    with torch.no_grad():
        torch.testing.assert_close(model.wide.weight[0] / model.scale, slopes, rtol=0.05, atol=1e-6)
        torch.testing.assert_close(model.scores(x)[:, 0], (x @ slopes + bias).sigmoid(), rtol=0, atol=0.03)
        assert model.scores(torch.full((1, 3), 1e30)).isfinite().all()
        np.testing.assert_allclose(numpy_scorer(model)(x.numpy()), model.scores(x), atol=1e-5)


def test_logistic_cannot_learn_the_checkerboard() -> None:
    """The canary of the worlds that larger models are tested on: they do need more."""
    board = torch.cartesian_prod(torch.tensor([-1.0, 1.0]), torch.tensor([-1.0, 1.0]))
    model = logistic(2)
    minimise(lambda: binary(model(board)[:, 0], (board.prod(dim=1) > 0).float()), *model.parameters())
    torch.testing.assert_close(model.scores(board)[:, 0].detach(), torch.full((4,), 0.5))
