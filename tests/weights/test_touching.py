"""Passes over a step's rows, in parts and in one piece, against plain numpy."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from mainstem.weights import touching
from mainstem.weights.changing import DIRTY, NAMED, USED
from mainstem.weights.slabs import SlabTable
from mainstem.weights.touching import find_touching, first_fault

ROWS, KNOWN = 1000, 900


@pytest.fixture(params=[1, 2, 3], ids=lambda threads: f"{threads} threads")
def _threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(touching, "_LEAST", 7)
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield
    torch.set_num_threads(before)


def _table() -> tuple[SlabTable, np.ndarray]:
    """A table and its keys; the last of them were deleted again."""
    table = SlabTable(2)
    keys = np.arange(1, ROWS + 1).astype(np.uint64)
    table.find_or_create(keys, time=3_000)
    table.delete(keys[KNOWN:])
    table.take_changes()
    return table, keys


@pytest.mark.usefixtures("_threads")
@pytest.mark.parametrize("asked", [0, 1, 5, 40, 700])
@pytest.mark.parametrize("name", [True, False])
def test_rows_are_found_and_touched_and_nothing_else_is(asked: int, name: bool) -> None:
    table, keys = _table()
    slab = table._body.slab
    wanted = np.random.default_rng(asked).choice(np.append(keys, np.uint64(0)), asked)
    later = np.full(1, 9, np.uint32)
    slab.seen[table.find(wanted[:1])] = later[: len(wanted[:1])]  # what was seen later stays so
    want = table.find(wanted)
    seen, marks = slab.seen[:ROWS].copy(), slab.marks[:ROWS].copy()
    rows, lacking = find_touching(slab, table._body.bits, wanted, 5, name)
    np.testing.assert_array_equal(rows, want)
    assert lacking == ((want < 0) & (wanted != 0)).sum()
    found = np.unique(want[want >= 0])
    seen[found] = np.maximum(seen[found], 5)
    if name:
        marks[found] |= NAMED
    np.testing.assert_array_equal(slab.seen[:ROWS], seen)
    np.testing.assert_array_equal(slab.marks[:ROWS], marks)


@pytest.mark.usefixtures("_threads")
def test_the_first_fault_is_found_wherever_it_is() -> None:
    table, keys = _table()
    slab = table._body.slab
    good = np.append(np.tile(table.find(keys[:KNOWN]), 2), -1)
    assert first_fault(slab, good) == -1
    assert first_fault(slab, good[:0]) == -1
    free = np.flatnonzero((slab.marks[:ROWS] & USED) == 0)
    assert len(free) == ROWS - KNOWN
    for wrong in (-2, ROWS, int(free[0]), int(free[-1])):
        for place in (0, 1, len(good) // 2, len(good) - 1):
            rows = good.copy()
            rows[[place, -1]] = wrong
            assert first_fault(slab, rows) == place


@pytest.mark.usefixtures("_threads")
def test_rows_are_marked_as_written_and_no_others() -> None:
    table, keys = _table()
    slab = table._body.slab
    rows = np.append(np.tile(table.find(keys[100:300]), 3), -1)
    marks = slab.marks[:ROWS].copy()
    assert first_fault(slab, rows, write=True) == -1
    marks[rows[rows >= 0]] |= DIRTY
    np.testing.assert_array_equal(slab.marks[:ROWS], marks)
    np.testing.assert_array_equal(table.take_changes().touched, keys[100:300])
    assert len(table.take_changes().touched) == 0, "a change is told once"


def test_a_row_is_in_use_after_a_load_and_not_after_a_deletion() -> None:
    table, keys = _table()
    loaded = SlabTable(2)
    loaded.load(table.state())
    for each in (table, loaded):
        rows = each.find(keys[:KNOWN])
        each.update(rows, np.ones((KNOWN, 2), np.float32), 0.1)
        each.delete(keys[:1])
        with pytest.raises(ValueError, match=r"rows\[0\]"):
            each.update(rows, np.ones((KNOWN, 2), np.float32), 0.1)
