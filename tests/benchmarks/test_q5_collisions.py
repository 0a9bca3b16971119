"""What Q5 rests on: hashed tables read what they trained, users never meet items, a tie is the mean of its orders."""

from __future__ import annotations

import importlib
import itertools
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from mainstem.weights import Family, SlabTable

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
USERS = np.arange(1, 101, dtype=np.uint64) * np.uint64(7_919)
ITEMS = np.arange(1, 301, dtype=np.uint64) * np.uint64(104_729) + np.uint64(1 << 30)


@pytest.fixture(scope="module")
def q5() -> ModuleType:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        return importlib.import_module("q5_collisions")


def hashed(q5: ModuleType, sizes: tuple[int, int], seed: int = 0) -> tuple[SlabTable, object]:
    table = SlabTable(4, [Family("user"), Family("item")])
    made = q5.Hashed(table, np.sort(USERS), sizes, seed)
    made.find_or_create(USERS, 0, 1_000)
    made.find_or_create(ITEMS, 1, 1_000)
    return table, made


def test_a_hashed_table_reads_the_rows_that_it_trains(q5: ModuleType) -> None:
    _, made = hashed(q5, (10, 30))
    keys = np.concatenate([USERS, ITEMS])
    before = made.read(keys)
    made.update(made.find(keys), np.ones((len(keys), 4), np.float32), 0.1)
    assert (made.read(keys) == made.gather(made.find(keys))).all()
    assert (made.read(keys) < before).all()
    assert not made.read(np.zeros(1, np.uint64)).any()


def test_keys_share_rows_within_their_kind_only(q5: ModuleType) -> None:
    table, made = hashed(q5, (10, 30))
    users, items = made.find(USERS), made.find(ITEMS)
    assert len(np.unique(users)) == 10
    assert len(np.unique(items)) == 30
    assert not np.isin(users, items).any()
    assert len(table) == 40
    _, other = hashed(q5, (10, 30), seed=1)
    assert (other.meet(ITEMS) != made.meet(ITEMS)).any()


@pytest.mark.parametrize("taken", [0.0286, 0.0773, 0.5])
def test_spaces_are_as_large_as_the_share_of_taken_rows_asks(q5: ModuleType, taken: float) -> None:
    ids = 200_000
    rows = q5.rows_for(taken, ids)
    drawn = np.random.default_rng(0).integers(0, rows, ids)
    assert 1 - len(np.unique(drawn)) / ids == pytest.approx(taken, rel=0.05)


def test_a_tie_is_the_mean_over_its_orders(q5: ModuleType) -> None:
    items = np.arange(1, 7, dtype=np.uint64)
    positives = SimpleNamespace(entity=items, begin=np.arange(6), session=np.arange(6))
    task = SimpleNamespace(positives=positives, test=np.arange(6), new_only=False)
    scores = np.array([5, 3, 3, 3, 1, 1], np.float32)
    group = np.array([0, 1, 1, 1, 2, 2])
    found = q5.ranked(task, items, lambda rows: (np.tile([5.0, 3.0, 1.0], (len(rows), 1)).astype(np.float32), group))
    orders = [order for order in itertools.permutations(range(6)) if (np.diff(scores[list(order)]) <= 0).all()]
    gains = [1 / np.log2(order.index(target) + 2) for order in orders for target in range(6)]
    assert found["ndcg@10"] == pytest.approx(np.mean(gains))
    assert found["recall@100"] == 1


def test_what_the_user_had_is_left_out_but_never_the_target(q5: ModuleType) -> None:
    items = np.arange(1, 4, dtype=np.uint64)
    # one user who took 1, 2 and now 3, which has the least score
    positives = SimpleNamespace(entity=items, begin=np.zeros(3, int), session=np.arange(3))
    task = SimpleNamespace(positives=positives, test=np.array([2]), new_only=True)
    scores = (np.array([[3.0, 2.0, 1.0]], np.float32), np.arange(3))
    assert q5.ranked(task, items, lambda rows: scores)["ndcg@10"] == 1
    task.new_only = False
    assert q5.ranked(task, items, lambda rows: scores)["ndcg@10"] == pytest.approx(1 / np.log2(4))
