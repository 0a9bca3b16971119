"""What is shown: the live display on and off a terminal, the final table, charts, the report, the evaluation table."""

from __future__ import annotations

import io
import json
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser
from pathlib import Path

import pytest
from rich.console import Console

from mainstem.evaluate import Evaluation, ReplayDisplay, Results, final_table, write_report
from mainstem.evaluate.charts import Bar, Line, bar_chart, histogram, line_chart, nice_ticks, reliability_chart
from mainstem.evaluate.display import status_line
from mainstem.schema.time import DAY

SYSTEMS = ["mainstem", "popular lately", "user counts"]


def results(days: int = 6) -> Results:
    found = Results(list(SYSTEMS))
    for day in range(days):
        for place, name in enumerate(SYSTEMS):
            found.add((17_500 + day) * DAY, name, "all", 0.3 - 0.1 * place + 0.001 * day, 0.25)
            found.add((17_500 + day) * DAY, name, "new", 0.03 - 0.01 * place, 0.02)
        found.slate_ms.add(4.0 + day)
        found.freshness_ms.add(40.0 + day)
        found.baskets += 1
        found.slates += 2
        found.events += 30
        found.seconds += 0.5
        found.time = (17_500 + day) * DAY
    return found


def text_of(renderable: object) -> str:
    console = Console(file=io.StringIO(), width=120)
    console.print(renderable)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_the_final_table_names_all_systems_and_the_lift() -> None:
    text = text_of(final_table(results()))
    for name in SYSTEMS:
        assert name in text
    assert "0.3025" in text
    assert "+49.4%" in text  # .3025 over the best baseline's .2025


def test_results_before_the_first_slate_are_dashes() -> None:
    empty = Results(list(SYSTEMS))
    assert "–" in text_of(final_table(empty))
    assert "0/10 baskets" in status_line(empty, 10, 0.0, 0)
    assert empty.best_baseline("all") is None
    assert empty.lift("all") is None


def test_off_a_terminal_there_is_a_line_every_few_seconds() -> None:
    now = [0.0]
    out = io.StringIO()
    found = results()
    with ReplayDisplay(12, file=out, line_every=5.0, clock=lambda: now[0]) as display:
        for second in range(13):
            now[0] = float(second)
            display.update(found)
        before = out.getvalue().count("\n")
    lines = out.getvalue().splitlines()
    assert before == 2  # at 5 and at 10 seconds
    assert len(lines) == 3  # and at the end
    assert "50%" in lines[0]
    assert "NDCG@10 0.3025 (popular lately 0.2025)" in lines[0]
    assert "\x1b" not in out.getvalue()


def test_on_a_terminal_it_draws_live(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("COLUMNS", "120")

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    out = Terminal()
    now = [0.0]
    with ReplayDisplay(12, file=out, clock=lambda: now[0]) as display:
        now[0] = 1.0
        display.update(results())
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", out.getvalue())
    for text in ("6/12", "over the best baseline", "freshness lag", "popular lately"):
        assert text in plain


def test_the_paired_interval_by_day_sees_the_difference() -> None:
    interval = results().interval("all", "popular lately")
    assert interval is not None
    assert interval.above_zero
    assert interval.mean == pytest.approx(0.1)
    assert results(days=1).interval("all", "popular lately") is None


class Checker(HTMLParser):
    """Every element closed, nothing that loads or runs."""

    void = frozenset({"meta", "br", "i"})

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text: list[str] = []
        self.svgs = 0

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        assert tag not in ("script", "link", "img", "iframe")
        assert not any(name in ("src", "href") or name.startswith("on") for name, _ in attrs)
        self.svgs += tag == "svg"
        if tag not in ("meta", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def check(html: str) -> Checker:
    checker = Checker()
    checker.feed(html)
    checker.close()
    assert checker.open == []
    return checker


def test_the_report_is_whole_and_stands_alone(tmp_path: Path) -> None:
    path = write_report(
        tmp_path / "deep" / "report.html",
        results(),
        title="Demo <1>",
        protocol="a & b",
        config="name: <x>",
        facts={"data": "six days"},
    )
    html = path.read_text(encoding="utf-8")
    checker = check(html)
    assert checker.svgs == 6
    text = " ".join(checker.text)
    for wanted in ("Demo <1>", "a & b", "name: <x>", "six days", "0.3025", "prefers-color-scheme: dark", "user counts"):
        assert wanted in text
    assert not re.search(r"https?://|url\(|@import", html)


def test_the_report_of_nothing_is_a_report_too(tmp_path: Path) -> None:
    html = write_report(tmp_path / "r.html", Results(["mainstem"]), title="t", protocol="p").read_text(encoding="utf-8")
    assert "nothing measured" in html
    check(html)


def test_charts_are_well_formed_and_escape_their_labels() -> None:
    charts = [
        bar_chart([Bar("<a&b>", 0.5, 0, "+1%"), Bar("c", 0.0)], 'ti"tle'),
        line_chart([Line("<x>", [(0, 1.0), (1, 2.0)], 0), Line("y", [(0, 0.0)], 1)], "t", [(0, "<mon>")]),
        histogram([(1.0, 2.0, 3), (2.0, 4.0, 0)], "t", [(1.5, "p50"), (1.6, "p99")]),
        histogram([], "t"),
        line_chart([], "t", []),
        bar_chart([], "t"),
        reliability_chart([(0.01, 0.02, 0.1), (0.5, 0.0, 0.0)], "<t>"),
        reliability_chart([(1.0, 1.0, 0.0)], "t"),
        reliability_chart([], "t"),
    ]
    for chart in charts:
        ET.fromstring(chart)
    assert "nan" not in "".join(charts)
    bars = [float(width) for width in re.findall(r'<rect [^>]*width="([\d.]+)"', charts[0])]
    assert bars[0] > 300
    assert bars[1] == 1.0


@pytest.mark.parametrize("high", [0.0137, 0.21, 1.0, 7.0, 950.0, 0.0])
def test_ticks_are_round_and_reach_the_top(high: float) -> None:
    ticks = nice_ticks(high)
    assert ticks[0] == 0
    assert ticks[-1] >= high * 0.999
    assert 2 <= len(ticks) <= 7


def test_an_evaluation_is_a_table_json_and_a_plot(tmp_path: Path) -> None:
    rows = {
        "two-tower": {"ndcg@10": 0.2, "logloss": 0.5},
        "popular": {"ndcg@10": 0.1, "logloss": float("nan"), "auc": None},
    }
    evaluation = Evaluation("last 14 days, full ranking", rows, {"users": 3})
    assert evaluation.best("ndcg@10") == "two-tower"
    assert Evaluation("", {"a": {"logloss": 0.5}, "b": {"logloss": 0.4}}).best("logloss") == "b"
    assert evaluation.best("auc") is None
    text = text_of(evaluation.table())
    assert "0.2000" in text
    assert "full ranking" in text
    as_json, as_html = evaluation.write(tmp_path / "out")
    read = json.loads(as_json.read_text())
    assert read["rows"]["popular"] == {"ndcg@10": 0.1, "logloss": None, "auc": None}
    assert check(as_html.read_text(encoding="utf-8")).svgs == 3
