"""Draws benchmarks/plots/NAME.svg from benchmarks/results/NAME.json: `make plots`. A missing result has no plot.

One function a benchmark, named as its result. Colours are those of Okabe and Ito, which the colour-blind tell apart;
the same bytes come from the same results.

    python benchmarks/_plots.py [--png FOLDER]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

HERE = Path(__file__).resolve().parent
RESULTS, PLOTS = HERE / "results", HERE / "plots"

BLACK, ORANGE, SKY, GREEN, BLUE, RED, GREY = "#222222", "#E69F00", "#56B4E9", "#009E73", "#0072B2", "#D55E00", "#999999"
ARMS, MARKERS = (BLUE, ORANGE, GREEN, RED, SKY, BLACK), "os^DvP"
STYLE = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.titleweight": "bold",
    "axes.titlelocation": "left", "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY,
    "axes.grid": True, "grid.color": "#E6E6E6", "grid.linewidth": 0.8, "axes.axisbelow": True, "legend.frameon": False,
    "xtick.color": BLACK, "ytick.color": BLACK, "svg.hashsalt": "mainstem", "figure.facecolor": "white",
}  # fmt: skip
WIDTH, ROW = 7.6, 2.9  # inches

Result = dict[str, Any]


def panels(plt: Any, rows: int, columns: int = 1, height: float = ROW, **more: Any) -> tuple[Any, Any]:
    figure, axes = plt.subplots(
        rows, columns, figsize=(WIDTH, height * rows), squeeze=False, layout="constrained", **more
    )
    return figure, axes


def goal_line(axis: Any, middle: float, width: float, height: float) -> None:
    """A short line at a goal, over a group of bars."""
    axis.plot(
        [middle - width / 2, middle + width / 2], [height, height], color=BLACK, linewidth=1.4, linestyle=(0, (3, 2))
    )


# ---- quality -----------------------------------------------------------------------------------------


def q3_canvases(plt: Any, result: Result) -> Any:
    """NDCG@10 and HR@10 by canvas, one model beside the canvas' own; a dot each seed."""
    figure, axes = panels(plt, 1, 2)
    for axis, metric in zip(axes[0], ("ndcg@10", "hr@10"), strict=True):
        names = [name.partition(",")[0] for name in result["parts"] if name.endswith(metric)]
        for place, name in enumerate(names):
            part = result["parts"][f"{name}, {metric}"]
            for side, arm, color in ((-0.2, "one", BLUE), (0.2, "alone", GREY)):
                axis.bar(place + side, part[arm], width=0.36, color=color, label=LABELS[arm] if not place else None)
                seeds = part["seeds"][arm]
                axis.plot([place + side] * len(seeds), seeds, ".", color=BLACK, markersize=3)
        axis.set(xticks=range(len(names)), xticklabels=names)
        axis.set_title(metric.upper())
        axis.grid(visible=False, axis="x")
    axes[0][0].legend()
    return figure


LABELS = {"one": "one model for all", "alone": "a model of its own"}


def next_item(plt: Any, result: Result) -> Any:
    """NDCG@10 of all who are asked and by segment, ours beside its peers; a dot each seed."""
    found = result["found"]
    systems, users = found["systems"], {name: count for name, count in found["segments"].items() if count}
    figure, axes = panels(plt, 1, height=3.4)
    axis, width = axes[0][0], 0.8 / len(systems)
    for place, (name, row) in enumerate(systems.items()):
        values = [(row["metrics"] if segment == "all" else row["segments"][segment])["ndcg@10"] for segment in users]
        at = [group + (place - (len(systems) - 1) / 2) * width for group in range(len(users))]
        color = (BLUE, GREY, SKY, ORANGE, GREEN, RED)[place % 6]
        axis.bar(at, [value["mean"] for value in values], 0.9 * width, color=color, label=name)
        for x, value in zip(at, values, strict=True):
            if value["spread"] is not None:
                axis.plot([x] * len(value["seeds"]), value["seeds"], ".", color=BLACK, markersize=3)
    labels = [f"{segment}\n{count:,}".replace(" ", "\n", 1) for segment, count in users.items()]
    axis.set(xticks=range(len(users)), xticklabels=labels, ylabel="NDCG@10")
    axis.tick_params(axis="x", labelsize=7)
    of = result["name"].removeprefix("next_item_").replace("_", ", ")
    finish(axis, f"{of}: users by segment")
    return figure


def p4_sequence_training(plt: Any, result: Result) -> Any:
    """NDCG@10 on validation over seconds of training: ours as looked at, each peer's best at the end of its time."""
    figure, axes = panels(plt, 1)
    axis = axes[0][0]
    looks = result["looks"]
    axis.plot([look["seconds"] for look in looks], [look["ndcg"] for look in looks], "o-", color=BLUE, label="ours")
    for place, (name, part) in enumerate(result["parts"].items()):
        color, peer = ARMS[1 + place], part["peer"]
        axis.axhline(peer["ndcg"], color=color, linewidth=1, linestyle=(0, (3, 2)))
        axis.plot(peer["seconds"], peer["ndcg"], MARKERS[1 + place], color=color, markersize=8, label=name)
    axis.set(xlabel="seconds of training, one thread", ylabel="NDCG@10, validation", xscale="log", ylim=(0, None))
    axis.xaxis.set_major_formatter("{x:g}")
    axis.legend(loc="lower center", bbox_to_anchor=(0.6, 0))  # right of it are the peers
    of = result["name"].removeprefix("p4_sequence_training_")
    axis.set_title(f"{of}: how soon training is as good")
    return figure


def q4_online(plt: Any, result: Result) -> Any:
    """Gain over the frozen model by arm, and how it goes on over the stretch."""
    parts = {name: part for name, part in result["parts"].items() if "gain_by_quarter" in part}
    figure, axes = panels(plt, len(parts), 2, gridspec_kw={"width_ratios": (1, 1.15)})
    for (left, right), (name, part) in zip(axes, parts.items(), strict=True):
        arms = [arm for arm in part["arms"] if arm != "frozen"]
        for place, arm in enumerate(arms):
            found = part["arms"][arm]["ndcg"]
            low, high = found["interval"]
            color, marker = ARMS[place % len(ARMS)], MARKERS[place % len(MARKERS)]
            left.errorbar(
                found["gain"], place, xerr=[[found["gain"] - low], [high - found["gain"]]],
                fmt=marker, color=color, capsize=3, linewidth=1.6,
            )  # fmt: skip
            quarters = part["gain_by_quarter"][arm]
            right.plot(range(1, len(quarters) + 1), quarters, f"{marker}-", color=color, linewidth=1.6, markersize=5)
        left.set(yticks=range(len(arms)), yticklabels=arms, ylim=(len(arms) - 0.5, -0.5))
        for label, color in zip(left.get_yticklabels(), ARMS, strict=False):
            label.set_color(color)
        left.set_xlabel("NDCG@10 gained over frozen (95 % interval)")
        left.set_title(f"{name}, sync by events")
        left.axvline(0, color=BLACK, linewidth=1)
        right.axhline(0, color=BLACK, linewidth=1)
        count = len(next(iter(part["gain_by_quarter"].values())))
        right.set(xticks=range(1, count + 1), xlabel=f"quarter of the {part['days']:g} days", ylabel="NDCG@10 gained")
        right.set_title("by quarter, marks as on the left")
    return figure


def q5_collisions(plt: Any, result: Result) -> Any:
    """NDCG@10 by arm, with the spread over seeds and the bytes of the table."""
    parts = {name: part for name, part in result["parts"].items() if "arms" in part}
    figure, axes = panels(plt, 1, len(parts), height=3.2)
    for axis, (name, part) in zip(axes[0], parts.items(), strict=True):
        arms = sorted(part["arms"], key=lambda arm: ORDER.index(arm) if arm in ORDER else len(ORDER))
        for place, arm in enumerate(arms):
            found = part["arms"][arm]
            hashed = arm not in ("collisionless", "admitted, half", "admitted, tenth")
            axis.barh(place, found["ndcg@10"], xerr=found["spread"], height=0.66, color=GREY if hashed else BLUE,
                      error_kw={"linewidth": 1.2, "capsize": 2.5, "ecolor": BLACK})  # fmt: skip
            axis.annotate(size(found["bytes"]), (found["ndcg@10"] + found["spread"], place), (5, 0),
                          textcoords="offset points", va="center", fontsize=8)  # fmt: skip
        axis.set_xlim(0, 1.3 * max(found["ndcg@10"] for found in part["arms"].values()))
        axis.axvline(part["popular"]["ndcg@10"], color=RED, linewidth=1.4, linestyle=(0, (3, 2)))
        axis.annotate("popularity", (part["popular"]["ndcg@10"], len(arms) - 0.45), (3, 0), textcoords="offset points",
                      color=RED, fontsize=8, va="center")  # fmt: skip
        axis.set(
            yticks=range(len(arms)), yticklabels=[HASHED.get(arm, arm) for arm in arms], ylim=(len(arms) - 0.2, -0.6)
        )
        axis.set_xlabel(f"NDCG@10 ({part['seeds']} seeds, standard deviation)")
        axis.set_title(name)
        axis.grid(visible=False, axis="y")
        if axis is not axes[0][0]:
            axis.set_yticklabels([])
    return figure


ORDER = (
    "collisionless", "as in the paper", "equal bytes", "half", "admitted, half", "tenth", "admitted, tenth",
)  # fmt: skip
HASHED = {
    "as in the paper": "hashed, as in the paper", "equal bytes": "hashed, equal bytes", "half": "hashed into half",
    "tenth": "hashed into a tenth", "admitted, half": "admitted, bytes of half",
    "admitted, tenth": "admitted, bytes of tenth",
}  # fmt: skip


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "kB", "MB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} GB"


def recovery_age(plt: Any, result: Result) -> Any:
    """What is lost by age of the snapshot."""
    figure, axes = panels(plt, 1)
    axis = axes[0][0]
    ages = sorted(result["ages"].values(), key=lambda found: found["age"])
    for metric, color, label in (("ndcg", BLUE, "any product"), ("fresh", ORANGE, "new to the user")):
        lost = [found[metric]["lost"] for found in ages]
        low = [found[metric]["lost"] - found[metric]["interval"][0] for found in ages]
        high = [found[metric]["interval"][1] - found[metric]["lost"] for found in ages]
        axis.errorbar([found["age"] for found in ages], lost, yerr=[low, high], fmt="o-", color=color, capsize=3,
                      linewidth=1.6, markersize=4, label=label)  # fmt: skip
    axis.axhline(0, color=BLACK, linewidth=1)
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,.0f}")
    axis.set(xlabel="mean age of the snapshot that answers, events", ylabel="NDCG@10 lost (95 % interval)")
    axis.set_title(f"{result['dataset']}, {result['visits']:,} visits, {result['seeds']} seeds")
    axis.legend()
    return figure


# ---- speed -------------------------------------------------------------------------------------------


def p6_freshness(plt: Any, result: Result) -> Any:
    """Percentiles of each way on one logarithmic axis, with its goal."""
    parts = result["parts"]
    rows = [
        ("event learned and serving,\none at a time", scaled(parts["idle"]["seconds"]), 1000 * parts["idle"]["goal"]),
        (f"the same,\n{result['events_per_s']:g} events/s", scaled(result["load_seconds"]), 1000 * result["goal"]),
        ("the user's next slate\nreflects the event", parts["next_slate"]["ms"], parts["next_slate"]["goal"]),
        ("new networks\nare serving", scaled(parts["dense"]["seconds"]), None),
    ]
    figure, axes = panels(plt, 1, height=2.6)
    axis = axes[0][0]
    for place, (_, ms, goal) in enumerate(rows):
        axis.plot([ms["p50"], ms["max"]], [place, place], color=GREY, linewidth=1.4, zorder=1)
        for name, marker, color in (("p50", "o", BLUE), ("p99", "D", ORANGE), ("max", "|", BLACK)):
            axis.scatter(ms[name], place, marker=marker, color=color, s=42, zorder=2, label=name if not place else None)
        if goal is not None:
            axis.plot([goal, goal], [place - 0.3, place + 0.3], color=GREEN, linewidth=2,
                      label="goal for p99" if not place else None)  # fmt: skip
    axis.set_xscale("log")
    axis.minorticks_off()
    axis.xaxis.set_major_formatter(lambda value, _: f"{value:,g}")
    axis.set(
        xticks=(10, 20, 50, 100, 200, 500, 1_000, 2_000),
        yticks=range(len(rows)),
        yticklabels=[name for name, _, _ in rows],
        ylim=(len(rows) - 0.5, -0.5),
    )
    axis.set_xlabel("ms, logarithmic")
    axis.legend(loc="upper left", bbox_to_anchor=(0, 1.18), ncols=4, fontsize=8, columnspacing=1.2, handletextpad=0.3)
    return figure


def scaled(seconds: dict[str, float]) -> dict[str, float]:
    return {name: 1000 * value for name, value in seconds.items()}


def p1_table(plt: Any, result: Result) -> Any:
    """Rows a second, ours and the gathers without hashing; the ratio to torch over ours."""
    runs = re.compile(r"(?P<who>.+), d=(?P<dim>\d+), (?P<draw>\w+)$")
    groups: dict[tuple[str, str], dict[str, float]] = {}
    for name, values in result["runs"].items():
        if (found := runs.match(name)) is not None:
            groups.setdefault((found["dim"], found["draw"]), {})[found["who"]] = sorted(values)[len(values) // 2]
    who = {"ours": "ours: find and gather", "torch": "torch index_select(out=), rows given",
           "torch, huge pages": "the same in huge pages", "F.embedding": "torch F.embedding"}  # fmt: skip
    bars = {f"d = {dim}\n{draw} keys": [found.get(name) for name in who] for (dim, draw), found in groups.items()}
    return grouped(plt, bars, list(who.values()), "million rows a second", peer=1, goal=result["goal"])


def p2_training_step(plt: Any, result: Result) -> Any:
    """Examples a second of the whole step by optimizer, ours and the peer."""
    figure, axes = panels(plt, 1)
    axis = axes[0][0]
    for place, part in enumerate(result["parts"].values()):
        rates = part["examples_per_second"]
        ours = next(rate for who, rate in rates.items() if who.startswith("ours"))
        peer_name, peer = next((who, rate) for who, rate in rates.items() if not who.startswith("ours"))
        axis.bar(place - 0.2, ours / 1000, 0.36, color=BLUE, label="ours" if not place else None)
        axis.bar(place + 0.2, peer / 1000, 0.36, color=GREY, label="peer" if not place else None)
        axis.annotate(peer_name.replace("torch sparse", "torch\nsparse").replace("torch Sparse", "torch\nSparse"),
                      (place + 0.2, 2), ha="center", va="bottom", fontsize=8)  # fmt: skip
        ratio(axis, place - 0.2, ours / peer)
        goal_line(axis, place, 0.8, part["goal"] * peer / 1000)
    axis.set(xticks=range(len(result["parts"])), xticklabels=list(result["parts"]), ylabel="thousand examples a second")
    finish(axis, "goal: dashed")
    return figure


def grouped(
    plt: Any, bars: dict[str, list[float | None]], names: list[str], unit: str, *, peer: int, goal: float
) -> Any:
    """Bars side by side; over the first its ratio to bar `peer`, and a line at `goal` times that bar."""
    figure, axes = panels(plt, 1, height=3.3)
    axis, width = axes[0][0], 0.8 / len(names)
    for group, values in enumerate(bars.values()):
        for place, value in enumerate(values):
            if value is not None:
                axis.bar(group + (place - (len(names) - 1) / 2) * width, value, 0.9 * width,
                         color=(BLUE, GREY, SKY, ORANGE)[place], label=names[place] if not group else None)  # fmt: skip
        ours, other = values[0], values[peer]
        if ours is not None and other is not None:
            ratio(axis, group - (len(names) - 1) / 2 * width, ours / other)
            goal_line(axis, group, 0.84, goal * other)
    axis.set(xticks=range(len(bars)), xticklabels=list(bars), ylabel=unit)
    finish(axis, f"goal: dashed, {goal:g} x {names[peer]}")
    return figure


def ratio(axis: Any, x: float, value: float) -> None:
    """Inside of a bar's foot."""
    axis.annotate(f"{value:.2f}x", (x, 0), (0, 4), textcoords="offset points", ha="center", fontsize=7, color="white")


def finish(axis: Any, title: str) -> None:
    """What all bar charts have: a legend above the bars, no lines between them."""
    axis.grid(visible=False, axis="x")
    axis.set_ylim(0, axis.get_ylim()[1] * 1.08)
    axis.legend(loc="lower left", bbox_to_anchor=(-0.01, 1.0), ncols=2, fontsize=8, title=title, title_fontsize=8,
                alignment="left")  # fmt: skip


def p8_memory(plt: Any, result: Result) -> Any:
    """Measured and predicted bytes by place, a panel for each number of users."""
    parts = {name: part for name, part in result["parts"].items() if "measured" in part}
    figure, axes = panels(plt, 1, len(parts))
    for axis, (name, part) in zip(axes[0], parts.items(), strict=True):
        measured = part["measured"]
        predicted = {
            place: sum(v for key, v in part["predicted"].items() if key.startswith(f"{place}.")) for place in measured
        }
        for place, where in enumerate(measured):
            for side, (found, color) in enumerate(((measured, BLUE), (predicted, ORANGE))):
                label = ("measured", "formula")[side] if not place else None
                axis.bar(place + 0.38 * (side - 0.5), found[where] / 2**20, 0.36, color=color, label=label)
            axis.annotate(f"{predicted[where] / measured[where]:.2f}", (place + 0.19, predicted[where] / 2**20), (0, 2),
                          textcoords="offset points", ha="center", fontsize=8)  # fmt: skip
        axis.set(xticks=range(len(measured)), xticklabels=[PLACES[where] for where in measured])
        axis.set_ylabel("MiB")
        axis.set_ylim(0, axis.get_ylim()[1] * 1.05)
        axis.set_title(f"{int(name.split()[0]):,} users, {part['shape']['catalogue']:,} items")
        axis.grid(visible=False, axis="x")
        axis.legend(fontsize=8)
    return figure


PLACES = {"features": "features\n(files)", "catalog": "catalogue\n(files)", "serving": "serving\n(memory)",
          "trainer": "trainer\n(memory)"}  # fmt: skip

DRAWN: tuple[Callable[[Any, Result], Any], ...] = (
    q3_canvases, q4_online, q5_collisions, recovery_age, p1_table, p2_training_step, p6_freshness, p8_memory,
)  # fmt: skip

OF_SETS: tuple[Callable[[Any, Result], Any], ...] = (next_item, p4_sequence_training)
"""Whose results are one for each data set."""


def wanted() -> dict[str, Callable[[Any, Result], Any]]:
    """The name of each result or plot that there is or may be, and what draws it."""
    found = {draw.__name__: draw for draw in DRAWN}
    for draw in OF_SETS:
        names = {path.stem for folder in (RESULTS, PLOTS) for path in folder.glob(f"{draw.__name__}_*")}
        found |= dict.fromkeys(sorted(names), draw)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--png", type=Path, help="also write a PNG of each into this folder")
    arguments = parser.parse_args()
    try:
        import matplotlib
        from matplotlib import pyplot as plt
    except ModuleNotFoundError as error:
        raise SystemExit("plots need matplotlib: pip install 'mainstem[bench]'") from error
    matplotlib.use("svg")
    PLOTS.mkdir(exist_ok=True)
    with plt.rc_context(STYLE):
        for name, draw in wanted().items():
            path = RESULTS / f"{name}.json"
            if not path.exists():
                (PLOTS / f"{name}.svg").unlink(missing_ok=True)
                continue
            figure = draw(plt, json.loads(path.read_text()))
            figure.savefig(PLOTS / f"{name}.svg", metadata={"Date": None})
            if arguments.png:
                figure.savefig(arguments.png / f"{name}.png", dpi=110)
            plt.close(figure)
            print(f"drew {name}.svg")


if __name__ == "__main__":
    main()
