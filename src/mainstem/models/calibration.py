"""Whether predictions mean what they say: predicted against observed, bin by bin."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

__all__ = ["Reliability", "expected_calibration_error", "reliability"]


@dataclass(frozen=True, slots=True)
class Reliability:
    """A reliability diagram: float64 [bins] each, bins in rising order of prediction.

    predicted, observed: weighted means within the bin, in the labels' unit, NaN where the bin is empty; weight: the
    sum of its weights; spread: standard error of observed, NaN where fewer than two examples tell it.
    """

    predicted: Tensor
    observed: Tensor
    weight: Tensor
    spread: Tensor


def reliability(
    predicted: Tensor,
    observed: Tensor,
    weights: Tensor | None = None,
    bins: int = 10,
    by: Literal["count", "width"] = "count",
) -> Reliability:
    """Mean observed label by bins of the prediction, for chances as well as amounts.

    predicted [n]; observed [n]: 0/1 or amounts, NaN where not known (does not count); weights float >= 0 [n].
    by "count": as equal numbers of examples as ties allow (equal predictions never part), so that each bin says as
    much as any other; "width": bins of equal width between the least and the largest prediction.

    Raises ValueError where bins < 1.

    Niculescu-Mizil & Caruana 2005, "Predicting Good Probabilities with Supervised Learning".
    """
    if bins < 1:
        raise ValueError(f"bins must be at least 1, not {bins}")
    counts = ~observed.isnan()
    x, y = predicted[counts].double(), observed[counts].double()
    w = torch.ones_like(x) if weights is None else weights[counts].double()
    place = _places(x, bins, by)

    def total(values: Tensor) -> Tensor:
        return torch.zeros(bins, dtype=torch.float64, device=x.device).index_add(0, place, values)

    weight = total(w)
    mean_x, mean_y = total(w * x) / weight, total(w * y) / weight
    # variance of a weighted mean, by the deviations around it
    several = total((w > 0).double()) > 1
    spread = total((w * (y - mean_y[place])).square()).sqrt() / weight
    return Reliability(mean_x, mean_y, weight, torch.where(several, spread, torch.nan))


def expected_calibration_error(table: Reliability) -> float:
    """Mean of |predicted - observed| over bins, by their weight, in the labels' unit; NaN where nothing was observed.

    It depends on the bins: compare only figures of the same bins. Naeini et al. 2015, "Obtaining Well Calibrated
    Probabilities Using Bayesian Binning"; equal counts rather than widths: Nixon et al. 2019, "Measuring
    Calibration in Deep Learning".
    """
    filled = table.weight > 0
    gaps = (table.predicted - table.observed).abs()[filled]
    return float((gaps * table.weight[filled]).sum() / table.weight.sum())


def _places(x: Tensor, bins: int, by: Literal["count", "width"]) -> Tensor:
    """The bin of each prediction: int64 [n]."""
    if not len(x):
        return torch.zeros(0, dtype=torch.int64, device=x.device)
    if by == "count":
        # a value goes where the first of its equals stands: equal predictions share a bin
        ordered = x.sort().values
        return torch.searchsorted(ordered, x) * bins // len(x)
    low, high = x.min(), x.max()
    width = (high - low).clamp(min=torch.finfo(x.dtype).tiny)
    return ((x - low) / width * bins).long().clamp(0, bins - 1)
