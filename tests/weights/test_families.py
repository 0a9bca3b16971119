"""Families in one table learn exactly as they would in tables of their own; only memory differs."""

from collections.abc import Callable
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.weights import Adagrad, Adam, Family, RowwiseAdagrad, SlabTable, Table
from mainstem.weights.device import DeviceTable

USER = Family("user", optimizer=RowwiseAdagrad(), admit_after=2, expire=5_000)
ITEM = Family("item", optimizer=Adam(), capacity=6)
WORD = Family("word", optimizer=Adagrad(), scale=0.2)
FAMILIES = (USER, ITEM, WORD)
DIM = 4

# (family, key within it, seconds)
sights = st.lists(st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(0, 9)), min_size=1, max_size=30)


def keys_of(family: int, keys: list[int]) -> np.ndarray:
    return np.array([1000 * (family + 1) + key for key in keys], np.uint64)


def step(table: Table, place: int, keys: np.ndarray, time: int, seed: int) -> None:
    rows = table.find_or_create(keys, place, time)
    gradients = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
    table.update(rows, gradients, 0.1)


def rows_of(table: Table) -> dict[int, list[float]]:
    return {key: row for keys, rows in table.items() for key, row in zip(keys.tolist(), rows.tolist(), strict=True)}


@pytest.mark.parametrize("made", [SlabTable, partial(DeviceTable, device="cpu")], ids=["slabs", "device"])
@settings(max_examples=60, deadline=None)
@given(sights)
def test_a_shared_table_is_its_families_apart(made: Callable[..., Table], seen: list[tuple[int, int, int]]) -> None:
    shared = made(DIM, FAMILIES, seed=3)
    apart = [made(DIM, (family,), seed=3) for family in FAMILIES]
    for number, (family, key, seconds) in enumerate(seen):
        keys = keys_of(family, [key, (key * 7) % 9 + 1])
        step(shared, family, keys, seconds * 1000, number)
        step(apart[family], 0, keys, seconds * 1000, number)
    together: dict[int, list[float]] = {}
    for table in apart:
        together |= rows_of(table)
    assert rows_of(shared) == together
    assert sum(shared.counts().values()) == sum(len(table) for table in apart)


def test_canary_another_optimizer_is_another_row() -> None:
    one, other = SlabTable(DIM, (ITEM,), seed=3), SlabTable(DIM, (WORD,), seed=3)
    for table in (one, other):
        step(table, 0, keys_of(1, [1, 2]), 0, 0)
    assert rows_of(one) != rows_of(other)


def test_what_sharing_saves_and_costs() -> None:
    """One table has one set of slots; its rows carry the widest family's optimizer state."""
    same = [Family(name) for name in ("a", "b", "c")]
    shared = SlabTable(DIM, tuple(same))
    apart = [SlabTable(DIM, (family,)) for family in same]
    for place in range(3):
        keys = keys_of(place, list(range(1, 800)))
        shared.find_or_create(keys, place)
        apart[place].find_or_create(keys, 0)
    rows = [table.explain().rows for table in apart]
    assert shared.explain().rows == sum(rows)
    assert shared.explain().parts["values"] == sum(table.explain().parts["values"] for table in apart)
    wide = SlabTable(DIM, FAMILIES)
    wide.find_or_create(keys_of(0, [1, 2, 3]), 2)
    assert wide.explain().parts["state"] == pytest.approx(3 * 4 * (2 * DIM + 1))
