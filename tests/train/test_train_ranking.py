"""The ranking network's training: a known order, known probabilities under sampled negatives, early stopping."""

import contextlib

import numpy as np
import pytest
import torch

from mainstem.models import Head, Ranker, RankerConfig
from mainstem.schema.config import HeadConfig, TrainConfig
from mainstem.schema.examples import Examples
from mainstem.train import fit_ranker, ranking
from mainstem.train.ranking_loss import Slates
from mainstem.train.threads import torch_threads

BUY = HeadConfig(event="purchase")
STARS = HeadConfig(event="rating", type="value")
QUICK = TrainConfig(ranking_epochs=3, ranking_batch=16, ranking_learning_rate=0.01)
COLUMNS = 3


def new_ranker(*heads: HeadConfig, seed: int = 0) -> Ranker:
    torch.manual_seed(seed)
    named = tuple(Head(f"h{i}", head.type) for i, head in enumerate(heads))
    return Ranker(RankerConfig(features=COLUMNS, heads=named, hidden=(16,)))


def probability(inputs: np.ndarray) -> np.ndarray:
    """The world: column 0 says how likely, column 1 is noise, column 2 never changes."""
    return 1 / (1 + np.exp(-(1.5 * inputs[..., 0] - 3)))


def slates(groups: int, size: int = 60, keep: float = 1.0, keep_fresh: float = 1.0, seed: int = 0) -> Examples:
    """Slates of the world; of the negatives only some are kept, at one rate per stratum."""
    rng = np.random.default_rng(seed)
    inputs = rng.normal(size=(groups * size, COLUMNS)).astype(np.float32)
    inputs[:, 2] = 1
    label = rng.random(len(inputs)) < probability(inputs)
    fresh = rng.random(len(inputs)) < 0.5
    rate = np.where(fresh, keep_fresh, keep).astype(np.float32)
    kept = label | (rng.random(len(inputs)) < rate)
    sizes = kept.reshape(groups, size).sum(axis=1)
    n = int(kept.sum())
    return Examples(
        inputs=inputs[kept], labels=label[kept, None].astype(np.float32), negative_rate=rate[kept], fresh=fresh[kept],
        weight=np.ones(n, np.float32), keys=np.arange(n, dtype=np.uint64),
        offsets=np.concatenate([[0], np.cumsum(sizes)]),
        time=np.arange(groups), user=np.zeros(groups, np.uint64),
    )  # fmt: skip


def with_labels(examples: Examples, labels: np.ndarray) -> Examples:
    fields = {name: getattr(examples, name) for name in Examples.__slots__}
    return Examples(**fields | {"labels": labels.astype(np.float32)})


def scores(ranker: Ranker, inputs: np.ndarray) -> np.ndarray:
    ranker.eval()
    with torch.no_grad():
        return ranker.scores(torch.from_numpy(inputs.astype(np.float32))).numpy()


def test_learns_a_known_order() -> None:
    ranker = new_ranker(BUY)
    fit = fit_ranker(ranker, slates(300), slates(60, seed=1), [BUY], QUICK)
    line = np.column_stack([np.linspace(-2, 2, 9), np.zeros(9), np.ones(9)])
    assert (np.diff(scores(ranker, line)[:, 0]) > 0).all()
    assert not (np.diff(scores(new_ranker(BUY, seed=3), line)[:, 0]) > 0).all()  # canary
    assert fit.validation[fit.best_epoch] == min(fit.validation) < fit.validation[0]
    assert len(fit.training) == len(fit.validation) - 1


def calibration_error(ranker: Ranker) -> float:
    fresh = np.random.default_rng(9).normal(size=(20_000, COLUMNS))
    fresh[:, 2] = 1
    return float(np.abs(np.log(scores(ranker, fresh)[:, 0].mean() / probability(fresh).mean())))


@pytest.mark.parametrize(("keep", "keep_fresh"), [(1.0, 1.0), (0.2, 0.2), (0.5, 0.1)])
def test_probabilities_are_those_of_the_world_though_negatives_were_drawn(keep: float, keep_fresh: float) -> None:
    ranker = new_ranker(BUY)
    train, valid = slates(300, 60, keep, keep_fresh), slates(150, 60, keep, keep_fresh, seed=1)
    fit_ranker(ranker, train, valid, [BUY], QUICK)
    assert calibration_error(ranker) < 0.1
    points = np.column_stack([[-1, 0, 1, 2], np.zeros(4), np.ones(4)])
    np.testing.assert_allclose(scores(ranker, points)[:, 0], probability(points), rtol=0.35)
    if keep == 1:
        return
    for wrong in (np.ones_like(valid.negative_rate), 1 / valid.negative_rate):  # canaries: none, and the sign flipped
        fields = {name: getattr(valid, name) for name in Examples.__slots__}
        ranking.calibrate(ranker, Examples(**fields | {"negative_rate": wrong}), [BUY])
        assert calibration_error(ranker) > 0.5


def test_calibration_changes_no_order() -> None:
    ranker, valid = new_ranker(BUY), slates(50)
    ranker.fit_normaliser(torch.from_numpy(valid.inputs))
    before = scores(ranker, valid.inputs)[:, 0]
    ranking.calibrate(ranker, valid, [BUY])
    after = scores(ranker, valid.inputs)[:, 0]
    assert calibration_error(ranker) < 0.3
    assert (np.diff(after[np.argsort(before)]) > -1e-6).all()


def test_one_heads_certain_rows_are_no_drawn_negatives_of_another() -> None:
    """Rows kept because of head a stand for themselves, also as negatives of head b."""
    full = slates(400, seed=4)
    rng = np.random.default_rng(5)
    likes = (rng.random(len(full.keys)) < 0.3)[:, None]
    both = with_labels(full, np.column_stack([full.labels, likes]))
    kept = (both.labels != 0).any(axis=1) | (rng.random(len(likes)) < 0.1)
    groups = np.add.reduceat(kept, full.offsets[:-1])
    fields = {n: getattr(both, n)[kept] for n in ("inputs", "labels", "fresh", "weight", "keys")}
    drawn = Examples(
        **fields, negative_rate=np.full(int(kept.sum()), 0.1, np.float32), time=full.time, user=full.user,
        offsets=np.concatenate([[0], np.cumsum(groups)]),
    )  # fmt: skip
    ranker = new_ranker(BUY, BUY)
    fit_ranker(ranker, drawn, drawn, [BUY, BUY], QUICK)
    got = scores(ranker, full.inputs).mean(axis=0)
    np.testing.assert_allclose(got, both.labels.mean(axis=0), rtol=0.1)


def test_value_heads_learn_sizes_where_they_are_known() -> None:
    base = slates(300)
    size = np.expm1(np.clip(1 + base.inputs[:, 0], 0, None))
    known = np.random.default_rng(2).random(len(size)) < 0.5
    labels = np.column_stack([base.labels[:, 0], np.where(known, size, np.nan)])
    train = with_labels(base, labels)
    ranker = new_ranker(BUY, STARS)
    fit_ranker(ranker, train, train, [BUY, STARS], QUICK.model_copy(update={"ranking_epochs": 6}))
    points = np.column_stack([[-0.5, 0, 1, 2], np.zeros(4), np.ones(4)])
    got = scores(ranker, points)[:, 1]
    np.testing.assert_allclose(got, np.expm1(1 + points[:, 0]), rtol=0.25, atol=0.25)


def test_unknown_labels_count_nothing() -> None:
    examples, ranker = slates(20), new_ranker(BUY)
    labels = examples.labels.copy()
    labels[::3] = np.nan
    some = with_labels(examples, labels)
    mask = np.isfinite(labels[:, 0])
    sizes = np.add.reduceat(mask, examples.offsets[:-1])
    fields = {n: getattr(some, n)[mask] for n in ("inputs", "labels", "negative_rate", "fresh", "weight", "keys")}
    without = Examples(**fields, time=some.time, user=some.user, offsets=np.concatenate([[0], np.cumsum(sizes)]))
    torch.testing.assert_close(ranking.ranking_loss(ranker, some, [BUY]), ranking.ranking_loss(ranker, without, [BUY]))
    assert ranking.ranking_loss(ranker, with_labels(examples, np.full_like(labels, np.nan)), [BUY]) == 0


def test_early_stopping_keeps_the_best_weights() -> None:
    train, valid = slates(60), slates(40, seed=1)
    against = slates(40, seed=1)
    against.inputs[:, 0] *= -1  # the more is learned, the worse it fits
    config = QUICK.model_copy(update={"ranking_epochs": 9, "patience": 2})
    ranker, seen = new_ranker(BUY), []
    fit = fit_ranker(ranker, train, against, [BUY], config, on_epoch=lambda epoch, fit: seen.append(epoch))
    assert seen == [1, 2]
    assert fit.best_epoch == 0
    # the weights are those from before training, up to the calibration of the last layer
    torch.testing.assert_close(ranker.deep[0].weight, new_ranker(BUY).deep[0].weight, rtol=0, atol=0)
    better, kept = new_ranker(BUY), {}
    fit = fit_ranker(
        better, train, valid, [BUY], config,
        on_epoch=lambda epoch, fit: kept.update({epoch: better.deep[0].weight.detach().clone()}),
    )  # fmt: skip
    torch.testing.assert_close(better.deep[0].weight.detach(), kept[fit.best_epoch], rtol=0, atol=0)


def test_the_same_seed_gives_the_same_network_and_progress_ends_at_the_total() -> None:
    made, steps = [], []
    for _ in range(2):
        ranker = new_ranker(BUY)
        fit_ranker(
            ranker, slates(50), slates(10), [BUY], QUICK, on_step=lambda done, total: steps.append((done, total))
        )
        made.append(ranker.state_dict())
    assert all(torch.equal(made[0][name], made[1][name]) for name in made[0])
    assert steps[-1] == (150, 150)
    assert max(done for done, _ in steps) == 150


def test_what_cannot_be_learned_from_is_refused() -> None:
    bad = slates(5)
    bad.inputs[3, 1] = np.nan
    for train, valid in ((bad, slates(5)), (slates(5), bad)):
        with pytest.raises(ValueError, match="finite"):
            fit_ranker(new_ranker(BUY), train, valid, [BUY], QUICK)
    with pytest.raises(ValueError, match="nothing to train on"):
        fit_ranker(new_ranker(BUY), slates(5).groups(np.zeros(0, np.int64)), slates(5), [BUY], QUICK)


def test_groups_and_concat_are_inverse() -> None:
    examples = slates(7)
    halves = Examples.concat([examples.groups(np.arange(3)), examples.groups(np.arange(3, 7))])
    for name in Examples.__slots__:
        np.testing.assert_array_equal(getattr(halves, name), getattr(examples, name))
    tensors = Slates.of(examples, [BUY])
    order = np.array([4, 0, 4])
    want, got = Slates.of(examples.groups(order), [BUY]), tensors.groups(torch.from_numpy(order))
    assert want.meetings is None is got.meetings
    assert want.crossings is None is got.crossings
    for name in [name for name in Slates.__slots__ if name not in ("meetings", "crossings")]:
        assert torch.equal(getattr(want, name), getattr(got, name)), name
    assert examples.segment().tolist() == np.repeat(np.arange(7), np.diff(examples.offsets)).tolist()


def test_the_learning_rate_rises_and_falls_once() -> None:
    rates = [ranking.one_cycle(step, 100) for step in range(101)]
    assert max(rates) == 1.0 == rates[9]
    assert (np.diff(rates[:10]) > 0).all()
    assert (np.diff(rates[10:]) < 0).all()
    assert rates[100] == pytest.approx(0, abs=1e-9)
    assert [ranking.one_cycle(step, 1) for step in (0, 1)] == [1.0, 1.0]


def test_threads_are_restored_also_after_a_failure() -> None:
    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    failing = contextlib.ExitStack()
    failing.enter_context(torch_threads(before + 1))
    failing.callback(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        failing.close()
    assert torch.get_num_threads() == before
