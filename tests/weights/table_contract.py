"""What every table must do, whatever it is made of: subclass `TableContract` and `AgainstOracle` for each one."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule
from oracle import OracleTable, first_values, mix

from mainstem.schema.errors import StoreError
from mainstem.weights.family import Adagrad, Adam, Family, Ftrl, RowwiseAdagrad
from mainstem.weights.table import Table

Made = Callable[..., Any]
"""Makes a table of (dim, families, seed=, most_rows=, sight_cells=)."""

DIM, SEED, CELLS = 3, 5, 256
# few distinct keys, so that they meet again; some share their low bits, some are at the ends
KEYS = [0, 1, 2, 3, 2**63, 2**64 - 1, *(i << 32 for i in range(1, 12)), *range(1000, 1012)]
KEY_LISTS = st.lists(st.sampled_from(KEYS), max_size=14)
TIMES = st.integers(0, 20_000)
FAMILIES = (
    Family("plain"),
    Family("seen often", admit_after=3, optimizer=Adagrad(), expire=5000),
    Family("few", capacity=4, scale=0.2),
    Family("all rules", admit_after=2, admit_probability=0.6, capacity=6, expire=2500),
)


def uint64(keys: list[int]) -> np.ndarray:
    return np.array(keys, np.uint64)


def assert_same(one: dict[str, np.ndarray], other: dict[str, np.ndarray]) -> None:
    assert one.keys() == other.keys()
    for name, array in one.items():
        assert array.dtype == other[name].dtype
        np.testing.assert_array_equal(array, other[name], err_msg=name)


class AgainstOracle(RuleBasedStateMachine):
    """The table against a dictionary with the same rules. `made` is a static method of the subclass."""

    made: Made

    def __init__(self) -> None:
        super().__init__()
        self.table = self.fresh()
        self.oracle = OracleTable(DIM, FAMILIES, SEED, CELLS)

    def fresh(self) -> Table:
        return self.made(DIM, FAMILIES, seed=SEED, most_rows=64, sight_cells=CELLS)

    @rule(keys=KEY_LISTS, family=st.integers(0, 3), time=TIMES, seed=st.none() | st.integers(0, 9))
    def create(self, keys: list[int], family: int, time: int, seed: int | None) -> None:
        sights = [1] * len(keys) if seed is None else np.random.default_rng(seed).integers(1, 4, len(keys)).tolist()
        rows = self.table.find_or_create(uint64(keys), family, time, None if seed is None else np.array(sights))
        self.oracle.find_or_create(keys, family, time, sights)
        assert [row >= 0 for row in rows.tolist()] == [key in self.oracle.rows for key in keys]
        assert len(set(rows[rows >= 0].tolist())) == len({key for key in keys if key in self.oracle.rows})

    @rule(keys=KEY_LISTS)
    def delete(self, keys: list[int]) -> None:
        assert self.table.delete(uint64(keys)) == self.oracle.delete(keys)

    @rule(keys=KEY_LISTS, seed=st.integers(0, 9))
    def update(self, keys: list[int], seed: int) -> None:
        gradients = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
        self.table.update(self.table.find(uint64(keys)), gradients, 0.1)
        self.oracle.update(keys, gradients, 0.1)

    @rule(keys=KEY_LISTS, family=st.integers(0, 3), seed=st.integers(0, 9))
    def write(self, keys: list[int], family: int, seed: int) -> None:
        keys = [key for key in dict.fromkeys(keys) if key]
        values = np.random.default_rng(seed).normal(size=(len(keys), DIM)).astype(np.float32)
        self.table.write(uint64(keys), values, family)
        self.oracle.write(keys, values, family)

    @rule(time=TIMES, most=st.integers(0, 30))
    def sweep(self, time: int, most: int) -> None:
        assert self.table.sweep(time, most) == self.oracle.sweep(time, most)

    @rule()
    def take_changes(self) -> None:
        changes = self.table.take_changes()
        assert (changes.touched.tolist(), changes.deleted.tolist()) == self.oracle.take_changes()

    @rule()
    def reload(self) -> None:
        state = self.table.state()
        self.table = self.fresh()
        self.table.load(state)
        assert_same(self.table.state(), state)
        assert not len(self.table.take_changes().touched)
        self.oracle.take_changes()

    @invariant()
    def same_contents(self) -> None:
        assert len(self.table) == len(self.oracle.rows)
        keys, rows = list(self.oracle.rows), list(self.oracle.rows.values())
        values = np.array([row.values for row in rows], np.float32).reshape(-1, DIM)
        found = self.table.find(uint64(keys))
        assert len(set(found.tolist())) == len(keys)
        assert (found >= 0).all()
        for got in (self.table.read(uint64(keys)), self.table.gather(found)):
            np.testing.assert_allclose(got, values, rtol=1e-4, atol=1e-6)
        absent = uint64([key for key in KEYS if key not in self.oracle.rows])
        assert (self.table.find(absent) == -1).all()
        assert not self.table.read(absent).any()
        held = {key: row for chunk, rows_ in self.table.items() for key, row in zip(chunk.tolist(), rows_, strict=True)}
        assert held.keys() == self.oracle.rows.keys()
        state = self.table.state()
        assert state["keys"].tolist() == sorted(keys)
        for name in ("family", "seen"):
            assert state[name].tolist() == [getattr(self.oracle.rows[key], name) for key in sorted(keys)]
        counts = [sum(row.family == family for row in rows) for family in range(4)]
        assert list(self.table.counts().values()) == counts


def rejects(wrong: Made) -> None:
    """Passes where the oracle finds that a table which is wrong on purpose is wrong."""

    class Wrong(AgainstOracle):
        made = staticmethod(wrong)

    test = Wrong.TestCase
    test.settings = settings(
        max_examples=200, stateful_step_count=25, deadline=None, database=None, phases=[Phase.generate]
    )
    with pytest.raises(AssertionError):
        test("runTest").runTest()


def against_oracle(table: Made, *, examples: int) -> Any:
    """The test case of `AgainstOracle` for tables that `table` makes."""

    class Of(AgainstOracle):
        made = staticmethod(table)

    Of.TestCase.settings = settings(max_examples=examples, stateful_step_count=25, deadline=None)
    return Of.TestCase


def forgetful(table: type[Any]) -> type[Any]:
    """Wrong on purpose: what it evicts or lets expire is not among the changes."""

    class Forgetful(table):
        def _forget(self, gone: np.ndarray) -> None:
            return

    return Forgetful


def careless(table: type[Any]) -> type[Any]:
    """Wrong on purpose: rows of its own for keys that did not get one."""

    class Careless(table):
        def find_or_create(self, keys, family=0, time=0, sights=None):  # type: ignore[no-untyped-def]
            rows = super().find_or_create(keys, family, time, sights)
            capacity = self.families[family].capacity
            return rows if capacity is None else np.where(rows < 0, 0, rows)

    return Careless


def colliding(n: int, bits: int) -> list[int]:
    """Keys whose home is the last bucket, and the first: mix backwards."""

    def unmix(x: int) -> int:
        def unshift(x: int, by: int) -> int:
            y = x
            for _ in range(64 // by):
                y = x ^ (y >> by)
            return y

        x = unshift(x, 31) * pow(0x94D049BB133111EB, -1, 2**64) % 2**64
        x = unshift(x, 27) * pow(0xBF58476D1CE4E5B9, -1, 2**64) % 2**64
        return unshift(x, 30)

    top = ((1 << bits) - 1) << (64 - bits)
    keys = [unmix(top + i) for i in range(1, n)] + [unmix(i) for i in range(1, n)]
    assert all(mix(key) >> (64 - bits) in (0, (1 << bits) - 1) for key in keys)
    return keys


class TableContract:
    """`made` is a static method of the subclass."""

    made: Made

    def test_new_rows_are_uniform_and_depend_on_seed_and_key_alone(self) -> None:
        keys = np.random.default_rng(0).integers(1, 2**63, 5000).astype(np.uint64)
        one, other, third = self.made(8, seed=1), self.made(8, seed=1), self.made(8, seed=2)
        one.find_or_create(keys)
        for chunk in np.array_split(keys[::-1].copy(), 7):
            other.find_or_create(chunk)
        third.find_or_create(keys)
        assert_same(one.state(), other.state())
        values = one.read(keys)
        assert not np.allclose(values, third.read(keys))
        np.testing.assert_array_equal(values[7], first_values(int(keys[7]), 1, 0.05, 8))
        units = values / 0.05
        assert np.abs(units).max() <= 1
        assert abs(units.mean()) < 0.02  # uniform in (-1, 1): mean 0, variance 1/3, columns uncorrelated
        assert abs(units.var() - 1 / 3) < 0.01
        assert np.abs(np.corrcoef(units.T) - np.eye(8)).max() < 0.06

    @pytest.mark.parametrize("dim", [1, 2, 5, 16, 20, 32, 100])
    def test_reads_of_every_width_agree_with_gather_and_find(self, dim: int) -> None:
        table = self.made(dim)
        keys = np.random.default_rng(dim).permutation(np.arange(1, 40_001)).astype(np.uint64)
        rows = table.find_or_create(keys)
        asked = np.concatenate((keys, np.arange(40_000, 60_000, dtype=np.uint64), np.zeros(3, np.uint64)))
        want = np.where((asked > 0)[:, None] & (asked <= 40_000)[:, None], table.gather(table.find(asked)), 0)
        np.testing.assert_array_equal(table.gather(rows), table.read(keys))
        assert sum(len(chunk) for chunk, _ in table.items()) == 40_000
        for chunk, values in table.items():
            np.testing.assert_array_equal(table.read(chunk), values)
        np.testing.assert_array_equal(table.read(asked), want)
        assert (table.find(asked) >= 0).sum() == 40_001
        for shift in range(4):  # large enough to go past the caches, on every border of 4 bytes
            flat = np.full(len(asked) * dim + 4, np.nan, np.float32)
            out = flat[shift : shift + len(asked) * dim].reshape(-1, dim)
            assert table.read(asked, out=out) is out
            np.testing.assert_array_equal(out, want)
            assert np.isnan(flat[:shift]).all()
            assert np.isnan(flat[shift + len(asked) * dim :]).all()
            out[:] = np.nan
            np.testing.assert_array_equal(table.gather(table.find(asked), out=out), want)

    def test_keys_of_one_home_that_wrap_round_the_end(self) -> None:
        keys = uint64(colliding(400, 8))
        table = self.made(2, (Family(expire=1000),), most_rows=4096)
        assert (table.find_or_create(keys) >= 0).all()
        assert len(set(table.find(keys).tolist())) == len(keys)
        half = keys[::2].copy()
        assert table.delete(half) == len(half)
        assert (table.find(half) == -1).all()
        assert (table.find(keys[1::2].copy()) >= 0).all()
        table.find_or_create(half, 0, 5000)
        # a sweep meets each key once, in the order of mixed bits, however far from home it lies
        assert sum(table.sweep(10_000_000, 50) for _ in range(math.ceil(len(keys) / 50))) == len(half)
        assert len(table) == len(keys) - len(half)

    def test_settings_that_cannot_be_are_refused(self) -> None:
        for reason, wrong in (
            ("dim", {"dim": 0}),
            ("families", {"families": ()}),
            ("families", {"families": (Family(), Family())}),
            ("most_rows", {"most_rows": 0}),
            ("most_rows", {"most_rows": 1 << 32}),
            ("seed", {"seed": -1}),
            ("sight_cells", {"families": (Family(admit_after=2),), "sight_cells": 1000}),
        ):
            with pytest.raises(ValueError, match=reason):
                self.made(**{"dim": 2, **wrong})  # type: ignore[arg-type]

    def test_bad_input_is_refused_and_changes_nothing(self) -> None:
        table = self.made(DIM)
        rows = table.find_or_create(uint64([1, 2, 3]))
        table.delete(uint64([3]))
        before = table.state()
        ones = np.ones((2, DIM), np.float32)
        for bad in ([0, int(rows[2])], [0, 3], [0, 10**9], [0, -2]):
            with pytest.raises(ValueError, match="not in use"):
                table.update(np.array(bad), ones, 0.1)
        for value in (np.nan, np.inf, -np.inf):
            with pytest.raises(ValueError, match="finite"):
                table.update(np.array([0, 1]), np.array([[1, 1, 1], [1, 1, value]], np.float32), 0.1)
            with pytest.raises(ValueError, match="finite"):
                table.write(uint64([9, 1]), ones * value)
        with pytest.raises(ValueError, match="gradients must be"):
            table.update(np.array([0, 1]), ones[:, :2], 0.1)
        for keys in ([0, 1], [7, 7]):
            with pytest.raises(ValueError, match="distinct"):
                table.write(uint64(keys), ones)
        for bad_rows in ([3], [-2]):
            with pytest.raises(ValueError, match="rows must"):
                table.gather(np.array(bad_rows))
        for out in (np.empty((2, DIM)), np.empty((3, DIM), np.float32), np.empty((2, 2 * DIM), np.float32)[:, ::2]):
            with pytest.raises(ValueError, match="out must"):
                table.read(uint64([1, 2]), out=out)  # type: ignore[arg-type]
        with pytest.raises(ValueError, match="family"):
            table.find_or_create(uint64([1]), 1)
        for time in (-1, 2**32 * 1000):
            with pytest.raises(ValueError, match="time"):
                table.find_or_create(uint64([8]), time=time)
        with pytest.raises(ValueError, match="sights"):
            table.find_or_create(uint64([8]), sights=np.zeros(1, np.int64))
        for keys_ in (np.array([1.0]), np.array([-1]), [1], np.array([[1]], np.uint64)):
            with pytest.raises(TypeError, match="uint64"):
                table.find(keys_)  # type: ignore[arg-type]
        assert_same(table.state(), before)

    def test_a_full_table_says_so_and_goes_on(self) -> None:
        table = self.made(1, most_rows=10)
        with pytest.raises(StoreError, match="most_rows"):
            table.find_or_create(np.arange(1, 20, dtype=np.uint64))
        assert len(table) == 10
        assert table.delete(uint64([1])) == 1
        assert table.find_or_create(uint64([15]))[0] >= 0
        with pytest.raises(StoreError, match="full"):
            table.write(uint64([1]), np.ones((1, 1), np.float32))

    def test_each_family_learns_by_its_own_optimizer(self) -> None:
        optimizers = [RowwiseAdagrad(), Adagrad(), Adam(), Ftrl(l1=0.01), Adagrad(epsilon=0.1)]
        keys = np.arange(1, 501, dtype=np.uint64)
        mixed = self.made(4, [Family(str(i), optimizer=o, scale=0.1) for i, o in enumerate(optimizers)])
        for family in range(5):
            mixed.find_or_create(keys[family::5].copy(), family)
        alone = [self.made(4, (Family(optimizer=optimizer, scale=0.1),)) for optimizer in optimizers]
        for family, table in enumerate(alone):
            table.find_or_create(keys[family::5].copy())
        rng = np.random.default_rng(0)
        for _ in range(4):
            asked = rng.choice(keys, 300)  # with repeats
            gradients = rng.normal(size=(300, 4)).astype(np.float32)
            mixed.update(mixed.find(asked), gradients, 0.05)
            for table in alone:
                table.update(table.find(asked), gradients, 0.05)
        for family, table in enumerate(alone):
            np.testing.assert_array_equal(mixed.read(keys[family::5].copy()), table.read(keys[family::5].copy()))
        assert mixed.width == 9

    def test_a_state_that_does_not_fit_is_refused_and_the_table_stays(self) -> None:
        table = self.made(DIM, (Family(), Family("b")))
        table.find_or_create(uint64([4, 5]), 1, 7000)
        good = table.state()
        bad_states = [
            {},
            {**good, "keys": uint64([4, 4])},
            {**good, "keys": uint64([0, 4])},
            {**good, "keys": np.array([4, 5], np.int64)},
            {**good, "keys": np.array([[4, 5]], np.uint64)},
            {**good, "values": good["values"][:, :2]},
            {**good, "values": good["values"] * np.float32(np.nan)},
            {**good, "optimizer": good["optimizer"][:1]},
            {**good, "family": np.array([0, 2], np.uint8)},
            {**good, "seen": good["seen"].astype(np.int64)},
            {**good, "sights": np.zeros((4, 8), np.uint8)},
            {**good, "hands": good["hands"][:1]},
            {name: array for name, array in good.items() if name != "counters"},
            {name: array for name, array in good.items() if name != "values"},
        ]
        for bad in bad_states:
            with pytest.raises(StoreError):
                table.load(bad)
            assert_same(table.state(), good)

    def test_keys_and_values_alone_load_without_optimizer_state(self) -> None:
        table = self.made(DIM, (Family(expire=1000),), seed=3)
        keys = uint64([4, 5, 2**64 - 1])
        table.update(table.find_or_create(keys, 0, 5000), np.ones((3, DIM), np.float32), 0.1)
        state = table.state()
        other = self.made(DIM, (Family(expire=1000),), seed=9)
        other.load({name: state[name] for name in ("keys", "values")})
        np.testing.assert_array_equal(other.read(keys), table.read(keys))
        assert not other.state()["optimizer"].any()
        assert other.seed == 9
        # their time is not known: the first sweep sets it, a later one drops them
        assert other.sweep(10_000_000, 100) == 0
        assert other.sweep(10_003_000, 100) == 3

    def test_a_table_that_was_saved_goes_on_as_it_would_have(self) -> None:
        def played(table: Table, seed: int) -> Table:
            rng = np.random.default_rng(seed)
            for step in range(30):
                keys = rng.integers(0, 200, 40).astype(np.uint64)
                rows = table.find_or_create(keys, int(rng.integers(4)), 1_000_000 + 700 * (30 * seed + step))
                table.update(rows, rng.normal(size=(40, DIM)).astype(np.float32), 0.1)
                table.sweep(1_000_000 + 700 * (30 * seed + step), 10)
            return table

        through = played(self.made(DIM, FAMILIES, sight_cells=CELLS), 0)
        saved = self.made(DIM, FAMILIES, seed=77, sight_cells=CELLS)
        saved.load(through.state())
        assert_same(played(through, 1).state(), played(saved, 1).state())
        assert through.state()["counters"][1] > 0  # draws were made

    def test_capacity_larger_batches_keep_what_they_name(self) -> None:
        table = self.made(DIM, (Family(capacity=100),))
        first = np.arange(1, 101, dtype=np.uint64)
        table.find_or_create(first, 0, 1000)
        asked = np.concatenate((first[:60], np.arange(1000, 1500, dtype=np.uint64)))
        rows = table.find_or_create(asked, 0, 2000)
        assert len(table) == 100
        assert (rows[:60] == table.find(first[:60].copy())).all()
        assert (rows[60:100] >= 0).all()
        assert (rows[100:] == -1).all()
        assert len(set(rows[:100].tolist())) == 100
        changes = table.take_changes()
        assert changes.deleted.tolist() == first[60:].tolist()
        assert not np.intersect1d(changes.touched, changes.deleted).size

    def test_eviction_prefers_what_was_seen_long_ago(self) -> None:
        rng = np.random.default_rng(0)
        table = self.made(1, (Family(capacity=1000),))
        keys = rng.integers(1, 2**63, 1000).astype(np.uint64)
        table.find_or_create(keys, 0, 1000)
        fresh = keys[:500].copy()
        table.find_or_create(fresh, 0, 50_000)
        table.find_or_create(rng.integers(1, 2**63, 200).astype(np.uint64), 0, 60_000)
        # a victim is fresh only where all of the eight are: 2^-8 at first, 2.5^-... of 300 left towards the end
        assert (table.find(fresh) >= 0).mean() > 0.98
