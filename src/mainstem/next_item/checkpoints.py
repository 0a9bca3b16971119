"""A training that was killed goes on after its last whole epoch, and ends as one that was not.

Each fit (`seed-0-choose`, `seed-0-refit`) is a line of snapshots in the folder, of which the newest whole one counts:

    dense.safetensors           the networks, their optimizer, the random states, the networks' average up to this epoch
                                and up to the best
    table-towers.safetensors    the table; table-average.safetensors and table-best.safetensors its average likewise
    manifest.json               what has no arrays: which run it is, the epochs so far
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from mainstem import weights
from mainstem.next_item.runs import Epoch, Run
from mainstem.schema.errors import Incompatible
from mainstem.schema.ids import digest128
from mainstem.train import RetrievalTrainer
from mainstem.train.towers import TABLE
from mainstem.weights import SnapshotMeta
from mainstem.weights.checkpoints import flatten, random_states, restore_random, unflatten

__all__ = ["Checkpoints"]

AVERAGE, BEST = "average", "best"


class Checkpoints:
    """Of one seed of one run in `folder`. what: all that the run depends on (data, configuration, protocol), as text:
    a checkpoint of anything else is refused."""

    def __init__(self, folder: Path, seed: int, what: str) -> None:
        self.folder, self.seed, self.run = folder, seed, digest128(what).hex()
        self.snapshots = weights.open(str(folder))

    def _line(self, stage: str) -> str:
        return f"seed-{self.seed}-{stage}"

    def write(self, stage: str, run: Run, trainer: RetrievalTrainer, rng: np.random.Generator) -> None:
        """After an epoch; the one before is dropped."""
        towers = trainer.towers
        averages = {name: kept for name, kept in ((AVERAGE, run.average), (BEST, run.kept)) if kept is not None}
        arrays, tree = flatten(
            {
                "run": self.run,
                "epochs": [(each.number, each.loss, each.validation, each.seconds) for each in run.epochs],
                "best": run.best,
                "over": run.over,
                "averages": {name: kept["module"] for name, kept in averages.items()},
                "module": towers.module.state_dict(),
                "adam": trainer.learner.adam.state_dict(),
                "random": random_states(rng),
            }
        )
        tables = {TABLE: towers.table.state(), **{name: kept["table"] for name, kept in averages.items()}}
        line = self._line(stage)
        self.snapshots.save(line, arrays, tables, SnapshotMeta(extras={"state": tree}))
        self.snapshots.keep(line, 1)

    def take_up(self, stage: str, trainer: RetrievalTrainer, rng: np.random.Generator) -> Run:
        """Bring trainer and generators to where the newest checkpoint left them; how the run stands, new without one.

        Raises Incompatible where the checkpoint is of another run.
        """
        line = self._line(stage)
        newest = self.snapshots.latest(line)
        if newest.version is None:
            return Run()
        snapshot = self.snapshots.load(line, newest.version, training=True)
        state: dict[str, Any] = unflatten(snapshot.tensors, snapshot.manifest.extras["state"])
        if state["run"] != self.run:
            raise Incompatible(
                f"{self.folder} holds a run on other data, with another configuration or another protocol: "
                "name another folder to begin, or give what that run was given"
            )
        trainer.towers.module.load_state_dict(state["module"])
        trainer.towers.table.load(snapshot.tables[TABLE])
        trainer.learner.adam.load_state_dict(state["adam"])
        restore_random(state["random"], rng)
        averages = {
            name: {"module": module, "table": snapshot.tables[name]} for name, module in state["averages"].items()
        }
        epochs = [Epoch(*each) for each in state["epochs"]]
        return Run(epochs, int(state["best"]), averages.get(BEST), averages.get(AVERAGE), bool(state["over"]))
