"""`DeviceTable` keeps the contract of tables, on the CPU always and on a GPU where there is one."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import mix as oracle_mix
from table_contract import (
    CELLS,
    DIM,
    FAMILIES,
    TableContract,
    against_oracle,
    assert_same,
    careless,
    forgetful,
    rejects,
    uint64,
)

from mainstem.schema.errors import StoreError
from mainstem.weights import Adagrad, Family, SlabTable
from mainstem.weights.device import DeviceTable, rounds, slots, words
from mainstem.weights.device import table as tables
from mainstem.weights.device.slots import DeviceSlots
from mainstem.weights.device.table import device_bytes
from mainstem.weights.device.words import keys_of, mix, words_of

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
DEVICES = ["cpu", pytest.param("cuda", marks=needs_gpu)]
CPU = torch.device("cpu")

on_cpu, on_gpu = partial(DeviceTable, device="cpu"), partial(DeviceTable, device="cuda")


class TestOnCpu(TableContract):
    made = staticmethod(on_cpu)


@needs_gpu
class TestOnGpu(TableContract):
    made = staticmethod(on_gpu)


TestOnCpuAgainstOracle = against_oracle(on_cpu, examples=30)
TestOnGpuAgainstOracle = needs_gpu(against_oracle(on_gpu, examples=30))


class ShortSighted(DeviceTable):
    """Wrong on purpose: a search ends at a key's home, however many lie further on."""

    class Slots(DeviceSlots):
        def _went_on(self, bucket: torch.Tensor) -> torch.Tensor:
            return torch.zeros_like(bucket, dtype=torch.bool)

    def _new_slots(self, bits: int) -> DeviceSlots:
        return self.Slots(bits, self.device)


@pytest.mark.parametrize("wrong", [forgetful(DeviceTable), careless(DeviceTable)])
def test_the_oracle_rejects_a_wrong_table(wrong: type[DeviceTable]) -> None:
    rejects(partial(wrong, device="cpu"))


@pytest.mark.parametrize("device", DEVICES)
def test_the_contract_rejects_a_search_that_ends_too_soon(device: str) -> None:
    class Wrong(TableContract):
        made = staticmethod(partial(ShortSighted, device=device))

    with pytest.raises(AssertionError):
        Wrong().test_keys_of_one_home_that_wrap_round_the_end()


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 2**64 - 1), min_size=1, max_size=20))
def test_words_mix_as_unsigned_numbers_do(numbers: list[int]) -> None:
    held = words_of(uint64(numbers), CPU)
    assert keys_of(mix(held)).tolist() == [oracle_mix(number) for number in numbers]
    assert keys_of(held).tolist() == numbers


def played(table: Any, seed: int, sweep: int = 10, learn: bool = True) -> Any:
    """Steps of everything a table does, the same for the same seed."""
    rng = np.random.default_rng(seed)
    for number in range(30):
        now = 1_000_000 + 700 * (30 * seed + number)
        keys = rng.integers(0, 200, 40).astype(np.uint64) << np.uint64(rng.integers(0, 2) * 56)
        sights = None if number % 3 else rng.integers(1, 4, 40)
        rows = table.find_or_create(keys, int(rng.integers(4)), now, sights)
        distinct, first = np.unique(rows, return_index=True)
        if learn:
            table.update(distinct, rng.normal(size=(40, DIM)).astype(np.float32)[first], 0.1)
        table.sweep(now, sweep)
        table.delete(rng.integers(0, 200, 3).astype(np.uint64))
        wanted = np.unique(rng.integers(1, 300, 5).astype(np.uint64))
        table.write(wanted, rng.normal(size=(len(wanted), DIM)).astype(np.float32), int(rng.integers(4)))
    return table


@pytest.mark.parametrize("device", DEVICES)
def test_work_in_small_parts_is_the_same(device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done in parts of millions of keys, here in parts of a few."""
    whole = played(DeviceTable(DIM, FAMILIES, device=device, sight_cells=CELLS), 0).state()
    small = ((slots, "_CHUNK", 7), (rounds, "_CHUNK", 5), (words, "_NUMBERS", 10), (tables, "_CHUNK", 9))
    for module, name, most in small:
        monkeypatch.setattr(module, name, most)
    parts = played(DeviceTable(DIM, FAMILIES, device=device, sight_cells=CELLS), 0)
    assert_same(parts.state(), whole)
    again = DeviceTable(DIM, FAMILIES, device=device, sight_cells=CELLS)
    again.load(whole)
    assert_same(again.state(), whole)
    items = [*again.items()]
    assert len(items) > 3
    assert sorted(np.concatenate([keys for keys, _ in items]).tolist()) == whole["keys"].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_it_does_what_the_table_in_memory_does_and_either_loads_the_others_state(device: str) -> None:
    slab = SlabTable(DIM, FAMILIES, seed=4, sight_cells=CELLS)
    table = DeviceTable(DIM, FAMILIES, device=device, seed=4, sight_cells=CELLS)
    one, other = played(slab, 0).state(), played(table, 0).state()
    for name, array in one.items():
        if name in ("values", "optimizer"):
            np.testing.assert_allclose(other[name], array, rtol=1e-5, atol=1e-7)
        else:
            np.testing.assert_array_equal(other[name], array, err_msg=name)
    assert len(one["keys"]) > 20
    assert one["counters"][1] > 0, "draws were made"
    assert one["hands"].any()
    changes, others = slab.take_changes(), table.take_changes()
    np.testing.assert_array_equal(changes.touched, others.touched)
    np.testing.assert_array_equal(changes.deleted, others.deleted)

    into_slab, into_device = SlabTable(DIM, FAMILIES, sight_cells=CELLS), table
    into_slab.load(other)
    into_device.load(one)
    assert_same(into_slab.state(), other)
    assert_same(into_device.state(), one)
    into_slab.load(one)
    # without steps of learning, whose last bits may differ, they stay the same to the bit
    assert_same(played(into_slab, 1, learn=False).state(), played(into_device, 1, learn=False).state())


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize(("dim", "scale", "seed"), [(1, 0.05, 0), (7, 0.3, 2**64 - 1), (64, 1e-8, 12)])
def test_new_rows_are_those_of_the_table_in_memory_to_the_bit(device: str, dim: int, scale: float, seed: int) -> None:
    keys = np.random.default_rng(dim).integers(1, 2**64, 3000, np.uint64)
    slab, table = SlabTable(dim, (Family(scale=scale),), seed=seed), DeviceTable(
        dim, (Family(scale=scale),), device=device, seed=seed
    )  # fmt: skip
    for each in (slab, table):
        each.find_or_create(keys)
    np.testing.assert_array_equal(slab.read(keys).view(np.uint32), table.read(keys).view(np.uint32))


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("excess", [1, 7, 60, 99, 100])
def test_many_are_evicted_as_one_after_the_other(device: str, excess: int) -> None:
    """Windows of eight are looked at together, and go round a family that is smaller than they are."""
    rng = np.random.default_rng(excess)
    keys, fresh = np.split(rng.permutation(np.arange(1, 301, dtype=np.uint64)), [200])
    states = []
    for table in (SlabTable(1, (Family(capacity=100), Family("b"))), DeviceTable(
        1, (Family(capacity=100), Family("b")), device=device
    )):  # fmt: skip
        table.find_or_create(keys[100:].copy(), 1)
        for start in range(0, 100, 10):
            table.find_or_create(keys[start : start + 10].copy(), 0, 1000 * (start % 40))
        for part in (keys[:20], keys[50:60]):
            table.find_or_create(np.concatenate((part, fresh[:excess])), 0, 90_000)
        states.append(table.state())
    assert_same(*states)


@pytest.mark.parametrize("device", DEVICES)
def test_forms_with_tensors_are_the_same(device: str) -> None:
    families = (Family(), Family("seen twice", admit_after=2))
    arrays, tensors = (DeviceTable(5, families, device=device) for _ in range(2))
    keys = np.array([5, 2**64 - 1, 0, 5, 2**63, 9], np.uint64)
    asked, sights = words_of(keys, tensors.device), np.array([1, 1, 1, 1, 2, 1])
    assert tensors.find_or_create_tensor(asked, 0, 7000).tolist() == arrays.find_or_create(keys, 0, 7000).tolist()
    more = words_of(keys + np.uint64(1), tensors.device)
    made = tensors.find_or_create_tensor(more, 1, 9000, torch.from_numpy(sights).to(tensors.device))
    assert made.tolist() == arrays.find_or_create(keys + np.uint64(1), 1, 9000, sights).tolist()
    assert -1 in made
    rows = tensors.find_tensor(asked)
    gradients = np.random.default_rng(0).normal(size=(6, 5)).astype(np.float32)
    tensors.update_tensor(rows, torch.from_numpy(gradients).to(tensors.device).requires_grad_(), 0.1)
    arrays.update(arrays.find(keys), gradients, 0.1)
    assert_same(tensors.state(), arrays.state())
    out = torch.full((6, 5), 9.0, device=tensors.device)
    assert tensors.read_tensor(asked, out) is out
    np.testing.assert_array_equal(out.cpu().numpy(), arrays.read(keys))
    assert tensors.gather_tensor(rows, out.fill_(9.0)) is out
    np.testing.assert_array_equal(out.cpu().numpy(), arrays.read(keys))
    assert not out[2].any(), "key 0 reads zeros"
    assert tensors.read_tensor(asked[:0]).shape == (0, 5)
    assert tensors.find_tensor(asked[::2]).tolist() == rows[::2].tolist()


@pytest.mark.parametrize("device", DEVICES)
def test_tensors_that_do_not_fit_are_refused_and_change_nothing(device: str) -> None:
    table = DeviceTable(3, device=device)
    keys = torch.tensor([4, 5], device=table.device)
    rows = table.find_or_create_tensor(keys)
    before = table.state()
    ones = torch.ones((2, 3), device=table.device)
    for bad in (keys.to(torch.int32), keys[None], keys.double()):
        with pytest.raises(TypeError, match="keys must be"):
            table.find_or_create_tensor(bad)
        with pytest.raises(TypeError, match="rows must be"):
            table.update_tensor(bad, ones, 0.1)
    for out in (ones.double(), ones[:1], torch.ones((2, 6), device=table.device)[:, ::2]):
        with pytest.raises(ValueError, match="out must be"):
            table.read_tensor(keys, out)
    with pytest.raises(TypeError, match="gradients must be float32"):
        table.update_tensor(rows, ones.double(), 0.1)
    with pytest.raises(ValueError, match="not in use"):
        table.update_tensor(rows + 1, ones, 0.1)
    with pytest.raises(ValueError, match="finite"):
        table.update_tensor(rows, ones / 0, 0.1)
    with pytest.raises(ValueError, match="learning rate"):
        table.update_tensor(rows, ones, float("nan"))
    for sights in (torch.zeros_like(keys), keys[:1], keys.double()):
        with pytest.raises(ValueError, match="sights"):
            table.find_or_create_tensor(keys + 9, sights=sights)
    assert_same(table.state(), before)


@pytest.mark.parametrize("device", DEVICES)
def test_a_step_is_repeatable_and_distinct_rows_are_the_same_to_the_bit(device: str) -> None:
    rng = np.random.default_rng(0)
    keys = np.arange(1, 3001, dtype=np.uint64)
    tables = [DeviceTable(9, (Family(optimizer=Adagrad()),), device=device) for _ in range(3)]
    once = rng.permutation(np.arange(-1, 3000))
    often = (rng.zipf(1.3, 20_000) % 3000).astype(np.int64)
    gradients = rng.normal(size=(20_000, 9)).astype(np.float32)
    for number, table in enumerate(tables):
        table.find_or_create(keys)
        table.update(once, gradients[:3001], 0.1, distinct=number == 1)
        table.update(often, gradients, 0.1)
    assert_same(tables[0].state(), tables[1].state())
    assert_same(tables[0].state(), tables[2].state())


@settings(max_examples=10, deadline=None)
@given(st.integers(1, 5000), st.integers(1, 3))
def test_rows_of_deleted_keys_are_used_again_and_leave_nothing_behind(n: int, rounds: int) -> None:
    table = DeviceTable(2, device="cpu", most_rows=8192)
    for number in range(rounds):
        keys = np.arange(1 + number * n, 1 + (number + 1) * n, dtype=np.uint64)
        rows = table.find_or_create(keys)
        assert sorted(rows.tolist()) == list(range(n))
        assert table.delete(np.concatenate((keys, keys))) == n
    assert len(table) == 0
    assert not table.gather(np.arange(n)).any()
    assert not table._slots.words[:, :5].any(), "a key is left"
    assert not table._slots.halves[:, 15].any(), "a search would go on for a key that is gone"


def test_growing_keeps_rows_and_their_numbers_and_takes_no_more_than_said() -> None:
    table = DeviceTable(4, (Family(admit_after=2),), device="cpu", sight_cells=1 << 16)
    rng = np.random.default_rng(0)
    keys = np.unique(rng.integers(1, 2**64, 40_000, np.uint64))
    values = rng.normal(size=(len(keys), 4)).astype(np.float32)
    table.write(keys[:100].copy(), values[:100])
    before = table.find(keys[:100].copy())
    for part in np.array_split(np.arange(100, len(keys)), 7):
        table.write(keys[part], values[part])
    np.testing.assert_array_equal(table.find(keys[:100].copy()), before)
    np.testing.assert_array_equal(table.read(keys), values)
    memory = table.explain()
    assert memory.rows == len(keys)
    assert memory.predicted == device_bytes(len(keys), 4, 1, 1 << 16)
    assert memory.parts["values"] >= len(keys) * 16
    assert memory.predicted <= memory.total <= 2 * memory.predicted


def test_what_there_is_no_device_for_is_refused() -> None:
    with pytest.raises(ValueError, match="cuda or cpu"):
        DeviceTable(2, device="meta")
    with pytest.raises(ValueError, match="most_rows"):
        DeviceTable(2, device="cpu", most_rows=1 << 31)
    if not torch.cuda.is_available():
        with pytest.raises(ValueError, match="finds no GPU"):
            DeviceTable(2)


def test_memory_that_a_device_has_not_is_a_store_error(monkeypatch: pytest.MonkeyPatch) -> None:
    table = DeviceTable(2, device="cpu")
    table.find_or_create(np.arange(1, 1001, dtype=np.uint64))
    before, empty = table.state(), torch.empty

    def scarce(*size: Any, **more: Any) -> torch.Tensor:
        if size[0] and size[0][0] > 1024:
            raise torch.OutOfMemoryError("no more")
        return empty(*size, **more)

    monkeypatch.setattr(torch, "empty", scarce)
    with pytest.raises(StoreError, match="cpu has no memory for 2048 rows"):
        table.find_or_create(np.arange(1, 1101, dtype=np.uint64))
    monkeypatch.undo()
    assert_same(table.state(), before)
    assert (table.find_or_create(np.arange(1, 1101, dtype=np.uint64)) >= 0).all()
