"""Puts served slates on record, behind the answers' back: in the log, and among the kept slates.

A record that still waits here is lost by a kill; nothing that was acknowledged to a client ever waits here.
"""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable, Sequence

from mainstem.schema.protocols import Floats
from mainstem.schema.records import LogRecord, Served, Slate, SlateRequest

__all__ = ["Recorder"]

_log = logging.getLogger(__name__)

# Slates written to the log in one append at most.
BATCH = 1_000


class Recorder:
    """`append(records)` writes to the log; `keep(served)` to the kept slates. `sample` in [0, 1] go on record."""

    def __init__(
        self,
        append: Callable[[Sequence[LogRecord]], object],
        keep: Callable[[Served], None],
        sample: float = 1.0,
    ) -> None:
        self.append, self.keep, self.sample = append, keep, sample
        self.failures = 0
        self._queue: queue.SimpleQueue[Served | None] = queue.SimpleQueue()
        self._debt = 0.0
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def record(self, request: SlateRequest, slate: Slate, inputs: Sequence[str], values: Floats) -> None:
        """Take a slate with the network's inputs for its items: values [len(slate.items), len(inputs)]."""
        self._debt += self.sample
        if self._debt < 1.0:  # evenly spaced: every 1/sample-th slate
            return
        self._debt -= 1.0
        served = Served(
            record_id=slate.request_id,
            time=slate.time,
            user=request.context.user,
            request=request,
            slate=slate,
            shown=request.shown,
            feature_names=list(inputs),
            features=values.tobytes(),
            tenant=request.tenant,
        )
        self._queue.put(served)

    def close(self) -> None:
        """Write what waits, then stop."""
        self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            batch: list[Served] = []
            waiting = self._queue.get()
            while waiting is not None and len(batch) < BATCH:
                batch.append(waiting)
                if self._queue.empty():
                    break
                waiting = self._queue.get()
            going = waiting is not None
            self._write(batch)

    def _write(self, batch: Sequence[Served]) -> None:
        try:
            self.append(batch)
            for served in batch:
                if not served.slate.degraded:
                    self.keep(served)
        except Exception:  # noqa: BLE001 - the recorder must outlive a full disk; what it dropped is counted
            self.failures += len(batch)
            _log.exception("%d served slates were not put on record", len(batch))
