"""Lanes: the threads in which blocking work runs, so that the event loop only ever moves bytes.

Appends and slates have a lane each: appends wait for the disk and many share one commit, so their lane
is wide; a burst of them never takes a thread from the slates. A lane that has too much waiting refuses
more at once: the client learns it now, not after its own deadline.

Events have a lane that gathers: a thread takes all that waits and answers it together, so that 64 clients cost
one commit and two changes of thread, not 64 of each.

Before a write comes the check that the state keeps up: what is accepted faster than it is folded in, or while
nothing folds it in at all, would fill the log while slates know nothing of it.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from queue import Empty, SimpleQueue
from typing import Any, NamedTuple, ParamSpec, TypeVar

from mainstem.schema.errors import NotReady
from mainstem.serve.faults import TooFarBehind

__all__ = ["Backlog", "Gathering", "Lane"]

logger = logging.getLogger("mainstem.serve")

P = ParamSpec("P")
T = TypeVar("T")

# A group takes no more than this: bounds the wait of its smallest member, and its memory.
_GROUP, _GROUP_BYTES = 256, 4 * 2**20


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


class Backlog:
    """Refuses while the follower `state` is more than `most` records behind the log. Thread-safe.

    `lag` (records behind, by follower) is asked at most every `every` seconds. In between the last answer holds, so
    the bound may be passed by what arrives within that time.
    """

    def __init__(self, lag: Callable[[], Mapping[str, float]], most: int, every: float = 0.05) -> None:
        self._lag, self._most, self._every = lag, most, every
        self._asking = threading.Lock()
        self._behind = 0
        self._asked: float | None = None
        self._full = False

    def check(self) -> None:
        """Raises TooFarBehind."""
        # Whoever finds another asking goes on with the last answer, but for the very first.
        if self._is_old() and self._asking.acquire(blocking=self._asked is None):
            try:
                if self._is_old():
                    self._ask()
            finally:
                self._asking.release()
        behind = self._behind
        if behind > self._most:
            raise TooFarBehind(behind, self._most)

    def _is_old(self) -> bool:
        return self._asked is None or time.monotonic() - self._asked >= self._every

    def _ask(self) -> None:
        self._behind = int(self._lag().get("state", 0))
        self._asked = time.monotonic()
        if (self._behind > self._most) != self._full:
            self._full = not self._full
            logger.warning(
                "writes are %s: the state is %d records behind the log, at most %d are allowed",
                "refused from now on" if self._full else "accepted again", self._behind, self._most,
            )  # fmt: skip


class _Waiting(NamedTuple):
    body: bytes
    answer: asyncio.Future[bytes]
    loop: asyncio.AbstractEventLoop


class Gathering:
    """`width` threads that each answer all that waits by one `call(bodies)`: for each body an answer or an
    exception. At most `waiting` are inside. With two threads one reads the next group while the other's commit
    is synced. Use from one event loop."""

    def __init__(
        self, name: str, call: Callable[[Sequence[bytes]], Sequence[bytes | Exception]], width: int, waiting: int
    ) -> None:
        self._name, self._call, self._room = name, call, waiting
        self._queue: SimpleQueue[_Waiting | None] = SimpleQueue()
        self._closed = False
        self.inside = 0
        self._threads = [
            threading.Thread(target=self._work, name=f"mainstem-{name}-{number}", daemon=True)
            for number in range(width)
        ]
        for thread in self._threads:
            thread.start()

    async def run(self, body: bytes) -> bytes:
        """The answer to `body`. Raises NotReady at once when too many are inside, or what `call` says of it."""
        if self._closed or self.inside >= self._room:
            raise NotReady(f"{self.inside} {self._name} are waiting already")
        self.inside += 1
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        self._queue.put(_Waiting(body, answer, loop))
        # Counted until the work ends, not until the caller leaves.
        return await asyncio.shield(answer)

    def _work(self) -> None:
        while first := self._queue.get():
            group = self._gather(first)
            try:
                outcomes = self._call([waiting.body for waiting in group])
                if len(outcomes) != len(group):
                    raise RuntimeError(f"{len(group)} {self._name} got {len(outcomes)} answers")
            except Exception as error:  # noqa: BLE001 - it is the answer to each of them; the thread lives on
                outcomes = [error] * len(group)
            first.loop.call_soon_threadsafe(self._tell, group, outcomes)

    def _gather(self, first: _Waiting) -> list[_Waiting]:
        group, size = [first], len(first.body)
        while len(group) < _GROUP and size < _GROUP_BYTES:
            try:
                following = self._queue.get_nowait()
            except Empty:
                break
            if following is None:  # the end, for whoever asks next
                self._queue.put(None)
                break
            group.append(following)
            size += len(following.body)
        return group

    def _tell(self, group: Sequence[_Waiting], outcomes: Sequence[bytes | Exception]) -> None:
        self.inside -= len(group)
        for waiting, outcome in zip(group, outcomes, strict=True):
            if isinstance(outcome, Exception):
                waiting.answer.set_exception(outcome)
                waiting.answer.exception()  # retrieved, also where the caller has gone
            else:
                waiting.answer.set_result(outcome)

    def close(self) -> None:
        """Answer what waits, refuse the rest."""
        self._closed = True
        for _ in self._threads:
            self._queue.put(None)
        for thread in self._threads:
            thread.join()
