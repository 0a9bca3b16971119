"""The one model as a recommender of the next item: epochs until validation says stop, then perhaps a final fit."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from mainstem import text
from mainstem.evaluate.next_item import Ints, LeaveOneOut, Mask
from mainstem.next_item.actions import Actions
from mainstem.next_item.averaging import averaged, learned_by, restore
from mainstem.next_item.checkpoints import Checkpoints
from mainstem.next_item.preset import AVERAGE
from mainstem.next_item.runs import Epoch, Run, Watch
from mainstem.schema.config import Config
from mainstem.schema.protocols import Floats
from mainstem.train import RetrievalTrainer, new_towers
from mainstem.train.canvases import Requests
from mainstem.train.interactions import Interactions
from mainstem.train.threads import torch_threads

__all__ = ["SequenceModel", "scorer"]

AT_ONCE = 128
"""Requests that are answered together on the CPU: their histories stay in its caches, nearly twice as fast as 5,000."""


class SequenceModel:
    """`actions` learned by the towers as `config` says. checkpoints: where a killed run goes on; None: nowhere. minutes
    of each fit, after which an epoch ends where it is. average: the share that the average of the weights over epochs,
    which is what scores come from, keeps of itself with each; 0: the newest weights alone."""

    name = "mainstem"

    def __init__(
        self, actions: Actions, config: Config, checkpoints: Checkpoints | None = None, watch: Watch | None = None,
        minutes: float = math.inf, average: float = AVERAGE,
    ) -> None:  # fmt: skip
        positives = replace(actions.positives, length=config.history_length())
        self.actions, self.config, self.checkpoints = replace(actions, positives=positives), config, checkpoints
        self.watch, self.minutes, self.average = watch or Watch(), minutes, average
        self.seconds = 0.0
        self.chosen = Run()
        self.texts = text.keep(config.model.text.encoder, "memory://")
        self._trainer: RetrievalTrainer | None = None
        self._vectors: torch.Tensor | None = None

    @property
    def trainer(self) -> RetrievalTrainer:
        """What was trained last. Raises RuntimeError before."""
        if self._trainer is None:
            raise RuntimeError(f"{self.name} was not fitted")
        return self._trainer

    # ---- as a recommender ----------------------------------------------------------------------------

    def choose(self, data: LeaveOneOut, learned: Mask, judge: Callable[[], float]) -> None:
        """Train until `train.patience` epochs brought nothing better or the time is up, and go back to the best."""
        train = self.config.train
        self.chosen = self._fit("choose", learned, train.retrieval_epochs, judge)
        self.seconds = self.chosen.seconds

    def refit(self, data: LeaveOneOut, learned: Mask) -> None:
        """Train anew for as many epochs as were best."""
        self.seconds = self._fit("refit", learned, self.chosen.best, None).seconds

    def scores(self, data: LeaveOneOut, places: Ints) -> Floats:
        with torch_threads(self.config.train.threads), self.trainer.computing():
            if self._vectors is None:
                self._vectors = torch.from_numpy(self.trainer.towers.entity_vectors(self.actions.entities))
            return scorer(self.actions, self.trainer, vectors=self._vectors)(data, places)

    def settled(self) -> Mapping[str, Any]:
        run = self.chosen
        return {
            "epochs": run.best, "of": len(run.epochs), "validation ndcg@10": [round(v, 5) for v in run.figures()],
            "seconds to the best": round(run.epochs[run.best - 1].seconds, 1) if run.best else 0.0,
            "on": _named(self.trainer.device),
        }  # fmt: skip

    # ---- training ------------------------------------------------------------------------------------

    def _fit(self, stage: str, learned: Mask, most: int, judge: Callable[[], float] | None) -> Run:
        train, seed = self.config.train, self.config.train.seed
        torch.manual_seed(seed)
        rng = np.random.default_rng(seed)
        towers = new_towers(self.config, self.actions.catalog, self.texts)
        trainer = self._trainer = RetrievalTrainer(towers, self.actions.positives, self.config.model, train)
        self._vectors = None
        rows = np.flatnonzero(learned)
        run = Run()
        if self.checkpoints is not None:
            run = self.checkpoints.take_up(stage, trainer, rng)
        self.watch.begin(stage, run, most, train.patience, len(rows))
        with torch_threads(train.threads), trainer.computing():
            run.over = self._over(run, most, judged=judge is not None)
            while not run.over:
                self._epoch(run, trainer, rows, rng, judge)
                run.over = self._over(run, most, judged=judge is not None)
                if self.checkpoints is not None:
                    self.checkpoints.write(stage, run, trainer, rng)
                self.watch.epoch(run)
        final = run.average if run.kept is None else run.kept
        if final is not None:
            restore(trainer, final)
            self._vectors = None
        return run

    def _over(self, run: Run, most: int, *, judged: bool) -> bool:
        if len(run.epochs) >= most or self._late(run.seconds):
            return True
        return judged and len(run.epochs) - run.best >= self.config.train.patience

    def _late(self, seconds: float) -> bool:
        return seconds >= 60 * self.minutes

    def _epoch(
        self, run: Run, trainer: RetrievalTrainer, rows: Ints, rng: np.random.Generator,
        judge: Callable[[], float] | None,
    ) -> None:  # fmt: skip
        began, losses, counts = time.monotonic(), list[float](), list[int]()
        with closing(trainer.epoch(rows, rng, len(run.epochs))) as steps:
            for loss, count in steps:
                losses.append(loss)
                counts.append(count)
                self.watch.step(count)
                # of a large set one epoch may take more than all the time there is
                if self._late(run.seconds + time.monotonic() - began):
                    break
        learned = learned_by(trainer)
        run.average = averaged(run.average, learned, self.average)
        seconds = run.seconds + time.monotonic() - began
        found = None
        if judge is not None:
            restore(trainer, run.average)
            self._vectors = None
            found = judge()
            restore(trainer, learned)
        before = max(run.figures(), default=-1.0)
        loss = float(np.average(losses, weights=counts)) if losses else 0.0
        run.epochs.append(Epoch(len(run.epochs) + 1, loss, found, seconds))
        if found is not None and found > before:
            run.best, run.kept = len(run.epochs), run.average


def _named(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else "the processor"


def scorer(
    actions: Actions, trainer: RetrievalTrainer, asked: Callable[[Interactions], Requests] | None = None,
    vectors: torch.Tensor | None = None,
) -> Callable[[LeaveOneOut, Ints], Floats]:  # fmt: skip
    """What the towers say of every entity of `actions` at places. asked: what is asked there, by default for the user
    and their history on the first canvas; vectors [items, dim]: the entities', made anew without."""
    if vectors is None:
        vectors = torch.from_numpy(trainer.towers.entity_vectors(actions.entities))
    asked = asked or trainer.towers.canvases.plain
    at_once = AT_ONCE if trainer.towers.device.type == "cpu" else len(actions.positives)

    def scores(data: LeaveOneOut, places: Ints) -> Floats:
        found = np.empty((len(places), len(vectors)), np.float32)
        for start in range(0, len(places), at_once):
            batch = actions.positives.batch(places[start : start + at_once])
            users = torch.from_numpy(trainer.towers.vectors_of(batch, asked(batch)))
            found[start : start + at_once] = (users @ vectors.T).numpy()
        return found

    return scores
