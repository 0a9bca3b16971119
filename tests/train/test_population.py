"""Shares are shares; the half-life halves; what is not taken for long is forgotten; checkpoints change nothing."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.train import population
from mainstem.train.population import Population

batches = st.lists(st.lists(st.integers(1, 9), min_size=1, max_size=8), max_size=12)


def keys(*values: int) -> np.ndarray:
    return np.array(values, np.uint64)


@settings(max_examples=100, deadline=None)
@given(batches, st.sampled_from([math.inf, 50.0, 3.0]))
def test_shares_are_those_of_a_dictionary(steps: list[list[int]], half_life: float) -> None:
    stock, oracle = Population(half_life), dict[int, float]()
    for step in steps:
        stock.add(keys(*step))
        decay = 0.5 ** (len(step) / half_life)
        # the batch is counted at its end: its own positives count whole
        oracle = {key: count * before for key, count in oracle.items() for before in [1.0]}
        for key in step:
            oracle[key] = oracle.get(key, 0.0) + 1.0
        oracle = {key: count * decay for key, count in oracle.items()}
    total = sum(oracle.values())
    for key in range(1, 11):
        assert stock.share(keys(key))[0] == pytest.approx(oracle.get(key, 0.0) / total if total else 0.0, abs=1e-6)
    assert len(stock) == len(oracle)
    half = Population(half_life)
    half.load(stock.state())
    for one in (stock, half):
        one.add(keys(1, 2))
    np.testing.assert_array_equal(stock.share(keys(*range(11))), half.share(keys(*range(11))))
    np.testing.assert_array_equal(stock.keys, half.keys)
    np.testing.assert_array_equal(stock.shares(), stock.share(stock.keys))
    assert stock.places(keys(*range(11))).tolist() == [
        stock.keys.tolist().index(key) if key in stock.keys.tolist() else -1 for key in range(11)
    ]


def test_it_says_when_it_has_changed() -> None:
    stock, seen = Population(half_life=1.0), set[int]()
    for change in (lambda: None, lambda: stock.add(keys(7, 8)), lambda: stock.load(stock.state())):
        change()
        seen.add(stock.changes)
    assert len(seen) == 3
    before = stock.changes
    stock.share(keys(7))
    assert stock.changes == before


def test_what_nobody_takes_any_more_is_forgotten_and_weights_stay_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(population, "RESCALE", 1e6)
    stock = Population(half_life=10.0)
    stock.add(keys(1))
    for _ in range(400):
        stock.add(keys(2))
    assert stock.share(keys(1))[0] == 0
    assert stock.keys.tolist() == [2]
    assert stock.share(keys(2))[0] == pytest.approx(1.0)
    with pytest.raises(ValueError, match="half_life"):
        Population(0.0)
