import numpy as np
import pytest
import torch
from fitting import steps_of_adam
from torch import Tensor

from mainstem.models import Wide, cross_keys
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


def test_a_cross_of_a_missing_field_is_missing_and_one_column_is_none() -> None:
    assert cross_keys(np.zeros((0, 2), np.uint64), [(0, 1)]).shape == (0, 1)
    with pytest.raises(ValueError, match="two columns"):
        cross_keys(_fields(), [(0,)])


def test_wide_sums_rows_by_place() -> None:
    model = Wide()
    with torch.no_grad():
        model.bias.fill_(0.5)
    rows = torch.tensor([[0.0], [1.0], [10.0]], requires_grad=True)
    got = model(rows, torch.tensor([1, 2, 2, 0]), torch.tensor([0, 2, 2, 4]))
    torch.testing.assert_close(got, torch.tensor([11.5, 0.5, 10.5]))
    torch.testing.assert_close(torch.autograd.grad(got.sum(), rows)[0], torch.tensor([[1.0], [1.0], [2.0]]))


def _checkerboard() -> tuple[np.ndarray, Tensor]:
    parity = np.add.outer(np.arange(20), np.arange(20)).ravel() % 2
    return _fields(), torch.from_numpy(parity.astype(np.float32))


def _accuracy(keys: np.ndarray, label: Tensor) -> float:
    """Of a wide part over these keys [n, k], after training on the whole board."""
    distinct, places = np.unique(keys, return_inverse=True)
    flat, offsets = torch.from_numpy(places.ravel()), torch.arange(len(keys) + 1) * keys.shape[1]
    rows, model = torch.zeros(len(distinct), 1, requires_grad=True), Wide()
    steps_of_adam(lambda _: binary(model(rows, flat, offsets), label), [rows, *model.parameters()], 40, 0.1)
    return float(((model(rows, flat, offsets) > 0) == (label > 0)).float().mean())


def test_crosses_memorise_the_checkerboard() -> None:
    fields, label = _checkerboard()
    assert _accuracy(cross_keys(fields, [(0, 1)]), label) == 1.0
    assert _accuracy(fields[:, :2], label) < 0.7  # canary: the fields one by one cannot
