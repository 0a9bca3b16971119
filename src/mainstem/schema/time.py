"""Time: event time is an int, milliseconds since 1970 UTC; durations in files are written `30d`, `12h`.

Law 4: state, joins, expiry and features use event time. Deadlines and timings use `time.monotonic`.
"""

from __future__ import annotations

import re
import time as _time
from datetime import UTC, datetime, timedelta

from mainstem.schema.errors import InvalidRecord

__all__ = ["DAY", "HOUR", "MINUTE", "SECOND", "iso", "now_ms", "parse_duration", "parse_time"]

SECOND = 1_000
MINUTE = 60 * SECOND
HOUR = 60 * MINUTE
DAY = 24 * HOUR

_UNITS = {"ms": 1, "s": SECOND, "m": MINUTE, "h": HOUR, "d": DAY, "w": 7 * DAY}
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_DURATION = re.compile(r"^\s*(\d+(?:\.\d+)?)\s*(ms|s|m|h|d|w)\s*$")
# Year 1 and year 9999 in ms: outside of it `datetime` cannot print the value back.
_EARLIEST, _LATEST = -62_135_596_800_000, 253_402_300_799_999


def now_ms() -> int:
    """The wall clock, in ms since 1970 UTC."""
    return _time.time_ns() // 1_000_000


def parse_duration(text: str) -> int:
    """`"90s"`, `"12h"`, `"1.5d"`, `"2w"` -> ms. Raises ValueError naming the form expected."""
    match = _DURATION.match(text)
    if not match:
        raise ValueError(f"{text!r} is not a duration; write a number and one of ms, s, m, h, d, w, as in 30d")
    return round(float(match[1]) * _UNITS[match[2]])


def parse_time(value: object, field: str = "time") -> int:
    """ISO 8601 text (UTC where no zone is given) or whole ms since 1970 -> ms.

    Raises InvalidRecord naming `field`.
    """
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise InvalidRecord(field, "must be ISO 8601 text or whole milliseconds since 1970")
    if isinstance(value, int):
        if not _EARLIEST <= value <= _LATEST:
            raise InvalidRecord(field, f"{value} ms lies outside the years 1 to 9999")
        return value
    try:
        moment = datetime.fromisoformat(value)
    except ValueError:
        raise InvalidRecord(field, f"{value!r} is not ISO 8601, as in 2017-12-04T09:30:00Z") from None
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return round(moment.timestamp() * 1000)


def iso(ms: int) -> str:
    """ms since 1970 -> `2017-12-04T09:30:00.000Z`."""
    moment = _EPOCH + timedelta(milliseconds=ms)  # a float of seconds would lose a ms in far years
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")
