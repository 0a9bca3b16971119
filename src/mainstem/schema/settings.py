"""Under which circumstances something was asked or done: the fields of a context that models read, beside its category.

An event has them in its `extras`, by the same names; what it does not say is that of the slate that it answers
(`request_id`), where that went on record before.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import msgspec
import numpy as np
from numpy.typing import NDArray

from mainstem.schema.ids import DEFAULT_TENANT, NO_KEY, Keys, digest128, key64
from mainstem.schema.records import Context, Event, LogRecord, Served

__all__ = ["Setting", "SlateSettings", "setting_keys"]

# Slates whose settings are remembered: about 15 MB.
REMEMBERED = 100_000


class Setting(NamedTuple):
    """What is known; None where it is not."""

    country: str | None = None
    language: str | None = None
    device: str | None = None

    @classmethod
    def of(cls, context: Context) -> Setting:
        return cls(*(getattr(context, name) or None for name in cls._fields))

    def or_of(self, other: Setting) -> Setting:
        """`other` where this one does not know."""
        return Setting(*(mine or its for mine, its in zip(self, other, strict=True)))

    def key(self) -> int:
        """Of all together; 0 where nothing is known."""
        return key64("setting", "\x1f".join(value or "" for value in self)) if any(self) else NO_KEY

    def keys(self, tenant: str = DEFAULT_TENANT) -> list[int]:
        """Of each field's value, 0 where it is not known."""
        return [key64(name, value, tenant) if value else NO_KEY for name, value in zip(self._fields, self, strict=True)]


NOTHING = Setting()


def setting_keys(settings: Keys, known: Mapping[int, Setting]) -> Keys:
    """The keys of each field's value, uint64 [n, fields], of settings uint64 [n] as `EventBatch` has them."""
    distinct, place = np.unique(settings, return_inverse=True)
    of = [known.get(key, NOTHING).keys() for key in distinct.tolist()]
    found: Keys = np.array(of, np.uint64).reshape(-1, len(Setting._fields))[place]
    return found


class SlateSettings:
    """The settings of the latest slates on record, by request: those that say something, `REMEMBERED` at most. It knows
    no user, and requests by a digest alone. Fed in log order, it says the same however the log is cut."""

    def __init__(self) -> None:
        self._of: dict[bytes, Setting] = {}

    def follow(self, records: Sequence[LogRecord]) -> list[Setting]:
        """Take in slates, and say the setting of each event among these records."""
        found = []
        for record in records:
            if isinstance(record, Event):
                found.append(self._of_event(record))
            elif isinstance(record, Served) and any(setting := Setting.of(record.request.context)):
                self._of[digest128(record.slate.request_id)] = setting
                if len(self._of) > REMEMBERED:
                    del self._of[next(iter(self._of))]
        return found

    def _of_event(self, event: Event) -> Setting:
        own = NOTHING
        if event.extras:
            said = (event.extras.get(name) for name in Setting._fields)
            own = Setting(*(value if isinstance(value, str) and value else None for value in said))
        if event.request_id and self._of and not all(own):
            return own.or_of(self._of.get(digest128(event.request_id), NOTHING))
        return own

    # ---- checkpoints -------------------------------------------------------------------------------

    def state(self) -> dict[str, NDArray[Any]]:
        """requests uint8 [16 n], the oldest first; which int64 [n]: the place of each one's setting in `settings`, JSON
        as uint8."""
        distinct = {setting: place for place, setting in enumerate(dict.fromkeys(self._of.values()))}
        which = np.fromiter((distinct[setting] for setting in self._of.values()), np.int64, len(self._of))
        return {
            "requests": np.frombuffer(b"".join(self._of), np.uint8).copy(), "which": which,
            "settings": np.frombuffer(msgspec.json.encode(list(distinct)), np.uint8).copy(),
        }  # fmt: skip

    def load(self, state: Mapping[str, NDArray[Any]]) -> None:
        """Take up what `state` gave."""
        settings = [Setting(*values) for values in msgspec.json.decode(state["settings"].tobytes())]
        requests = state["requests"].tobytes()
        self._of = {requests[16 * i : 16 * i + 16]: settings[at] for i, at in enumerate(state["which"].tolist())}
