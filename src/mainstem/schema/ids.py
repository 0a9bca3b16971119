"""Identifiers: 64-bit keys of everything that is counted, embedded or looked up, and fresh ids.

A *key* is the 64-bit BLAKE2b digest of (tenant, family, value). Keys of all families share one space,
so one table can hold them all. Two of n distinct values share a key with probability about n^2 / 2^65:
below 3e-6 at ten million values. Key 0 means "none" everywhere and is never produced.
"""

from __future__ import annotations

import hashlib
import os
import time
from collections.abc import Iterable
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

__all__ = ["DEFAULT_TENANT", "NO_KEY", "Keys", "digest128", "fresh_id", "key64", "keys64"]

Keys = NDArray[np.uint64]

DEFAULT_TENANT = "main"
NO_KEY = 0


@lru_cache(maxsize=1 << 14)  # what comes again soon: popular items, a session's events; 283 bytes each
def key64(family: str, value: str, tenant: str = DEFAULT_TENANT) -> int:
    """The 64-bit key of `value` in `family` (`"item"`, `"user"`, `"item.category"` ...), never 0."""
    text = f"{tenant}\x1f{family}\x1f{value}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "little") or 1


def keys64(family: str, values: Iterable[str], tenant: str = DEFAULT_TENANT) -> Keys:
    """`key64` of many values: uint64 [n]."""
    return np.fromiter((key64(family, value, tenant) for value in values), dtype=np.uint64)


def digest128(text: str) -> bytes:
    """16 bytes that stand for an event_id in the log's memory of what it has seen."""
    return hashlib.blake2b(text.encode(), digest_size=16).digest()


def fresh_id(prefix: str) -> str:
    """A new unique id that sorts by creation time: `prefix-<12 hex of ms><20 random hex>`."""
    return f"{prefix}-{time.time_ns() // 1_000_000:012x}{os.urandom(10).hex()}"
