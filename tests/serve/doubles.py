"""A test double of the engine: a list for a log, no state but that list."""

from __future__ import annotations

import threading
from collections.abc import Sequence

from mainstem.schema.config import CanvasConfig, Config, EntityTypeConfig, LogConfig, ServeConfig
from mainstem.schema.ids import fresh_id
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import (
    Degraded,
    Entity,
    EntityDelete,
    Erase,
    Event,
    LogRecord,
    Slate,
    SlateItem,
    SlateRequest,
    record_id,
)

CONFIG = Config(
    entities={
        "item": EntityTypeConfig(
            attributes={"category": "category", "price": "number", "tags": "tags", "blurb": "text"}
        ),
        "genre": EntityTypeConfig(),
    },
    canvases={"home": CanvasConfig(), "similar": CanvasConfig(), "genres": CanvasConfig(entity_type="genre")},
    log=LogConfig(skew="10m"),
    serve=ServeConfig(max_batch=50),
)


class MemoryEngine:
    """Slates rank items by how many events they have; everything is read from the list of records."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.records: list[LogRecord] = []
        self.requests: list[SlateRequest] = []
        self.calls = 0
        self.fails: Exception | None = None
        self.gate: threading.Event | None = None
        self.is_ready = True
        self.behind = 3.0
        self._ids: set[str] = set()
        self._lock = threading.Lock()

    def append(self, records: Sequence[LogRecord]) -> Appended:
        with self._lock:
            self.calls += 1
            self._maybe_fail()
            new = {record_id(r): r for r in records if record_id(r) not in self._ids}
            self._ids |= new.keys()
            self.records += new.values()
            return Appended(Position.at(len(self.records)), len(new), len(records) - len(new))

    def slate(self, request: SlateRequest) -> Slate:
        if self.gate is not None:
            self.gate.wait(10)
        with self._lock:
            self._maybe_fail()
            self.requests.append(request)
            counts: dict[str, int] = {}
            for record in self.records:
                if isinstance(record, Event) and record.entity is not None:
                    counts[record.entity] = counts.get(record.entity, 0) + 1
            best = sorted(counts, key=lambda item: (-counts[item], item))[: request.limit or 20]
            return Slate(
                request_id=fresh_id("slate"),
                canvas=request.context.canvas,
                time=request.context.time or 0,
                items=[SlateItem(entity=item, score=float(counts[item]), sources=["popular"]) for item in best],
                position=str(Position.at(len(self.records))),
                timings_ms={"retrieve": 1.0, "score": 2.0},
                degraded=[] if best else [Degraded(stage="score", what="model", why="there is none yet")],
            )

    def entity(self, entity_type: str, entity: str) -> Entity | None:
        self._maybe_fail()
        found: Entity | None = None
        for record in self.records:
            if isinstance(record, Entity | EntityDelete) and (record.entity_type, record.entity) == (
                entity_type,
                entity,
            ):
                found = record if isinstance(record, Entity) else None
        return found

    def ready(self) -> tuple[bool, dict[str, object]]:
        return self.is_ready, {"model": "loaded" if self.is_ready else "none yet", "position": self.end()}

    def figures(self) -> dict[str, float]:
        return {"model_sequence": 3.0}

    def lag(self) -> dict[str, float]:
        return {"state": self.behind}

    def end(self) -> Position:
        return Position.at(len(self.records))

    def erased(self) -> list[str | None]:
        return [record.user for record in self.records if isinstance(record, Erase)]

    def _maybe_fail(self) -> None:
        if self.fails is not None:
            raise self.fails
