"""Parameters that live: collisionless tables, snapshots and deltas.

A `SlabTable` has a row of its own for every 64-bit key, created when the key has earned it, dropped when it expires,
with its optimizer state; a `DeviceTable` does the same on a GPU (docs/tables.md). `Lookup` gathers all rows of a step
as one leaf tensor and applies its gradient once per row (law 7). `open(url)` gives the `Snapshots` of every model line
and their deltas; a damaged one never loads (docs/weights-format.md). `LineReader` follows a line. `checkpoints` turns
the state of a training run into arrays, so that it resumes where it stopped.
"""

from mainstem.weights.deltas import Delta, TableDelta
from mainstem.weights.device import DeviceTable
from mainstem.weights.family import Adagrad, Adam, Family, Ftrl, RowwiseAdagrad
from mainstem.weights.kept_catalogs import KeptCatalog, KeptCatalogs
from mainstem.weights.kept_neighbours import KeptNeighbours
from mainstem.weights.line_reader import Apply, LineReader, Rebase
from mainstem.weights.lookup import Gathered, Lookup
from mainstem.weights.slabs import SlabTable
from mainstem.weights.snapshots import (
    Manifest,
    Newest,
    Snapshot,
    SnapshotMeta,
    Snapshots,
    Superseded,
    open,
)
from mainstem.weights.table import Changes, Memory, Table

__all__ = [
    "Adagrad",
    "Adam",
    "Apply",
    "Changes",
    "Delta",
    "DeviceTable",
    "Family",
    "Ftrl",
    "Gathered",
    "KeptCatalog",
    "KeptCatalogs",
    "KeptNeighbours",
    "LineReader",
    "Lookup",
    "Manifest",
    "Memory",
    "Newest",
    "Rebase",
    "RowwiseAdagrad",
    "SlabTable",
    "Snapshot",
    "SnapshotMeta",
    "Snapshots",
    "Superseded",
    "Table",
    "TableDelta",
    "open",
]
