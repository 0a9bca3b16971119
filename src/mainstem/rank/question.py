"""A request, resolved once: keys instead of ids, a time, a canvas contract, a running deadline."""

from __future__ import annotations

import time as _time
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.rank.score import ModelVersion
from mainstem.schema.config import CanvasConfig, Config
from mainstem.schema.errors import InvalidRecord, TooFarAhead
from mainstem.schema.ids import Keys, keys64
from mainstem.schema.protocols import Catalog, FeatureView
from mainstem.schema.records import Context, Degraded, Show, SlateRequest
from mainstem.schema.time import now_ms, parse_duration, parse_time

__all__ = ["Question", "resolve"]

_NO_DEADLINE_S = 1e9  # which a lock can still be told to wait for


@dataclass(frozen=True, slots=True)
class Question:
    """What the four stages need to know of a request.

    `model` is the one version that answers it, from retrieval to the last score (law 8), None where there is none
    yet; `left_out` is what of the request itself could not be heeded; `widest` is the number of the longest of
    `features.popularity_windows`, and its name.
    """

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
    model: ModelVersion | None = None
    left_out: tuple[Degraded, ...] = ()
    widest: tuple[int, str] = (0, "")

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
        return np.sort(np.concatenate(parts))

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


def resolve(
    request: SlateRequest, config: Config, model: ModelVersion | None = None, *, replay: bool = False
) -> Question:
    """Check the request against the configuration. Raises InvalidRecord naming the field.

    The moment asked for may lie in the past, but no further ahead of the wall clock than `log.skew`, as with events:
    a slate from the future would stand before every later one among the kept slates. A `replay` takes its moments
    from the log, which checked them on arrival, and has all the time it needs.

    A `show.filter` is a rule, so an attribute that cannot be filtered by is refused. `context.category` is what
    the canvas happens to know: where the type has no such attribute it is passed over, and reported.
    """
    context = request.context
    canvas = config.canvases.get(context.canvas)
    if canvas is None:
        known = ", ".join(config.canvases)
        raise InvalidRecord("context.canvas", f"{context.canvas!r} is not configured; there are: {known}")
    if request.tenant != config.tenant:
        raise InvalidRecord("tenant", f"{request.tenant!r} is not served here, only {config.tenant!r} is")
    limit = canvas.limit if request.limit is None else request.limit
    if not 1 <= limit <= 1000:
        raise InvalidRecord("limit", "must be from 1 to 1000")
    deadline_ms = parse_duration(canvas.deadline) if request.deadline_ms is None else request.deadline_ms
    if not 0 < deadline_ms <= 60_000:
        raise InvalidRecord("deadline_ms", "must be above 0 and at most 60000")
    now = now_ms()
    time = now if context.time is None else parse_time(context.time, "context.time")
    if not replay and time - now > (skew := parse_duration(config.log.skew)):
        raise TooFarAhead("context.time", f"lies {time - now} ms ahead of now; at most {skew} ms are accepted")
    context = msgspec.structs.replace(context, time=time)
    show, left_out = _shown(request, canvas, config)
    tenant = request.tenant
    return Question(
        context=context,
        show=show,
        canvas=canvas,
        limit=limit,
        new_only=show.new_only or canvas.repeat == "new_only",
        sources=keys64(context.source_type, context.sources, tenant),
        exclude=keys64(show.entity_type, show.exclude, tenant),
        only=None if show.only is None else keys64(show.entity_type, dict.fromkeys(show.only), tenant),
        tenant=tenant,
        started=_time.monotonic(),
        deadline_s=_NO_DEADLINE_S if replay else deadline_ms / 1000,
        model=model,
        left_out=left_out,
        widest=_widest(config.features.popularity_windows),
    )


def _widest(windows: Sequence[str]) -> tuple[int, str]:
    number = max(range(len(windows)), key=lambda at: parse_duration(windows[at]))
    return number, windows[number]


def _shown(request: SlateRequest, canvas: CanvasConfig, config: Config) -> tuple[Show, tuple[Degraded, ...]]:
    """The rules on what may be shown, with the canvas's entity type where the request names none."""
    show, category = request.show, request.context.category
    if show.entity_type == Show().entity_type:  # the default of the record cannot be told from the canvas's
        show = msgspec.structs.replace(show, entity_type=canvas.entity_type)
    if show.entity_type not in config.entities:
        known = ", ".join(config.entities)
        raise InvalidRecord("show.entity_type", f"{show.entity_type!r} is not configured; there are: {known}")
    forms = config.entities[show.entity_type].attributes
    filterable = ["group", *(name for name, form in forms.items() if form != "text")]
    for name in show.filter:
        if name not in filterable:
            allowed = ", ".join(filterable)
            raise InvalidRecord(f"show.filter.{name}", f"{show.entity_type} can be filtered by: {allowed}")
    if category is None:
        return show, ()
    if "category" not in filterable:
        why = f"{show.entity_type} has no attribute `category` in the configuration: not filtered by it"
        return show, (Degraded(stage="filter", what="context.category", why=why),)
    return msgspec.structs.replace(show, filter={"category": category, **show.filter}), ()
