"""Backfill switches whole states only, alone, and keeps the slates; what was opened is closed where a step fails."""

from __future__ import annotations

import gc
import json
import os
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import lmdb
import pytest

from mainstem import assemble, curriculum, eventlog, loop, slates
from mainstem.assemble import BackfillReport, backfill
from mainstem.features.packing import Packing
from mainstem.loop import Loop
from mainstem.refresh import Follower, ModelKeeper
from mainstem.schema.config import Config, EntityTypeConfig
from mainstem.schema.config_file import storage_urls
from mainstem.schema.errors import Incompatible, StoreError
from mainstem.schema.ids import key64
from mainstem.schema.protocols import Log, LogBatch
from mainstem.schema.records import Context, Erase, Event, LogRecord, Slate, SlateRequest
from mainstem.schema.time import DAY, now_ms

CONFIG = Config()
NOW = now_ms()


def event(number: int, user: str = "u") -> Event:
    return Event(event_id=f"x{number}", time=NOW - DAY + number, user=user, kind="purchase", entity=f"i{number % 30}")


def filled(base: Path, *more: LogRecord) -> None:
    with Loop(CONFIG, base) as opened:
        opened.append([event(number) for number in range(60)] + list(more))
        opened.catch_up()


def nothing(done: int, total: int) -> None:
    """No display."""


def open_files(below: Path) -> list[str]:
    """What this process holds open below a folder."""
    gc.collect()
    found = []
    for number in os.listdir("/proc/self/fd"):
        try:
            found.append(os.readlink(f"/proc/self/fd/{number}"))
        except FileNotFoundError:  # the listing's own
            continue
    return [path for path in found if path.startswith(str(below))]


def test_events_alone_give_slates(tmp_path: Path) -> None:
    filled(tmp_path)
    with Loop(CONFIG, tmp_path) as opened:
        for user in ("u", "stranger", None):
            slate = opened.slate(SlateRequest(context=Context(user=user), deadline_ms=60_000))
            assert len(slate.items) == 20
        source = curriculum.Curriculum(CONFIG, opened.parts.log, loop.silent)
        assert len(source.catalog) == 30, "training learns from the same entities"
        source.close()
    bare = Config(entities={"item": EntityTypeConfig(from_events=False)})
    with Loop(bare, tmp_path / "described") as opened:
        opened.append([event(number) for number in range(60)])
        opened.catch_up()
        assert opened.slate(SlateRequest(context=Context(user="u"), deadline_ms=60_000)).items == []


def test_the_slates_are_kept_but_for_erased_users(tmp_path: Path) -> None:
    filled(tmp_path)
    url = f"{storage_urls(CONFIG, tmp_path).state}/slates"
    kept = slates.open(url)
    for user in ("u", "v"):
        kept.keep("main", "home", user, Slate(request_id=user, canvas="home", time=NOW, items=[]), NOW)
    kept.close()
    with writing(tmp_path) as log:  # the state in use does not know of it yet
        log.append([Erase(record_id="f", time=NOW, user="v")])
    assert backfill(CONFIG, tmp_path, nothing) == BackfillReport(records=61, restart_needed=False)
    kept = slates.open(url)
    assert kept.get("main", "home", "u", DAY, NOW) is not None
    assert kept.get("main", "home", "v", DAY, NOW) is None
    kept.close()
    with Loop(CONFIG, tmp_path) as opened:
        assert opened.parts.follower.lag() == 0
        assert opened.entity("item", "i1") is not None


def test_a_state_that_rests_in_another_form_is_refused_and_rebuilt(tmp_path: Path) -> None:
    """As earlier releases wrote it: nothing in its definition about how it is stored (law 11)."""
    filled(tmp_path)
    folder = Path(storage_urls(CONFIG, tmp_path).state.removeprefix("lmdb://")) / "features"
    with closing(lmdb.open(str(folder), max_dbs=1)) as env, env.begin(write=True) as txn:
        meta = env.open_db(b"meta", txn)
        stored = {json.loads(value).get("storage"): key for key, value in txn.cursor(meta) if value[:1] == b"{"}
        key = stored[Packing.form]
        earlier = json.loads(txn.get(key, db=meta))
        del earlier["storage"]
        txn.put(key, json.dumps(earlier).encode(), db=meta)
    told = rf"storage \(stored: absent; configured: {Packing.form}\).*mainstem backfill"
    with pytest.raises(Incompatible, match=told):
        Loop(CONFIG, tmp_path)
    backfill(CONFIG, tmp_path, nothing)
    with Loop(CONFIG, tmp_path) as opened:
        assert opened.parts.follower.lag() == 0


def writing(base: Path) -> closing[Log]:
    """The log of a data directory, with this process as its writer."""
    urls = storage_urls(CONFIG, base)
    return closing(eventlog.open(urls.log, history=urls.history, claim=True))


def test_it_says_that_a_writing_process_must_be_started_again(tmp_path: Path) -> None:
    filled(tmp_path)
    with writing(tmp_path):
        assert backfill(CONFIG, tmp_path, nothing).restart_needed
    assert not backfill(CONFIG, tmp_path, nothing).restart_needed


def test_two_at_once_do_not_destroy_each_others_work(tmp_path: Path) -> None:
    filled(tmp_path)
    second: list[str] = []

    def meanwhile(done: int, total: int) -> None:
        with pytest.raises(StoreError, match="another backfill is running") as refused:
            backfill(CONFIG, tmp_path, nothing)
        second.append(str(refused.value))

    assert backfill(CONFIG, tmp_path, meanwhile).records == 60
    assert second
    assert backfill(CONFIG, tmp_path, nothing).records == 60, "the lock is given back"


def test_a_log_that_ends_short_leaves_the_state_in_use(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    filled(tmp_path)
    from mainstem.eventlog.sqlite import SqliteLog

    with monkeypatch.context() as patch:
        patch.setattr(SqliteLog, "read", lambda self, start, limit=0: LogBatch([], [], start))
        with pytest.raises(StoreError, match="a part of it is lost"):
            backfill(CONFIG, tmp_path, nothing)
    assert open_files(tmp_path) == []
    with Loop(CONFIG, tmp_path) as opened:
        assert opened.parts.follower.lag() == 0
        assert opened.parts.catalog.entity(key64("item", "i1")) is not None


def fails(*_: object, **__: object) -> None:
    raise OSError("no more threads")


@pytest.mark.parametrize(
    ("owner", "name"),
    [
        (assemble.catalogs, "open"),
        (assemble.features, "open"),
        (assemble.slates, "open"),
        (assemble, "Recorder"),
        (ModelKeeper, "refresh"),
        (ModelKeeper, "start"),
        (Follower, "start"),
    ],
)
def test_a_step_that_fails_leaves_nothing_open(
    owner: object, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, fails)
        with pytest.raises(OSError, match="no more threads"):
            Loop(CONFIG, tmp_path, follow=True)
        assert open_files(tmp_path) == []
    with Loop(CONFIG, tmp_path, follow=True):  # the writer's lock is free
        assert open_files(tmp_path), "the check sees what is open"


def test_closing_closes_the_rest_where_one_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = Loop(CONFIG, tmp_path, follow=True)
    close: Callable[[], None] = opened.parts.recorder.close

    def failing() -> None:
        close()
        fails()

    monkeypatch.setattr(opened.parts.recorder, "close", failing)
    with pytest.raises(OSError, match="no more threads"):
        opened.close()
    assert open_files(tmp_path) == []
