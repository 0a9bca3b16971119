"""Warm-up: slates that a server asks of itself before anybody else does, not for the record.

What is compiled and mapped on first use takes longer than a request may wait, in a new installation by far.
"""

from __future__ import annotations

from collections.abc import Iterator

from mainstem.assemble import Parts
from mainstem.schema.config import Config
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Context, Event, SlateRequest

__all__ = ["warm_up"]

# The most that each may take, ms; seconds to wait for the state before them; and records before the end of the log
# among which somebody to ask for is looked for.
DEADLINE_MS, WAIT = 60_000.0, 10.0
LOOK_BACK = 1_000


def warm_up(parts: Parts, config: Config) -> None:
    """Let a running follower catch up for a while, then answer on every canvas, for the newest user and entity."""
    parts.follower.wait_for(parts.log.end(), WAIT)
    for context in _contexts(parts, config):
        parts.pipeline.answer(SlateRequest(context=context, shown=False, deadline_ms=DEADLINE_MS, tenant=config.tenant))


def _contexts(parts: Parts, config: Config) -> Iterator[Context]:
    """What each canvas is asked with, as it learns from it."""
    newest = _newest(parts.log)
    user, query, kind = (newest.user, newest.entity, newest.entity_type) if newest else (None, None, "item")
    known = parts.catalog.entity(key64(kind, query, config.tenant)) if query else None
    category = known.attributes.get("category") if known else None
    for name, canvas in config.canvases.items():
        of = canvas.learns_from
        yield Context(
            canvas=name, user=user, query=query or "anything" if of == "query" else None,
            sources=[query] if query and of == "previous" else [], source_type=kind,
            category=category if of == "category" and isinstance(category, str) else None,
        )  # fmt: skip


def _newest(log: Log) -> Event | None:
    """The newest event among the log's last records."""
    end = log.end().offset()
    batch = log.read(Position.at(max(end - LOOK_BACK, 0)), LOOK_BACK)
    return next((record for record in reversed(batch.records) if isinstance(record, Event)), None)
