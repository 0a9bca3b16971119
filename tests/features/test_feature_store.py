"""The store around the features: bounds, erasure, aliases, expiry, definitions, replicas, kills."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from laws import (
    CANDIDATES,
    HOUR,
    START,
    TIGHT,
    WORLD,
    Answer,
    Colours,
    all_same,
    ask,
    event,
    everyone,
    write,
)
from state_writer_process import BATCH, the_log

import mainstem.features as features
from mainstem.features.cooccurrence import ENTRY
from mainstem.features.history import ROW
from mainstem.features.mirror import distinct
from mainstem.schema.config import FeatureConfig
from mainstem.schema.errors import ConfigError, Incompatible, InvalidRecord, StoreError
from mainstem.schema.ids import key64, keys64
from mainstem.schema.position import START as LOG_START
from mainstem.schema.position import Position
from mainstem.schema.records import Context, Event
from mainstem.schema.time import DAY

URLS = ("memory://", "lmdb")


@pytest.fixture(params=URLS)
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return "memory://" if request.param == "memory://" else f"lmdb://{tmp_path / 'state'}"


def busy(size: int = 400) -> list[Event]:
    random = np.random.default_rng(3)
    return [
        event(n, START + n * HOUR, f"u{random.integers(4)}", f"i{random.integers(60)}", store="a") for n in range(size)
    ]


def test_bounds_hold(url: str) -> None:
    store = features.open(url, TIGHT, Colours())
    write(store, busy(), [7, 100, 250])
    snapshot = store._backend.read()
    bounds = {
        "user_item": 3 * store.user_item.row.itemsize, "history": 4 * ROW.itemsize,
        "neighbours": 2 * ENTRY.itemsize, "item": store.popularity.ring.dtype.itemsize,
    }  # fmt: skip
    for table, most in bounds.items():
        sizes = [len(value) for _, value in snapshot.scan(table)]
        assert sizes
        assert max(sizes) == most
    snapshot.close()
    store.close()


def test_the_least_recently_used_leave_first() -> None:
    store = features.open("memory://", TIGHT, Colours())
    order = ["i0", "i1", "i2", "i0", "i3"]  # i1 was used longest ago when i3 comes
    write(store, [event(n, START + n * HOUR, "u0", item) for n, item in enumerate(order)])
    with store.view(Context(user="u0", time=START + DAY)) as view:
        assert set(view.counts().keys.tolist()) == {key64("item", item) for item in ("i0", "i2", "i3")}


def test_a_known_world() -> None:
    """Four events whose values are worked out by hand."""
    store = features.open("memory://", WORLD, Colours())
    write(store, [
        event(0, START, "u0", "i0", session="s1", store="a"),
        event(1, START, "u0", "i1", session="s1", store="a"),
        event(2, START + 2 * DAY, "u0", "i0", session="s2", store="b"),
        event(3, START + 2 * DAY, "u1", "i0", kind="click", store="b"),
    ])  # fmt: skip
    time = START + 3 * DAY + 6 * HOUR
    with store.view(Context(user="u0", time=time)) as view:
        row = dict(zip(store.names, view.values(CANDIDATES)[0].tolist(), strict=True))
        assert view.popular(5, 0).keys.tolist() == [key64("item", "i0")]
    expected = {
        "user_item_count": np.log(3), "user_item_days_since": np.log(2.25), "user_item_due": np.log1p(1.25 / 2),
        "user_item_session_share": 1.0, "user_item_owned": 1.0, "user_sessions": np.log(3), "user_items": np.log(3),
        # One day back from 06:00: none today, and of day 2's 1.3 the last three quarters.
        "popularity_1d": np.log1p(0.75 * 1.3), "popularity_3d": np.log1p(1.3 + 0.75 * 1),
        "popularity_fresh_7d": np.log1p(1.3), "popularity_repeat": 1 - 2 / 3, "popularity_age": np.log(4.25),
        # The user's usual place is a; there i0 was bought once, with a half-life of half a day.
        "place_1d": np.log1p(2 ** -(3.25 / 0.5)), "place_known": 1.0,
        "cooccurrence_max": 1 / (np.sqrt(3) + 10), "events_since": 0.0, "in_last_session": 1.0,
        "affinity_colour_items": np.log(2), "hour_sin": 1.0, "hidden": 0.0,
    }  # fmt: skip
    for name, value in expected.items():
        assert row[name] == pytest.approx(value, abs=1e-5), name


def test_an_unknown_user_and_an_empty_state(url: str) -> None:
    store = features.open(url, WORLD, Colours())
    assert store.position() == LOG_START
    everyone(store, START)
    with store.view(Context(user="nobody", time=START)) as view:
        assert view.values(np.zeros(0, np.uint64)).shape == (0, len(store.names))
        assert len(view.popular(5)) == len(view.neighbours(CANDIDATES, np.ones(9, np.float32), 5)) == 0
    with pytest.raises(InvalidRecord, match="time"):
        store.view(Context(user="nobody"))
    store.close()


def test_a_batch_may_come_twice(url: str) -> None:
    once, twice = features.open("memory://", WORLD, Colours()), features.open(url, WORLD, Colours())
    events = busy(60)
    write(once, events)
    write(twice, events[:40])
    write(twice, events[30:], first=30)
    write(twice, events[:10])
    assert twice.position() == Position.at(60)
    all_same(everyone(once, START + 60 * HOUR), everyone(twice, START + 60 * HOUR))
    twice.close()


TIED = [event(n, START, f"u{n % 3}", f"i{n % 5}", ("purchase", "hide")[n % 7 == 6], store="a") for n in range(20)]


def test_events_of_one_time_are_each_folded_once_for_views(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = features.open(url, WORLD, Colours())
    folded: list[int] = []
    fold = store._fold
    monkeypatch.setattr(store, "_fold", lambda rows, state: (folded.append(len(rows)), fold(rows, state))[1])
    for n, one in enumerate(TIED):
        write(store, [one], first=n)
        whole = features.open("memory://", WORLD, Colours())
        write(whole, TIED[: n + 1])
        all_same(everyone(store, START + HOUR), everyone(whole, START + HOUR))
    assert sum(folded) == len(TIED), "none of them is in the base, and none was folded twice"
    store.close()


def test_a_view_keeps_what_was_pending_when_it_was_opened(url: str) -> None:
    store = features.open(url, WORLD, Colours())
    write(store, TIED[:8])
    with store.view(Context(user="u0", time=START + HOUR)) as view:
        before = view.values(CANDIDATES)
    with store.view(Context(user="u0", time=START + HOUR)) as view:
        write(store, TIED[8:], first=8)
        everyone(store, START + HOUR)  # folds what came
        np.testing.assert_array_equal(view.values(CANDIDATES), before)
    with store.view(Context(user="u0", time=START + HOUR)) as view:
        assert (view.values(CANDIDATES) != before).any()
    store.close()


@pytest.mark.parametrize("between", ["late", "newer", "erase", "alias", "expire"])
def test_what_is_pending_is_folded_anew_over_another_base(url: str, between: str) -> None:
    """Views before and after it, and more events of the same time behind it."""
    late = event(50, START - HOUR, "u0", "i4", store="a")
    newer = event(50, START + 1, "u0", "i4", store="a")
    old = event(51, START - 500 * DAY, "u0", "i6", store="a")

    def told(viewed: bool) -> list[Answer]:
        store = features.open(url if viewed else "memory://", WORLD, Colours())
        write(store, [old, *TIED[:9]])
        if viewed:
            everyone(store, START + HOUR)
        if between in ("late", "newer"):
            write(store, [late if between == "late" else newer], first=10)
        elif between == "erase":
            store.erase(key64("user", "u0"))
        elif between == "alias":
            store.alias(key64("user", "u1"), key64("user", "u0"))
        else:
            assert store.expire(START + HOUR) > 0
        if viewed:
            everyone(store, START + HOUR)
        write(store, TIED[9:], first=11)
        try:
            return everyone(store, START + HOUR)
        finally:
            store.close()

    all_same(told(True), told(False))


def test_erasure_leaves_nothing_of_the_user(url: str) -> None:
    store = features.open(url, WORLD, Colours())
    write(
        store, [*busy(40), event(40, START + 50 * HOUR, "u0", "i1", "hide"), event(41, START + 50 * HOUR, "u0", "i2")]
    )
    time = START + 60 * HOUR
    store.erase(key64("user", "u0"))
    ask(store, time, "u0").same(ask(store, time, "never was"))
    snapshot = store._backend.read()
    user = key64("user", "u0").to_bytes(8, "little")
    for table in ("meta", "user", "user_item", "history", "hidden"):
        assert not any(user in value or key == key64("user", "u0") for key, value in snapshot.scan(table))
    snapshot.close()
    store.close()


@pytest.mark.parametrize("as_event", [True, False])
def test_an_alias_joins_guest_and_user(url: str, as_event: bool) -> None:
    """Told by an event, or by a call while the events still wait."""
    mine = [event(0, START, "u0", "i0"), event(1, START + HOUR, "u0", "i1", "hide")]
    guests = [event(2, START + 2 * HOUR, "g", "i0"), event(3, START + 2 * HOUR, "g", "i2")]
    store, time = features.open(url, WORLD, Colours()), START + 5 * HOUR
    write(store, mine + guests)
    if as_event:
        write(store, [event(4, START + 3 * HOUR, "u0", "g", "alias", entity_type="user")], first=4)
    else:
        store.alias(key64("user", "g"), key64("user", "u0"))
    ask(store, time, "g").same(ask(store, time, "never was"))
    with store.view(Context(user="u0", time=time)) as view:
        counts = view.counts()
        assert dict(zip(counts.keys.tolist(), counts.count.tolist(), strict=True)) == {
            key64("item", "i0"): 2.0, key64("item", "i2"): 1.0,
        }  # fmt: skip
        assert view.history().entity.tolist() == keys64("item", ["i0", "i0", "i2"]).tolist()
        assert view.hidden().tolist() == [key64("item", "i1")]
    store.close()


def test_expiry_drops_what_was_not_touched(url: str) -> None:
    store = features.open(url, WORLD, Colours())
    late = START + 500 * DAY
    write(store, [event(0, START, "u0", "i0", store="a"), event(1, START + 1, "u0", "i1", store="a")])
    write(store, [event(2, late, "u1", "i2", store="a"), event(3, late + 1, "u1", "i3", store="a")], first=2)
    assert store.expire(late) > 0
    assert store.expire(late) == 0
    fresh = features.open("memory://", WORLD, Colours())
    write(fresh, [event(2, late, "u1", "i2", store="a"), event(3, late + 1, "u1", "i3", store="a")], first=2)
    for user in ("u0", "u1"):
        got, expected = ask(store, late + DAY, user), ask(fresh, late + DAY, user)
        shared = [name for name in got.parts if "_colour_" not in name and "_size_" not in name]
        for name in shared:  # a value of both worlds' items keeps its totals
            np.testing.assert_allclose(got.parts[name], expected.parts[name], atol=1e-5, err_msg=name)
    store.close()


def test_another_definition_is_refused_by_name(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path / 'state'}"
    features.open(url, WORLD, Colours()).close()
    changed = WORLD.model_copy(update={"features": WORLD.features.model_copy(update={"neighbours": 7})})
    with pytest.raises(Incompatible, match=r"cooccurrence.*neighbours=64.*mainstem backfill") as caught:
        features.open(url, changed, Colours())
    assert "popularity (" not in str(caught.value)
    same, other = (features.open("memory://", config, Colours()) for config in (WORLD, changed))
    assert same.fingerprint == features.open("memory://", WORLD, Colours()).fingerprint != other.fingerprint


def test_a_second_writer_and_bad_addresses_are_refused(tmp_path: Path) -> None:
    store = features.open(f"lmdb://{tmp_path / 'state'}", WORLD, Colours())
    write(store, busy(5))
    with pytest.raises(StoreError, match="one writer"):
        store._backend.commit({"meta": {0: b"x"}}, 0)  # as one would that has read version 0
    store.close()
    with pytest.raises(ConfigError, match="lmdb:///DIR"):
        features.open("redis://x", WORLD, Colours())
    with pytest.raises(StoreError, match="no feature state"):
        features.open(f"lmdb://{tmp_path / 'none'}", WORLD, Colours(), readonly=True)
    odd = WORLD.model_copy(update={"features": FeatureConfig(popularity_windows=["36h"])})
    with pytest.raises(ConfigError, match="whole days"):
        features.open("memory://", odd, Colours())


def test_a_view_keeps_its_snapshot(tmp_path: Path) -> None:
    store = features.open(f"lmdb://{tmp_path / 'state'}", WORLD, Colours())
    events = busy(60)
    write(store, events[:30])
    time = events[30].time
    before = ask(store, time, "u0")
    with store.view(Context(user="u0", time=time)) as view:
        write(store, events[30:], first=30)
        values = view.values(CANDIDATES)
        np.testing.assert_array_equal(view.history().entity, before.parts["history.entity"])
    for column, name in enumerate(store.names):
        np.testing.assert_allclose(values[:, column], before.parts[name], atol=1e-6, err_msg=name)
    with store.view(Context(user="u0", time=time)) as past:
        assert not past.exact
    store.close()


def test_views_while_another_thread_writes(tmp_path: Path) -> None:
    """Every view, at whatever moment it is opened, says what a replay up to its position says."""
    store = features.open(f"lmdb://{tmp_path / 'state'}", WORLD, Colours())
    events, seen, stop = busy(200), [], threading.Event()

    def read() -> None:
        while not stop.is_set():
            with store.view(Context(user="u1", time=START + 300 * HOUR)) as view:
                seen.append((view.position.offset(), view.values(CANDIDATES)))

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(read) for _ in range(2)]
        write(store, events, range(2, 200, 2))
        stop.set()
        for reader in readers:
            reader.result()
    store.close()
    random = np.random.default_rng(0)
    for place in random.choice(len(seen), min(12, len(seen)), replace=False):
        offset, values = seen[place]
        replay = features.open("memory://", WORLD, Colours())
        write(replay, events[:offset])
        with replay.view(Context(user="u1", time=START + 300 * HOUR)) as view:
            np.testing.assert_allclose(values, view.values(CANDIDATES), atol=1e-5)


def test_kill_in_the_middle_of_writing(tmp_path: Path) -> None:
    """A killed writer leaves a state at some whole batch; the next one goes on from its position."""
    folder, events = tmp_path / "state", the_log()
    for turn in range(2):
        with subprocess.Popen(
            [sys.executable, str(Path(__file__).with_name("state_writer_process.py")), str(folder)],
            stdout=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"},
        ) as process:  # fmt: skip
            assert process.stdout is not None
            for _ in range(9 + 4 * turn):  # let it write some batches, then kill it at whatever it does
                process.stdout.readline()
            process.send_signal(signal.SIGKILL)
        state = features.open(f"lmdb://{folder}", WORLD, Colours(), readonly=True)
        done = state.position().offset()
        assert 0 < done < len(events)
        assert done % BATCH == 0
        replay = features.open("memory://", WORLD, Colours())
        write(replay, events[:done])
        time = events[done - 1].time
        for at in (time, time + 1):
            all_same(everyone(state, at), everyone(replay, at))
        state.close()


def test_another_process_follows_the_writer(tmp_path: Path) -> None:
    """A reader's mirrors catch up by the journal, or load all where too much has changed."""
    url, events = f"lmdb://{tmp_path / 'state'}", the_log()[:120]
    with subprocess.Popen(
        [sys.executable, str(Path(__file__).with_name("state_writer_process.py")), str(tmp_path / "state"), "120"],
        stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, env=os.environ | {"PYTHONWARNINGS": "ignore"},
    ) as process:  # fmt: skip
        assert process.stdout is not None
        process.stdout.readline()
        reader = features.open(url, WORLD, Colours(), readonly=True)
        process.wait(60)
    reader_mirrored = reader._mirrored
    time = events[-1].time + 1
    replay = features.open("memory://", WORLD, Colours())
    write(replay, events)
    all_same(everyone(reader, time), everyone(replay, time))
    assert reader._mirrored > reader_mirrored
    assert reader.position() == Position.at(120)
    with pytest.raises(StoreError, match="reading only"):
        write(reader, events[:1])
    reader.close()


def test_distinct_keys_are_those_of_numpy() -> None:
    keys = np.random.default_rng(0).integers(0, 300, 2000).astype(np.uint64) << np.uint64(40)
    found, place = distinct(keys)
    np.testing.assert_array_equal(found[place], keys)
    np.testing.assert_array_equal(np.sort(found), np.unique(keys))
    assert len(distinct(keys[:0])[0]) == 0
