"""The whole circle in one process. Start reading here.

Event, Entity, Erase --> log --join--> Example --train--> Snapshot --> weights
                          |                                               |
                          +------follow (state, catalogue, index)---------+
                                            |
Served --> log <--serve-- Slate <--rank (retrieve, filter, score, order)
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from types import TracebackType
from typing import Any

from mainstem import curriculum
from mainstem.assemble import Parts, assemble
from mainstem.refresh import ModelKeeper
from mainstem.schema.config import Config
from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Degraded, Entity, LogRecord, Slate, SlateRequest
from mainstem.schema.time import now_ms, parse_duration
from mainstem.train import TrainingReport
from mainstem.warmup import warm_up

__all__ = ["NO_MODEL", "Loop"]

# What `/readyz` says for a version where a line has no model in use.
NO_MODEL = "none yet"

Progress = Callable[[str, int, int], None]

_log = logging.getLogger(__name__)


def silent(stage: str, done: int, total: int) -> None:
    """A progress callback that shows nothing."""


class Loop:
    """One log, one model, and everything between them, wired by `assemble`.

    With `follow` (serving), followers and the model keeper run in threads; without it, `catch_up` is yours to call.
    """

    def __init__(self, config: Config, base: Path = Path(), *, follow: bool = False) -> None:
        self.config, self.base = config, base
        self.parts: Parts = assemble(config, base, claim=follow)
        self.following = follow
        self.also: Callable[[], dict[str, float]] | None = None
        with ExitStack() as undo:
            undo.callback(self.parts.close)
            for keeper in self.parts.keepers.values():
                keeper.refresh()
            if follow:
                self.parts.follower.start()
                for keeper in self.parts.keepers.values():
                    keeper.start()
                try:
                    warm_up(self.parts, config)
                except Exception:  # noqa: BLE001 - it only saves time: whoever asks is told what fails
                    _log.exception("the first slates failed, so the first requests will take longer")
            undo.pop_all()

    # ---- event -> log ----------------------------------------------------------------------------

    def append(self, records: Sequence[LogRecord]) -> Appended:
        """Put records into the log: durable on return. All or nothing; known ids are counted, not repeated."""
        return self.parts.log.append(records)

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        """`append` of every batch by itself, in one commit: for each what `append` returns or raises."""
        return self.parts.log.append_each(batches)

    # ---- log -> state, catalogue, index ------------------------------------------------------------

    def catch_up(self, progress: Progress = silent) -> None:
        """Let state, catalogue and indexes reflect everything that is in the log now."""
        self.parts.follower.catch_up(lambda done, total: progress("features", done, total))

    # ---- log -> example -> weights -----------------------------------------------------------------

    def train(self, progress: Progress = silent) -> TrainingReport:
        """Learn from the log, publish a snapshot, take it into use."""
        report = curriculum.train(self.config, self.parts.log, self.base, progress)
        self.parts.keeper.refresh()
        return report

    # ---- request -> slate -> served -> log -----------------------------------------------------------

    def slate(self, request: SlateRequest) -> Slate:
        """Answer a request. Raises InvalidRecord for one that breaks the contract; otherwise there is an answer."""
        late = self._fresh_enough(request)
        answer = self.parts.pipeline.answer(request)
        if late:
            answer.slate.degraded.append(late)
        pool = answer.pool if request.model_line == "main" else None  # other lines' inputs are not the trainer's
        self.parts.recorder.record(request, answer.slate, answer.inputs, answer.values, pool, answer.past)
        return answer.slate

    def _fresh_enough(self, request: SlateRequest) -> Degraded | None:
        """Read your writes (law 3): wait until the state reflects `request.after`."""
        if request.after is None:
            return None
        after = Position.parse(request.after, "after")
        if not after <= self.parts.log.end():
            raise InvalidRecord("after", "lies behind the end of this log: pass a position that this server returned")
        if not self.following:
            self.catch_up()
        if self.parts.follower.wait_for(after, parse_duration(self.config.serve.freshness_wait) / 1000):
            return None
        return Degraded(stage="freshness", what="after", why=f"the state reflects the log only up to {self.position}")

    # ---- what the surface asks ---------------------------------------------------------------------

    @property
    def position(self) -> Position:
        return self.parts.follower.position

    def end(self) -> Position:
        return self.parts.log.end()

    def entity(self, entity_type: str, entity: str) -> Entity | None:
        return self.parts.catalog.entity(key64(entity_type, entity, self.config.tenant))

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether traffic is welcome: the follower is alive and close behind. A missing model only degrades."""
        follower, recorder = self.parts.follower, self.parts.recorder
        lag = follower.lag()
        state = (
            f"failing: {follower.failure}" if follower.failure else "ok" if lag < 10_000 else f"{lag} records behind"
        )
        lines = {line: _said_of(keeper) for line, keeper in self.parts.keepers.items()}
        troubles = {"slates not on record": recorder.failures, "slates not kept": recorder.unkept}
        details: dict[str, object] = {"state": state, **lines.pop("main")}
        if lines:
            details["lines"] = lines
        return state == "ok", details | {name: trouble for name, trouble in troubles.items() if trouble}

    def lag(self) -> dict[str, float]:
        return {self.parts.follower.name: float(self.parts.follower.lag())}

    def figures(self) -> dict[str, float]:
        """Of the model in use, of what the log erases, and of whoever `also` tells of itself, for the metrics page."""
        keeper = self.parts.keeper
        age = now_ms() - keeper.learned_at if keeper.learned_at else 0
        erasures = self.parts.log.erasures()
        own = {
            "erasures_known": float(erasures.known),
            "erasures_pending": float(erasures.pending),
            "model_age_seconds": age / 1000,
            "model_sequence": float(keeper.sequence),
            "model_deltas_applied": float(keeper.applied),
            "model_set_aside": float(len(keeper.refused)),
        }
        return own | (self.also() if self.also else {})

    def close(self) -> None:
        self.parts.close()

    def __enter__(self) -> Loop:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.close()


def _said_of(keeper: ModelKeeper[Any]) -> dict[str, object]:
    """What a line's models are doing; troubles only where there are some."""
    troubles = {"refused models": keeper.refused, "model keeper": str(keeper.failure or "")}
    said: dict[str, object] = {"model": keeper.version or NO_MODEL, "delta": keeper.sequence}
    return said | {name: trouble for name, trouble in troubles.items() if trouble}
