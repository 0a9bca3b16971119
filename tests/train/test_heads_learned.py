"""Every head, loss and way of sharing learns a world with a known answer by the product's own training."""

from __future__ import annotations

import numpy as np
import pytest
from ranking_world import HEADS, QUICK, chance, expectation, inputs, new_ranker, predicted, slates, with_

from mainstem.models import Ranker, numpy_scorer
from mainstem.schema.config import HeadConfig
from mainstem.schema.examples import Examples
from mainstem.train import fit_ranker
from mainstem.train.ranking import calibrate
from mainstem.train.ranking_loss import Slates

POINTS = inputs(4_000, np.random.default_rng(9))
SHARING = ("none", "shared_bottom", "mmoe", "ple")
LOSSES = ("listwise", "pairwise", "pointwise")


def fitted(heads: list[HeadConfig], train: Examples, valid: Examples, **options: object) -> Ranker:
    ranker = new_ranker(heads, **options)
    fit_ranker(ranker, train, valid, heads, QUICK)
    return ranker


def error(kind: str, found: np.ndarray) -> float:
    """How far off: of the mean over all inputs, and, in their own spread, input by input."""
    want = expectation(kind, POINTS.astype(np.float64))
    level = abs(np.log(found.mean() / want.mean()))
    return max(float(level), 1 - float(np.corrcoef(np.log(found + 1e-3), np.log(want + 1e-3))[0, 1]))


@pytest.mark.parametrize("kind", list(HEADS))
def test_a_head_predicts_the_expectation_though_negatives_were_drawn(kind: str) -> None:
    heads = [HEADS["binary"], HEADS[kind]]
    train, valid = slates(heads), slates(heads, 200, seed=1)
    assert error(kind, predicted(fitted(heads, train, valid), POINTS)[:, 1]) < 0.15
    if kind in ("weighted_logistic", "lifetime_value"):
        # canary: as if none were left; validation would set the level right
        all_of, valid_too = (with_(each, negative_rate=np.ones_like(each.negative_rate)) for each in (train, valid))
        assert error(kind, predicted(fitted(heads, all_of, valid_too), POINTS)[:, 1]) > 0.5


@pytest.mark.parametrize("kind", ["weighted_logistic", "lifetime_value"])
def test_expected_amounts_add_up_on_validation(kind: str) -> None:
    heads = [HEADS["binary"], HEADS[kind]]
    valid = slates(heads, 200, seed=1)
    ranker = fitted(heads, slates(heads), valid)
    worth_more = valid.labels * np.array([1.0, 1.3], np.float32)  # what nothing in training says
    for labels in (valid.labels, worth_more):
        dearer = with_(valid, labels=labels)
        calibrate(ranker, dearer, heads)
        counted = Slates.of(dearer, heads).counted().double().numpy()
        said = (counted * predicted(ranker, valid.inputs)[:, 1]).sum()
        assert said == pytest.approx((counted * labels[:, 1]).sum(), rel=1e-3)


def test_a_delayed_label_counts_only_where_it_is_due() -> None:
    """The later half of the requests has seen a tenth of its value so far."""
    heads = [HEADS["binary"], HEADS["lifetime_value"]]
    train, valid = slates(heads), slates(heads, 200, seed=1)
    late = train.segment() >= len(train) // 2
    early = train.labels.copy()
    early[late, 1] = np.where(np.arange(late.sum()) % 10 == 0, early[late, 1], 0.0)
    due = early.copy()
    due[late, 1] = np.nan
    # validation would set the level right: what it says itself is what the head is left with
    seen = valid.labels.copy()
    seen[np.arange(len(seen)) % 2 == 0, 1] *= 0.1
    errors = [
        error("lifetime_value", predicted(fitted(heads, with_(train, labels=labels), asked), POINTS)[:, 1])
        for labels, asked in ((due, valid), (early, with_(valid, labels=seen)))
    ]
    assert errors[0] < 0.15
    assert errors[1] > 0.3  # canary: what came so far is no label


@pytest.mark.parametrize("sharing", SHARING)
def test_every_way_of_sharing_learns_heads_of_all_types_at_once(sharing: str) -> None:
    heads = list(HEADS.values())
    ranker = fitted(heads, slates(heads), slates(heads, 200, seed=1), sharing=sharing, experts=2, expert_width=12)
    found = predicted(ranker, POINTS)
    for column, kind in enumerate(HEADS):
        assert error(kind, found[:, column]) < 0.2, kind
    assert all(error(kind, found[::-1, column]) > 0.5 for column, kind in enumerate(HEADS))  # canary: others' inputs
    np.testing.assert_allclose(numpy_scorer(ranker)(POINTS), found, rtol=1e-4, atol=1e-4)


def effect_of_being_new(ranker: Ranker) -> float:
    """Which in this world changes no chance: the mean shift of the log-odds."""
    old, new = POINTS.copy(), POINTS.copy()
    old[:, 1], new[:, 1] = 0, 1
    odds = [np.log(p / (1 - p)) for p in (predicted(ranker, x)[:, 0] for x in (old, new))]
    return float(np.mean(odds[1] - odds[0]))


@pytest.mark.parametrize("loss", LOSSES)
def test_every_loss_learns_the_order_though_negatives_were_drawn_at_two_rates(loss: str) -> None:
    heads = [HEADS["binary"]]
    train, valid = slates(heads), slates(heads, 200, seed=1)
    ranker = fitted(heads, train, valid, loss=loss)
    found = predicted(ranker, POINTS)[:, 0]
    assert np.corrcoef(np.argsort(np.argsort(found)), np.argsort(np.argsort(chance(POINTS))))[0, 1] > 0.97
    assert abs(effect_of_being_new(ranker)) < 0.3
    assert error("binary", found) < 0.15
    evenly = with_(train, negative_rate=np.full_like(train.negative_rate, 0.3))
    assert abs(effect_of_being_new(fitted(heads, evenly, valid, loss=loss))) > 0.6  # canary: one rate for both


def test_a_head_without_weight_is_not_learned() -> None:
    heads = [HEADS["binary"], HEADS["weighted_logistic"].model_copy(update={"weight": 0.0})]
    before = new_ranker(heads).wide.weight.detach()
    after = fitted(heads, slates(heads, 100), slates(heads, 50, seed=1)).wide.weight.detach()
    moved = (after - before).abs().amax(dim=1).tolist()
    assert moved[1] < 1e-4 < 1e-2 < moved[0]  # weight decay alone
