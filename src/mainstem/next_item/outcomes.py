"""What recommenders answered, kept beside the checkpoints: a run that goes on asks nobody again."""

from __future__ import annotations

import json
import logging
import os
import zipfile
from pathlib import Path

import numpy as np

from mainstem.evaluate.next_item import Outcome
from mainstem.schema.ids import digest128

__all__ = ["Outcomes"]

_log = logging.getLogger(__name__)


class Outcomes:
    """In `folder`, one file for each answer: `answer-SYSTEM-SEED-DIGEST.npz`; None: nothing is kept.

    what: all that an answer depends on, as text. Another `what` is another file.
    """

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder

    def _path(self, folder: Path, name: str, seed: int, what: str) -> Path:
        return folder / f"answer-{name}-{seed}-{digest128(what).hex()}.npz"

    def take(self, name: str, seed: int, what: str) -> Outcome | None:
        """What was kept, if it was and can be read."""
        if self.folder is None or not (path := self._path(self.folder, name, seed, what)).exists():
            return None
        try:
            with path.open("rb") as file, np.load(file) as kept:  # numpy would leave a damaged one open
                told = json.loads(str(kept["told"]))
                return Outcome(kept["rank"].astype(np.int64), kept["shown"].astype(np.int64), **told)
        except (OSError, EOFError, ValueError, KeyError, TypeError, zipfile.BadZipFile) as error:
            _log.warning("%s cannot be read (%s): %s is asked again", path, error, name)
            return None

    def keep(self, name: str, seed: int, what: str, found: Outcome) -> None:
        """Whole or not at all: the file appears under its name when it is written."""
        if self.folder is None:
            return
        self.folder.mkdir(parents=True, exist_ok=True)
        path = self._path(self.folder, name, seed, what)
        told = {
            "seconds": found.seconds, "choosing": found.choosing, "peak_gib": found.peak_gib,
            "settled": dict(found.settled),
        }  # fmt: skip
        rank, shown = found.rank.astype(np.int32), found.shown.astype(np.int32)
        beside = path.with_suffix(f".{os.getpid()}.tmp")
        with beside.open("wb") as file:
            np.savez_compressed(file, rank=rank, shown=shown, told=np.array(json.dumps(told)))
            file.flush()
            os.fsync(file.fileno())
        beside.replace(path)
