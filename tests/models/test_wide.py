import numpy as np
import pytest
import torch
from fitting import steps_of_adam
from torch import Tensor

from mainstem.models import cross_keys, crossed, logistic
from mainstem.models.losses import binary
from mainstem.schema.ids import keys64

GOLDEN = [2967453885910788504, 16904993318599177229, 0, 0]


def _fields() -> np.ndarray:
    """Two fields of 20 values each, every pair once: uint64 [400, 3], the third column as the first."""
    a, b = (keys64(family, map(str, range(20))) for family in ("left", "right"))
    left, right = (grid.ravel() for grid in np.meshgrid(a, b, indexing="ij"))
    return np.stack((left, right, left), axis=1)


def test_keys_of_crosses_are_distinct_by_values_by_place_and_by_cross() -> None:
    fields = _fields()
    keys = cross_keys(fields, [(0, 1), (1, 0), (1, 2), (0, 1, 2)])
    assert keys.shape == (400, 4)
    assert keys.dtype == np.uint64
    assert len(np.unique(keys)) == 1600
    np.testing.assert_array_equal(keys, cross_keys(fields, [(0, 1), (1, 0), (1, 2), (0, 1, 2)]))
    np.testing.assert_array_equal(keys[:, 2], cross_keys(fields, [(1, 2)])[:, 0])  # a cross does not know the others
    assert len(np.unique(fields[:, 0] ^ fields[:, 2])) == 1  # canary: a plain xor of equal fields is no key


def test_keys_of_crosses_are_forever() -> None:
    """Rows of a table are found by them: a changed mix would orphan every weight."""
    got = cross_keys(np.array([[1, 2], [2, 1], [0, 2], [1, 0]], np.uint64), [(0, 1)])[:, 0].tolist()
    assert got == GOLDEN


def test_a_cross_of_one_column_is_of_its_values_and_of_none_is_no_cross() -> None:
    assert cross_keys(np.zeros((0, 2), np.uint64), [(0, 1)]).shape == (0, 1)
    fields = _fields()
    alone = cross_keys(fields, [(0,), (2,)])
    assert len(np.unique(alone)) == 40  # the same values in another column are another memory
    assert not np.isin(alone, fields).any()
    with pytest.raises(ValueError, match="one column"):
        cross_keys(fields, [()])


def test_what_crosses_say_is_the_sum_of_their_rows() -> None:
    rows = torch.tensor([[0.0, 0.0], [1.0, -1.0], [10.0, 5.0]], requires_grad=True)
    got = crossed(rows, torch.tensor([[1, 2], [2, 0], [0, 0]]))
    torch.testing.assert_close(got, torch.tensor([[11.0, 4.0], [10.0, 5.0], [0.0, 0.0]]))
    gradient = torch.autograd.grad(got[:, 0].sum(), rows)[0]
    torch.testing.assert_close(gradient[1:], torch.tensor([[1.0, 0.0], [2.0, 0.0]]))
    assert crossed(rows, torch.zeros(0, 2, dtype=torch.int64)).shape == (0, 2)


def _checkerboard() -> tuple[np.ndarray, Tensor]:
    parity = np.add.outer(np.arange(20), np.arange(20)).ravel() % 2
    return _fields(), torch.from_numpy(parity.astype(np.float32))


def _accuracy(keys: np.ndarray, label: Tensor) -> float:
    """Of a logistic regression on these keys [n, k] alone, after training on the whole board."""
    distinct, places = np.unique(keys, return_inverse=True)
    at, nothing = torch.from_numpy(places.reshape(keys.shape)), torch.zeros(len(keys), 1)
    rows, model = torch.zeros(len(distinct), 1, requires_grad=True), logistic(1, crossed=True)

    def logits() -> Tensor:
        return model(nothing, crossed=crossed(rows, at))[:, 0]

    steps_of_adam(lambda _: binary(logits(), label), [rows, *model.parameters()], 40, 0.1)
    return float(((logits() > 0) == (label > 0)).float().mean())


def test_crosses_memorise_the_checkerboard() -> None:
    fields, label = _checkerboard()
    assert _accuracy(cross_keys(fields, [(0, 1)]), label) == 1.0
    assert _accuracy(fields[:, :2], label) < 0.7  # canary: the fields one by one cannot
