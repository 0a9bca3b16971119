"""Takes what is erased out of the files of the log (law 10), by slices, in the background of the writing process.

One *pass* brings all tombstones to all files: slices of SQLite, then the write-ahead log, which is cut to nothing,
then each Parquet file that holds something of them, written anew beside the old one and swapped by a rename. Each
place keeps an `Erased`, so offsets stay. The order makes a crash harmless anywhere, as everything can be repeated:

    (1) the Erase is durable in the log, with a row in `erasures`      acknowledged; all processes hide it
    (2) its tombstone is durable                                       an old copy of the log is caught, too
    (3) slices and files are rewritten; `swept` notes files by stamp   a file that is put back has another stamp
    (4) `erased` in `meta` notes how many tombstones all files know

A guest that became an erased user (`alias`) is erased with it: before the record that joins them is rewritten, the
log holds an Erase of the guest, which goes through the same steps. After `keep_erasures`, and once every follower has
passed it, an Erase of a user loses its name too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from threading import Lock, RLock

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from mainstem.eventlog.admission import decode_many
from mainstem.eventlog.connections import Connections
from mainstem.eventlog.forgetting import USER, target
from mainstem.eventlog.history import ROW_GROUP, History, Range
from mainstem.eventlog.rows import Followers, Rows
from mainstem.eventlog.tombstones import TombstoneFile, Tombstones
from mainstem.schema.errors import StoreError
from mainstem.schema.protocols import Erasures
from mainstem.schema.records import Erase, LogRecord, encode_record
from mainstem.schema.time import now_ms

__all__ = ["Eraser"]

_SLICE = 2_048  # rows of SQLite looked at under one hold of the locks
_BUSY, _HELD, _LONGEST = 0.1, 60.0, 3_600.0  # seconds: until the WAL, a follower, the clock is looked at again
_NEW, _SAVED, _UNNAMED = 0, 1, 2  # states of a row in `erasures`: then its tombstone is durable, then its name gone

Append = Callable[[Sequence[LogRecord]], object]


class Eraser:
    """What one log erases. `sealing` and `writing` are the log's locks, taken in this order."""

    def __init__(
        self, path: Path, store: Connections, history: History, sealing: Lock, writing: RLock, append: Append, keep: int
    ) -> None:  # fmt: skip
        self._store, self._history, self._sealing, self._writing = store, history, sealing, writing
        self._append, self._keep = append, keep
        self._rows, self._followers = Rows(store, path), Followers(store)
        self._file = TombstoneFile(path.with_name(path.name + ".erased"))
        self._held: Tombstones | None = None
        self._seen: tuple[Tombstones, list[int], Tombstones] | None = None  # of a process that does not write
        self._saved = 0
        self._mark = -1
        self._recheck = False  # are there files that have not been looked through since they became what they are?
        self._stepping = Lock()
        self._pass: Iterator[float] | None = None

    # ---- for those who read and append ---------------------------------------------------------------

    def tombstones(self) -> Tombstones:
        """As this process knows them; one that does not write reads them from the disk as they change, with the
        erasures that are so new that they have none yet."""
        if self._held is not None:
            return self._held
        new = self._offsets(_NEW)
        saved = self._file.current()
        if not new:
            return saved
        if self._seen is None or self._seen[:2] != (saved, new):
            held = Tombstones(saved.key)
            for entry in saved.entries:
                held.add(entry)
            self._take_in(held, new)
            self._seen = saved, new, held
        return self._seen[2]

    @property
    def waiting(self) -> bool:
        """Is there something to erase, now or once it is old enough?"""
        held = self.tombstones()
        return bool(held.entries) or self._mark < 0

    def progress(self) -> Erasures:
        held, mark = self.tombstones(), self._mark
        if self._held is None:
            meta = self._rows.meta()
            mark = meta.get("erased", -1) if meta.get("erased_key") == held.key_number else -1
        return Erasures(len(held), max(len(held.entries) - max(mark, 0), int(self._recheck)))

    def commit(self, erasures: Sequence[tuple[int, Erase]]) -> None:
        """These are durable in the log now, with their rows in `erasures`. Under the writer's lock."""
        assert self._held is not None
        for offset, erase in erasures:
            self._held.add(self._held.entry_of(target(erase), offset, erase.time))

    # ---- opening ---------------------------------------------------------------------------------------

    def load(self, end: int) -> None:
        """Become the one that erases in this log, which ends at `end`. Under the writer's lock."""
        held, meta = self._file.open(), self._rows.meta()
        with self._store.shared() as connection:
            noted = connection.execute("SELECT count(*) FROM erasures").fetchone()[0]
            # Without tombstones and without erasures there is no key to compare yet.
            if meta.get("erased_key") != held.key_number and (noted or held.entries or "erased" not in meta):
                # A log of old, or its tombstones are lost, or of another log: all is looked through again.
                connection.execute("UPDATE erasures SET state = 0")
                connection.execute("DELETE FROM swept")
                self._note_mark(connection.execute, held, -1 if end else 0)
            else:
                self._mark = min(meta.get("erased", 0), len(held.entries))
        self._saved = len(held.entries)
        held.cut_to(end)
        self._held = held
        self.learn()
        self._save()
        known = len(held.entries)
        self._recheck = known > 0 and not all(self._swept(span, known) for span in self._history.ranges())

    def learn(self) -> None:
        """Take in erasures that the disk holds and this process has no tombstone of. Under the writer's lock."""
        if self._held is not None:
            self._take_in(self._held, self._offsets(_NEW))

    def _take_in(self, held: Tombstones, offsets: Sequence[int]) -> None:
        for offset in offsets:
            erase = self._record(offset)
            if isinstance(erase, Erase) and not held.reaches(target(erase), offset):
                held.add(held.entry_of(target(erase), offset, erase.time))

    # ---- the work ----------------------------------------------------------------------------------------

    def step(self) -> float | None:
        """Do one slice. Seconds until there is more to do: 0 at once; None: nothing until something is erased."""
        with self._stepping:
            held = self._held
            if held is None:
                return None
            if self._pass is None:
                pause = self._take_names(held)
                if self._mark >= len(held.entries) and not self._recheck:
                    return pause
                self._pass = self._one_pass(held)
            try:
                return next(self._pass)
            except StopIteration:
                self._pass = None
                return 0.0
            except BaseException:
                self._pass = None
                raise

    def _one_pass(self, held: Tombstones) -> Iterator[float]:
        self._save()
        known = len(held.entries)
        if self._mark < known:
            with self._store.shared() as reader:
                first = reader.execute("SELECT min(offset) FROM records").fetchone()[0] or 0
            end = self._rows.end()
            for at in range(first, end if self._mark < 0 else min(end, held.reach), _SLICE):
                with self._sealing:  # what is being sealed is read raw
                    self._rewrite_rows(held, at)
                yield 0.0
            while not self._store.empty_wal(self._writing):
                yield _BUSY
        for span in self._history.ranges():
            if not self._swept(span, known):
                with self._sealing:
                    if span.path.exists():
                        self._rewrite_file(held, span)
                        self._note_swept(span, known)
                yield 0.0
        with self._store.shared() as connection:
            self._note_mark(connection.execute, held, known)
        self._recheck = False

    def _rewrite_rows(self, held: Tombstones, at: int) -> None:
        rows = self._rows.some(at, _SLICE)
        changed = self._changes(held, [offset for offset, _ in rows], [body for _, body in rows])
        if changed:
            with self._writing, self._store.transaction() as writer:
                writer.executemany(
                    "UPDATE records SET body = ? WHERE offset = ?", [(body, offset) for offset, body in changed.items()]
                )

    def _rewrite_file(self, held: Tombstones, span: Range) -> None:
        try:
            if not self._concerned(held, span):
                return
            changed: dict[int, bytes] = {}
            with pq.ParquetFile(span.path) as file:
                for group in range(file.num_row_groups):
                    bodies = file.read_row_group(group, columns=["body"]).column(0).to_pylist()
                    first = span.first + group * ROW_GROUP
                    changed |= self._changes(held, range(first, first + len(bodies)), bodies)
            if changed:
                self._history.replace(span, changed)
        except (OSError, pa.ArrowException) as error:
            raise StoreError(f"{span.path} cannot be rewritten: {error}") from error

    def _changes(self, held: Tombstones, offsets: Sequence[int], bodies: Sequence[bytes]) -> dict[int, bytes]:
        """What must be written in the place of which records; what follows from them is in the log by then."""
        changed: dict[int, bytes] = {}
        guests: list[Erase] = []
        for offset, record in zip(offsets, decode_many(bodies), strict=True):
            left = held.read(record, offset)
            if left is not record:
                changed[offset] = encode_record(left)
                if (guest := held.guest(record, offset)) is not None:
                    guests.append(guest)
            elif self._mark < 0 and isinstance(record, Erase):
                self._unheard(held, offset, record)
        if guests:
            self._append(guests)
        return changed

    def _unheard(self, held: Tombstones, offset: int, erase: Erase) -> None:
        """An erasure that was written before there were tombstones."""
        with self._writing:
            if not held.reaches(target(erase), offset):
                with self._store.transaction() as writer:
                    writer.execute("INSERT OR IGNORE INTO erasures VALUES (?, ?, 0)", (offset, now_ms()))
                held.add(held.entry_of(target(erase), offset, erase.time))

    def _concerned(self, held: Tombstones, span: Range) -> bool:
        """Whether the file may hold anything to rewrite: by the distinct names in its columns, without decoding."""
        if self._mark < 0:
            return True  # looked through whole, once, for erasures of old
        if span.first >= held.reach:
            return False
        table = pq.read_table(span.path, columns=["tag", "tenant", "user", "entity_type", "entity"])
        if held.of_entities and pc.any(pc.equal(table["tag"], "served")).as_py():
            return True
        named = [("tenant", "user"), ("tenant", "entity_type", "entity")]
        found = [table.group_by(list(columns)).aggregate([]).to_pydict() for columns in named]
        users = ((tenant, USER, user) for tenant, user in zip(*found[0].values(), strict=True) if user is not None)
        things = (name for name in zip(*found[1].values(), strict=True) if name[2] is not None)
        return any(held.reaches(name, span.first) for names in (users, things) for name in names)

    # ---- notes on the disk ---------------------------------------------------------------------------------

    def _save(self) -> None:
        """Make the tombstones durable of all erasures known by now."""
        assert self._held is not None
        with self._writing:
            known, new = len(self._held.entries), self._held.entries[self._saved :]
            rows = self._offsets(_NEW)
        if new:
            self._file.append(self._held.key, new)
            self._saved = known
        self._advance(rows, _SAVED)

    def _take_names(self, held: Tombstones) -> float | None:
        """Let the erasures that are old enough, and that all have followed, be erased themselves; seconds until the
        next may be."""
        with self._store.shared() as reader:
            rows = reader.execute("SELECT offset, arrived FROM erasures WHERE state = ?", (_SAVED,)).fetchall()
        if not rows:
            return None
        now, passed = now_ms(), self._followers.slowest(self._rows.end())
        old = [offset for offset, arrived in rows if arrived + self._keep <= now]
        ready = [offset for offset in old if offset < passed]
        for offset in ready:
            erase = self._record(offset)
            if isinstance(erase, Erase) and erase.user is not None:
                with self._writing:
                    if not held.reaches(target(erase), offset):
                        held.add(held.entry_of(target(erase), offset + 1, erase.time))
        if ready:
            self._save()
            self._advance(ready, _UNNAMED)
        if len(ready) < len(old):
            return _HELD
        waits = [(arrived + self._keep - now) / 1000 for _, arrived in rows if arrived + self._keep > now]
        return min([_LONGEST, *waits]) if waits else None

    def _record(self, offset: int) -> LogRecord | None:
        """The record at `offset` as it lies on the disk."""
        bodies = self._rows.kept(offset, 1) or self._history.bodies(offset, 1)
        return decode_many(bodies)[0] if bodies else None

    def _offsets(self, state: int) -> list[int]:
        """The erasures in this state."""
        with self._store.shared() as reader:
            rows = reader.execute("SELECT offset FROM erasures WHERE state = ? ORDER BY offset", (state,)).fetchall()
        return [row[0] for row in rows]

    def _advance(self, offsets: Sequence[int], state: int) -> None:
        if offsets:
            with self._store.shared() as connection:
                connection.executemany(
                    "UPDATE erasures SET state = ? WHERE offset = ?", [(state, offset) for offset in offsets]
                )

    def _note_mark(self, execute: Callable[..., object], held: Tombstones, mark: int) -> None:
        note = "INSERT OR REPLACE INTO meta VALUES (?, ?)"
        execute(note, ("erased", mark))
        execute(note, ("erased_key", held.key_number))
        self._mark = mark

    def _swept(self, span: Range, known: int) -> bool:
        """Has this very file been looked through with so many tombstones known?"""
        with self._store.shared() as reader:
            row = reader.execute("SELECT stamp, mark FROM swept WHERE file = ?", (span.path.name,)).fetchone()
        return row is not None and row[0] == _stamp(span.path) and row[1] >= known

    def _note_swept(self, span: Range, known: int) -> None:
        with self._store.shared() as connection:
            connection.execute(
                "INSERT OR REPLACE INTO swept VALUES (?, ?, ?)", (span.path.name, _stamp(span.path), known)
            )


def _stamp(path: Path) -> str:
    """Changes with the file, also when a copy is put in its place: nobody can set back the time of the change."""
    try:
        stat = path.stat()
    except FileNotFoundError:
        return ""
    return f"{stat.st_ino}:{stat.st_size}:{stat.st_mtime_ns}:{stat.st_ctime_ns}"
