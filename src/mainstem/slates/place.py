"""Where a slate lies: 32 bytes, the user's half first, so that all of a user's slates lie side by side."""

from __future__ import annotations

import hashlib

__all__ = ["HALF", "place_of", "user_half"]

HALF = 16


def user_half(tenant: str, user: str | None) -> bytes:
    """The first half of the place of every slate of the user; None has one that no user can have."""
    return _digest(tenant, "visitor" if user is None else f"user\x1f{user}")


def place_of(tenant: str, canvas: str, user: str | None) -> bytes:
    """BLAKE2b halves of (tenant, user) and (tenant, canvas)."""
    return user_half(tenant, user) + _digest(tenant, canvas)


def _digest(tenant: str, text: str) -> bytes:
    return hashlib.blake2b(f"{tenant}\x1f{text}".encode(), digest_size=HALF).digest()
