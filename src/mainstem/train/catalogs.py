"""The catalogue as of a snapshot, kept beside it: a start takes it up and reads the log only from there.

A copy of what the log holds, and no more to be trusted: where it is damaged, missing, made by another rule or too old,
the log is read from its beginning, and a line in the process's log says why.

Law 10: what the copy says of an entity that was erased later must not come back. The erasure's record says whom to
forget, but only for `log.keep_erasures`; so a copy is taken up only while it is younger than half of that, which leaves
the other half to a trainer that lagged behind the log when it was made.
"""

from __future__ import annotations

import logging
from typing import Any

from mainstem.catalog import EventEntities, State, columns_fingerprint, from_arrays, to_arrays
from mainstem.schema.config import Config
from mainstem.schema.errors import InvalidRecord, StoreError
from mainstem.schema.ids import digest128
from mainstem.schema.position import START, Position
from mainstem.schema.time import now_ms, parse_duration
from mainstem.train.online import OnlineLearner
from mainstem.weights import KeptCatalog, KeptCatalogs, Manifest

__all__ = ["keep", "take_up"]

_log = logging.getLogger(__name__)


def keep(store: KeptCatalogs, line: str, state: State, created: int, config: Config) -> dict[str, Any]:
    """Keep a catalogue as it was at wall-clock time `created`; what the extras of a snapshot say of it."""
    found = store.put(line, to_arrays(state))
    return KeptCatalog(found.sha256, found.bytes, str(state.position), _fingerprint(config), created).extras()


def _fingerprint(config: Config) -> str:
    """Of what a catalogue is made by, besides the log."""
    return digest128(EventEntities.of(config).fingerprint + columns_fingerprint(config.entities)).hex()


def take_up(store: KeptCatalogs, manifest: Manifest, learner: OnlineLearner) -> None:
    """Load the catalogue kept beside a snapshot, if it is good, into a learner that has none yet."""
    kept = KeptCatalog.of(manifest)
    if kept is None or learner.catalog.position() != START:
        return
    config = learner.config
    try:
        if kept.fingerprint != _fingerprint(config):
            raise StoreError("it was made by other attributes, `from_events` or events of interest than configured now")
        if not 0 <= now_ms() - kept.created < parse_duration(config.log.keep_erasures) / 2:
            raise StoreError("erasures since it was kept may have lost whom they erase (`log.keep_erasures`)")
        position = Position.parse(kept.position)
        if position.offset() > Position.parse(manifest.position).offset():
            raise StoreError(f"it has seen the log up to {position}, further than the snapshot")
        learner.catalog.load(from_arrays(store.load(manifest.line, kept), position))
    except (StoreError, InvalidRecord) as error:
        _log.warning("the catalogue beside %s is not taken up, the log is read instead: %s", manifest.version, error)
