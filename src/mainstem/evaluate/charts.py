"""Small SVG charts as text: no scripts, no fonts, no libraries. Colours are CSS variables of the page around them.

Every function returns one `<svg>` that scales to its container; labels are escaped. Series take the
colours `var(--s0)` to `var(--s5)` in order; `--ink`, `--soft` and `--line` are text, quiet text and rules.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

__all__ = ["Bar", "Line", "bar_chart", "histogram", "legend", "line_chart", "nice_ticks", "reliability_chart"]

WIDTH = 640


@dataclass(frozen=True, slots=True)
class Bar:
    label: str
    value: float
    series: int = 1
    note: str = ""


@dataclass(frozen=True, slots=True)
class Line:
    """`points` are (x, y), x ascending."""

    label: str
    points: Sequence[tuple[float, float]]
    series: int = 1


def nice_ticks(high: float, count: int = 4) -> list[float]:
    """About `count` round values from 0 up to at least `high`."""
    if high <= 0 or not math.isfinite(high):
        return [0.0, 1.0]
    raw = high / count
    base = 10.0 ** math.floor(math.log10(raw))
    step = next(base * m for m in (1, 2, 2.5, 5, 10) if base * m >= raw * 0.999)
    return [step * i for i in range(math.ceil(high / step - 1e-9) + 1)]


def _short(value: float) -> str:
    return f"{value:.4g}"


def _text(x: float, y: float, text: str, anchor: str = "start", kind: str = "soft") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" class="{kind}">{escape(text)}</text>'


def _rect(x: float, y: float, width: float, height: float, fill: str, radius: float = 0) -> str:
    size = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return f'<rect {size} rx="{radius:g}" fill="{fill}"/>'


def _svg(height: float, parts: Sequence[str], title: str) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" role="img" aria-label="{escape(title, quote=True)}">'
        f"<title>{escape(title)}</title>{''.join(parts)}</svg>"
    )


def legend(names: Sequence[tuple[str, int]]) -> str:
    """HTML legend of (label, series)."""
    entries = (f'<span><i style="background:var(--s{series})"></i>{escape(name)}</span>' for name, series in names)
    return f'<div class="legend">{"".join(entries)}</div>'


def bar_chart(bars: Sequence[Bar], title: str, form: str = ".4f") -> str:
    """Horizontal bars from zero, one per system, value at the end and `note` after it."""
    row, label_width, right = 42, 150, 130
    high = max((bar.value for bar in bars), default=0.0) or 1.0
    parts = []
    for i, bar in enumerate(bars):
        y = i * row
        width = max(1.0, (WIDTH - label_width - right) * bar.value / high)
        weight = "ink strong" if bar.series == 0 else "ink"
        parts += [
            _text(label_width - 12, y + 26, bar.label, "end", weight),
            _rect(label_width, y + 7, width, row - 14, f"var(--s{bar.series})", 3),
            _text(label_width + width + 8, y + 26, format(bar.value, form), "start", weight + " number"),
        ]
        if bar.note:
            parts.append(_text(label_width + width + 72, y + 26, bar.note))
    return _svg(row * max(1, len(bars)), parts, title)


def _frame(ticks: Sequence[float], left: float, top: float, width: float, height: float) -> list[str]:
    parts = []
    for tick in ticks:
        y = top + height * (1 - tick / ticks[-1])
        parts.append(f'<line x1="{left}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>')
        parts.append(_text(left - 8, y + 5, _short(tick), "end", "soft number"))
    return parts


def line_chart(lines: Sequence[Line], title: str, x_labels: Sequence[tuple[float, str]]) -> str:
    """One polyline per system over a common x; y starts at zero. `x_labels` are (x, text)."""
    left, top, height, right = 56.0, 10.0, 210.0, 12.0
    width = WIDTH - left - right
    points = [point for line in lines for point in line.points]
    if not points:
        return _svg(40, [_text(0, 24, "nothing measured")], title)
    x_low, x_high = min(x for x, _ in points), max(x for x, _ in points)
    span = (x_high - x_low) or 1.0
    ticks = nice_ticks(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * (x - x_low) / span, top + height * (1 - y / ticks[-1])

    parts = _frame(ticks, left, top, width, height)
    for x, text in x_labels:
        anchor = "start" if x == x_low else "end" if x == x_high else "middle"
        parts.append(_text(place(x, 0)[0], top + height + 22, text, anchor))
    for line in sorted(lines, key=lambda line: -line.series):  # the first system is drawn last, on top
        path = " ".join(f"{px:.1f},{py:.1f}" for px, py in (place(x, y) for x, y in line.points))
        stroke = 2.6 if line.series == 0 else 1.5
        parts.append(
            f'<polyline points="{path}" fill="none" stroke="var(--s{line.series})" stroke-width="{stroke}" '
            f'stroke-linejoin="round" stroke-linecap="round"><title>{escape(line.label)}</title></polyline>'
        )
        if len(line.points) == 1:
            px, py = place(*line.points[0])
            parts.append(f'<circle cx="{px:.1f}" cy="{py:.1f}" r="3" fill="var(--s{line.series})"/>')
    return _svg(top + height + 32, parts, title)


def histogram(
    bars: Sequence[tuple[float, float, int]], title: str, marks: Sequence[tuple[float, str]] = (), unit: str = "ms"
) -> str:
    """Counts of (low, high, count) on a logarithmic x axis, with vertical `marks` (value, text) such as percentiles."""
    if not bars:
        return _svg(40, [_text(0, 24, "nothing measured")], title)
    left, height, right = 56.0, 150.0, 12.0
    top = 10.0 + 18 * len(marks)
    width = WIDTH - left - right
    low, high = math.log(bars[0][0]), math.log(bars[-1][1])
    ticks = nice_ticks(max(count for _, _, count in bars))

    def across(value: float) -> float:
        return left + width * (math.log(value) - low) / ((high - low) or 1.0)

    parts = _frame(ticks, left, top, width, height)
    for a, b, count in bars:
        tall = height * count / ticks[-1]
        parts.append(
            _rect(across(a) + 0.5, top + height - tall, max(0.5, across(b) - across(a) - 1), tall, "var(--s0)")
        )
    for power in range(math.floor(math.log10(bars[0][0])), math.ceil(math.log10(bars[-1][1])) + 1):
        for factor in (1, 2, 5):
            value = factor * 10.0**power
            if bars[0][0] <= value <= bars[-1][1]:
                anchor = "end" if across(value) > left + width - 24 else "middle"
                parts.append(_text(across(value), top + height + 21, f"{value:g} {unit}", anchor))
    for row, (value, text) in enumerate(sorted(marks)):  # each label has a row of its own, so none can overlap
        x = min(max(across(value), left), left + width)
        leftwards = x > left + width * 0.75
        y = 14.0 + 18 * row
        parts.append(
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{y - 11:.1f}" y2="{top + height:.1f}" '
            f'stroke="var(--ink)" stroke-dasharray="3 3"/>'
        )
        parts.append(_text(x + (-5 if leftwards else 5), y, text, "end" if leftwards else "start", "ink"))
    return _svg(top + height + 30, parts, title)


def reliability_chart(points: Sequence[tuple[float, float, float]], title: str) -> str:
    """Points of (predicted, observed, standard error of observed) on two logarithmic axes, with bars of two standard
    errors and the line on which both are equal. What is 0 stands on the axis."""
    positive = [value for predicted, observed, _ in points for value in (predicted, observed) if value > 0]
    if not positive:
        return _svg(40, [_text(0, 24, "nothing measured")], title)
    left, top, height, right = 72.0, 10.0, 300.0, 12.0
    width = WIDTH - left - right
    low, high = math.floor(math.log10(min(positive))), math.ceil(math.log10(max(positive)))
    high += high == low

    def share(value: float) -> float:
        return (min(max(math.log10(value), low), high) - low) / (high - low) if value > 0 else 0.0

    def place(x: float, y: float) -> tuple[float, float]:
        return left + width * share(x), top + height * (1 - share(y))

    parts = []
    for power in range(low, high + 1):
        x, y = place(10.0**power, 10.0**power)
        parts += [
            f'<line x1="{left}" x2="{left + width:.1f}" y1="{y:.1f}" y2="{y:.1f}" stroke="var(--line)"/>',
            _text(left - 8, y + 5, _short(10.0**power), "end", "soft number"),
            _text(x, top + height + 22, _short(10.0**power), "middle" if power < high else "end", "soft number"),
        ]
    parts.append(
        f'<line x1="{left}" x2="{left + width:.1f}" y1="{top + height:.1f}" y2="{top:.1f}" stroke="var(--ink)" '
        'stroke-dasharray="3 3"/>'
    )
    for predicted, observed, error in points:
        (x, y), (_, above), (_, below) = (place(predicted, observed + by) for by in (0.0, 2 * error, -2 * error))
        parts += [
            f'<line x1="{x:.1f}" x2="{x:.1f}" y1="{above:.1f}" y2="{below:.1f}" stroke="var(--s0)"/>',
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="var(--s0)">'
            f"<title>{_short(predicted)} predicted, {_short(observed)} observed</title></circle>",
        ]
    return _svg(top + height + 32, parts, title)
