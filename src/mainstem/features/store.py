"""The feature store: the features, composed over one state.

Write: the events to fold now (see `pending.py`) go through every feature into an overlay, which is committed
together with the position, the pending events and the list of changed keys. Read: a snapshot, with the pending
events folded over it for requests after them (once per version of the state, not once a request), and mirrors
of the item and place tables that follow the versions, whichever process wrote them.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import chain
from threading import Lock, RLock
from typing import NamedTuple

import msgspec
import numpy as np

from mainstem.features.affinity import Affinity
from mainstem.features.cooccurrence import Cooccurrence
from mainstem.features.hidden import Hidden
from mainstem.features.history import UserHistory
from mainstem.features.mirror import Mirror
from mainstem.features.moment import Moment
from mainstem.features.pending import ALIAS, EVENT, HIDE, Fold, Kinds, columns, sequence
from mainstem.features.place import Place, PlaceRows
from mainstem.features.popularity import Popularity, Ranking
from mainstem.features.reading import Feature, Reading
from mainstem.features.state import Backend, Overlay, Records, Snapshot
from mainstem.features.user_item import UserItem
from mainstem.features.view import View
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.errors import Incompatible, InvalidRecord
from mainstem.schema.ids import key64
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Catalog
from mainstem.schema.records import Context
from mainstem.schema.time import parse_duration

__all__ = ["Store"]

_META, _PENDING, _DEFINITIONS = 0, 1, 2  # keys of table "meta"
_JOURNAL = 256  # versions whose changed keys are kept for replicas
_JOURNAL_KEYS = 4096  # a version that changed more says "load everything"


class _Meta(msgspec.Struct, frozen=True):
    """`newest`: the newest event time seen; `folded`: the newest that is in the base state."""

    version: int = 0
    position: str = str(START)
    newest: int | None = None
    folded: int | None = None


class _Pending(NamedTuple):
    """What is pending in a version of the state, so many events, folded."""

    version: int
    events: int
    overlay: Overlay


class Store:
    """Implements `FeatureStore`. One writer; views may be opened from any thread."""

    def __init__(self, backend: Backend, config: Config, catalog: Catalog, extra: Sequence[Feature] = ()) -> None:
        """`extra`: features besides the built-in ones; they are written after them."""
        self._backend, self._config = backend, config
        self._kinds = Kinds(config)
        self.kinds = self._kinds.names
        """What `History.kind` indexes."""
        self.user_item, self.history = UserItem(config), UserHistory(config)
        self.popularity, self.hidden = Popularity(config), Hidden(config)
        self.affinity = Affinity(config, catalog, self.user_item, self.popularity)
        self.place = Place(config, self.history)
        self.cooccurrence = Cooccurrence(config, self.history, self.user_item, self.popularity)
        # In order of writing: what a feature finds out for the others (see Fold) comes first.
        self._folding: list[Feature] = [
            self.user_item, self.history, self.popularity, self.affinity, self.place, self.cooccurrence,
            *extra,
        ]  # fmt: skip
        self._features: list[Feature] = [*self._folding, self.hidden, Moment()]
        self.names = tuple(name for feature in self._features for name in feature.names)
        ends = np.cumsum([len(feature.names) for feature in self._features]).tolist()
        self.columns: list[tuple[Feature, slice]] = [
            (feature, slice(end - len(feature.names), end)) for feature, end in zip(self._features, ends, strict=True)
        ]
        self._definitions = {feature.name: feature.definition for feature in self._features}
        definition = msgspec.json.encode((self._definitions, self.names))
        self.fingerprint = hashlib.blake2b(definition, digest_size=8).hexdigest()
        """Of the state's definition and of the columns made from it: what a model was trained on."""
        self._definitions["storage"] = backend.form  # of the state alone: a model does not depend on it
        ring = self.popularity.ring
        self._mirrors = {"item": Mirror(ring.dtype), "value": Mirror(ring.dtype), "place": Mirror(self.place.dtype)}
        self.ranking = Ranking(ring, self._mirrors["item"])
        self.place_rows = PlaceRows(self._mirrors["place"])
        self._mirrored = -1
        self._lock = RLock()  # of the mirrors and the overlay
        self._writing = Lock()
        self._pending_overlay: _Pending | None = None
        self._same_base = (-1, -1)
        """Versions, the first and the last, between which this store folded nothing: what is pending only grew."""
        self._open()

    def _open(self) -> None:
        snapshot = self._backend.read()
        try:
            stored = snapshot.get("meta", [_DEFINITIONS])[0]
            if stored is not None:
                self._compare(msgspec.json.decode(stored, type=dict[str, str]))
            self._catch_up(snapshot, self._meta(snapshot).version)
        finally:
            snapshot.close()
        if stored is None and not self._backend.readonly:
            first = {_META: msgspec.json.encode(_Meta()), _DEFINITIONS: msgspec.json.encode(self._definitions)}
            self._backend.commit({"meta": first}, 0)

    def _compare(self, stored: dict[str, str]) -> None:
        changed = [
            f"{name} (stored: {stored.get(name, 'absent')}; configured: {self._definitions.get(name, 'absent')})"
            for name in sorted(stored.keys() | self._definitions.keys())
            if stored.get(name) != self._definitions.get(name)
        ]
        if changed:
            raise Incompatible(
                f"the feature state was made by another definition of {'; '.join(changed)}. `mainstem backfill` "
                "rebuilds it from the log beside the old one, which keeps serving the old definition until then"
            )

    # ---- writing -----------------------------------------------------------------------------------

    def write(self, events: EventBatch, position: Position) -> None:
        """Fold events into the state and commit `position`, in one transaction (law 2). Events whose offset
        the state has passed are skipped, so that a batch may come twice."""
        with self._changing() as (state, meta, pending):
            rows = columns(events, self._kinds, Position.parse(meta.position).offset())
            now, waiting, newest = sequence(pending, meta.newest, rows)
            self._fold(now, state)
            state.put("meta", [_PENDING], [waiting.tobytes()])
            folded = [int(now["time"].max())] if len(now) else []
            folded += [] if meta.folded is None else [meta.folded]
            self._commit(state, _Meta(
                meta.version, str(Position.parse(meta.position).merge(position)), newest, max(folded, default=None)
            ))  # fmt: skip

    def _fold(self, rows: Records, state: Overlay) -> None:
        """Fold events in order. An alias takes effect between those before and those after it."""
        breaks = np.flatnonzero(rows["kind"] == ALIAS)
        for part in np.split(rows, breaks):
            if len(part) and part["kind"][0] == ALIAS:
                self._merge(int(part["entity"][0]), int(part["user"][0]), state)
            interest, hidden = part[part["kind"] >= 0], part[part["kind"] == HIDE]
            if len(interest):
                fold = Fold(interest)
                for feature in self._folding:
                    feature.write(fold, state)
            if len(hidden):
                self.hidden.write(Fold(hidden), state)

    def _merge(self, guest: int, user: int, state: Overlay) -> None:
        """Later events under the guest's own key begin a new state of that key."""
        if guest != user:
            for feature in self._features:
                feature.merge(guest, user, state)

    def _commit(self, state: Overlay, meta: _Meta) -> None:
        version = meta.version + 1
        first, last = self._same_base
        same = state.changes.keys() <= {"meta"}
        self._same_base = first if same and last == meta.version else meta.version if same else version, version
        state.put("meta", [_META], [msgspec.json.encode(msgspec.structs.replace(meta, version=version))])
        keys = [list(state.changes.get(table, ())) for table in self._mirrors]
        sizes = [len(one) for one in keys]
        entry = [version, *sizes, *chain(*keys)] if sum(sizes) <= _JOURNAL_KEYS else [version]
        state.put("journal", [version % _JOURNAL], [np.array(entry, np.uint64).tobytes()])
        self._backend.commit(state.changes, meta.version)
        with self._lock:
            if self._mirrored == meta.version:  # else a view has caught up in between
                for table, mirror in self._mirrors.items():
                    mirror.apply(state.changes.get(table, {}))
                self._mirrored = version

    def erase(self, user: int) -> None:
        with self._changing() as (state, meta, pending):
            for feature in self._features:
                feature.erase(user, state)
            state.put("meta", [_PENDING], [pending[pending["user"] != user].tobytes()])
            self._commit(state, meta)

    def alias(self, guest: int, user: int) -> None:
        with self._changing() as (state, meta, pending):
            self._merge(guest, user, state)
            pending["user"][pending["user"] == guest] = user
            state.put("meta", [_PENDING], [pending.tobytes()])
            self._commit(state, meta)

    def expire(self, time: int) -> int:
        limit = time - parse_duration(self._config.features.expire)
        with self._changing() as (state, meta, _):
            gone = sum(feature.expire(limit, state.base, state) for feature in self._features)
            if gone:
                self._commit(state, meta)
        return gone

    @contextmanager
    def _changing(self) -> Iterator[tuple[Overlay, _Meta, Records]]:
        with self._writing:
            snapshot = self._backend.read()
            try:
                yield Overlay(snapshot), self._meta(snapshot), self._pending(snapshot)
            finally:
                snapshot.close()

    # ---- reading -----------------------------------------------------------------------------------

    @staticmethod
    def _meta(snapshot: Snapshot) -> _Meta:
        stored = snapshot.get("meta", [_META])[0]
        return msgspec.json.decode(stored, type=_Meta) if stored else _Meta()

    @staticmethod
    def _pending(snapshot: Snapshot) -> Records:
        return np.frombuffer(bytearray(snapshot.get("meta", [_PENDING])[0] or b""), EVENT)

    def position(self) -> Position:
        snapshot = self._backend.read()
        try:
            return Position.parse(self._meta(snapshot).position)
        finally:
            snapshot.close()

    def view(self, context: Context, tenant: str = "main") -> View:
        """A view for `context.user` at `context.time`, in ms. Raises InvalidRecord where the time is missing.

        Exact for any time after all folded events (see `View.exact`): the present, or a replay in order.
        """
        if context.time is None:
            raise InvalidRecord("context.time", "must be set")
        snapshot = self._backend.read()
        try:
            reading, meta = self._reading(snapshot, context.time)
        except BaseException:
            snapshot.close()
            raise
        reading.time = context.time
        reading.user = key64("user", context.user, tenant) if context.user is not None else 0
        extra = self._config.features.place
        if extra is not None and extra in context.extras:
            reading.place = key64("place", str(context.extras[extra]), tenant)
        exact = meta.folded is None or meta.folded < context.time
        return View(self, reading, Position.parse(meta.position), exact)

    def _reading(self, snapshot: Snapshot, time: int) -> tuple[Reading, _Meta]:
        meta = self._meta(snapshot)
        with self._lock:
            self._catch_up(snapshot, meta.version)
            overlay = None
            if meta.newest is not None and time > meta.newest:
                overlay = self._overlay(snapshot, meta.version)
        version = meta.version
        return Reading(snapshot, overlay, self._mirrors, self._lock, lambda: self._mirrored == version), meta

    def _overlay(self, snapshot: Snapshot, version: int) -> Overlay:
        """The pending events folded over `snapshot`, made once per version; where they only grew, from what was made
        before: many events may bear one time, and each makes a version."""
        made = self._pending_overlay
        if made is None or made.version != version:
            first, last = self._same_base
            pending = self._pending(snapshot)
            if made is not None and first <= made.version < version <= last:
                overlay = made.overlay.copied(snapshot)
                self._fold(pending[made.events :], overlay)
            else:
                overlay = Overlay(snapshot)
                self._fold(pending, overlay)
            made = self._pending_overlay = _Pending(version, len(pending), overlay)
        return made.overlay.over(snapshot)

    def _catch_up(self, snapshot: Snapshot, version: int) -> None:
        """Bring the mirrors to `version`, by the keys that the versions since changed, or by loading all."""
        if self._mirrored >= version:
            return
        changed: dict[str, set[int]] = {name: set() for name in self._mirrors}
        versions = range(self._mirrored + 1, version + 1)
        known = self._mirrored >= 0 and len(versions) <= _JOURNAL
        if known:
            for expected, blob in zip(versions, snapshot.get("journal", [v % _JOURNAL for v in versions]), strict=True):
                entry = np.frombuffer(blob or b"", np.uint64).tolist()
                known = known and len(entry) > 1 and entry[0] == expected
                if not known:
                    break
                start = 1 + len(changed)
                for size, keys in zip(entry[1:start], changed.values(), strict=True):
                    keys.update(entry[start : start + size])
                    start += size
        for name, keys in changed.items():
            if known:
                self._mirrors[name].apply(dict(zip(keys, snapshot.get(name, list(keys)), strict=True)))
            else:
                self._mirrors[name].load(snapshot.scan(name))
        self._mirrored = version

    # ---- upkeep ------------------------------------------------------------------------------------

    def nbytes(self) -> dict[str, int]:
        """Bytes per stored table, and of the mirrors in this process.

        At the default features, before the store's own overhead (a half as much again in LMDB): a user takes
        48 + 56 per entity counted (2048 at most) + 40 per event in the history (100 at most), packed in LMDB to about
        a sixth; an item 264 + 16 per neighbour (64 at most); a pair of place and item 40; an attribute value 264. The
        mirrors take 280 per item and value and 56 per pair, up to twice that after growth.
        """
        mirrors = {f"mirror_{name}": mirror.nbytes() for name, mirror in self._mirrors.items()}
        return self._backend.nbytes() | mirrors

    def close(self) -> None:
        self._backend.close()
