"""A request, resolved once: keys instead of ids, a time, a canvas contract, a running deadline."""

from __future__ import annotations

import time as _time
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.config import CanvasConfig, Config
from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import Keys, key64, keys64
from mainstem.schema.protocols import Catalog, FeatureView
from mainstem.schema.records import Context, Show, SlateRequest
from mainstem.schema.time import now_ms, parse_duration

__all__ = ["Question", "resolve"]


@dataclass(frozen=True, slots=True)
class Question:
    """What the four stages need to know of a request."""

    context: Context
    show: Show
    canvas: CanvasConfig
    limit: int
    new_only: bool
    sources: Keys
    exclude: Keys
    only: Keys | None
    tenant: str
    started: float
    deadline_s: float

    @property
    def time(self) -> int:
        """Event time of the request, ms."""
        assert self.context.time is not None  # resolve() stamps it
        return self.context.time

    def left(self) -> float:
        """Seconds until the deadline; negative once it is missed."""
        return self.started + self.deadline_s - _time.monotonic()

    def forbidden(self, view: FeatureView) -> Keys:
        """Keys that must not be shown whatever their attributes: uint64 [n], sorted."""
        parts = [self.exclude, self.sources, view.hidden()]
        if self.new_only:
            counts = view.counts()
            parts.append(counts.keys[counts.owned])
        return np.unique(np.concatenate(parts))

    def allowed(self, catalog: Catalog, forbidden: Keys, keys: Keys) -> NDArray[np.bool_]:
        """Mask [n] of what may be shown: known, available, matching, not forbidden, in `only` if given."""
        rows = catalog.rows(keys)
        mask = catalog.available(rows, self.time, self.show.entity_type)
        if len(forbidden) and len(keys):
            at = np.minimum(np.searchsorted(forbidden, keys), len(forbidden) - 1)
            mask &= forbidden[at] != keys
        if self.only is not None:
            mask &= np.isin(keys, self.only)
        if self.show.filter:
            mask &= catalog.matches(rows, self.show.filter)
        return mask


def resolve(request: SlateRequest, config: Config) -> Question:
    """Check the request against the configuration. Raises InvalidRecord naming the field."""
    context, show = request.context, request.show
    canvas = config.canvases.get(context.canvas)
    if canvas is None:
        known = ", ".join(config.canvases)
        raise InvalidRecord("context.canvas", f"{context.canvas!r} is not configured; there are: {known}")
    limit = canvas.limit if request.limit is None else request.limit
    if not 1 <= limit <= 1000:
        raise InvalidRecord("limit", "must be from 1 to 1000")
    deadline_ms = parse_duration(canvas.deadline) if request.deadline_ms is None else request.deadline_ms
    if not 0 < deadline_ms <= 60_000:
        raise InvalidRecord("deadline_ms", "must be above 0 and at most 60000")
    if show.entity_type not in config.entities:
        known = ", ".join(config.entities)
        raise InvalidRecord("show.entity_type", f"{show.entity_type!r} is not configured; there are: {known}")
    if context.time is None:
        context = msgspec.structs.replace(context, time=now_ms())
    tenant = request.tenant
    sources = keys64(context.source_type, context.sources, tenant)
    if context.category is not None:
        show = msgspec.structs.replace(show, filter={"category": context.category, **show.filter})
    return Question(
        context=context,
        show=show,
        canvas=canvas,
        limit=limit,
        new_only=show.new_only or canvas.repeat == "new_only",
        sources=sources,
        exclude=keys64(show.entity_type, show.exclude, tenant),
        only=None if show.only is None else keys64(show.entity_type, show.only, tenant),
        tenant=tenant,
        started=_time.monotonic(),
        deadline_s=deadline_ms / 1000,
    )


def user_key(context: Context, tenant: str) -> int:
    """The key of the context's user; 0 for a visitor of whom nothing is known."""
    return 0 if context.user is None else key64("user", context.user, tenant)
