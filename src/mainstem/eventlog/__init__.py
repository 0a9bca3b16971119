"""The event log: the one place where things that happened rest (law 1).

    admission.py  what every append checks before anything is written
    memory.py     the plain log in one list: the oracle of the others
    sqlite.py     the default: SQLite in WAL mode, acknowledged means durable
    connections.py  its connections, and the lock of its one writer
    sealing.py    moves ranges from SQLite to history, in the background
    arrivals.py   when records arrived, so that old ones can leave
    history.py    sealed ranges as Parquet, typed columns and the lossless record
    rows.py       what SQLite holds of the log, and how far followers have come
    forgetting.py what an erasure removes: pure functions on records
    tombstones.py who is erased, without saying so: keyed hashes in a folder beside the log
    erasing.py    takes what is erased out of the files, by slices, in the background
    dedup.py      which ids the log holds, over its whole length

`open` picks by URL.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mainstem.schema.config import LogConfig
from mainstem.schema.errors import ConfigError

if TYPE_CHECKING:
    from mainstem.schema.protocols import Log

__all__ = ["open", "path_of"]


def path_of(url: str, scheme: str) -> Path:
    """The path of `scheme:///path`, which is absolute; `scheme:///./path` is relative to the working directory.

    Several leading slashes count as one, so `sqlite:///{data}/log.sqlite` works with an absolute `data`.
    Raises ConfigError where the scheme is another one or the path is missing.
    """
    prefix = f"{scheme}://"
    rest = url.removeprefix(prefix).lstrip("/")
    if not url.startswith(prefix + "/") or not rest:
        raise ConfigError(f"{url!r} is not a {scheme} URL; write {scheme}:///path/to/it")
    return Path(rest) if rest.startswith("./") else Path("/" + rest)


def open(url: str, *, history: str, config: LogConfig | None = None, claim: bool = False) -> Log:
    """The log at `url`: `sqlite:///path/log.sqlite` or `memory://`. `history` is a `file:///folder` URL.

    A SQLite log is opened as a reader; the first `append` (or `claim=True`, at once) makes this process its
    one writer. Raises StoreError where another process is the writer, ConfigError for an unknown URL.
    """
    config = config or LogConfig()
    if url == "memory://":
        from mainstem.eventlog.memory import MemoryLog

        return MemoryLog(config)
    if url.startswith("sqlite:"):
        from mainstem.eventlog.sqlite import SqliteLog

        log = SqliteLog(path_of(url, "sqlite"), path_of(history, "file"), config)
        if claim:
            log.claim()
        return log
    raise ConfigError(f"storage.log: {url!r} is not known; allowed: sqlite:///path/log.sqlite, memory://")
