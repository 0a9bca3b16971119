"""The HTML report of a replay: one file, no scripts, nothing fetched; light and dark."""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from html import escape
from importlib.resources import files
from pathlib import Path

from mainstem.evaluate.charts import Bar, Line, bar_chart, histogram, legend, line_chart
from mainstem.evaluate.latency import Latency
from mainstem.evaluate.results import RESTRICTIONS, Restriction, Results
from mainstem.schema.time import DAY

__all__ = ["machine", "page", "report", "write_report"]

_NAMES = {"all": "all products", "new": "products new to the user"}


def machine() -> dict[str, str]:
    """What the figures were measured on: processor, cores, memory, system, Python."""
    found = {"system": platform.platform(terse=True), "python": platform.python_version()}
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        found["processor"] = next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
        total = next(x for x in Path("/proc/meminfo").read_text().splitlines() if x.startswith("MemTotal"))
        found["memory"] = f"{int(total.split()[1]) / 2**20:.1f} GiB"
        found["cores"] = str(sum(line.startswith("processor") for line in lines))
    except (OSError, StopIteration, ValueError, IndexError):  # not Linux, or a /proc without these lines
        found["processor"] = platform.processor() or platform.machine()
    return found


def page(title: str, body: str) -> str:
    """A whole HTML document around `body`, with the style sheet of reports in it."""
    style = files("mainstem.evaluate").joinpath("report.css.html").read_text()
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
        f'<meta name="viewport" content="width=device-width,initial-scale=1">{style}</head>\n'
        f"<body><main>{body}</main></body></html>\n"
    )


def _day(day: int, form: str = "%d %b") -> str:
    return datetime.fromtimestamp(day * DAY / 1000, UTC).strftime(form)


def _number(value: float | None, form: str, unit: str = "") -> str:
    return "–" if value is None else format(value, form) + unit


def _tile(label: str, value: str, note: str = "") -> str:
    return f"<div class=tile><b>{escape(value)}</b><span>{escape(label)}</span><small>{escape(note)}</small></div>"


def _tiles(results: Results) -> str:
    tiles = []
    for restriction in RESTRICTIONS:
        rival, lift = results.best_baseline(restriction), results.lift(restriction)
        score = results.score(results.systems[0], restriction).ndcg
        note = f"{lift:+.1%} over {rival}" if lift is not None else ""
        tiles.append(_tile(f"NDCG@{results.k}, {_NAMES[restriction]}", _number(score, ".4f"), note))
    slate, fresh = results.slate_ms, results.freshness_ms
    tiles.append(
        _tile(
            "slate latency p50",
            _number(slate.percentile(0.5), ".1f", " ms"),
            f"p99 {_number(slate.percentile(0.99), '.1f', ' ms')}",
        )
    )
    tiles.append(
        _tile(
            "freshness lag p50",
            _number(fresh.percentile(0.5), ".0f", " ms"),
            f"p99 {_number(fresh.percentile(0.99), '.0f', ' ms')}",
        )
    )
    tiles.append(
        _tile(
            "events a second",
            _number(results.events_per_s(), ",.0f"),
            f"{results.events:,} events, {results.slates:,} slates",
        )
    )
    return f"<div class=tiles>{''.join(tiles)}</div>"


def _quality(results: Results, restriction: Restriction) -> str:
    best = results.best_baseline(restriction)
    bars = []
    for series, name in enumerate(results.systems):
        lift = results.lift(restriction, name) if series else None
        note = f"{lift:+.0%}" if lift is not None else ""
        bars.append(Bar(name, results.score(name, restriction).ndcg or 0.0, series, note))
    days = {name: results.by_day(name, restriction) for name in results.systems}
    lines = [
        Line(name, [(day, ndcg) for day, ndcg, _ in days[name]], series) for series, name in enumerate(results.systems)
    ]
    seen = [day for day, _, _ in days[results.systems[0]]]
    labels = [(float(day), _day(day)) for i, day in enumerate(seen) if i % 7 == 0]
    interval = results.interval(restriction, best) if best else None
    sure = ""
    if best and interval:
        reach = f"95 % interval {interval.low:+.4f} to {interval.high:+.4f} (paired bootstrap, whole days resampled)"
        sure = f"<p class=soft>Over {escape(best)}: {interval.mean:+.4f}, {reach}.</p>"
    head = f"NDCG@{results.k}, {_NAMES[restriction]}"
    n = results.score(results.systems[0], restriction).n
    names = [(name, series) for series, name in enumerate(results.systems)]
    return (
        f"<section><h2>{escape(head)}</h2><p class=soft>{n:,} slates; the notes say by how much "
        f"{escape(results.systems[0])} is ahead.</p>{bar_chart(bars, head)}{sure}</section>"
        f"<section><h2>By day</h2><p class=soft>{escape(head)}: mean of each day's slates.</p>"
        f"{line_chart(lines, head + ' by day', labels)}{legend(names)}</section>"
    )


def _timing(title: str, note: str, latency: Latency) -> str:
    found = latency.summary()
    marks = [(value, f"{name} {value:.3g} ms") for name, value in found.items() if value is not None]
    chart = histogram(latency.histogram(), title, marks)
    return f"<section><h2>{escape(title)}</h2><p class=soft>{escape(note)}</p>{chart}</section>"


def _folded(title: str, text: str) -> str:
    body = f"<details><summary>{escape(title)}</summary><pre>{escape(text)}</pre></details>"
    return f"<section class=wide>{body}</section>"


def _table(results: Results) -> str:
    head = "".join(
        f"<th>{metric}@{results.k}<br><small>{_NAMES[r]}</small></th>"
        for r in RESTRICTIONS
        for metric in ("NDCG", "recall")
    )
    rows = []
    for name in results.systems:
        scores = [results.score(name, restriction) for restriction in RESTRICTIONS]
        cells = "".join(f"<td>{_number(value, '.4f')}</td>" for score in scores for value in (score.ndcg, score.recall))
        rows.append(f"<tr><th>{escape(name)}</th>{cells}</tr>")
    return f"<section class=wide><h2>Figures</h2><table><tr><th></th>{head}</tr>{''.join(rows)}</table></section>"


def _facts(title: str, facts: Mapping[str, object]) -> str:
    rows = "".join(f"<dt>{escape(str(name))}</dt><dd>{escape(str(value))}</dd>" for name, value in facts.items())
    return f"<section><h2>{escape(title)}</h2><dl>{rows}</dl></section>"


def report(
    results: Results, *, title: str, protocol: str, config: str = "", facts: Mapping[str, object] | None = None,
    compared: Results | None = None,
) -> str:  # fmt: skip
    """The document as text. `protocol` says in a sentence or two what was asked and scored; `config` is the
    configuration file's text; `facts` whatever else a reader needs (data set, version, command); `compared`: the
    system on some of the baskets beside a rival."""
    slates = _timing(
        "Slate latency", f"{results.slate_ms.count:,} requests, as the client saw them, log scale.", results.slate_ms
    )
    fresh = _timing("Freshness lag", "From accepted event to slates that reflect it, log scale.", results.freshness_ms)
    known = {"seconds": f"{results.seconds:,.1f}", "baskets": f"{results.baskets:,}", **(facts or {})}
    body = [
        f"<header><h1>{escape(title)}</h1><p>{escape(protocol)}</p></header>",
        _tiles(results),
        *(_quality(results, restriction) for restriction in RESTRICTIONS),
        *_compared(compared),
        slates,
        fresh,
        _table(results),
        _facts("Run", known),
        _facts("Machine", machine()),
    ]
    if config:
        body.append(_folded("Configuration", config))
    body.append(_folded("The same as JSON", json.dumps(results.summary(), indent=1)))
    command = escape(" ".join(Path(part).name if i == 0 else part for i, part in enumerate(sys.argv)))
    made = datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")
    body.append(f"<footer>Made by <code>{command}</code>, {made}.</footer>")
    return page(title, "\n".join(body))


def _compared(compared: Results | None) -> list[str]:
    if compared is None or not compared.days:
        return []
    head = " against ".join(compared.systems).capitalize()
    title = f"<section class=wide><h2>{escape(head)}</h2><p class=soft>The same requests.</p></section>"
    return [title, *(_quality(compared, restriction) for restriction in RESTRICTIONS)]


def write_report(
    path: Path,
    results: Results,
    *,
    title: str,
    protocol: str,
    config: str = "",
    facts: Mapping[str, object] | None = None,
    compared: Results | None = None,
) -> Path:
    """`report` into a file (folders are made); the path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    text = report(results, title=title, protocol=protocol, config=config, facts=facts, compared=compared)
    path.write_text(text, encoding="utf-8")
    return path
