"""What is kept of a user rests in one value: it reads back bit for bit, and a damaged one is refused."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from laws import START, TIGHT, WORLD, Colours, event, write

import mainstem.features as features
from mainstem.features.history import ROW
from mainstem.features.lmdb import LmdbBackend
from mainstem.features.memory import MemoryBackend
from mainstem.features.packing import Packing, packing_of
from mainstem.features.user_item import UserItem
from mainstem.schema.config import Config, FeatureConfig
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import key64

HOURLY = WORLD.model_copy(update={"features": FeatureConfig(half_lives=["1h"])})
PACKINGS = {name: packing_of(config) for name, config in (("default", WORLD), ("one half-life", HOURLY))}
WIDTHS = {name: packing._width.tolist() for name, packing in PACKINGS.items()}
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
    history, items, totals = np.zeros(events, ROW), np.zeros(events, lists.row), np.zeros(1, lists.user)
    history["entity"] = items["item"] = rng.integers(1, 2**63, events)
    history["session"] = np.repeat(rng.integers(1, 2**63, events), 2)[:events]
    history["time"] = items["first"] = items["last"] = np.sort(START + rng.integers(0, 90 * 86_400_000, events))
    history["value"] = items["count"] = items["sessions"] = items["decay"][:] = 1
    items["decay"] = 1
    items["at"] = np.arange(events) // 2
    totals["count"], totals["first"], totals["last"] = events, history["time"][0], history["time"][-1]
    return [history.tobytes(), items.tobytes(), totals.tobytes()]


@pytest.mark.parametrize("events", [10, 100])
def test_it_takes_less_than_half(events: int) -> None:
    user = shopper(events)
    (value,) = pack(packing_of(Config()), [user])
    assert len(value) < 0.4 * sum(len(part or b"") for part in user)


@pytest.mark.parametrize("events", [1, 12])
def test_every_damaged_byte_and_every_cut_is_noticed(events: int) -> None:
    packing = packing_of(Config())
    (value,) = pack(packing, [shopper(events)])
    for place in range(len(value)):
        with pytest.raises(StoreError, match="user's record in the feature state"):
            packing.unpack([value[:place] + bytes([value[place] ^ 0x10]) + value[place + 1 :]])
        with pytest.raises(StoreError, match="user's record in the feature state"):
            packing.unpack([value[:place]])
    packing.unpack([value])


def test_a_forged_seal_over_contents_that_lie_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    packing = packing_of(Config())
    plain, packed = pack(packing, [shopper(1), shopper(40)])
    monkeypatch.setattr("mainstem.features.packing.crc32", lambda data, start: 0)
    for value in (plain, packed):
        lies = [value[:-1], value + b"x", value[:5] + b"\0\0" + value[7:], bytes([value[0] ^ 0x80]) + value[1:]]
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
    few = Packing({"history": ROW, "user_item": UserItem(HOURLY).row, "user": UserItem(HOURLY).user})
    values = pack(PACKINGS["default"], [shopper(9)])
    with pytest.raises(StoreError):
        few.unpack(values)
    assert UserItem(HOURLY).definition != UserItem(TIGHT).definition
