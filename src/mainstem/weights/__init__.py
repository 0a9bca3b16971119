"""Parameters that live: embedding tables by 64-bit key, the gathering of their rows, snapshots on disk.

`MemoryTable` holds rows that are created when a key is first trained on and carry their optimizer state.
`Lookup` gathers all rows of a step as one leaf tensor and applies its gradient once per row (law 7). `open(url)` gives
the `Snapshots` of every model line; a damaged one never loads. `checkpoints` puts the state of a training run
(optimizers, random generators) into a snapshot, so that it resumes where it stopped.
"""

from mainstem.weights.lookup import Gathered, Lookup
from mainstem.weights.memory import MemoryTable
from mainstem.weights.snapshots import Manifest, Newest, Snapshot, SnapshotMeta, Snapshots, open
from mainstem.weights.table import Table

__all__ = [
    "Gathered",
    "Lookup",
    "Manifest",
    "MemoryTable",
    "Newest",
    "Snapshot",
    "SnapshotMeta",
    "Snapshots",
    "Table",
    "open",
]
