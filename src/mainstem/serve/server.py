"""The process around the application: uvicorn on uvloop and httptools, and an orderly end."""

from __future__ import annotations

import gc
import signal
import threading
import time
from collections.abc import Callable, Generator
from contextlib import contextmanager
from types import TracebackType
from typing import Any, Self

import uvicorn

from mainstem.schema.errors import MainstemError
from mainstem.serve.app import create_app
from mainstem.serve.engine import Engine

__all__ = ["Background", "run"]


class _Server(uvicorn.Server):
    """Returns after SIGTERM or SIGINT instead of raising the signal again, so that the caller can close the engine."""

    on_started: Callable[[str], None] | None = None

    @contextmanager
    def capture_signals(self) -> Generator[None, None, None]:
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        before = {number: signal.signal(number, self.handle_exit) for number in (signal.SIGINT, signal.SIGTERM)}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler)

    async def startup(self, sockets: list[Any] | None = None) -> None:
        await super().startup(sockets=sockets)
        if self.started and self.on_started is not None:
            self.on_started(self.url())

    def url(self) -> str:
        """`http://HOST:PORT` with the port that was really bound."""
        host, port = self.servers[0].sockets[0].getsockname()[:2]
        return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def _server(engine: Engine, host: str | None, port: int | None, app: dict[str, Any]) -> _Server:
    serve = engine.config.serve
    return _Server(
        uvicorn.Config(
            create_app(engine, **app),
            host=serve.host if host is None else host,
            port=serve.port if port is None else port,
            loop="uvloop",
            http="httptools",
            ws="none",
            lifespan="on",
            access_log=False,
            log_config=None,
            log_level="warning",
            server_header=False,
            timeout_keep_alive=30,
            timeout_graceful_shutdown=10,
        )
    )


def run(
    engine: Engine,
    host: str | None = None,
    port: int | None = None,
    *,
    on_started: Callable[[str], None] | None = None,
    **app: Any,
) -> None:
    """Serve until SIGTERM or SIGINT (from the main thread), answer what has begun, and return.

    `host` and `port` default to the configuration's; port 0 takes a free one. `on_started` hears the
    address once requests are accepted. Other arguments go to `create_app`. The engine stays open.
    Raises MainstemError when the address cannot be bound.
    """
    server = _server(engine, host, port, app)
    server.on_started = on_started
    try:
        with _settled():
            server.run()
    except SystemExit as error:
        raise MainstemError(f"cannot serve on {server.config.host}:{server.config.port}") from error
    if not server.started:
        raise MainstemError(f"cannot serve on {server.config.host}:{server.config.port}")


@contextmanager
def _settled() -> Generator[None, None, None]:
    """What is loaded by now stays. Looking through all of it for cycles holds the interpreter's lock for tenths of a
    second, while slates wait; so the collector is told to look at what comes later alone."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


class Background:
    """A server in a thread of this process, for the demo and for tests.

    with Background(engine, port=0) as server:
        httpx.get(server.url + "/healthz")
    """

    def __init__(self, engine: Engine, host: str | None = None, port: int | None = None, **app: Any) -> None:
        self._server = _server(engine, host, port, app)
        self._thread = threading.Thread(target=self._serve, name="mainstem-serve", daemon=True)
        self.url = ""

    def _serve(self) -> None:
        # uvicorn ends the process where it cannot bind; here that ends the thread, and `start` says so.
        try:
            self._server.run()
        except SystemExit:
            self._server.should_exit = True

    def start(self, timeout: float = 30.0) -> Self:
        """Returns once requests are accepted. Raises MainstemError where that fails."""
        self._thread.start()
        deadline = time.monotonic() + timeout
        while not self._server.started:
            if not self._thread.is_alive() or time.monotonic() > deadline:
                raise MainstemError(f"cannot serve on {self._server.config.host}:{self._server.config.port}")
            time.sleep(0.005)
        self.url = self._server.url()
        return self

    def stop(self) -> None:
        """Answer what has begun, then end. Safe to call twice."""
        self._server.should_exit = True
        if self._thread.is_alive():
            self._thread.join(timeout=20)

    def __enter__(self) -> Self:
        return self.start()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()
