"""A small shop, and an archive of every version and every update that it ever published."""

from __future__ import annotations

import fnmatch
import os
import random
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from mainstem import weights
from mainstem.loop import Loop
from mainstem.schema.config import Config
from mainstem.schema.config_file import load
from mainstem.schema.records import Entity, Event, LogRecord
from mainstem.schema.time import DAY
from mainstem.weights import Manifest, Snapshots

BEGAN = 1_700_000_000_000
DAYS, USERS, THINGS = 20, 300, 300
PARITY = ("even", "odd")
REBUILT = "-rebuilt"
SETTINGS: dict[str, Any] = {
    "data": "data",
    "entities": {"item": {"attributes": {"parity": "category"}}},
    "canvases": {"home": {"limit": 10}},
    "model": {"dim": 16, "hidden": [16]},
    "log": {"seal_rows": 1_000, "keep_rows": 1_000},  # so that sealing is killed too
    "train": {
        "retrieval_batch": 256, "retrieval_epochs": 1, "ranking_slates": 100, "ranking_epochs": 1, "ranking_batch": 4,
        "online": {"batch": 64, "publish_every": "100ms", "snapshot_every": "1s", "dense_every": "500ms", "keep": 10},
    },
}  # fmt: skip


def past() -> list[LogRecord]:
    """Even users buy even things, odd users odd ones."""
    dice = random.Random(7)
    things = [
        Entity(record_id=f"thing-{n}", time=BEGAN, entity=str(n), attributes={"parity": PARITY[n % 2]})
        for n in range(THINGS)
    ]
    bought = [
        Event(
            event_id=f"past-{day}-{user}-{place}", time=BEGAN + day * DAY + user * 60_000 + place, user=f"u{user}",
            kind="purchase", entity=str(2 * dice.randrange(THINGS // 2) + user % 2), session=f"{day}-{user}",
        )
        for day in range(DAYS) for user in range(USERS) if dice.random() < 0.2 for place in range(3)
    ]  # fmt: skip
    return [*things, *sorted(bought, key=lambda event: event.time)]


class Shop:
    """Configured, filled and trained in `folder`; `archive` keeps every version and delta that is ever published.

    online: settings of `train.online` beside those above.
    """

    def __init__(self, folder: Path, **online: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.config_file = folder, folder / "mainstem.yaml"
        settings = deepcopy(SETTINGS)
        settings["train"]["online"] |= online
        self.config_file.write_text(yaml.safe_dump(settings))
        self.config: Config = load(self.config_file)
        self.weights, kept = folder / "data" / "weights", folder / "archive"
        with Loop(self.config, folder) as loop:
            loop.append(past())
            loop.train()
            loop.catch_up()
        self.archive: Snapshots = weights.open(str(kept))
        self.newest: tuple[str, int] = ("", 0)
        """Base and number of what was published last, as of the last look."""
        self.rebuilt: list[str] = []
        """Bases that were rebuilt from history."""
        self._kept: set[Path] = set()
        self.look()

    def look(self) -> tuple[str, int]:
        """Keep what was published since, by hard links; the newest place."""
        for line in ("main", f"main{REBUILT}"):
            for version in names(self.weights / line, "v-*"):
                self._keep_version(Path(line, version))
        for base in names(self.weights / "main" / "deltas", "v-*"):
            for delta in names(self.weights / "main" / "deltas" / base, "*.delta"):
                if self._keep(Path("main", "deltas", base, delta)):
                    self.newest = max(self.newest, (base, int(delta.partition(".")[0])))
        for delta in names(self.weights / "main" / "refused", "*.delta"):
            self._keep(Path("main", "refused", delta))
        return self.newest

    def _keep_version(self, version: Path) -> None:
        """A version is there from when its manifest is, and goes with it."""
        manifest = version / "manifest.json"
        if manifest in self._kept or not (self.weights / manifest).exists():
            return
        others = names(self.weights / version, "*.safetensors")
        if all(self._keep(version / name) for name in others) and self._keep(manifest) and version.parts[0] == "main":
            found = self.archive.manifest("main", version.name)
            self.newest = max(self.newest, (found.base, found.sequence))
            if found.base == found.version and kind_of(found) == "rebuilt":
                self.rebuilt.append(found.version)

    def _keep(self, file: Path) -> bool:
        """Whether it is in the archive; not where it is deleted already."""
        if file not in self._kept:
            (self.archive.root / file).parent.mkdir(parents=True, exist_ok=True)
            try:
                os.link(self.weights / file, self.archive.root / file)
            except FileNotFoundError:
                return False
            self._kept.add(file)
        return True


def kind_of(base: Manifest) -> str:
    """How a base came about."""
    return next((kind for kind in ("rolled_back", "rebuilt") if kind in base.extras), "first")


def names(folder: Path, pattern: str) -> list[str]:
    """What a folder holds, sorted; nothing where there is none."""
    try:
        return fnmatch.filter(sorted(os.listdir(folder)), pattern)
    except FileNotFoundError:
        return []
