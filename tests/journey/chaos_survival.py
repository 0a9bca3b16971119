"""A shop after its chaos, and all that must be true of it."""

from __future__ import annotations

import os
import random
import subprocess
import sys
from types import TracebackType

from chaos_check import (
    History,
    Lineage,
    follow_all,
    held_differs,
    logged_ids,
    lost_or_twice,
    moments,
    served_differs,
    state_differs,
    unanswered,
    went_back,
)
from chaos_shop import Shop, names
from chaos_world import Chaos

from mainstem import weights
from mainstem.assemble import open_log
from mainstem.schema.protocols import Log
from mainstem.weights import Snapshots
from mainstem.weights.files import TEMPORARY

# Seconds within which all that is in the log must be learned and served after the last kill.
CONVERGED = 90.0
SEED = "MAINSTEM_CHAOS_SEED"


def seed_of(name: str) -> int:
    """The seed of a test's dice: another one each time, or what the environment says to replay a failure. pytest shows
    what is printed where the test fails. The moments of kills are the dice's, what they hit is the machine's."""
    seed = int(os.environ.get(SEED) or random.SystemRandom().randrange(10**6))
    print(f"{name}: {SEED}={seed} plans the same kills again")
    return seed


class Survived:
    """A shop after its chaos, stopped in order, with what was found of it."""

    def __init__(self, chaos: Chaos, settled: float, statuses: list[int]) -> None:
        self.chaos, self.shop, self.settled, self.statuses = chaos, chaos.shop, settled, statuses
        self.log: Log = open_log(self.shop.config, self.shop.folder)
        self.store: Snapshots = weights.open(str(self.shop.weights))
        self.history = History.of(self.shop.archive)

    @classmethod
    def of(cls, chaos: Chaos) -> Survived:
        log = open_log(chaos.shop.config, chaos.shop.folder)
        try:
            chaos.rage()
            settled = chaos.settle(CONVERGED, log.end)
            return cls(chaos, settled, chaos.stop(CONVERGED))
        finally:
            chaos.close()
            log.close()

    def lineage(self) -> Lineage:
        return follow_all(self.shop.config, self.log, self.history)

    def __enter__(self) -> Survived:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.log.close()


def assert_all_well(survived: Survived, deltas: int) -> Lineage:
    """Of at least so many deltas; the lineage that was followed."""
    shop, evidence, history = survived.shop, survived.chaos.evidence, survived.history
    assert survived.statuses == [0, 0]
    assert evidence.faults == []
    assert unanswered(evidence) == []
    assert lost_or_twice(evidence.acknowledged, logged_ids(survived.log)) == []
    assert evidence.posts > 20
    networks = {base.manifest.version: base.manifest.dense_version for base, _ in history.bases}
    assert went_back(evidence.seen, moments(history), networks) == []
    assert len({(one.base, one.sequence) for one in evidence.seen}) >= deltas / 4

    lineage = survived.lineage()
    assert lineage.faults == []
    assert lineage.deltas >= deltas
    assert lineage.dense_parts >= deltas / 10
    assert history.newest.position == survived.log.end()
    place = history.newest.place
    assert served_differs(lineage.learner, survived.store) == []
    held = shop.folder / f"{survived.chaos.server.name}.npz"
    assert held_differs(lineage.learner, held, f"{place.base}+{place.sequence}") == []
    newest = survived.store.latest("main")
    assert newest.skipped == {}
    assert newest.version is not None
    snapshot = survived.store.load("main", newest.version, training=True)
    assert snapshot.place == place
    assert state_differs(lineage.learner, snapshot, shop.config, survived.log) == []
    assert leftovers(shop) == []
    listed = subprocess.run(
        [sys.executable, "-m", "mainstem", "weights", "list"], cwd=shop.folder, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert listed.returncode == 0, listed.stderr
    assert f"delta {place.sequence:,} of base {place.base}" in listed.stdout
    return lineage


def leftovers(shop: Shop) -> list[str]:
    """What killed writers left in the model line; the trainer's last, unkilled life must have cleared it."""
    line = shop.weights / "main"
    found = [str(path.relative_to(line)) for path in line.rglob(f"{TEMPORARY}*")]
    return found + [name for name in names(line, "v-*") if not (line / name / "manifest.json").exists()]
