"""What is kept of a user rests in one value: it reads back bit for bit, and a damaged one is refused."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from laws import START, TIGHT, WORLD, Colours, event, write

import mainstem.features as features
from mainstem.features.event_bits import MOST, decode, encode
from mainstem.features.history import ROW
from mainstem.features.lmdb import LmdbBackend
from mainstem.features.memory import MemoryBackend
from mainstem.features.packing import Packing
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config, FeatureConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import key64

HOURLY = WORLD.model_copy(update={"features": FeatureConfig(half_lives=["1h"])})
PACKINGS = {name: Packing(config) for name, config in (("default", WORLD), ("one half-life", HOURLY))}
WIDTHS = {name: packing._lists.widths for name, packing in PACKINGS.items()}
TABLES = PACKINGS["default"].tables


def lists_of(width: int) -> st.SearchStrategy[bytes | None]:
    """None, no record, or up to 70 records: of any bytes, of few different ones, or all the same."""
    alike = st.builds(
        lambda n, seed, most: np.random.default_rng(seed).integers(0, most, n * width, dtype=np.uint8).tobytes(),
        st.integers(0, 70), st.integers(0, 9), st.sampled_from([1, 2, 256]),
    )  # fmt: skip
    some = st.integers(0, 3).flatmap(lambda n: st.binary(min_size=n * width, max_size=n * width))
    return st.none() | some | alike


def users_of(widths: list[int]) -> st.SearchStrategy[list[list[bytes | None]]]:
    return st.lists(st.tuples(*map(lists_of, widths)).map(list), max_size=5)


@pytest.mark.parametrize("name", PACKINGS)
@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_it_reads_back_bit_for_bit(name: str, data: st.DataObject) -> None:
    users, packing = data.draw(users_of(WIDTHS[name])), PACKINGS[name]
    values = pack(packing, users)
    assert unpack(packing, values) == users
    assert [unpack(packing, [value])[0] for value in values] == users
    assert pack(packing, [user for user in users for _ in range(2)])[::2] == values


def pack(packing: Packing, users: list[list[bytes | None]]) -> list[bytes]:
    return packing.pack([[user[t] for user in users] for t in range(len(TABLES))])


def unpack(packing: Packing, values: list[bytes]) -> list[list[bytes | None]]:
    return [list(user) for user in zip(*packing.unpack(values), strict=True)]


def test_more_records_than_16_bits_count() -> None:
    packing = PACKINGS["default"]
    many = np.random.default_rng(0).integers(0, 3, 66_000 * ROW.itemsize, dtype=np.uint8).tobytes()
    users = [[many, None, b""], [None, b"", None]]
    assert unpack(packing, pack(packing, users)) == users


def test_a_list_of_half_a_record_is_refused() -> None:
    with pytest.raises(ValueError, match="records of"):
        PACKINGS["default"].pack([[bytes(ROW.itemsize + 1)], [None], [None]])


def shopper(events: int) -> list[bytes | None]:
    """As the features write it: random keys and times, two events a session, each item once."""
    rng, lists = np.random.default_rng(events), UserItem(Config())
    history = np.zeros(events, ROW)
    history["entity"] = rng.integers(1, 2**63, events)
    history["session"] = np.repeat(rng.integers(1, 2**32, events), 2)[:events]
    history["time"] = np.sort(START + rng.integers(0, 90 * 86_400_000, events))
    history["value"] = 1
    items, _, length, totals = lists.folded(history, np.array([events]))
    assert length.tolist() == [events]
    return [history.tobytes(), items.tobytes(), totals.tobytes()]


def late(user: list[bytes | None]) -> list[bytes | None]:
    """The same user, whose counts do not come out of the history: the last bits of one decayed count differ."""
    history, items, totals = user
    assert items is not None
    place = (UserItem(Config()).row.fields or {})["decay"][1]
    return [history, items[:place] + bytes([items[place] ^ 1]) + items[place + 1 :], totals]


@pytest.mark.parametrize(("events", "bound"), [(10, 0.2), (100, 0.16)])
def test_a_user_whose_counts_follow_from_the_history_takes_that_alone(events: int, bound: float) -> None:
    user, packing = shopper(events), Packing(Config())
    (value,) = pack(packing, [user])
    assert unpack(packing, [value]) == [user]
    assert len(value) < bound * sum(len(part or b"") for part in user)


@pytest.mark.parametrize("events", [10, 100])
def test_any_other_takes_less_than_half(events: int) -> None:
    user, packing = late(shopper(events)), Packing(Config())
    (value,) = pack(packing, [user])
    assert unpack(packing, [value]) == [user]
    assert len(pack(packing, [shopper(events)])[0]) < len(value) < 0.45 * sum(len(part or b"") for part in user)


def test_more_events_than_bits_are_for_rest_by_column() -> None:
    packing, users = Packing(Config()), [shopper(MOST), shopper(MOST + 1)]
    folded, by_column = pack(packing, users)
    assert [bool(value[0] & 1 << 5) for value in (folded, by_column)] == [True, False]
    assert unpack(packing, [folded, by_column]) == users


rows_of = st.builds(
    lambda n, seed, most: np.random.default_rng(seed).integers(0, most, (n, 36), dtype=np.uint8),
    st.integers(1, MOST), st.integers(0, 99), st.sampled_from([1, 2, 3, 256]),
)  # fmt: skip


@settings(max_examples=100, deadline=None)
@given(st.lists(st.tuples(rows_of, st.booleans()), min_size=1, max_size=4))
def test_bits_read_back(users: list[tuple[np.ndarray, bool]]) -> None:
    """Columns of any words: the same, few different ones, all different; times in any order."""
    lists = []
    for drawn, few in users:
        rows = np.zeros((len(drawn), ROW.itemsize), np.uint8)
        rows[:, : drawn.shape[1]] = drawn[np.arange(len(drawn)) % 3] if few and len(drawn) > 3 else drawn
        lists.append(rows.view(ROW).ravel())
    count = np.array([len(rows) for rows in lists])
    data, ends = encode(np.concatenate(lists), count)
    assert decode(data, np.array(ends), count).tobytes() == b"".join(rows.tobytes() for rows in lists)
    with pytest.raises(ValueError, match="string"):
        decode(data + b"\0", np.array([*ends[:-1], ends[-1] + 1]), count)
    with pytest.raises(ValueError, match="string"):
        decode(data[:-1], np.array([*ends[:-1], ends[-1] - 1]), count)


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 300))
def test_strings_of_noise_are_refused_or_read_and_nothing_else(seed: int, size: int) -> None:
    noise = np.random.default_rng(seed).integers(0, 256, size, dtype=np.uint8).tobytes()
    for count in (1, 3, MOST):
        with contextlib.suppress(ValueError):
            assert len(decode(noise, np.array([size]), np.array([count]))) == count


@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 5), st.integers(-3, 60), st.integers(0, 2)), max_size=60))
@example([(0, 0, 0, 0), (1, 0, -1, 0)])
def test_what_features_write_reads_back_from_either_form(turns: list[tuple[int, int, int, int]]) -> None:
    """Of three users, one never has late events: they all come out of its history, unless that is too short."""
    store, time, events = features.open("memory://", TIGHT, Colours()), START, []
    for n, (user, item, minutes, session) in enumerate(turns):
        time += max(minutes, 0) * 60_000
        at = time if user == 0 else time + min(minutes, 0) * 60_000
        kind = "click" if n % 3 else "purchase"
        events.append(event(n, at, f"u{user}", f"i{item}", kind, f"s{session}" if session else None))
    write(store, events, [20, 40])
    packing, snapshot = Packing(TIGHT), store._backend.read()
    keys = [key64("user", f"u{user}") for user in range(3)]
    held = [list(user) for user in zip(*(snapshot.get(table, keys) for table in TABLES), strict=True)]
    values = pack(packing, held)
    assert unpack(packing, values) == held
    mine = sum(one.user == "u0" and one.time < time for one in events)  # those of the newest time wait
    assert bool(values[0][0] & 1 << 5) == (0 < mine <= TIGHT.features.history)


@pytest.mark.parametrize("how", [lambda user: user, late], ids=["folded", "by column"])
@pytest.mark.parametrize("events", [1, 12])
def test_every_damaged_byte_and_every_cut_is_noticed(events: int, how: Callable[[Any], Any]) -> None:
    packing = Packing(Config())
    (value,) = pack(packing, [how(shopper(events))])
    for place in range(len(value)):
        with pytest.raises(StoreError, match="user's record in the feature state"):
            packing.unpack([value[:place] + bytes([value[place] ^ 0x10]) + value[place + 1 :]])
        with pytest.raises(StoreError, match="user's record in the feature state"):
            packing.unpack([value[:place]])
    packing.unpack([value])


def test_a_forged_seal_over_contents_that_lie_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = Packing(Config())
    plain, packed = pack(packing, [late(shopper(1)), late(shopper(40))])
    (folded,) = pack(packing, [shopper(40)])
    monkeypatch.setattr("mainstem.features.packing.crc32", lambda data, start: 0)
    for value in (plain, packed, folded):
        lies = [value[:-1], value + b"x", value[:5] + b"\0\0" + value[7:], bytes([value[0] ^ 0x80 ^ 0x20]) + value[1:]]
        for lie in lies:
            with pytest.raises(StoreError, match="user's record in the feature state"):
                packing.unpack([lie[:1] + bytes(4) + lie[5:]])


changes = st.lists(
    st.dictionaries(
        st.sampled_from([*TABLES, "hidden"]),
        st.dictionaries(st.sampled_from([1, 2, 3, 2**64 - 1]), st.integers(0, 3), max_size=4),
    ),
    max_size=6,
)
"""Commits: table -> key -> records, or none (0)."""


def bytes_of(table: str, count: int, turn: int) -> bytes | None:
    width = dict(zip(TABLES, WIDTHS["default"], strict=True)).get(table, 16)
    return bytes((turn + i) % 256 for i in range(count * width)) if count else None


@settings(max_examples=60, deadline=None)
@given(changes=changes)
def test_it_keeps_what_the_plain_backend_keeps(changes: list[dict[str, dict[int, int]]]) -> None:
    """Also where a commit changes some of a user's tables only, and when a snapshot was read from before."""
    with tempfile.TemporaryDirectory() as folder:
        stored, plain = LmdbBackend(Path(folder), PACKINGS["default"]), MemoryBackend()
        for turn, commit in enumerate(changes):
            rows = {
                table: {key: bytes_of(table, count, turn) for key, count in counts.items()}
                for table, counts in commit.items()
            }
            before = stored.read()
            expected = {table: before.get(table, [1, 2, 3]) for table in TABLES}
            for backend in (stored, plain):
                backend.commit(rows, 0)
            assert {table: before.get(table, [1, 2, 3]) for table in TABLES} == expected
            before.close()
            now = stored.read()
            for table in (*TABLES, "hidden"):
                keys = [3, 2**64 - 1, 7, 1, 2, 1]
                assert now.get(table, keys) == plain.get(table, keys)
                assert list(now.scan(table)) == list(plain.scan(table))
            now.close()
        stored.close()


def test_a_damaged_user_is_named_where_it_is_read(tmp_path: Path) -> None:
    store = features.open(f"lmdb://{tmp_path}", WORLD, Colours())
    write(store, [event(n, START + n, "u0", f"i{n}") for n in range(8)])
    backend: LmdbBackend = store._backend  # type: ignore[assignment]
    key = key64("user", "u0").to_bytes(8, "big")
    with backend._env.begin(write=True) as txn:
        value = txn.get(key, db=backend._tables["users"])
        txn.put(key, value[:-1] + bytes([value[-1] ^ 1]), db=backend._tables["users"])
    with pytest.raises(StoreError, match=r"damaged.*mainstem backfill"):
        write(store, [event(9, START + 9, "u0", "i0")], first=9)
    store.close()


def test_canary_another_width_does_not_read_back() -> None:
    """The types of the records are part of the features' definitions, which a state is compared by."""
    few = Packing(HOURLY)
    values = pack(PACKINGS["default"], [late(shopper(9))])
    with pytest.raises(StoreError):
        few.unpack(values)
    assert UserItem(HOURLY).definition != UserItem(TIGHT).definition
