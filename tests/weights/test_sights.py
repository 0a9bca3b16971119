import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from oracle import chance

from mainstem.weights.family import Family
from mainstem.weights.sights import Sights, chances
from mainstem.weights.slabs import SlabTable

ROUNDS = st.lists(st.dictionaries(st.integers(1, 60), st.integers(1, 9), max_size=20), max_size=12)


def too_low(sights: Sights, rounds: list[dict[int, int]]) -> bool:
    """Whether some count is below the true one, halved whenever the sketch says that it halves."""
    true: dict[int, int] = {}
    counted, window = 0, sights.cells.shape[1] // 2
    for batch in rounds:
        keys = np.array(list(batch), np.uint64)
        before = sights.count(keys, np.array(list(batch.values()), np.int64))
        for (key, times), count in zip(batch.items(), before.tolist(), strict=True):
            if count < true.get(key, 0):
                return True
            true[key] = min(255, true.get(key, 0) + times)
            counted += times
            while counted >= window:
                counted -= window
                true = {seen: total // 2 for seen, total in true.items()}
        if counted != sights.counted:
            return True
    return False


@settings(max_examples=150, deadline=None)
@given(ROUNDS, st.sampled_from([2, 16, 64, 1024]))
def test_counts_are_never_too_low(rounds: list[dict[int, int]], cells: int) -> None:
    assert not too_low(Sights(cells), rounds)


class Forgets(Sights):
    """Wrong on purpose: counts one sight less of each key that was seen twice."""

    def count(self, keys: np.ndarray, times: np.ndarray) -> np.ndarray:
        before = super().count(keys, times)
        return np.where(before > 1, before - 1, before)


def test_a_count_that_is_too_low_is_noticed() -> None:
    assert too_low(Forgets(1024), [{1: 1}, {1: 1}, {1: 1}])


def test_a_wide_sketch_counts_exactly_and_a_narrow_one_sometimes_too_much() -> None:
    keys, ones, none = np.arange(1, 2001, dtype=np.uint64), np.ones(2000, np.int64), np.zeros(2000, np.int64)
    wide, narrow = Sights(1 << 16), Sights(1 << 12)
    for sights in (wide, narrow):
        sights.count(keys, ones)
    assert (wide.count(keys, none) == 1).mean() > 0.999
    # half as many keys as cells in a line, the most there can be: few find all four of theirs taken
    over = narrow.count(keys, none) - 1
    assert (over >= 0).all()
    assert (over == 0).mean() > 0.95


def test_old_sights_fade() -> None:
    sights = Sights(64)
    one = np.array([5], np.uint64)
    sights.count(one, np.array([20]))
    sights.count(np.array([6], np.uint64), np.array([12]))  # 32 counted: all are halved
    assert sights.count(one, np.array([1])).tolist() == [10]
    assert Sights(64).count(np.array([7, 7], np.uint64), np.array([10**12, 1])).tolist() == [0, 0]


@pytest.mark.parametrize("cells", [0, 1, 3, 100])
def test_cells_must_be_a_power_of_two(cells: int) -> None:
    with pytest.raises(ValueError, match="power of two"):
        Sights(cells)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2**64 - 1), st.integers(0, 2**64 - 1), st.integers(0, 2**63))
def test_draws_agree_with_the_oracle(key: int, seed: int, number: int) -> None:
    drawn = chances(np.array([key], np.uint64), np.uint64(seed), np.uint64(number))
    assert drawn.tolist() == [chance(key, seed, number)]


def test_admission_by_chance_has_the_stated_share_and_is_reproducible() -> None:
    keys = np.arange(1, 20_001, dtype=np.uint64)
    family = Family(admit_probability=0.25)
    one, other, third = (SlabTable(1, (family,), seed=seed) for seed in (1, 1, 2))
    rows = one.find_or_create(keys)
    np.testing.assert_array_equal(rows >= 0, other.find_or_create(keys) >= 0)
    assert abs((rows >= 0).mean() - 0.25) < 0.02
    assert ((rows >= 0) != (third.find_or_create(keys) >= 0)).mean() > 0.3
    # the second sight is a draw of its own; three sights in one call have three chances
    assert abs((one.find_or_create(keys) >= 0).mean() - (1 - 0.75**2)) < 0.02
    many = SlabTable(1, (family,)).find_or_create(keys, sights=np.full(20_000, 3))
    assert abs((many >= 0).mean() - (1 - 0.75**3)) < 0.02


def test_sights_below_admit_after_earn_no_draw() -> None:
    keys = np.arange(1, 20_001, dtype=np.uint64)
    table = SlabTable(1, (Family(admit_after=3, admit_probability=0.5),))
    assert (table.find_or_create(keys, sights=np.full(20_000, 2)) == -1).all()
    assert abs((table.find_or_create(keys, sights=np.full(20_000, 2)) >= 0).mean() - 0.75) < 0.02
    # repeats within a call are sights too
    again = SlabTable(1, (Family(admit_after=3),))
    asked = np.array([7, 8, 7, 0, 7, 8], np.uint64)
    assert (again.find_or_create(asked) >= 0).tolist() == [True, False, True, False, True, False]
