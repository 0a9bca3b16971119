"""Neighbours of several entities together: a row of strengths times the weights, and nothing that leads out of them."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mainstem.index import Neighbourhood
from mainstem.schema.errors import StoreError


def of_dense(keys: np.ndarray, weights: np.ndarray) -> Neighbourhood:
    rows, places = np.nonzero(weights)
    offsets = np.searchsorted(rows, np.arange(len(keys) + 1))
    return Neighbourhood(keys, offsets, places.astype(np.uint32), weights[rows, places])


# Quarters, so that sums are exact in whatever order.
WEIGHTS = st.integers(0, 7).flatmap(
    lambda n: arrays(np.float32, (n, n), elements=st.integers(-4, 8).map(lambda quarter: quarter / 4))
)


@given(WEIGHTS, st.lists(st.tuples(st.integers(1, 30), st.integers(0, 3)), max_size=8), st.integers(0, 9))
@settings(deadline=None)
def test_near_is_a_row_of_strengths_times_the_weights(
    weights: np.ndarray, taken: list[tuple[int, int]], limit: int
) -> None:
    keys = np.arange(3, 3 + 2 * len(weights), 2).astype(np.uint64)
    entities = np.array([key for key, _ in taken], np.uint64)
    strengths = np.array([strength for _, strength in taken], np.float32)
    found = of_dense(keys, weights).near(entities, strengths, limit)
    row = np.zeros(len(keys))
    for key, strength in taken:
        row[keys == key] += strength
    scores = row @ weights
    wanted = sorted((-score, int(key)) for key, score in zip(keys, scores, strict=True) if score > 0)[:limit]
    assert list(zip((-found.scores).tolist(), found.keys.tolist(), strict=True)) == wanted


def test_what_is_stored_comes_back() -> None:
    one = of_dense(np.array([5, 9], np.uint64), np.array([[0, 0.5], [-1, 0]], np.float32))
    again = Neighbourhood.of(one.arrays(), "file")
    for name, array in one.arrays().items():
        np.testing.assert_array_equal(again.arrays()[name], array)
    none = of_dense(np.zeros(0, np.uint64), np.zeros((0, 0), np.float32))
    assert len(Neighbourhood.of(none.arrays(), "file").near(np.array([1], np.uint64), np.ones(1, np.float32), 3)) == 0


@pytest.mark.parametrize(
    ("part", "value", "why"),
    [
        ("keys", np.array([9, 5], np.uint64), "out of order"),
        ("keys", np.array([5, 5], np.uint64), "out of order"),
        ("keys", np.array([0, 5], np.uint64), "out of order"),
        ("keys", np.array([5, 9], np.int64), "does not hold"),
        ("keys", np.array([5], np.uint64), "do not fit"),
        ("offsets", np.array([0, 3, 2]), "leads out"),
        ("offsets", np.array([1, 1, 2]), "do not fit"),
        ("offsets", np.array([0, 1, 3]), "do not fit"),
        ("offsets", np.array([0]), "do not fit"),
        ("places", np.array([1, 2], np.uint32), "leads out"),
        ("places", np.array([1], np.uint32), "do not fit"),
        ("places", np.array([[1, 0]], np.uint32), "does not hold"),
        ("weights", np.array([np.nan, 1], np.float32), "not finite"),
        ("weights", np.array([1], np.float32), "do not fit"),
        ("more", np.array([1], np.float32), "does not hold"),
    ],
)
def test_arrays_that_lead_out_of_each_other_are_refused(part: str, value: np.ndarray, why: str) -> None:
    """Also from a file whose bytes are what was written: then somebody wrote something else."""
    arrays_ = of_dense(np.array([5, 9], np.uint64), np.array([[0, 0.5], [-1, 0]], np.float32)).arrays()
    Neighbourhood.of(arrays_, "file")  # canary
    with pytest.raises(StoreError, match=f"file is damaged.*{why}"):
        Neighbourhood.of(arrays_ | {part: value}, "file")
    del arrays_["weights"]
    with pytest.raises(StoreError, match="does not hold"):
        Neighbourhood.of(arrays_, "file")
