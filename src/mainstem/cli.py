"""One command per line, each a call into a mover or the surface."""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
import threading
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from cyclopts import App, Parameter
from rich.console import Console

from mainstem import __version__
from mainstem.cli_config import DEFAULT, ConfigFile, configuration, err, say
from mainstem.cli_evaluate import evaluate
from mainstem.cli_online import train_online
from mainstem.cli_weights import weights_app
from mainstem.progress import stages
from mainstem.schema.errors import MainstemError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mainstem.loop import Loop
    from mainstem.schema.config import Config

__all__ = ["app", "main"]

app = App(
    name="mainstem",
    version=__version__,
    help_format="plaintext",
    help="""Real-time search and recommendation: one log, one model, every canvas.

A first tour:

  mainstem demo                       the whole loop on a year of real purchases
  mainstem init                       write a commented mainstem.yaml
  mainstem ingest purchases.csv       put your own events into the log
  mainstem train                      learn from the log
  mainstem serve                      answer over HTTP, port 8080
  mainstem run                        answer and go on learning, in one process
""",
)
datasets_app = App(name="datasets", help="Public data sets: list them, get them, put them into the log.")
config_app = App(name="config", help="Check mainstem.yaml, or print its JSON Schema for your editor.")
app.command(datasets_app)
app.command(config_app)
app.command(weights_app)
app.command(evaluate)

WhileStdinOpen = Annotated[bool, Parameter(help="end when standard input closes, with the parent process")]
# Unknown kinds that are told one by one, the most frequent first.
KINDS_TOLD = 10


@app.command
def init(path: Path = DEFAULT, *, force: bool = False) -> None:
    """Write a commented configuration to start from."""
    from mainstem.schema.config_file import template

    if path.exists() and not force:
        raise MainstemError(f"{path} is there already; --force overwrites it")
    path.write_text(template())
    print(f"wrote {path}; every line in it is a default, so delete what you do not change")


@app.command
def ingest(
    file: Path,
    *,
    map: Annotated[list[str] | None, Parameter(help="FIELD=COLUMN, e.g. --map user=household_id; repeatable")] = None,
    kind: Annotated[str | None, Parameter(help="kind of all events, where no column says it")] = None,
    allow_unknown_kinds: Annotated[bool, Parameter(help="take a --kind that `events` does not name")] = False,
    rejects: Annotated[Path | None, Parameter(help="where bad rows go; FILE.rejects.jsonl by default")] = None,
    config: ConfigFile = DEFAULT,
) -> None:
    """Put the events of a Parquet, CSV or JSONL file into the log.

    A bad row is set aside with its reason and the rest goes in. Running it again adds nothing twice.
    """
    from mainstem.datasets.files import existing, ingest_file, known_kinds

    existing(file)
    settings = configuration(config)
    if kind is not None and kind not in known_kinds(settings) and not allow_unknown_kinds:
        raise MainstemError(
            f"--kind: kind {kind!r} {_not_among(kind, settings)}\n  --allow-unknown-kinds takes it all the same"
        )
    mapping = dict(pair.split("=", 1) for pair in map or [] if "=" in pair)
    if len(mapping) != len(map or []):
        raise MainstemError("--map wants FIELD=COLUMN, as in --map user=household_id")
    set_aside = rejects or file.with_name(file.name + ".rejects.jsonl")
    with _loop(config) as loop, stages(err) as show:
        report = ingest_file(
            file, loop.append, mapping=mapping, kind=kind, config=settings, rejects=set_aside,
            progress=lambda done, total: show("events", done, total),
        )  # fmt: skip
        loop.catch_up(show)
    print(f"{report.accepted:,} events in, {report.duplicates:,} known before, {report.rejected:,} set aside")
    if report.erased:
        print(f"{report.erased:,} left out: of users or items that were erased at that time or later")
    if report.rejected:
        print(f"rows set aside, with reasons: {set_aside}")
    for strange, count in list(report.unknown_kinds.items())[:KINDS_TOLD]:
        print(f"{count:,} of kind {strange!r} count for nothing: it {_not_among(strange, settings)}")
    if (more := len(report.unknown_kinds) - KINDS_TOLD) > 0:
        print(f"{more:,} more kinds are unknown, of {sum(report.unknown_kinds.values()):,} events in all")
    if not report.accepted + report.duplicates + report.erased:
        why = f"; {report.reasons[0]}" if report.reasons else ": it holds no rows"
        raise MainstemError(f"nothing of {file} went into the log{why}")


@app.command
def train(
    *,
    online: Annotated[bool, Parameter(help="go on learning from the log as it grows, until stopped")] = False,
    config: ConfigFile = DEFAULT,
    json_: Annotated[bool, Parameter(name="--json")] = False,
    while_stdin_open: WhileStdinOpen = False,
) -> None:
    """Learn from the log and publish a snapshot; a server that runs takes it into use by itself.

    With --online it then stays: it learns from what comes in, and a server beside it applies each update within
    moments. Where one such trainer runs already, a plain `mainstem train` rebuilds from the whole history, and the
    trainer switches to the result.
    """
    if while_stdin_open:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    settings = configuration(config)
    _give_way(settings.train.nice)
    if online:
        train_online(settings, config, say)
        return
    from mainstem import curriculum
    from mainstem.assemble import open_log

    log = open_log(settings, config.parent)
    with stages(err) as show:
        report = curriculum.train(settings, log, config.parent, show)
    log.close()
    if json_:
        print(json.dumps({"version": report.version, "metrics": report.metrics, "seconds": report.seconds}))
        return
    print(f"published {report.version}")
    for name, figure in {**report.metrics, **{f"seconds {k}": v for k, v in report.seconds.items()}}.items():
        print(f"  {name:<28} {figure:.4g}")


def _give_way(nice: int) -> None:
    """Let processes that answer go first; where the system does not know how, nothing changes."""
    if hasattr(os, "setpriority"):
        # of this thread, and of those that it will start
        os.setpriority(os.PRIO_PROCESS, 0, max(nice, os.getpriority(os.PRIO_PROCESS, 0)))


@app.command
def serve(
    *,
    config: ConfigFile = DEFAULT,
    host: str | None = None,
    port: int | None = None,
    log_level: str = "info",
    while_stdin_open: WhileStdinOpen = False,
) -> None:
    """Answer over HTTP. Binds to loopback unless told otherwise: there is no authentication."""
    _serve(config, host, port, log_level, while_stdin_open, learn=False)


@app.command
def run(
    *,
    config: ConfigFile = DEFAULT,
    host: str | None = None,
    port: int | None = None,
    log_level: str = "info",
    while_stdin_open: WhileStdinOpen = False,
) -> None:
    """Answer over HTTP and go on learning, in one process: `serve` and `train --online` together.

    It starts with an empty log too, and trains as soon as there is enough to learn from. Where requests come thick,
    run `mainstem serve` and `mainstem train --online` beside each other instead: they share no interpreter then.
    """
    _serve(config, host, port, log_level, while_stdin_open, learn=True)


def _serve(
    config: Path, host: str | None, port: int | None, log_level: str, while_stdin_open: bool, *, learn: bool
) -> None:
    # One request is answered by one thread; small matrices only lose by more. Read when torch loads.
    for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        os.environ.setdefault(variable, "1")
    # Followers, the recorder and sealing share the interpreter with the answers: none waits long for another.
    sys.setswitchinterval(0.0005)
    from mainstem.serve import run as serve_until_stopped

    if while_stdin_open:
        threading.Thread(target=_end_with_stdin, daemon=True).start()

    logging.basicConfig(level=log_level.upper(), format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    with ExitStack() as running:
        loop = running.enter_context(_loop(config, follow=True))
        if learn:
            from mainstem.learning import Learning, Rebuilds

            rebuilds = Rebuilds(loop.config, config)
            running.callback(rebuilds.stop)
            learning = running.enter_context(Learning(loop.config, config.parent))
            loop.also = learning.figures
            learning.start()
            rebuilds.start()
        settings = loop.config.serve
        serve_until_stopped(
            loop, host or settings.host, settings.port if port is None else port,
            on_started=lambda url: say(f"serving at {url}; API docs at {url}/docs"),
        )  # fmt: skip


@app.command
def backfill(*, config: ConfigFile = DEFAULT) -> None:
    """Rebuild feature state, catalogue and indexes from the log, beside the old ones, then switch."""
    from mainstem.assemble import backfill as rebuild

    with stages(err) as show:
        report = rebuild(configuration(config), config.parent, lambda done, total: show("backfill", done, total))
    print(f"rebuilt from {report.records:,} records of the log")
    if report.restart_needed:
        print("a server or an ingest is running on the old state: start it again to use the new one")


@app.command
def demo(
    *,
    dataset: Annotated[str, Parameter(help="completejourney, ml-latest-small, ml-100k, ...")] = "completejourney",
    quick: Annotated[bool, Parameter(help="a tenth of a large set's users: two minutes instead of ten")] = False,
    exit: Annotated[bool, Parameter(help="end after the replay instead of leaving the server running")] = False,
    json_: Annotated[bool, Parameter(name="--json", help="print one line of JSON at the end")] = False,
    data: Annotated[Path | None, Parameter(help="where the demo keeps its log, state and weights")] = None,
    port: Annotated[int, Parameter(help="0 picks a free one")] = 8080,
    fresh: Annotated[bool, Parameter(help="start over instead of going on where the last run stopped")] = False,
) -> None:
    """The whole loop on real data: load, train, serve, replay the last weeks as live traffic, compare."""
    from mainstem.demo import Demo

    folder = data or Path("demo-data") / (dataset + ("-quick" if quick else ""))
    outcome = Demo(dataset, folder, quick=quick, port=port, fresh=fresh).run(stay=not exit)
    if json_:
        print(json.dumps(outcome))


@datasets_app.command(name="list")
def datasets_list() -> None:
    """The data sets, where they are, and under which licence."""
    from rich.table import Table

    from mainstem import datasets

    table = Table("name", "what it is", "here", "licence")
    for name in datasets.names():
        known = datasets.get(name)
        table.add_row(name, known.title, "yes" if known.find() else "no", known.licence.partition(". ")[0])
    Console().print(table)
    print("`mainstem datasets get NAME` fetches one and prints its whole notice")


@datasets_app.command(name="get")
def datasets_get(name: str) -> None:
    """Download a data set from its public address, check it, and print its licence notice."""
    from mainstem import datasets

    with stages(err) as show:
        folder = datasets.download(datasets.get(name), lambda done, total: show(name, done, total))
    print(f"{name} is in {folder}\n\n{datasets.get(name).licence}")


@datasets_app.command(name="ingest")
def datasets_ingest(name: str, *, config: ConfigFile = DEFAULT) -> None:
    """Put a data set's catalogue and events into the log. Running it again adds nothing twice."""
    from mainstem import datasets

    with _loop(config) as loop, stages(err) as show:
        count = datasets.ingest(datasets.get(name), loop.append, lambda done, total: show(name, done, total))
        loop.catch_up(show)
    print(f"{count:,} records of {name} are in the log")


@config_app.command(name="check")
def config_check(path: Path | None = None) -> None:
    """Read a configuration (mainstem.yaml if none is named) and say what is wrong with it, line by line."""
    from mainstem.schema.config_file import load

    if path is not None and not path.exists():
        raise MainstemError(f"there is no {path}; `mainstem init {path}` writes one")
    loaded = load(path or DEFAULT)
    found = path or (DEFAULT if DEFAULT.exists() else f"no {DEFAULT} here, the defaults apply")
    print(f"{found}: fine; canvases: {', '.join(loaded.canvases)}; heads: {', '.join(loaded.heads)}")


@config_app.command(name="schema")
def config_schema() -> None:
    """Print the JSON Schema of mainstem.yaml, for editors that complete and check as you type."""
    from mainstem.schema.config_file import json_schema

    print(json.dumps(json_schema(), indent=2))


def _end_with_stdin() -> None:
    while os.read(0, 4096):  # not through sys.stdin, whose lock a dying interpreter would wait for
        pass
    os.kill(os.getpid(), signal.SIGTERM)


# ---- what the commands share ---------------------------------------------------------------------


def _not_among(kind: str, config: Config) -> str:
    from mainstem.datasets.files import known_kinds
    from mainstem.schema.config_file import nearest

    known = known_kinds(config)
    return f"is not among events;{nearest(kind, known)} known: {', '.join(known)}"


def _loop(path: Path, follow: bool = False) -> Loop:
    from mainstem.loop import Loop

    return Loop(configuration(path), path.parent, follow=follow)


def main(words: Sequence[str] | None = None) -> None:
    """The `mainstem` command, with the process's arguments or `words`.

    Errors raised on purpose are one message and exit status 1.
    """
    # numpy's products here are small; more threads only make them wait for each other. Read when numpy loads.
    os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
    try:
        app(sys.argv[1:] if words is None else words)
    except MainstemError as error:
        err.print("mainstem:", style="bold red", end=" ")
        say(str(error))
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
