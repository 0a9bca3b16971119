"""Lanes: the threads in which blocking work runs, so that the event loop only ever moves bytes.

Appends and slates have a lane each: appends wait for the disk and many share one commit, so their lane
is wide; a burst of them never takes a thread from the slates. A lane that has too much waiting refuses
more at once: the client learns it now, not after its own deadline.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ParamSpec, TypeVar

from mainstem.schema.errors import NotReady

__all__ = ["Lane"]

P = ParamSpec("P")
T = TypeVar("T")


class Lane:
    """`width` threads and at most `waiting` calls that wait for one. Use from one event loop."""

    def __init__(self, name: str, width: int, waiting: int) -> None:
        self._threads = ThreadPoolExecutor(width, thread_name_prefix=f"mainstem-{name}")
        self._name = name
        self._room = width + waiting
        self.inside = 0

    async def run(self, call: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """`call(...)` in one of the threads. Raises NotReady at once when the lane is full."""
        if self.inside >= self._room:
            raise NotReady(f"{self.inside} {self._name} are waiting already")
        self.inside += 1
        # Counted until the work ends, not until the caller leaves: a client that hangs up frees no thread.
        future = self._threads.submit(call, *args, **kwargs)
        wrapped = asyncio.wrap_future(future)
        wrapped.add_done_callback(self._left)
        return await asyncio.shield(wrapped)

    def _left(self, future: asyncio.Future[Any]) -> None:
        self.inside -= 1
        if not future.cancelled():
            future.exception()  # retrieved, also where the caller has gone

    def close(self) -> None:
        """Wait for what is running; refuse the rest."""
        self._threads.shutdown(wait=True, cancel_futures=True)
