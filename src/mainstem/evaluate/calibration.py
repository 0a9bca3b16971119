"""Whether a head's predictions mean what they say: predicted against observed on held-out requests, bin by bin."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from html import escape
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from rich import box
from rich.table import Table

from mainstem.evaluate.charts import reliability_chart
from mainstem.models.calibration import expected_calibration_error, reliability

__all__ = ["Calibration", "calibration_of"]

BINS = 10


@dataclass(frozen=True, slots=True)
class Calibration:
    """One head's reliability: means of each bin, by rising prediction, in the head's own unit.

    spread: standard error of observed, of candidates taken as independent; None where fewer than two tell it.
    examples: candidates in each bin. error: mean of |predicted - observed| over candidates.
    """

    head: str
    predicted: tuple[float, ...]
    observed: tuple[float, ...]
    spread: tuple[float | None, ...]
    examples: tuple[int, ...]
    error: float

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)

    def table(self) -> Table:
        """For the terminal: a row a bin."""
        table = Table(
            "predicted", "observed", "standard error", "candidates", box=box.SIMPLE_HEAD, pad_edge=False,
            title=f"{self.head}: predicted against observed", title_justify="left", caption_justify="left",
            caption=f"Mean of |predicted - observed|: {self.error:.4g}",
        )  # fmt: skip
        for column in table.columns:
            column.justify = "right"
        for row in self._rows():
            table.add_row(*row)
        return table

    def html(self) -> str:
        """A section with the plot and the table."""
        points = zip(self.predicted, self.observed, self.spread, strict=True)
        chart = reliability_chart([(x, y, spread or 0.0) for x, y, spread in points], f"{self.head}: reliability")
        head = "".join(f"<th>{name}</th>" for name in ("predicted", "observed", "standard error", "candidates"))
        rows = "".join(f"<tr>{''.join(f'<td>{cell}</td>' for cell in row)}</tr>" for row in self._rows())
        return (
            f"<section><h2>{escape(self.head)}: predicted against observed</h2><p class=soft>Means of bins of equally "
            f"many candidates, with two standard errors. Mean of |predicted - observed|: {self.error:.4g}.</p>"
            f"{chart}<table><tr>{head}</tr>{rows}</table></section>"
        )

    def _rows(self) -> list[tuple[str, str, str, str]]:
        columns = zip(self.predicted, self.observed, self.spread, self.examples, strict=True)
        return [(f"{x:.4g}", f"{y:.4g}", "–" if s is None else f"{s:.2g}", f"{n:,}") for x, y, s, n in columns]


def calibration_of(head: str, predicted: NDArray[Any], observed: NDArray[Any], bins: int = BINS) -> Calibration | None:
    """predicted, observed float [n], the latter NaN where it is not known; None where nothing is."""
    if not np.isfinite(observed).any():
        return None
    found = reliability(torch.from_numpy(predicted), torch.from_numpy(observed), bins=bins)
    filled = found.weight > 0
    spread = (None if np.isnan(each) else each for each in found.spread[filled].tolist())
    return Calibration(
        head=head,
        predicted=tuple(found.predicted[filled].tolist()),
        observed=tuple(found.observed[filled].tolist()),
        spread=tuple(spread),
        examples=tuple(int(n) for n in found.weight[filled].tolist()),
        error=expected_calibration_error(found),
    )
