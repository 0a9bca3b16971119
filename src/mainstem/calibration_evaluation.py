"""What heads predict for the candidates of held-out visits, against what then happened."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from mainstem.curriculum import Curriculum
from mainstem.evaluate import Calibration, calibration_of
from mainstem.join import CanvasRequests, Replay, Visit
from mainstem.rank import ModelVersion
from mainstem.rank.score import rank_inputs
from mainstem.schema.batch import EventBatch
from mainstem.schema.protocols import Floats
from mainstem.schema.time import parse_duration

__all__ = ["CalibrationEvaluation"]


class CalibrationEvaluation:
    """Asks visits to `events` on the first canvas, of the state that `replay` folds into: whoever folds calls `ask`.

    All candidates of a request count, none is drawn. A label counts where its window is over at the end of the log.
    """

    def __init__(self, source: Curriculum, model: ModelVersion, replay: Replay, events: EventBatch) -> None:
        self.config, self.model, self.replay = source.config, model, replay
        self.canvas = next(iter(source.config.canvases))
        self.requests = CanvasRequests(source.config.canvases, events, source.users, source.catalog)
        self.end = int(source.events.time[-1])
        self._windows = np.array([parse_duration(head.window) for head in source.config.heads.values()])
        self._binary = np.array([head.type == "binary" for head in source.config.heads.values()])
        self._predicted: list[Floats] = []
        self._observed: list[Floats] = []

    def ask(self, visit: Visit) -> None:
        """Note predictions and labels of each candidate of a request that stands for the visit."""
        rng = np.random.default_rng((visit.user, visit.time % (1 << 63)))
        request = self.requests.of(visit, self.canvas, rng)
        if request is None:
            return
        with self.replay.features.view(request.context, self.config.tenant) as view:
            keys = self.replay.retrieve(request.context, view)
            predicted = self.model.scores(rank_inputs(self.model, request.context, view, self.config.tenant, keys))
        labels = self.replay.labels(visit, keys)
        # whether it happened, however much it counts in training
        labels[:, self._binary] = labels[:, self._binary] > 0
        labels[:, visit.time + self._windows > self.end] = np.nan
        self._predicted.append(predicted)
        self._observed.append(labels)

    def found(self) -> Iterator[Calibration]:
        """Of each head of which any label is known."""
        if not self._predicted:
            return
        predicted, observed = np.concatenate(self._predicted), np.concatenate(self._observed)
        for column, head in enumerate(self.config.heads):
            calibration = calibration_of(head, predicted[:, column], observed[:, column])
            if calibration is not None:
                yield calibration
