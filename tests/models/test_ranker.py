import math

import numpy as np
import pytest
import torch

from mainstem.models import Head, Ranker, RankerConfig, numpy_scorer
from mainstem.models.losses import binary, value
from mainstem.schema.head_config import HeadType

TWO_HEADS = (Head("click"), Head("watch", "value"))
ALL_HEADS = (
    *TWO_HEADS, Head("stars", "ordinal", levels=(1.0, 2.0, 5.0)), Head("seconds", "weighted_logistic", unit=30.0),
    Head("worth", "lifetime_value"),
)  # fmt: skip


def _checkerboard(n: int, generator: torch.Generator) -> tuple[torch.Tensor, torch.Tensor]:
    """x [n, 3]: user parity, item parity (on odd scales), noise; 1 where the parities agree."""
    parity = torch.randint(0, 2, (n, 2), generator=generator).float()
    noise = torch.randn(n, 1, generator=generator)
    return torch.cat((parity * torch.tensor([5.0, 400.0]) - 3.0, noise), 1), (parity[:, 0] == parity[:, 1]).float()


def _fit(config: RankerConfig) -> float:
    """Accuracy on the checkerboard after a few hundred steps."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(1)
    model = Ranker(config)
    x, y = _checkerboard(4096, generator)
    model.fit_normaliser(x)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    for step in range(200):
        rows = slice(step % 16 * 256, step % 16 * 256 + 256)
        logits = model(x[rows])
        loss = binary(logits[:, 0], y[rows])
        if len(config.heads) > 1:
            loss = loss + value(logits[:, 1], 9 * y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    x, y = _checkerboard(1000, generator)
    with torch.no_grad():
        scores = model.scores(x)
    if len(config.heads) > 1:
        assert float((scores[:, 1] - 9 * y).abs().mean()) < 1.0
    return float(((scores[:, 0] > 0.5) == (y > 0.5)).float().mean())


@pytest.mark.parametrize(
    "config",
    [
        RankerConfig(3, TWO_HEADS, hidden=(32, 16)),
        RankerConfig(3, hidden=(), cross_layers=1),
        RankerConfig(3, hidden=(32, 16), cross_layers=0),
    ],
    ids=["both", "cross alone", "deep alone"],
)
def test_learns_the_checkerboard(config: RankerConfig) -> None:
    assert _fit(config) > 0.98


def test_a_linear_model_cannot_learn_it() -> None:
    assert _fit(RankerConfig(3, hidden=(), cross_layers=0)) < 0.8  # canary: the world does need crosses


def _random_ranker(config: RankerConfig) -> tuple[Ranker, dict[str, torch.Tensor]]:
    torch.manual_seed(3)
    model = Ranker(config).eval()
    with torch.no_grad():
        model.slope.uniform_(0.5, 2.0)
        model.shift.uniform_(-1.0, 1.0)
    n = 97
    inputs = {"x": torch.randn(n, config.features) * 10 ** torch.linspace(-3, 3, config.features) + 2}
    if config.dot:
        inputs["dot"] = torch.rand(n)
    model.fit_normaliser(inputs["x"], inputs.get("dot"))
    if config.embeddings:
        inputs["embeddings"] = torch.randn(n, config.embeddings)
    if config.crossed:
        inputs["crossed"] = torch.randn(n, sum(model.sizes))
    inputs["x"][0, 0] = 1e9  # beyond the clip
    return model, inputs


@pytest.mark.parametrize(
    "config",
    [
        RankerConfig(50, TWO_HEADS),
        RankerConfig(12, TWO_HEADS, embeddings=8, dot=True, dropout=0.3),
        RankerConfig(4, hidden=(), cross_layers=3),
        RankerConfig(4, hidden=(7,), cross_layers=0),
        RankerConfig(4, hidden=(), cross_layers=0),
        RankerConfig(9, ALL_HEADS),
        RankerConfig(9, ALL_HEADS, crossed=True),
        RankerConfig(9, TWO_HEADS, hidden=(), cross_layers=0, crossed=True),
        RankerConfig(2_000, hidden=(64, 32)),
        RankerConfig(9, ALL_HEADS, sharing="shared_bottom", expert_width=5),
        RankerConfig(9, ALL_HEADS, sharing="mmoe", experts=3, expert_width=5),
        RankerConfig(9, ALL_HEADS, sharing="ple", experts=2, expert_width=5),
        RankerConfig(9, (Head("click"),), sharing="ple", experts=1, expert_width=5, cross_layers=0),
    ],
    ids=lambda config: (
        f"{len(config.heads)} heads, {config.sharing}, {config.width} wide{', crossed' * config.crossed}"
    ),
)
def test_numpy_and_torch_give_the_same_scores(config: RankerConfig) -> None:
    model, inputs = _random_ranker(config)
    scorer = numpy_scorer(model)
    arrays = {name: tensor.numpy() for name, tensor in inputs.items()}
    before = {name: array.copy() for name, array in arrays.items()}
    with torch.no_grad():
        np.testing.assert_allclose(scorer.logits(**arrays), model(**inputs).numpy(), atol=1e-4, rtol=1e-4)
        np.testing.assert_allclose(scorer(**arrays), model.scores(**inputs).numpy(), atol=1e-4, rtol=1e-4)
    first = scorer(**arrays)
    kept = first.copy()
    scorer(**{name: array[::-1][:50] for name, array in arrays.items()})
    np.testing.assert_array_equal(first, kept)  # scratch buffers never reach the caller
    for name, array in arrays.items():
        np.testing.assert_array_equal(array, before[name])
    assert scorer(**{name: array[:0] for name, array in arrays.items()}).shape == (0, len(config.heads))


def test_numpy_scorer_holds_a_copy_and_refuses_other_shapes() -> None:
    model, inputs = _random_ranker(RankerConfig(4))
    scorer = numpy_scorer(model)
    x = inputs["x"].numpy()
    before = scorer(x)
    with torch.no_grad():
        model.wide.bias += 1.0
        model.mean += 1.0
    np.testing.assert_array_equal(scorer(x), before)
    assert not np.allclose(numpy_scorer(model)(x), before)
    with pytest.raises(ValueError, match=r"x must be \[n, 4\]"):
        scorer(x[:, :3])
    with pytest.raises(ValueError, match="dot: False"):
        scorer(x, dot=x[:, 0])
    with pytest.raises(ValueError, match="crossed: False"):
        scorer(x, crossed=x[:, :1])
    with pytest.raises(ValueError, match="without crosses"):
        model(inputs["x"], crossed=inputs["x"][:, :1])
    crossing, inputs = _random_ranker(RankerConfig(4, crossed=True))
    with pytest.raises(ValueError, match="crossed: True"):
        numpy_scorer(crossing)(x)
    with pytest.raises(ValueError, match="with crosses"):
        crossing(inputs["x"])


def test_normaliser_travels_with_the_weights_and_survives_constant_columns() -> None:
    x = torch.tensor([[1.0, 7.0], [3.0, 7.0]])
    model = Ranker(RankerConfig(2))
    model.fit_normaliser(x)
    torch.testing.assert_close(model.mean, torch.tensor([2.0, 7.0]))
    torch.testing.assert_close(model.scale, torch.tensor([1.0, 1.0]))
    other = Ranker(RankerConfig(2))
    other.load_state_dict(model.state_dict())
    torch.testing.assert_close(other(x), model(x))
    with pytest.raises(ValueError, match="finite"):
        model.fit_normaliser(torch.tensor([[float("nan"), 0.0]]))


def test_scores_stay_finite_and_in_range_at_the_extremes() -> None:
    model = Ranker(RankerConfig(2, ALL_HEADS, hidden=(), cross_layers=0))
    with torch.no_grad():
        model.wide.weight.fill_(1e4)
    x = torch.tensor([[1e9, 1e9], [-1e9, -1e9]])
    for scores in (model.scores(x).detach().numpy(), numpy_scorer(model)(x.numpy())):
        assert np.isfinite(scores).all()
        assert (scores[:, 0] >= 0).all()
        assert (scores[:, 0] <= 1).all()
        assert scores[1, 1] == 0.0
        assert scores[:, 2].tolist() == [5.0, 1.0]
        assert (scores[:, 1:] >= 0).all()


@pytest.mark.parametrize("kind", [head.kind for head in ALL_HEADS])
def test_training_starts_at_the_level_of_the_labels(kind: HeadType) -> None:
    """Without any input, what a head predicts is the mean of its labels."""
    torch.manual_seed(0)
    labels = torch.tensor([0.0, 0.0, 1.0, 1.0]) if kind == "binary" else torch.tensor([1.0, 1.0, 2.0, 5.0])
    model = Ranker(RankerConfig(2, (Head("a", kind, levels=(1.0, 2.0, 5.0)),), hidden=(), loss="pointwise"))
    with torch.no_grad():
        model.wide.weight.zero_()
        model.heads.weight.zero_()
    known = torch.cat((labels.repeat(500), torch.full((100,), torch.nan)))[:, None]
    model.start(known, torch.ones(len(known)))
    got = float(model.scores(torch.zeros(1, 2)).detach())
    typical = math.expm1(labels.log1p().mean()) if kind == "value" else float(labels.mean())
    assert got == pytest.approx(typical, rel=0.05)
    model.start(torch.full((3, 1), torch.nan), torch.ones(3))  # nothing known
    assert model.scores(torch.zeros(1, 2)).isfinite().all()


def test_binary_heads_that_learn_an_order_have_no_level_to_start_at() -> None:
    model = Ranker(RankerConfig(2))
    before = model.wide.bias.detach().clone()
    model.start(torch.ones(5, 1), torch.ones(5))
    assert torch.equal(model.wide.bias.detach(), before)


def test_order_is_that_of_predictions_and_tells_apart_what_comes_out_equal() -> None:
    model, inputs = _random_ranker(RankerConfig(9, ALL_HEADS))
    with torch.no_grad():
        raw = model(inputs["x"])
        order, predicted = model.order(raw), model.predict(raw)
        for column in range(len(ALL_HEADS)):
            ranked = predicted[order[:, column].argsort(), column]
            assert (ranked.diff() >= -1e-5 * ranked[1:].abs()).all()
        far = 100 + torch.arange(3.0)[:, None].expand(3, sum(model.sizes))
        assert (model.order(far).diff(dim=0) > 0).all()
        assert (model.predict(far).diff(dim=0) == 0).any()  # canary: chances of 1


def test_sharing_needs_something_to_share() -> None:
    with pytest.raises(ValueError, match="below it"):
        Ranker(RankerConfig(2, hidden=(), cross_layers=0, sharing="mmoe"))


def test_the_ranker_can_be_exported() -> None:
    model, inputs = _random_ranker(RankerConfig(6, TWO_HEADS))
    program = torch.export.export(model, (inputs["x"],))
    torch.testing.assert_close(program.module()(inputs["x"]), model(inputs["x"]))
