"""What Q7 rests on: labels and splits by their rules, no label among the inputs, equal sizes, a world it can learn."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

from mainstem.evaluate.metrics import auc

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture(scope="module", autouse=True)
def modules() -> object:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
        yield importlib.import_module("_tabular"), importlib.import_module("q7_tabular")


@pytest.fixture(scope="module")
def tabular(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[0]


@pytest.fixture(scope="module")
def q7(modules: tuple[ModuleType, ModuleType]) -> ModuleType:
    return modules[1]


def census(rows: int) -> dict[str, list[object]]:
    """A file of the census' columns that matter here, and one more input."""
    rng = np.random.default_rng(0)
    table: dict[str, list[object]] = {"sex": rng.choice(["Female", "Male"], rows).tolist()}
    table |= {name: rng.integers(0, 100, rows).tolist() for name in ("age", "num_emp", "weeks_worked")}
    amounts = ("wage_per_hour", "capital_gains", "capital_losses", "stock_dividends")
    table |= {name: rng.integers(0, 100, rows).tolist() for name in amounts}
    table["instance_weight"] = rng.random(rows).tolist()
    table["marital_stat"] = rng.choice(["Never married", "Widowed"], rows).tolist()
    table["income_50k"] = rng.choice(["- 50000.", "50000+."], rows).tolist()
    return table


def test_three_stars_are_left_out_and_four_are_a_one(q7: ModuleType) -> None:
    counts, labels = q7.liked(np.array([3, 1, 4, 2, 3, 5]))
    assert counts.tolist() == [False, True, True, True, False, True]
    assert labels.tolist() == [0, 1, 0, 1]


@pytest.mark.parametrize("shares", [(0.8, 0.1, 0.1), (1 / 3, 1 / 3, 1 / 3)])
def test_parts_are_disjoint_whole_and_of_their_shares(tabular: ModuleType, shares: tuple[float, ...]) -> None:
    parts = tabular.parts_of(1003, shares, seed=0)
    assert sorted(np.concatenate(parts).tolist()) == list(range(1003))
    assert [len(part) for part in parts] == pytest.approx([1003 * share for share in shares], abs=1)
    again, other = tabular.parts_of(1003, shares, seed=0), tabular.parts_of(1003, shares, seed=1)
    assert (parts[0] == again[0]).all()
    assert (parts[0] != other[0]).any()
    assert (np.diff(parts[0]) < 0).any()  # not in the order of the file


def test_keys_are_those_of_the_field_and_its_value(tabular: ModuleType) -> None:
    keys = tabular.keys_of("age", [25, 1, 25])
    assert keys[0] == keys[2] != keys[1]
    assert not np.isin(tabular.keys_of("occupation", [25, 1]), keys).any()


def test_no_label_and_no_weight_is_an_input(q7: ModuleType) -> None:
    table = census(200)
    examples = q7.people(table)
    assert examples.labels[:, 0].tolist() == [value == "50000+." for value in table["income_50k"]]
    assert examples.labels[:, 1].tolist() == [value == "Never married" for value in table["marital_stat"]]
    for name in ("income_50k", "marital_stat", "instance_weight"):
        other = q7.people(table | {name: table[name][::-1]})
        assert (other.keys == examples.keys).all()
        assert (other.numbers == examples.numbers).all()
    other = q7.people(table | {"sex": table["sex"][::-1]})
    assert (other.keys != examples.keys).any()


def test_ways_of_sharing_are_of_equal_size(q7: ModuleType, tabular: ModuleType) -> None:
    examples = q7.people(census(200))
    rows = len(np.unique(examples.keys)) * q7.CENSUS.dim
    for name, shape in q7.SHAPES.items():
        shown, budget = (examples.task(0), 20_000) if name == q7.ALONE else (examples, 40_000)
        settings = q7.sized(shape, shown, budget)
        model = tabular.Tabular(shown, settings, seed=0)
        model.embedded(shown, learning=True)
        assert 0.9 * budget < model.parameters <= budget
        assert len(model.table) * q7.CENSUS.dim == rows


def test_a_field_of_several_values_is_the_mean_of_its_rows(tabular: ModuleType) -> None:
    genres = tabular.keys_of("genre", ["a", "b", "c"])
    keys = np.array([[7, genres[0], genres[1]], [7, genres[2], 0], [7, 0, 0]], np.uint64)
    examples = tabular.Columns(keys, np.zeros((3, 0), np.float32), np.zeros((3, 1), np.float32), several=2)
    model = tabular.Tabular(examples, tabular.Settings(dim=4, hidden=(4,)), seed=0)
    block = model.embedded(examples, learning=True).detach().numpy()
    a, b, c = model.table.read(genres)
    assert np.abs(a).sum() > 0
    np.testing.assert_allclose(block[:, 4:], [(a + b) / 2, c, np.zeros(4)], rtol=1e-6)


def test_deep_learns_a_checkerboard_that_a_logistic_one_cannot(tabular: ModuleType) -> None:
    torch.set_num_threads(1)
    rng = np.random.default_rng(0)
    place = rng.integers(0, 8, (3000, 2))
    keys = np.column_stack([tabular.keys_of(name, place[:, i].tolist()) for i, name in enumerate(("row", "column"))])
    labels = (place.sum(axis=1) % 2).astype(np.float32)[:, None]
    examples = tabular.Columns(keys, np.zeros((3000, 0), np.float32), labels)
    train, valid, _ = (examples.take(rows) for rows in tabular.parts_of(3000, (0.6, 0.2, 0.2), seed=0))
    settings = tabular.Settings(dim=4, rank=8, batch=64, epochs=8, dense_rate=1e-2, row_rate=2e-2)
    found = {}
    for name, shape in (("deep", {"hidden": (16,)}), ("logistic", {"hidden": (), "cross_layers": 0})):
        made = tabular.fit(train, valid, tabular.replace(settings, **shape), seed=0)
        found[name] = tabular.scores_of(made.model, valid)[0]
        assert found[name]["auc"] == auc(valid.labels[:, 0], made.model.chances(valid)[:, 0])
        # the weights are those of the best epoch, not of the last
        assert found[name]["logloss"] == pytest.approx(min(made.validation), rel=1e-6)
        assert made.best == int(np.argmin(made.validation)) + 1
    assert found["deep"]["auc"] > 0.99
    assert found["logistic"]["auc"] < 0.7
