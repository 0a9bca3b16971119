"""`mainstem train --online`: learns until it is told to stop, and says every few seconds how it stands."""

from __future__ import annotations

import logging
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from mainstem.schema.errors import MainstemError

if TYPE_CHECKING:
    from mainstem.learning import Learning
    from mainstem.schema.config import Config

__all__ = ["train_online"]

# Seconds between the lines that say how it stands.
STATUS_EVERY = 10.0


def train_online(settings: Config, config: Path, say: Callable[[str], None]) -> None:
    """Until SIGTERM or SIGINT. Raises MainstemError where the learning ended by itself."""
    from mainstem.learning import Learning, Rebuilds

    logging.basicConfig(level="INFO", format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    logging.getLogger("faiss.loader").setLevel(logging.WARNING)
    ended = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: ended.set())
    rebuilds = Rebuilds(settings, config)
    with Learning(settings, config.parent) as learning:
        say("learning online; Ctrl-C ends it")
        learning.start()
        rebuilds.start()
        while not ended.wait(STATUS_EVERY) and learning.failure is None:
            say(status_line(learning))
        rebuilds.stop()
    say(status_line(learning))
    if learning.failure is not None:
        raise MainstemError(f"online learning has ended: {learning.failure}")


def status_line(learning: Learning) -> str:
    """How it stands, in one line."""
    if learning.trainer is None:
        return f"waiting: {learning.waiting or 'for the first model'}"
    status = learning.trainer.status
    line = (
        f"delta {status.sequence:,} of {status.base[:10]}; {status.records:,} records, {status.positives:,} positives, "
        f"{status.slates:,} slates, {status.lag:,} behind, loss {status.loss:.3f}"
    )
    if status.refused:
        line += f"; {status.refused} refused, the last one: {status.last_refusal}"
    return line + (f"; failing: {status.failure}" if status.failure else "")
