"""Kept slates: the last good answer of each user on each canvas, and what batch runs computed ahead.

    memory.py  in this process, gone with it: the oracle
    lmdb.py    in a folder, survives a restart
    place.py   where a slate lies: what both agree on

A kept slate is a fallback that can be made again, so a store is bounded twice: by count (the oldest leave
first) and, whenever `expire` is called, by age in event time.
"""

from __future__ import annotations

from typing import Protocol
from urllib.parse import parse_qsl, urlsplit

from mainstem.schema.errors import ConfigError
from mainstem.schema.ids import DEFAULT_TENANT
from mainstem.schema.records import Slate
from mainstem.schema.time import DAY

__all__ = ["SlateStore", "open"]


class SlateStore(Protocol):
    """One slate per (tenant, canvas, user). Safe to use from several threads of one process."""

    def keep(self, tenant: str, canvas: str, user: str | None, slate: Slate, time: int) -> None:
        """Keep `slate`, made at event time `time` (ms), unless a newer one is kept. `user` None: of visitors."""
        ...

    def get(self, tenant: str, canvas: str, user: str | None, max_age: int, time: int | None = None) -> Slate | None:
        """The slate kept in the `max_age` ms up to and with `time` (None: the wall clock), if there is one.

        A slate made after `time` is never given: a replay of the past does not see its future (law 4).
        """
        ...

    def forget(self, user: str, tenant: str = DEFAULT_TENANT) -> int:
        """Drop the user's slates on every canvas (law 10), durable on return; how many went."""
        ...

    def expire(self, time: int) -> int:
        """Drop what is older than the store's age bound at event time `time`; how many went."""
        ...

    def __len__(self) -> int: ...

    def close(self) -> None: ...


def open(url: str = "memory://", *, capacity: int = 100_000, keep_for: int = 7 * DAY) -> SlateStore:
    """`memory://` or `lmdb:///FOLDER`, of at most `capacity` slates; `expire` drops those older than `keep_for` ms.

    Raises ConfigError on any other url, StoreError where the folder holds something else.
    """
    if capacity < 1 or keep_for < 1:
        raise ConfigError(f"kept slates: capacity {capacity} and keep_for {keep_for} must be at least 1")
    parts = urlsplit(url)
    if url == "memory://":
        from mainstem.slates.memory import MemorySlates

        return MemorySlates(capacity=capacity, keep_for=keep_for)
    if parts.scheme == "lmdb" and not parts.netloc and parts.path and not parse_qsl(parts.query):
        from mainstem.slates.lmdb import LmdbSlates

        return LmdbSlates(parts.path, capacity=capacity, keep_for=keep_for)
    raise ConfigError(f"kept slates url {url!r}: write memory:// or lmdb:///FOLDER")
