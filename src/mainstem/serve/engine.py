"""What serving needs of the rest of the system. `assemble.py` builds one; tests bring their own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol, runtime_checkable

from mainstem.schema.config import Config
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Entity, LogRecord, Slate, SlateRequest

__all__ = ["Engine", "SharesCommits"]


class Engine(Protocol):
    """The system behind the edge. Every method may be called from many threads at once, and may block."""

    config: Config

    def append(self, records: Sequence[LogRecord]) -> Appended:
        """All or nothing, durable on return; concurrent calls share one commit. Raises InvalidRecord, StoreError."""
        ...

    def slate(self, request: SlateRequest) -> Slate:
        """An answer, also for users and items nobody knows. Raises InvalidRecord on nonsense."""
        ...

    def entity(self, entity_type: str, entity: str) -> Entity | None:
        """What the catalogue knows; None where it knows nothing."""
        ...

    def ready(self) -> tuple[bool, dict[str, object]]:
        """Whether to send traffic here, and per part (followers, model, index) how it stands."""
        ...

    def lag(self) -> dict[str, float]:
        """Records that each follower is behind the log, by its name: {"state": 12.0}."""
        ...

    def figures(self) -> dict[str, float]:
        """Gauges of the model in use, by the names of `metrics.FIGURES`."""
        ...

    def end(self) -> Position:
        """The position after the newest durable record."""
        ...


@runtime_checkable
class SharesCommits(Protocol):
    """An engine that also takes many appends in one call: the edge then gathers what waits, see `lanes.Gathering`."""

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        """`append` of every batch by itself, in one commit: for each what it returns or raises."""
        ...
