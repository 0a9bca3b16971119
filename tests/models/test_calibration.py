import math
from typing import Literal

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.calibration import expected_calibration_error, reliability

BY = ("count", "width")


@pytest.mark.parametrize("by", BY)
def test_a_calibrated_world_lies_on_the_diagonal_and_an_overconfident_one_does_not(
    by: Literal["count", "width"],
) -> None:
    generator = torch.Generator().manual_seed(0)
    chance = torch.rand(50_000, generator=generator)
    label = torch.bernoulli(chance, generator=generator)
    table = reliability(chance, label, bins=10, by=by)
    assert float(((table.predicted - table.observed).abs() / table.spread).max()) < 4.0
    assert expected_calibration_error(table) < 0.01
    assert (table.predicted.diff() > 0).all()
    # canary: chances pushed outwards, P' = P^2 / (P^2 + (1 - P)^2); its error is the mean of
    # |P' - P| over [0, 1]
    pushed = chance.square() / (chance.square() + (1 - chance).square())
    grid = (torch.arange(100_000, dtype=torch.float64) + 0.5) / 100_000
    want = float((grid.square() / (grid.square() + (1 - grid).square()) - grid).abs().mean())
    assert expected_calibration_error(reliability(pushed, label, bins=50)) == pytest.approx(want, rel=0.05)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0.1, 0.2, 0.2, 0.7, 3.0]),
            st.sampled_from([0.0, 1.0, 5.0, float("nan")]),
            st.sampled_from([0.0, 1.0, 2.0]),
        ),
        max_size=12,
    ),
    st.integers(1, 6),
    st.sampled_from(BY),
)
def test_bins_keep_totals_and_never_part_equal_predictions(
    rows: list[tuple[float, float, float]], bins: int, by: Literal["count", "width"]
) -> None:
    predicted, observed, weights = torch.tensor(rows).reshape(-1, 3).double().T
    table = reliability(predicted, observed, weights, bins, by)
    assert all(column.shape == (bins,) for column in (table.predicted, table.observed, table.weight, table.spread))
    known = ~observed.isnan()
    torch.testing.assert_close(table.weight.sum(), weights[known].sum())
    filled = table.weight > 0
    for column, values in ((table.predicted, predicted), (table.observed, observed)):
        assert column[~filled].isnan().all()
        torch.testing.assert_close((column * table.weight)[filled].sum(), (weights * values)[known].sum())
    within = table.predicted[filled]
    assert (within.diff() > 0).all()
    if len(set(predicted[known].tolist())) == 1:
        assert int(filled.sum()) <= 1


def test_by_hand() -> None:
    predicted = torch.tensor([0.1, 0.3, 0.6, 1.0, 0.2])
    observed = torch.tensor([0.0, 1.0, 1.0, 1.0, torch.nan])
    table = reliability(predicted, observed, bins=2)
    torch.testing.assert_close(table.predicted, torch.tensor([0.2, 0.8], dtype=torch.float64))
    torch.testing.assert_close(table.observed, torch.tensor([0.5, 1.0], dtype=torch.float64))
    torch.testing.assert_close(table.spread, torch.tensor([math.sqrt(0.125), 0.0], dtype=torch.float64))
    assert expected_calibration_error(table) == pytest.approx((0.3 + 0.2) / 2)
    weighted = reliability(predicted, observed, torch.tensor([1.0, 0.0, 1.0, 1.0, 9.0]), bins=2)
    assert weighted.observed.tolist() == [0.0, 1.0]
    assert math.isnan(float(weighted.spread[0]))
    assert expected_calibration_error(weighted) == pytest.approx((0.1 + 2 * 0.2) / 3)
    assert math.isnan(expected_calibration_error(reliability(predicted[:0], observed[:0])))
    with pytest.raises(ValueError, match="bins"):
        reliability(predicted, observed, bins=0)
