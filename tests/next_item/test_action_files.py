"""One's own files: columns by their usual names or by a mapping, errors that name what is there."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from mainstem.next_item import Actions, of_file
from mainstem.schema.errors import ConfigError, DatasetError, MainstemError
from mainstem.schema.ids import key64

ROWS = [("a", "x", 2), ("a", "y", 1), ("b", "x", 5), ("a", "z", 3), ("b", "z", 4)]


def written(path: Path, head: str, rows: list[tuple[object, ...]] = ROWS, by: str = ",") -> Path:  # type: ignore[assignment]
    path.write_text("\n".join([head, *(by.join(map(str, row)) for row in rows)]) + "\n")
    return path


def items_of(actions: Actions, user: str) -> list[str]:
    names = {key64("item", name): name for name in "xyz"}
    rows = actions.positives.user == np.uint64(key64("user", user))
    return [names[key] for key in actions.positives.entity[rows].tolist()]


@pytest.mark.parametrize(
    "head", ["user,item,order", "user_id,item_id,pos", "userId,movieId,timestamp", "customer,product,Date"]
)
def test_usual_names_are_known(tmp_path: Path, head: str) -> None:
    actions = of_file(written(tmp_path / "a.csv", head))
    assert (items_of(actions, "a"), items_of(actions, "b")) == (["y", "x", "z"], ["z", "x"])


def test_other_forms(tmp_path: Path) -> None:
    tsv = written(tmp_path / "a.tsv", "user\titem\torder", by="\t")
    columns = dict(zip(("user", "item", "order"), zip(*ROWS, strict=True), strict=True))
    pq.write_table(pa.table({name: list(values) for name, values in columns.items()}), tmp_path / "a.parquet")
    for path in (tsv, tmp_path / "a.parquet"):
        assert items_of(of_file(path), "a") == ["y", "x", "z"]


def test_a_mapping_names_columns(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "who,what,order")
    assert items_of(of_file(path, mapping={"user": "who", "item": "what"}), "b") == ["z", "x"]


def test_time_is_better_than_an_order(tmp_path: Path) -> None:
    rows = [("a", name, at, -at) for at, name in enumerate("xyz")]
    actions = of_file(written(tmp_path / "a.csv", "user,item,time,order", rows))
    assert items_of(actions, "a") == ["x", "y", "z"]


def test_rows_of_one_moment_stay_in_the_file_s_order(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "user,item,time", [("a", name, "2020-01-01") for name in "zxy"])
    assert items_of(of_file(path), "a") == ["z", "x", "y"]


@pytest.mark.parametrize(
    ("head", "mapping", "says"),
    [
        (
            "who,item,time",
            {},
            "a.csv: no column for user\n  columns found: who, item, time\n  name the column with --map",
        ),
        ("user,item,when", {}, "no column for time or order\n  columns found: user, item, when"),
        ("user,item,time", {"user": "usr"}, "no column for user=usr"),
        ("user,item,time", {"usr": "user"}, "--map: usr is not among user, item, time, order"),
    ],
)
def test_missing_columns_are_named(tmp_path: Path, head: str, mapping: dict[str, str], says: str) -> None:
    with pytest.raises(ConfigError) as told:
        of_file(written(tmp_path / "a.csv", head), mapping=mapping)
    assert says in str(told.value)


@pytest.mark.parametrize(
    ("row", "says"),
    [
        (("a", "x", "soon"), "row 2: time: 'soon' is not ISO 8601"),
        (("", "x", 1), "row 2: user, item and time are needed"),
        (("a", "x"), "row 2 has 2 fields where the header names 3"),
    ],
)
def test_rows_that_cannot_be_read_are_named(tmp_path: Path, row: tuple[object, ...], says: str) -> None:
    with pytest.raises(MainstemError) as told:
        of_file(written(tmp_path / "a.csv", "user,item,time", [row]))
    assert says in str(told.value)


def test_files_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(DatasetError, match="there is no such file"):
        of_file(tmp_path / "a.csv")
    with pytest.raises(DatasetError, match="is a folder"):
        of_file(tmp_path)
    with pytest.raises(DatasetError, match="holds no rows"):
        of_file(written(tmp_path / "b.csv", "user,item,time", []))
    with pytest.raises(ConfigError, match="its suffix does not say what it is"):
        of_file(written(tmp_path / "a.txt", "user,item,time"))


# ---- items -----------------------------------------------------------------------------------------


def test_items_bring_text_and_attributes(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "user,item,order")
    items = tmp_path / "items.parquet"
    pq.write_table(
        pa.table({
            "item_id": ["x", "y"], "Title": ["Red shoes", None], "brand": ["acme", "zed"], "price": [1.5, 2.0],
            "tags": [["a", "b"], []],
        }), items,
    )  # fmt: skip
    actions = of_file(path, items)
    kinds = actions.config.entities["item"].attributes
    assert kinds == {"brand": "category", "price": "number", "tags": "tags"}
    assert actions.catalog.text(key64("item", "x")).startswith("Red shoes")
    rows = actions.catalog.rows(actions.entities)
    assert (actions.catalog.codes("brand", rows) != 0).sum() == 2, "z is not described"


def test_items_need_their_ids(tmp_path: Path) -> None:
    path = written(tmp_path / "a.csv", "user,item,order")
    with pytest.raises(ConfigError, match="no column for item\n  columns found: name, brand"):
        of_file(path, written(tmp_path / "items.csv", "name,brand", [("x", "y")]))
