"""Learning while serving: the online trainer with what it needs, and rebuilds from the whole history on schedule.

Three speeds of model update:
    real time     rows, a delta every `train.online.publish_every`
    incremental   the towers' networks, with the deltas, every `train.online.dense_every`
    full          everything anew from the history, every `train.online.rebuild_every`, in a process of its own; the
                  trainer brings the result up to date beside the one in use, then switches
"""

from __future__ import annotations

import logging
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, closing
from pathlib import Path
from types import TracebackType

from mainstem import catalog as catalogs
from mainstem import curriculum, features, weights
from mainstem.assemble import open_log, open_texts
from mainstem.catalog import MemoryCatalog
from mainstem.curriculum import HAD
from mainstem.join import PoolJoin
from mainstem.live import fingerprint
from mainstem.rank.score import extra_inputs
from mainstem.schema.config import Config
from mainstem.schema.config_file import storage_urls
from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.protocols import Log
from mainstem.schema.time import parse_duration
from mainstem.text.kept import KeptTexts
from mainstem.train import OnlineLearner, OnlineTrainer, RankingLearner, kinds_read, new_ranker, new_towers, new_wide
from mainstem.train.threads import torch_threads

__all__ = ["Learning", "Rebuilds", "definition", "learner_of", "online_trainer"]

_log = logging.getLogger(__name__)

LINE = "main"
# Seconds between attempts while the log holds too little to learn from, and while another trains the line.
PATIENCE = 10.0
LOOK = 1.0

Progress = Callable[[str, int, int], None]


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


def online_trainer(config: Config, log: Log, base: Path, line: str = LINE) -> OnlineTrainer:
    """The trainer of a line, where its newest good snapshot and the deltas after it stand. Raises NotReady."""
    made_for, inputs = definition(config)
    kept = open_texts(config, base)

    def new_learner() -> OnlineLearner:
        return learner_of(config, catalogs.open("memory://", entities=config.entities), inputs, kept)

    return OnlineTrainer(config, log, weights.open(storage_urls(config, base).weights), new_learner, made_for, line)


def definition(config: Config) -> tuple[str, tuple[str, ...]]:
    """The fingerprint of what is learned as configured, and the names of the ranking network's inputs."""
    with (
        closing(catalogs.open("memory://", entities=config.entities)) as nothing,
        closing(features.open("memory://", config, nothing)) as private,
    ):
        return fingerprint(config, private), (*private.names, *extra_inputs(tuple(config.canvases)))


def learner_of(
    config: Config, catalog: MemoryCatalog, inputs: Sequence[str], kept: KeptTexts | None = None
) -> OnlineLearner:
    """An untrained learner as configured; `inputs` are those of the ranking network, `kept` the encoder that
    `model.text` names."""
    ranker, towers = new_ranker(config, len(inputs)), new_towers(config, catalog, kept)
    wide = new_wide(config, catalog, inputs)
    ranking = RankingLearner(ranker, [*config.heads.values()], config.train, towers.known_vectors, wide)
    labelling = PoolJoin(config.heads, inputs, reads=kinds_read(config), had=HAD, most=config.train.online.pools)
    return OnlineLearner(config, towers, ranking, catalog, labelling)


class Learning:
    """Keeps the model line learning until `stop`: trains it first where there is none, then goes on online.

    While another process or thread trains the line (a `mainstem train` begun when no online trainer ran, or an online
    trainer), it waits and says which in `waiting`; then it goes on from what that left. `trainer` is None until there
    is a first model.
    """

    def __init__(self, config: Config, base: Path, progress: Progress = silent) -> None:
        self.config, self.base, self.progress = config, base, progress
        self.trainer: OnlineTrainer | None = None
        self.waiting = ""
        """Why there is no trainer yet."""
        self.failure: Exception | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._store = weights.open(storage_urls(config, base).weights)
        self.log = open_log(config, base)

    def run(self) -> None:
        """In this thread, until `stop` is called from another."""
        try:
            with ExitStack() as held:
                self._own(held)
                held.enter_context(torch_threads(self.config.train.threads))
                self.trainer = self._first()
                if self.trainer is not None:
                    self.trainer.run(self._stop)
        except Exception as error:
            self.failure = error
            _log.exception("online learning has ended")
            raise

    def _own(self, held: ExitStack) -> None:
        """Wait until the line is nobody else's, or `stop`."""
        while not self._stop.is_set():
            try:
                held.enter_context(self._store.trainer_lock(LINE))
            except StoreError as error:
                self._wait(error, LOOK)
            else:
                self.waiting = ""
                return

    def _wait(self, error: Exception, seconds: float) -> None:
        """Say once what is waited for."""
        if str(error) != self.waiting:
            _log.info("waiting: %s", error)
        self.waiting = str(error)
        self._stop.wait(seconds)

    def _first(self) -> OnlineTrainer | None:
        while not self._stop.is_set():
            try:
                return online_trainer(self.config, self.log, self.base)
            except NotReady as error:
                self.waiting = self.waiting or str(error)
            try:
                curriculum.train(self.config, self.log, self.base, self.progress, owner=True)
            except NotReady as error:
                self._wait(error, PATIENCE)
        return None

    def start(self) -> None:
        """In a thread of its own."""
        self._thread = threading.Thread(target=self._quietly, name="trainer", daemon=True)
        self._thread.start()

    def _quietly(self) -> None:
        try:
            self.run()
        except Exception:  # noqa: BLE001 - `run` has logged it and `failure` holds it
            return

    def stop(self) -> None:
        """Publish what is learned, write a snapshot, let go of the line."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.log.close()

    def figures(self) -> dict[str, float]:
        """For the metrics page."""
        if self.trainer is None:
            return {}
        status = self.trainer.status
        return {
            "trainer_lag_records": float(status.lag),
            "trainer_records": float(status.records),
            "trainer_positives": float(status.positives),
            "trainer_slates": float(status.slates),
            "trainer_only_noted_records": float(status.only_noted),
            "trainer_passed_over_records": float(status.passed_over),
            "trainer_published": float(status.published),
            "trainer_refused": float(status.refused),
            "trainer_new_levels": float(status.new_levels),
            "trainer_loss": status.loss,
        }

    def __enter__(self) -> Learning:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()


class Rebuilds:
    """Starts `mainstem train` every `train.online.rebuild_every`, in a process of its own; nothing without it."""

    def __init__(self, config: Config, config_file: Path) -> None:
        every = config.train.online.rebuild_every
        self.every = None if every is None else parse_duration(every) / 1000
        self.config_file = config_file
        self.failure = ""
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        if self.every is not None:
            self._thread = threading.Thread(target=self._run, args=(self.every,), name="rebuilds", daemon=True)
            self._thread.start()

    def _run(self, every: float) -> None:
        due = time.monotonic() + every
        while not self._stop.wait(max(due - time.monotonic(), 0.0)):
            due = time.monotonic() + every
            self.rebuild()

    def rebuild(self) -> bool:
        """Run one now; whether it published."""
        command = [sys.executable, "-m", "mainstem", "train", "--config", str(self.config_file), "--while-stdin-open"]
        with subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        ) as process:
            assert process.stderr is not None
            assert process.stdin is not None
            drained: list[str] = []
            reader = threading.Thread(target=lambda: drained.append(process.stderr.read()), daemon=True)  # type: ignore[union-attr]
            reader.start()
            while process.poll() is None:
                if self._stop.wait(0.2):
                    process.stdin.close()  # it ends with its standard input
                    break
            process.wait()
            reader.join()
        self.failure = "" if process.returncode == 0 else f"status {process.returncode}: {''.join(drained)[-500:]}"
        if self.failure and not self._stop.is_set():
            _log.error("a rebuild from history failed: %s", self.failure)
        return process.returncode == 0

    def stop(self) -> None:
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
