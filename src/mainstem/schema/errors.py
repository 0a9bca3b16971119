"""Every error that Mainstem raises on purpose.

MainstemError
|-- ConfigError            the configuration is wrong: names the key, the line, what is allowed
|-- InvalidRecord          a record breaks its contract: names the field
|   `-- TooFarAhead        an event's time is further in the future than the allowed skew
|-- MissingExtra           an optional engine is not installed: names the extra
|-- LogError               the event log cannot do what was asked
|   `-- PositionGone       a position that was read from has left the log
|-- StoreError             a state, weights or slate store is damaged or held by another process
|   `-- Incompatible       the stored definition differs from the configured one: says how to rebuild
|-- NotReady               nothing to answer with yet (no model, no index): callers degrade, never fail
`-- DatasetError           a data set is absent, damaged or not licensed for this use
"""

from __future__ import annotations

__all__ = [
    "ConfigError",
    "DatasetError",
    "Incompatible",
    "InvalidRecord",
    "LogError",
    "MainstemError",
    "MissingExtra",
    "NotReady",
    "PositionGone",
    "StoreError",
    "TooFarAhead",
]


class MainstemError(Exception):
    """Base of all errors raised on purpose; `except MainstemError` catches nothing else."""


class ConfigError(MainstemError):
    """The configuration is wrong. The message holds one line per problem."""


class InvalidRecord(MainstemError):
    """A record breaks its contract.

    `field` is the path of the offending field (`events[3].time`), `reason` what is allowed there.
    """

    def __init__(self, field: str, reason: str) -> None:
        super().__init__(f"{field}: {reason}")
        self.field = field
        self.reason = reason


class TooFarAhead(InvalidRecord):
    """An event's time lies further ahead of its arrival than the configured skew (law 4)."""


class MissingExtra(MainstemError):
    """An optional engine is not installed; the message says `pip install 'mainstem[EXTRA]'`."""

    def __init__(self, extra: str, needed_for: str) -> None:
        super().__init__(f"{needed_for} needs an extra package: pip install 'mainstem[{extra}]'")
        self.extra = extra


class LogError(MainstemError):
    """The event log cannot do what was asked."""


class PositionGone(LogError):
    """The position asked for lies before the oldest record that is kept."""


class StoreError(MainstemError):
    """A store is damaged or held by another process."""


class Incompatible(StoreError):
    """What is stored was made by another definition (law 11); the message says how to rebuild it."""


class NotReady(MainstemError):
    """There is nothing to answer with yet. Serving degrades on it and says so; it never fails."""


class DatasetError(MainstemError):
    """A data set is absent, damaged, or its licence was not accepted."""
