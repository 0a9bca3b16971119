"""Writes the generated parts of the README and the manual: `make docs`. tests/docs fails where one is stale.

A page holds `<!-- NAME -->` and `<!-- /NAME -->`; what stands between them is replaced by the part of that name.
docs/configuration.md is generated whole.
"""

from __future__ import annotations

import importlib.util
import json
import re
import sys
import textwrap
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from litestar import Litestar

from mainstem import catalog, datasets, features, layout
from mainstem.schema import config_docs
from mainstem.schema.config import Config
from mainstem.serve.metrics import FIGURES, Metrics
from mainstem.serve.openapi import document, openapi_config
from mainstem.serve.routes import HANDLERS

ROOT = Path(__file__).resolve().parents[1]
DOCS = ROOT / "docs"
RESULTS, PLOTS = ROOT / "benchmarks" / "results", ROOT / "benchmarks" / "plots"
DEMO_TEXT = DOCS / "demo-output.txt"

_PART = re.compile(r"(?P<open><!-- (?P<name>[a-z][a-z-]*) -->\n)(?P<body>.*?)(?P<close><!-- /(?P=name) -->)", re.DOTALL)


def loop() -> str:
    """The picture of the loop, from the import table."""
    return f"```mermaid\n{layout.picture()}```\n"


def folders() -> str:
    """What is where, from the import table."""
    rows = [("`schema/`", "is shared", "records, ids, positions, time, configuration, protocols")]
    rows += [(f"`{name}/`", "holds", what) for name, what in layout.HOLDERS.items()]
    rows += [(f"`{name}/`", "moves", what) for name, what in layout.MOVERS.items()]
    return table(("folder", "", "what"), rows)


def results() -> dict[str, dict[str, Any]]:
    """Every committed benchmark result, by name."""
    return {path.stem: json.loads(path.read_text()) for path in sorted(RESULTS.glob("*.json"))}


def figures() -> str:
    """The committed results as a table. Nothing else in the manual may claim a figure."""
    rows = []
    for name, result in results().items():
        goal = result.get("goal")
        rows.append(
            (
                f"[{name}](benchmarks/results/{name}.json)",
                result["metric"],
                number(result["ours"]),
                f"{number(result['peer'])} ({result['peer_name']})" if result.get("peer") is not None else "none",
                number(result.get("ratio")),
                "none" if goal is None else number(goal),
                {True: "yes", False: "no", None: "no goal"}[result.get("met")],
            )
        )
        for part, figure in result.get("parts", {}).items():
            if figure.get("goal") is not None:
                met = "yes" if figure["met"] else "no"
                values = (number(figure["ours"]), "", "", number(figure["goal"]), met)
                rows.append((f"{name}: {part}", figure["metric"], *values))
    machines = {_machine(result["machine"]) for result in results().values()}
    told = "; ".join(sorted(machines))
    head = ("benchmark", "metric", "ours", "peer", "ours / peer", "goal", "met")
    return (
        table(head, rows)
        + f"\nMeasured on: {told}. Single runs and the load of the machine are in the files. \
For times, memory, errors and their ratios a goal is the most, for rates and gains the least.\n"
    )


def _machine(machine: dict[str, Any]) -> str:
    told = f"{machine['processor']}, {machine['cores']} cores, {machine['memory_gib']} GiB"
    return f"{told}, {machine['card']}" if "card" in machine else told


def device() -> str:
    """The table on a GPU: benchmarks/p1_device.py."""
    found = results().get("p1_device")
    if not found:
        return "No result is in `benchmarks/results` yet: `python benchmarks/p1_device.py` makes one, on a GPU.\n"
    rows = [
        (name, figure["metric"], number(figure["ours"]), _rates(figure.get("m_rows_s", {})))
        for name, figure in found["parts"].items()
    ]
    return table((found["machine"]["card"], "what", "ours", "M rows/s"), rows)


def _rates(rates: dict[str, float]) -> str:
    return ", ".join(f"{name} {number(rate)}" for name, rate in rates.items())


def demo_output() -> str:
    """What `make demo` showed when it was last recorded: docs/demo-output.txt, and the figures of d1_demo."""
    parts = []
    if DEMO_TEXT.exists():
        parts.append(f"```text\n{DEMO_TEXT.read_text().rstrip()}\n```\n")
    found = results().get("d1_demo")
    if found:
        demo = found.get("demo", found)
        systems = {"**Mainstem**": demo.get("mainstem"), **demo.get("baselines", {})}
        rows = [
            (
                name,
                *(_decimals(scores[which][metric]) for which in ("all", "new") for metric in ("ndcg@10", "recall@10")),
            )
            for name, scores in systems.items()
            if scores
        ]
        head = ("", "NDCG@10, all", "recall@10, all", "NDCG@10, new", "recall@10, new")
        parts += [table(head, rows)] if rows else []
    return "\n".join(parts) or "No run is recorded in `benchmarks/results` yet.\n"


def endpoints() -> str:
    """Addresses and what they do, from the handlers."""
    paths = document(Litestar(HANDLERS, openapi_config=openapi_config()))["paths"]
    rows = [
        (
            f"`{method.upper()}`",
            f"`{path}`",
            (about.get("description") or about.get("summary") or "").replace("\n", " "),
        )
        for path, methods in paths.items()
        for method, about in methods.items()
    ]
    return table(("", "address", "what it does"), rows)


def metrics() -> str:
    """The names of the metrics, from the registry."""
    rows = []
    for family in Metrics().registry.collect():
        name = f"{family.name}_total" if family.type == "counter" else family.name
        rows.append((f"`{name}`", family.type, family.documentation))
    rows += [(f"`mainstem_{name}`", "gauge", text) for name, text in FIGURES.items()]
    return table(("metric", "type", "what it counts"), rows)


def data_sets() -> str:
    """The known data sets, from the registry."""
    rows = []
    for name in datasets.names():
        known = datasets.get(name)
        counts = known.counts
        rows.append((f"[{name}]({known.home})", known.title, count(counts.events), count(counts.users),
                     count(counts.entities), known.licence.split("NOTE")[0].strip()))  # fmt: skip
    return table(("name", "what it is", "events", "users", "entities", "licence"), rows)


def plots() -> str:
    """What `make plots` drew, each under what its script says first."""
    lines = _scripts()
    return "\n".join(
        f"![{lines[path.stem]}](benchmarks/plots/{path.name})\n\n`{path.stem}`: {lines[path.stem]}\n"
        for path in sorted(PLOTS.glob("*.svg"))
        if path.stem in lines  # those of a set are shown with its result
    )


def benchmarks() -> str:
    """The scripts there are, with what each measures."""
    return table(("name", "what it measures"), [(f"`{name}`", line) for name, line in _scripts().items()])


def _scripts() -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("bench", ROOT / "benchmarks" / "bench.py")
    assert spec
    assert spec.loader
    bench = importlib.util.module_from_spec(spec)
    sys.modules["bench"] = bench
    spec.loader.exec_module(bench)
    found: dict[str, str] = bench.scripts()
    return found


def columns(dataset: str = "completejourney") -> tuple[str, ...]:
    """The feature columns that a data set's configuration gives, in order."""
    config = Config.model_validate(datasets.get(dataset).config)
    known = catalog.open("memory://", entities=config.entities)
    store = features.open("memory://", config, known)
    try:
        return store.names
    finally:
        store.close()
        known.close()


def feature_columns() -> str:
    """All columns of the demo's configuration."""
    names = columns()
    return f"{len(names)} columns, in this order:\n\n```text\n{textwrap.fill(' '.join(names), 110)}\n```\n"


def next_item() -> str:
    """Each set's result of benchmarks/next_item.py: ours and its peers, by segment, and how it was made."""
    found = [(name.removeprefix(NEXT_ITEM), each) for name, each in results().items() if name.startswith(NEXT_ITEM)]
    if not found:
        return "No result is in `benchmarks/results` yet: `python benchmarks/next_item.py SET` makes one.\n"
    return "\n".join(_set(name, result) for name, result in found)


def _set(name: str, result: dict[str, Any]) -> str:
    told = result["found"]
    facts, systems = told["facts"], told["systems"]
    rows = []
    for system, row in systems.items():
        shown = {**row["metrics"], **row["beyond"]}
        rows.append((system, *(_mean(shown[metric], form) for metric, form in OVERALL.items())))
    segments = [
        (segment, f"{users:,}", *(_mean(
            (row["metrics"] if segment == "all" else row["segments"][segment])["ndcg@10"], ".4f"
        ) for row in systems.values()))
        for segment, users in told["segments"].items()
    ]  # fmt: skip
    plot = PLOTS / f"{NEXT_ITEM}{name}.svg"
    parts = [
        f"### {name.replace('_', ', ')}\n",
        f"{facts['users']:,} users, {facts['items']:,} items, {facts['actions']:,} actions; {facts['asked']:,} users "
        f"asked. {told['protocol']}\n",
        table(("", *OVERALL), rows),
        table(("NDCG@10", "users", *systems), segments),
        *(f"{other}: not run. {why}\n" for other, why in told["left out"].items()),
        *([f"![Next item, {name}](benchmarks/plots/{plot.name})\n"] if plot.exists() else []),
        f"Made by `{result['command']}` {_where(result)}; the "
        f"[whole result](benchmarks/results/{NEXT_ITEM}{name}.json) says what each recommender settled on.\n",
    ]
    return "\n".join(parts)


def _where(result: dict[str, Any]) -> str:
    """On what; trainings on a card may have been elsewhere, and several at once."""
    machine = result["machine"]
    here = f"on {machine['processor']}, {machine['cores']} cores"
    settled = [each for row in result["found"]["systems"].values() for each in row.get("settled", ())]
    cards = sorted({each["on"] for each in settled if each.get("on", "the processor") != "the processor"})
    if not cards:
        return here
    return f"on {' and '.join(cards)}, which its trainings shared, the others {here}"


def one_model() -> str:
    """Q3: one model against one for each canvas, and what each part of it brings (`CANVASES` on Amazon Beauty)."""
    found = results()
    whole, parts = found.get("q3_canvases"), found.get("q3_ablation")
    said = []
    if whole:
        rows = []
        for name in CANVASES:
            canvas = whole["parts"][f"{name}, ndcg@10"]
            gain = f"{canvas['ours']:+.4f} ± {canvas['error']:.4f}"
            rows.append((name, f"{canvas['one']:.4f}", f"{canvas['alone']:.4f}", gain))
        said += [table(("test, NDCG@10, 3 seeds", "one model", "one for each", "gain"), rows)]
    if parts:
        rows = []
        for name, part in parts["parts"].items():
            canvases = [part["canvases"][canvas] for canvas in CANVASES]
            gains = [
                f"{each['ndcg']:.4f}" + (f" ({each['gain']:+.4f} ± {each['error']:.4f})" if each["error"] else "")
                for each in canvases
            ]
            rows.append((name, *gains, f"{part['epoch'][0]}"))
        seeds = "1 seed" if parts["seeds"] == 1 else f"{parts['seeds']} seeds"
        head = (f"validation, NDCG@10, {seeds}", *CANVASES, "best epoch")
        said += [table(head, rows)]
    return "\n".join(said) or "No result is in `benchmarks/results` yet: `python benchmarks/q3_canvases.py`.\n"


def profile() -> str:
    """Where a training step for the next item spends its time, by data set: benchmarks/sequence_step.py."""
    found = {name.removeprefix(STEP): each for name, each in results().items() if name.startswith(STEP)}
    if not found:
        return "No result is in `benchmarks/results` yet: `python benchmarks/sequence_step.py SET` makes one.\n"
    largest = next(iter(found.values()))["parts"]
    parts = sorted(largest, key=lambda part: -largest[part]["ours"])
    rows = [(part, *(f"{each['parts'][part]['ours']:.1f}" for each in found.values())) for part in parts]
    rows.append(("the step", *(f"{each['ours']:.1f}" for each in found.values())))
    rows.append(("positives a second", *(f"{each['positives_a_second']:,}" for each in found.values())))
    rows += [
        (f"GFLOP/s, {name}", *(f"{each['gflops'][name]:.1f}" for each in found.values()))
        for name in next(iter(found.values()))["gflops"]
    ]
    return table(("ms, one thread", *found), rows)


def training_speed() -> str:
    """P4: how soon ours reaches what the peers' SASRec reach in their time, by data set."""
    found = {name.removeprefix(SPEED): each for name, each in results().items() if name.startswith(SPEED)}
    if not found:
        return "No result is in `benchmarks/results` yet: `python benchmarks/p4_sequence_training.py SET` makes one.\n"
    return "\n".join(_speed(name, result) for name, result in found.items())


def _speed(name: str, result: dict[str, Any]) -> str:
    reached, rows = result["reached"], []
    for peer, part in result["parts"].items():
        theirs = part["peer"]
        soon = "not reached" if part["seconds"] is None else f"{part['seconds']:,.0f} s"
        share = "" if part["ours"] is None else f"{part['ours']:.3f}"
        rows.append((
            f"{peer} ({theirs['version']})", f"{theirs['ndcg']:.4f}",
            f"{theirs['epochs']:g} epochs, {theirs['seconds']:,.0f} s", f"{theirs['peak_gib']:.1f}", soon, share,
        ))  # fmt: skip
    peak = "" if result.get("peak_gib") is None else f", {result['peak_gib']:.1f} GiB at its peak"
    head = (name, "validation NDCG@10", "after", "peak GiB", "ours as good after", "ours / peer")
    plot, machine = PLOTS / f"{SPEED}{name}.svg", result["machine"]
    drawn = f"\n![How soon training is as good, {name}](benchmarks/plots/{plot.name})\n" if plot.exists() else ""
    kept = [peer for peer, part in result["parts"].items() if part["peer"].get("earlier")]
    before = f" {' and '.join(kept)} trained in a run before (`--resume`)." if kept else ""
    return (
        table(head, rows) + f"\nOurs reached {reached:.4f}, after {result['looks'][-1]['seconds']:,.0f} s of training"
        f"{peak}. Made by `{result['command']}` on {machine['processor']}; the [whole result]"
        f"(benchmarks/results/{SPEED}{name}.json) has every look.{before}\n{drawn}"
    )


SPEED = "p4_sequence_training_"
STEP = "sequence_step_"
CANVASES = ("search", "next", "related")


def _mean(found: dict[str, Any], form: str) -> str:
    if found["mean"] is None:
        return "none"
    spread = f" ± {found['spread']:{form}}" if found["spread"] is not None else ""
    return f"{found['mean']:{form}}{spread}"


NEXT_ITEM = "next_item_"
OVERALL = {
    "hr@10": ".4f", "ndcg@10": ".4f", "hr@5": ".4f", "ndcg@5": ".4f", "coverage@10": ".3f", "novelty@10": ".2f",
    "seconds": ",.0f", "peak GiB": ".2f",
}  # fmt: skip
"""What the table of a set shows, and how."""


PARTS: dict[str, Callable[[], str]] = {
    "loop": loop,
    "folders": folders,
    "figures": figures,
    "demo-output": demo_output,
    "endpoints": endpoints,
    "metrics": metrics,
    "data-sets": data_sets,
    "benchmarks": benchmarks,
    "plots": plots,
    "next-item": next_item,
    "one-model": one_model,
    "profile": profile,
    "training-speed": training_speed,
    "device": device,
    "feature-columns": feature_columns,
}


def filled(text: str) -> str:
    """A page with its generated parts made anew."""

    def part(match: re.Match[str]) -> str:
        made = PARTS.get(match["name"])
        return match["open"] + made() + match["close"] if made else match[0]

    return _PART.sub(part, text)


def pages() -> dict[Path, str]:
    """Every page that has generated parts, as it should be."""
    found = {}
    for path in [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]:
        if path.exists() and path != DOCS / "configuration.md":
            text = path.read_text()
            if any(match["name"] in PARTS for match in _PART.finditer(text)):
                made = filled(text)
                # Links of a part are written as from the root.
                found[path] = made if path.parent == ROOT else made.replace("](benchmarks/", "](../benchmarks/")
    found[DOCS / "configuration.md"] = config_docs.markdown()
    return found


def table(head: Iterable[str], rows: Iterable[Iterable[str]]) -> str:
    head = list(head)
    lines = [head, ["---"] * len(head), *(list(row) for row in rows)]
    return "".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |\n" for line in lines)


def number(value: float | None) -> str:
    """Three significant digits; thousands in groups."""
    if value is None:
        return "none"
    short = float(f"{value:.3g}")
    return f"{short:,.0f}" if abs(short) >= 100 else f"{short:g}"


def count(value: int) -> str:
    return "varies" if value < 0 else f"{value:,}"


def _decimals(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def main() -> None:
    for path, text in pages().items():
        if not path.exists() or path.read_text() != text:
            path.write_text(text)
            print(f"wrote {path.relative_to(ROOT)}")


if __name__ == "__main__":
    main()
