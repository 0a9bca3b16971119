"""The ASGI application over an engine."""

from __future__ import annotations

import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from functools import partial
from urllib.parse import quote

from litestar import Litestar
from litestar.datastructures import State
from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send

from mainstem.serve.answers import Answers
from mainstem.serve.engine import Engine, SharesCommits
from mainstem.serve.faults import Fault, answer, explain
from mainstem.serve.lanes import Gathering, Lane
from mainstem.serve.metrics import Metrics
from mainstem.serve.openapi import openapi_config
from mainstem.serve.routes import HANDLERS, Surface

__all__ = ["MAX_BODY", "create_app"]

logger = logging.getLogger("mainstem.serve")

MAX_BODY = 32 * 1024 * 1024
"""Bytes of one request's body: ten thousand events of 3 KB."""


def create_app(
    engine: Engine,
    *,
    append_threads: int = 64,
    slate_threads: int = 8,
    waiting: int = 512,
    max_body: int = MAX_BODY,
) -> ASGIApp:
    """The application. It borrows `engine` and never closes it.

    append_threads  calls of `engine.append` at once; they wait for one commit together (events: see `lanes`)
    slate_threads   calls of `engine.slate` at once
    waiting         requests per lane that may wait for a thread; one more is answered 503
    max_body        bytes of a request's body; more is answered 413
    """
    metrics = Metrics()
    answers = Answers(engine, metrics)
    appends, slates, checks = (
        Lane("appends", append_threads, waiting), Lane("slates", slate_threads, waiting), Lane("checks", 2, 64),
    )  # fmt: skip
    lanes: list[Lane | Gathering] = [appends, slates, checks]
    if isinstance(engine, SharesCommits):
        # One reads the next group of events while the other's commit is synced.
        gathering = Gathering("events", answers.events_each, 2, append_threads + waiting)
        lanes.append(gathering)
        events = gathering.run
    else:
        events = partial(_run, appends, answers.events)
    surface = Surface(answers, events, appends, slates, checks)
    app = Litestar(
        HANDLERS,
        state=State({"surface": surface}),
        lifespan=[_closing(lanes)],
        exception_handlers={Exception: explain},
        request_max_body_size=max_body,
        openapi_config=openapi_config(),
        logging_config=None,
        debug=False,
    )
    return _Gate(app, metrics)


async def _run(lane: Lane, call: Callable[[bytes], bytes], body: bytes) -> bytes:
    return await lane.run(call, body)


def _closing(lanes: Sequence[Lane | Gathering]) -> Callable[[Litestar], AbstractAsyncContextManager[None]]:
    @asynccontextmanager
    async def open_until_the_end(_: Litestar) -> AsyncIterator[None]:
        try:
            yield
        finally:
            for lane in lanes:
                lane.close()

    return open_until_the_end


class _Gate:
    """Around the application: the path as it was sent, the metrics, and the last word on a failure.

    Routing goes by the raw path, so that `a%2Fb` is one segment and one id; handlers decode the segments.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics) -> None:
        self._app = app
        self._metrics = metrics

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP:
            await self._answer(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    async def _answer(self, scope: HTTPScope, receive: Receive, send: Send) -> None:
        started = time.perf_counter()
        raw: bytes | None = scope.get("raw_path")
        # Some servers leave the query string on the raw path.
        scope["path"] = raw.partition(b"?")[0].decode("latin-1") if raw else quote(scope["path"])
        status = 0

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            if _from_another_site(scope):
                raise Fault("sec-fetch-site", "pages of other sites may not write here", status=403)
            await self._app(scope, receive, noting)
        except Exception as error:
            if status:
                logger.error("failed after the answer had begun", exc_info=error)
            else:
                await _send(noting, *answer(error))
        finally:
            route = scope.get("path_template") or "(none)"
            self._metrics.request(route, scope["method"], status, time.perf_counter() - started)


def _from_another_site(scope: HTTPScope) -> bool:
    """Any content type is read as JSON, so a browser would post for any page without asking; it says so, though."""
    if scope["method"] in ("GET", "HEAD", "OPTIONS"):
        return False
    return any(name == b"sec-fetch-site" and value == b"cross-site" for name, value in scope["headers"])


async def _send(send: Send, status: int, body: bytes, headers: dict[str, str]) -> None:
    named = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    named += [(name.encode(), value.encode()) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": named})
    await send({"type": "http.response.body", "body": body, "more_body": False})
