"""Weights between items: against dense, naive forms, and in a world with a known answer."""

from __future__ import annotations

from importlib import import_module

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from numpy.typing import NDArray
from scipy.sparse import csr_matrix

from mainstem.models.neighbourhood import MOST_ITEMS, ease, item_knn

Dense = NDArray[np.float64]

# Whole numbers, so that every product is exact in whatever order it is summed.
interactions = st.tuples(st.integers(0, 12), st.integers(0, 9)).flatmap(
    lambda shape: arrays(np.float64, shape, elements=st.integers(0, 3).map(float))
)


def naive_knn(dense: Dense, shrink: float, neighbours: int) -> NDArray[np.float32]:
    """One pair after the other, all of a row sorted."""
    items = dense.shape[1]
    weights = np.zeros((items, items), np.float32)
    for i in range(items):
        found = []
        for j in range(items):
            product = float(dense[:, i] @ dense[:, j])
            if i != j and product > 0:
                norms = np.sqrt((dense[:, i] ** 2).sum()) * np.sqrt((dense[:, j] ** 2).sum())
                found.append((-np.float32(product / (norms + shrink)), j))
        for weight, j in sorted(found)[:neighbours]:
            weights[i, j] = -weight
    return weights


def naive_ease(dense: Dense, l2: float) -> Dense:
    """Equation 8 as it stands."""
    inverse = np.linalg.inv(dense.T @ dense + l2 * np.eye(dense.shape[1]))
    return np.eye(len(inverse)) - inverse @ np.diag(1 / np.diag(inverse))


def checkerboard(seed: int = 0) -> tuple[Dense, Dense]:
    """What 60 users took of 40 items, and what each would take: even users even items, odd users odd ones."""
    rng = np.random.default_rng(seed)
    right = (np.arange(60)[:, None] % 2 == np.arange(40)[None, :] % 2).astype(np.float64)
    return right * (rng.random(right.shape) < 0.3), right


def share_right(scores: Dense, taken: Dense, right: Dense, k: int = 10) -> float:
    best = np.argsort(-np.where(taken > 0, -np.inf, scores), axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, best, axis=1).mean())


@given(interactions, st.sampled_from([0.0, 1.0, 7.5]), st.integers(1, 9), st.sampled_from([1, 5, 4_000_000]))
@settings(deadline=None)
def test_item_knn_is_the_naive_form_in_blocks_of_any_size(
    dense: Dense, shrink: float, neighbours: int, block: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("mainstem.models.neighbourhood.item_knn"), "BLOCK", block)
        weights = item_knn(csr_matrix(dense, dtype=np.float32), shrink=shrink, neighbours=neighbours)
    assert weights.dtype == np.float32
    assert weights.has_sorted_indices
    np.testing.assert_array_equal(weights.toarray(), naive_knn(dense, shrink, neighbours))


@given(interactions, st.sampled_from([0.5, 10.0, 300.0]), st.sampled_from([1, 2, 256]))
@settings(deadline=None)
def test_ease_is_equation_8_in_blocks_of_any_size(dense: Dense, l2: float, block: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(import_module("mainstem.models.neighbourhood.ease"), "BLOCK", block)
        weights = ease(csr_matrix(dense, dtype=np.float32), l2=l2)
    assert weights.dtype == np.float32
    np.testing.assert_allclose(weights, naive_ease(dense, l2), atol=1e-5)
    assert not weights.diagonal().any()


def test_nothing_near_the_weights_of_ease_is_better() -> None:
    taken, _ = checkerboard()
    weights, l2 = ease(csr_matrix(taken), l2=5.0).astype(np.float64), 5.0

    def objective(b: Dense) -> float:
        return float(((taken - taken @ b) ** 2).sum() + l2 * (b**2).sum())

    rng = np.random.default_rng(1)
    for scale in (1e-3, 1e-1):
        for _ in range(20):
            step = scale * rng.standard_normal(weights.shape)
            np.fill_diagonal(step, 0)
            assert objective(weights + step) > objective(weights)
    assert objective(weights) < objective(0.9 * weights)  # canary: what is not the answer is told from it


def test_both_learn_the_checkerboard() -> None:
    taken, right = checkerboard()
    sparse = csr_matrix(taken, dtype=np.float32)
    assert share_right(taken @ ease(sparse, l2=20.0), taken, right) > 0.99
    assert share_right((sparse @ item_knn(sparse, shrink=1.0, neighbours=15)).toarray(), taken, right) > 0.99
    popular = np.tile(taken.sum(axis=0), (len(taken), 1))
    assert share_right(popular, taken, right) < 0.7  # canary


def test_stored_zeros_and_repeated_places_change_nothing() -> None:
    data, columns = np.array([1, 0.5, 0.5, 0, 1, 1, 1], np.float64), np.array([0, 1, 1, 2, 0, 1, 2])
    odd = csr_matrix((data, columns, np.array([0, 4, 7])), shape=(2, 3))
    plain = csr_matrix(np.array([[1, 1, 0], [1, 1, 1]], np.float64))
    knn = [item_knn(matrix, shrink=0.0, neighbours=2).toarray() for matrix in (odd, plain)]
    np.testing.assert_array_equal(*knn)
    np.testing.assert_allclose(ease(odd, l2=1.0), ease(plain, l2=1.0), atol=1e-7)
    assert odd.nnz == 7  # the caller's matrix stays as it was


def test_ease_refuses_more_items_than_it_has_memory_for_at_once() -> None:
    with pytest.raises(ValueError, match=f"{MOST_ITEMS + 1} items are more than {MOST_ITEMS}"):
        ease(csr_matrix((3, MOST_ITEMS + 1), dtype=np.float32), l2=1.0)


@pytest.mark.parametrize("l2", [0.0, -1.0, float("nan"), float("inf")])
def test_ease_refuses_an_l2_that_is_none(l2: float) -> None:
    with pytest.raises(ValueError, match="l2"):
        ease(csr_matrix(np.eye(3, dtype=np.float32)), l2=l2)


def test_ease_refuses_what_cannot_be_inverted() -> None:
    same = csr_matrix(np.full((1, 2), 1e12, np.float32))
    with pytest.raises(ValueError, match="too small"):
        ease(same, l2=1e-9)
    with pytest.raises(ValueError, match="finite"):
        ease(csr_matrix(np.array([[np.inf, 1]], np.float32)), l2=1.0)


@pytest.mark.parametrize(("shrink", "neighbours"), [(-1.0, 5), (float("nan"), 5), (0.0, 0)])
def test_item_knn_refuses_wrong_settings(shrink: float, neighbours: int) -> None:
    with pytest.raises(ValueError, match="shrink"):
        item_knn(csr_matrix(np.eye(3, dtype=np.float32)), shrink=shrink, neighbours=neighbours)


@pytest.mark.parametrize("wrong", [-1.0, float("nan")])
def test_item_knn_refuses_what_is_no_interaction(wrong: float) -> None:
    with pytest.raises(ValueError, match="negative"):
        item_knn(csr_matrix(np.array([[1, wrong]], np.float32)), shrink=0.0, neighbours=1)
