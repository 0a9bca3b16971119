"""`mainstem weights ...`: which versions there are, back to one, what was refused, what memory the tables take."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from cyclopts import App
from rich.console import Console

from mainstem.cli_config import DEFAULT, ConfigFile, configuration
from mainstem.schema.errors import MainstemError
from mainstem.schema.position import Position
from mainstem.schema.time import iso

if TYPE_CHECKING:
    from mainstem.schema.config import Config
    from mainstem.weights import Snapshots

__all__ = ["weights_app"]

weights_app = App(
    name="weights",
    help="Versions of the model: list them, go back to one, look at what the guard refused, explain their memory.",
)
LINE = "main"


@weights_app.command(name="list")
def list_versions(*, config: ConfigFile = DEFAULT) -> None:
    """Every snapshot kept, newest first, and the deltas after it."""
    from rich.table import Table

    store = _store(config)[1]
    table = Table("version", "made", "base", "deltas in it", "log position", "rows")
    manifests = store.manifests(LINE)
    for manifest in manifests:
        base = "itself" if manifest.base == manifest.version else manifest.base
        rows = ", ".join(f"{name} {shape.rows:,}" for name, shape in manifest.tables.items())
        table.add_row(manifest.version, iso(manifest.created), base, f"{manifest.sequence:,}", manifest.position, rows)
    Console().print(table)
    if not manifests:
        print("nothing is trained yet: run `mainstem train`")
        return
    place = store.place(LINE)
    if place is not None:
        print(f"newest: delta {place.sequence:,} of base {place.base}")


@weights_app.command
def rollback(version: str, *, relearn: bool = False, config: ConfigFile = DEFAULT) -> None:
    """Go back to VERSION: a copy of it becomes the newest version, which servers and a trainer take into use.

    What was learned since is left out: training goes on at the place in the log that it had come to.

    Parameters
    ----------
    relearn
        Let training read the log again from where VERSION stood.
    """
    store = _store(config)[1]
    if version not in store.versions(LINE):
        raise MainstemError(f"there is no version {version} of {LINE}: `mainstem weights list` shows those kept")
    position = None
    if not relearn:
        position = _come_to(store)
    made = store.rollback(LINE, version, position)
    print(f"{made} is {version} again; servers and a trainer that run take it into use by themselves")


@weights_app.command
def refused(*, config: ConfigFile = DEFAULT) -> None:
    """What the guard kept from being published, newest first, and why."""
    store = _store(config)[1]
    found = store.deltas.refused(LINE)
    for one in found:
        print(f"{one.name}  {iso(one.refused_at)}  delta {one.delta_sequence} of {one.delta_base}: {one.why}")
    if not found:
        print("nothing was refused")


@weights_app.command
def explain(*, config: ConfigFile = DEFAULT) -> None:
    """What the newest version's tables take of memory, part by part, beside what the formula says."""
    from rich.table import Table

    from mainstem.train import new_tables

    settings, store = _store(config)
    version = store.latest(LINE).version
    if version is None:
        raise MainstemError("nothing is trained yet: run `mainstem train`")
    snapshot = store.load(LINE, version, training=True)
    tables = new_tables(settings)
    if tables.keys() != snapshot.tables.keys():
        raise MainstemError(
            f"{version} has the tables {', '.join(sorted(snapshot.tables))}, configured are "
            f"{', '.join(sorted(tables))}: run `mainstem train`"
        )
    for kind, held in tables.items():
        held.load(snapshot.tables[kind])
        memory = held.explain()
        table = Table("part", "bytes", "a row", title=f"{version}, {kind}: {memory.rows:,} rows of {held.dim}")
        for name, size in memory.parts.items():
            table.add_row(name, f"{size:,}", f"{size / max(memory.rows, 1):.1f}")
        table.add_row("all", f"{memory.total:,}", f"{memory.total / max(memory.rows, 1):.1f}")
        table.add_row("by the formula", f"{memory.predicted:,}", f"{memory.predicted / max(memory.rows, 1):.1f}")
        Console().print(table)
        for family, rows in held.counts().items():
            print(f"  {family}: {rows:,} rows")
    sys.stdout.flush()


def _come_to(store: Snapshots) -> Position | None:
    """The place in the log that training had come to when it last published."""
    place = store.place(LINE)
    if place is None:
        return None
    if place.sequence in store.deltas.sequences(LINE, place.base):
        return store.deltas.load(LINE, place.base, place.sequence).position
    here = [m for m in store.manifests(LINE) if (m.base, m.sequence) == (place.base, place.sequence)]
    return Position.parse(here[0].position) if here else None


def _store(path: Path) -> tuple[Config, Snapshots]:
    from mainstem import weights
    from mainstem.schema.config_file import storage_urls

    settings = configuration(path)
    return settings, weights.open(storage_urls(settings, path.parent).weights)
