"""Puts served slates on record, behind the answers' back: in the log, and among the kept slates.

A record that still waits here is lost by a kill; nothing that was acknowledged to a client ever waits here.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Sequence

import msgspec
import numpy as np

from mainstem.schema.errors import InvalidRecord
from mainstem.schema.ids import Keys
from mainstem.schema.pools import pack_pool
from mainstem.schema.protocols import Floats
from mainstem.schema.records import LogRecord, Past, Served, Slate, SlateRequest

__all__ = ["Recorder"]

_log = logging.getLogger(__name__)

# Slates written to the log in one append at most.
BATCH = 1_000
# Seconds that a slate waits for others to share its append: each is a commit that waits for the disk.
PATIENCE = 0.05
# Slates that may wait; beyond it new ones are dropped and counted.
WAITING = 100_000
# Slates that wait beyond which no pools are taken along: they are a hundred times larger.
WAITING_FOR_POOLS = 500

# A slate, whether it goes on record, and its candidates where they do.
_Taken = tuple[Served, bool, tuple[Keys, Floats] | None]


class Recorder:
    """`append(records)` writes to the log; `keep(served)` to the kept slates.

    Of all slates the share `sample` in [0, 1] goes on record, evenly spaced, and the share `pools` with all its
    candidates; every good one is kept: one with items, of which nothing but freshness is degraded. Safe to call from
    several threads.
    """

    def __init__(
        self,
        append: Callable[[Sequence[LogRecord]], object],
        keep: Callable[[Served], None],
        sample: float = 1.0,
        pools: float = 0.0,
    ) -> None:
        for name, share in (("sample", sample), ("pools", pools)):
            if not 0 <= share <= 1:
                raise ValueError(f"{name} must lie in [0, 1], not {share}")
        self.append, self.keep, self.sample, self.pools = append, keep, sample, pools
        self.failures = 0
        """Slates that should be on record and are not."""
        self.unkept = 0
        """Good slates that could not be kept."""
        self._queue: queue.SimpleQueue[_Taken | None] = queue.SimpleQueue()
        self._count = self._pooled = 0
        self._closed = False
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="recorder", daemon=True)
        self._thread.start()

    def record(
        self, request: SlateRequest, slate: Slate, inputs: Sequence[str], values: Floats,
        pool: tuple[Keys, Floats] | None = None, past: Past | None = None,
    ) -> None:  # fmt: skip
        """Take a slate with the network's inputs for its items: values [len(slate.items), len(inputs)]; for all of its
        candidates: keys [n] and their inputs [n, len(inputs)]; and what it read of the history."""
        served = Served(
            record_id=slate.request_id,
            time=slate.time,
            user=request.context.user,
            request=request,
            slate=slate,
            shown=request.shown,
            feature_names=list(inputs),
            features=np.asarray(values, np.float32).tobytes(),
            past=past,
            tenant=request.tenant,
        )
        with self._lock:
            self._count += 1
            on_record = _is_due(self._count, self.sample)
            if pool is not None:
                self._pooled += 1
                wanted = request.pool or _is_due(self._pooled, self.pools)
                pool = pool if wanted and self._queue.qsize() < WAITING_FOR_POOLS else None
                on_record |= pool is not None
            if self._closed or self._queue.qsize() >= WAITING:
                self.failures += on_record
                return
            self._queue.put((served, on_record, pool))

    def close(self) -> None:
        """Write what waits, then stop. What is recorded afterwards is counted in `failures`."""
        with self._lock:
            if not self._closed:
                self._closed = True
                self._queue.put(None)
        self._thread.join()

    def _run(self) -> None:
        going = True
        while going:
            first = self._queue.get()
            batch = [] if first is None else [first]
            going = first is not None
            until = time.monotonic() + PATIENCE
            while going and len(batch) < BATCH:
                try:
                    waiting = self._queue.get(timeout=max(until - time.monotonic(), 0.0))
                except queue.Empty:
                    break
                if waiting is None:
                    going = False
                else:
                    batch.append(waiting)
            self._write([_with_pool(served, pool) for served, on_record, pool in batch if on_record])
            self._keep([served for served, _, _ in batch])

    def _write(self, batch: Sequence[Served]) -> None:
        """Append all; where the log refuses one of them, one by one, so that only that one is lost."""
        if not batch:
            return
        try:
            self.append(batch)
        except InvalidRecord as refused:
            if len(batch) > 1:
                for served in batch:
                    self._write([served])
                return
            self.failures += 1
            _log.warning("slate %s was not put on record: %s", batch[0].record_id, refused)
        except Exception:  # noqa: BLE001 - the recorder must outlive a full disk; what it dropped is counted
            self.failures += len(batch)
            _log.exception("%d served slates were not put on record", len(batch))

    def _keep(self, batch: Sequence[Served]) -> None:
        for served in batch:
            if not served.slate.items or any(what.stage != "freshness" for what in served.slate.degraded):
                continue
            try:
                self.keep(served)
            except Exception:  # noqa: BLE001 - as above
                self.unkept += 1
                _log.exception("slate %s was not kept", served.record_id)


def _is_due(count: int, share: float) -> bool:
    """Whole numbers passed by count * share: every 1/share-th, without drift."""
    return int(count * share) > int((count - 1) * share)


def _with_pool(served: Served, pool: tuple[Keys, Floats] | None) -> Served:
    # here, not where the slate is answered: packing takes a few ms
    return served if pool is None else msgspec.structs.replace(served, pool=pack_pool(*pool))
