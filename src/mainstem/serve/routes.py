"""The addresses. Each handler hands bytes to `Answers` in a lane; `opt` names what the documents show."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import msgspec
from litestar import MediaType, Request, Response, delete, get, patch, post, put
from litestar.types import ControllerRouterHandler

from mainstem.serve import wire
from mainstem.serve.answers import Answers
from mainstem.serve.lanes import Lane
from mainstem.serve.openapi import document
from mainstem.serve.page import WELCOME

__all__ = ["HANDLERS", "Surface"]

Asked = Request[Any, Any, Any]


@dataclass(frozen=True, slots=True)
class Surface:
    """What the handlers use: it is the application's state under the name `surface`."""

    answers: Answers
    events: Callable[[bytes], Awaitable[bytes]]
    appends: Lane
    slates: Lane
    checks: Lane


def _surface(request: Asked) -> Surface:
    surface: Surface = request.app.state["surface"]
    return surface


def _at(request: Asked, name: str) -> str:
    """A segment of the path as it was sent, still percent-encoded."""
    segment: str = request.path_params[name]
    return segment


def _json(body: bytes, status: int = 200) -> Response[bytes]:
    return Response(body, status_code=status, media_type=MediaType.JSON)


_EVENT_FORMS = (wire.EventIn, list[wire.EventIn], wire.EventsIn)
_ENTITY_FORMS = (wire.EntityIn, list[wire.EntityIn], wire.EntitiesIn)


@post("/v1/events", status_code=200, tags=["write"], opt={"body": _EVENT_FORMS, "answer": wire.Accepted})
async def post_events(request: Asked) -> Response[bytes]:
    """Append events: one, a list, or `{"events": [...]}`. All are accepted or none; durable when answered."""
    surface = _surface(request)
    return _json(await surface.events(await request.body()))


@put("/v1/entities", tags=["write"], opt={"body": _ENTITY_FORMS, "answer": wire.Accepted})
async def put_entities(request: Asked) -> Response[bytes]:
    """Put entities into the catalogue: one, a list, or `{"entities": [...]}`. Each replaces what was known of it."""
    surface = _surface(request)
    return _json(await surface.appends.run(surface.answers.entities, await request.body()))


@patch(
    "/v1/entities/{entity_type:str}/{entity_id:str}",
    tags=["write"],
    opt={"body": (wire.EntityPatchIn,), "answer": wire.Accepted},
)
async def patch_entity(request: Asked) -> Response[bytes]:
    """Change some fields of one entity, such as stock or price."""
    surface = _surface(request)
    return _json(
        await surface.appends.run(
            surface.answers.patch, _at(request, "entity_type"), _at(request, "entity_id"), await request.body()
        )
    )


@delete(
    "/v1/entities/{entity_type:str}/{entity_id:str}", status_code=200, tags=["write"], opt={"answer": wire.Accepted}
)
async def delete_entity(request: Asked) -> Response[bytes]:
    """Take one entity out of the catalogue."""
    surface = _surface(request)
    return _json(
        await surface.appends.run(surface.answers.delete, _at(request, "entity_type"), _at(request, "entity_id"))
    )


@get("/v1/entities/{entity_type:str}/{entity_id:str}", tags=["read"], opt={"answer": wire.EntityOut})
async def get_entity(request: Asked) -> Response[bytes]:
    """What the catalogue knows of one entity."""
    surface = _surface(request)
    return _json(
        await surface.slates.run(surface.answers.entity, _at(request, "entity_type"), _at(request, "entity_id"))
    )


@delete("/v1/users/{user_id:str}", status_code=202, tags=["write"], opt={"answer": wire.Accepted})
async def erase_user(request: Asked) -> Response[bytes]:
    """Forget a user: all that was recorded of them until now goes, everywhere."""
    surface = _surface(request)
    return _json(await surface.appends.run(surface.answers.erase, _at(request, "user_id")), 202)


@post("/v1/slates", status_code=200, tags=["read"], opt={"body": (wire.SlateIn,), "answer": wire.SlateOut})
async def post_slates(request: Asked) -> Response[bytes]:
    """Ask for a ranked slate on any canvas."""
    surface = _surface(request)
    return _json(await surface.slates.run(surface.answers.slate, await request.body()))


@get("/v1/users/{user_id:str}/slate", tags=["read"], opt={"query": wire.SlateQuery, "answer": wire.SlateOut})
async def get_user_slate(request: Asked) -> Response[bytes]:
    """The short form of a question about one user."""
    surface = _surface(request)
    return _json(
        await surface.slates.run(surface.answers.user_slate, _at(request, "user_id"), request.scope["query_string"])
    )


@get("/v1/items/{item_id:str}/similar", tags=["read"], opt={"query": wire.SimilarQuery, "answer": wire.SlateOut})
async def get_similar(request: Asked) -> Response[bytes]:
    """Items like this one, by the canvas `similar`."""
    surface = _surface(request)
    return _json(
        await surface.slates.run(surface.answers.similar, _at(request, "item_id"), request.scope["query_string"])
    )


@get("/healthz", tags=["process"], opt={"answer": wire.Health})
async def healthz() -> Response[bytes]:
    """The process is alive."""
    return _json(b'{"status":"alive"}')


@get("/readyz", tags=["process"], opt={"answer": wire.Ready})
async def readyz(request: Asked) -> Response[bytes]:
    """Whether to send traffic here; 503 until the followers have caught up."""
    surface = _surface(request)
    ready, body = await surface.checks.run(surface.answers.ready)
    return _json(body, 200 if ready else 503)


@get("/metrics", tags=["process"], opt={"text": "text/plain"})
async def metrics(request: Asked) -> Response[bytes]:
    """Metrics in the text format of Prometheus."""
    surface = _surface(request)
    return Response(
        await surface.checks.run(surface.answers.metrics_text), media_type="text/plain; version=0.0.4; charset=utf-8"
    )


@get("/openapi.json", include_in_schema=False)
async def openapi_document(request: Asked) -> Response[bytes]:
    return _json(msgspec.json.encode(document(request.app)))


@get("/", include_in_schema=False)
async def welcome() -> Response[bytes]:
    return Response(WELCOME, media_type=MediaType.HTML)


HANDLERS: list[ControllerRouterHandler] = [
    post_events, put_entities, patch_entity, delete_entity, get_entity, erase_user,
    post_slates, get_user_slate, get_similar, healthz, readyz, metrics, openapi_document, welcome,
]  # fmt: skip
