from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import mix
from table_contract import TableContract, against_oracle, assert_same, careless, forgetful, rejects

from mainstem.schema.errors import StoreError
from mainstem.weights.family import Adam, Family
from mainstem.weights.slabs import SlabTable, predicted_bytes
from mainstem.weights.slots import bits_for


def concurrent(*given: Any, **more: Any) -> SlabTable:
    return SlabTable(*given, **more, concurrent=True, patience=0.1)


class TestSlabTable(TableContract):
    made = staticmethod(SlabTable)


class TestSlabTableWithReaders(TableContract):
    made = staticmethod(concurrent)


TestAgainstOracle = against_oracle(SlabTable, examples=60)
TestAgainstOracleConcurrently = against_oracle(concurrent, examples=20)


@pytest.mark.parametrize("wrong", [forgetful(SlabTable), careless(SlabTable)])
def test_the_oracle_rejects_a_wrong_table(wrong: type[SlabTable]) -> None:
    rejects(wrong)


@pytest.mark.parametrize(
    "keys",
    [
        np.arange(1, 60_001, dtype=np.uint64),
        np.arange(1, 60_001, dtype=np.uint64) << np.uint64(46),
        np.array([0xDEADBEEF + (i << 16) for i in range(60_000)], np.uint64),
    ],
    ids=["sequential", "high bits alone", "a stride"],
)
def test_keys_stay_near_home_for_patterns_that_a_weak_hash_would_pile_up(keys: np.ndarray) -> None:
    table = SlabTable(1)
    table.find_or_create(keys)
    assert (table.find(keys) >= 0).all()
    words, bits = table._body.slab.words, table._body.bits
    bucket, place = np.nonzero(words[:, :5])
    homes = np.array([mix(int(key)) >> (64 - bits) for key in words[bucket, place]])
    assert ((bucket - homes) % (1 << bits)).mean() < 0.3


def test_more_rows_than_the_system_has_addresses_for_are_refused() -> None:
    with pytest.raises(StoreError, match="most_rows"):
        SlabTable(1 << 22, most_rows=(1 << 32) - 1)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 3))
def test_rows_of_deleted_keys_are_used_again(n: int, rounds: int) -> None:
    table = SlabTable(2, most_rows=8192)
    for number in range(rounds):
        keys = np.arange(1 + number * n, 1 + (number + 1) * n, dtype=np.uint64)
        table.find_or_create(keys)
        assert table.delete(keys) == n
    assert len(table) == 0
    assert table._body.high == n
    assert not table.gather(np.arange(n)).any()
    assert not table._body.slab.words[:, :5].any()
    assert not (table._body.slab.halves[:, 15] & 255).any()


def test_explain_states_bytes_by_part() -> None:
    table = SlabTable(16, (Family(admit_after=2, optimizer=Adam()),), sight_cells=1 << 16)
    keys = np.arange(1, 10_001, dtype=np.uint64)
    table.find_or_create(keys)
    assert len(table) == 0
    table.find_or_create(keys)
    memory = table.explain()
    assert memory.rows == 10_000
    assert memory.parts["values"] == 10_000 * 16 * 4
    assert memory.parts["state"] == 10_000 * 33 * 4
    assert memory.parts["sights"] == 4 << 16
    assert memory.parts["slots"] == 64 << bits_for(10_000)
    assert memory.total == memory.predicted == predicted_bytes(10_000, 16, 33, 1 << 16)


def test_a_table_in_a_folder_is_the_same_table(tmp_path: Path) -> None:
    keys = np.arange(1, 5001, dtype=np.uint64)
    plain, mapped = SlabTable(6), SlabTable(6, folder=tmp_path / "t", most_rows=10_000)
    for table in (plain, mapped):
        rows = table.find_or_create(keys)
        table.update(rows, np.ones((5000, 6), np.float32), 0.1)
        table.delete(keys[:99])
    assert_same(plain.state(), mapped.state())
