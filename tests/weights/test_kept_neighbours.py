"""Weights between items beside snapshots: as long as one names them, and never as something else than was written."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainstem.schema.errors import StoreError
from mainstem.weights import KeptNeighbours, SnapshotMeta, Snapshots
from mainstem.weights.files import FileSum

ONE, OTHER = ({"keys": np.arange(n, dtype=np.uint64)} for n in (3, 4))


@pytest.fixture
def store(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path)


def files(store: Snapshots, line: str = "main") -> set[str]:
    return {name.removesuffix(".safetensors") for name in store.files.list(f"{line}/neighbours")}


def snapshot(store: Snapshots, **named: FileSum) -> str:
    return store.save("main", {"w": np.zeros(1, np.float32)}, {}, SnapshotMeta(extras=store.neighbours.extras(named)))


def test_a_snapshot_names_them_by_source(store: Snapshots) -> None:
    one, other = store.neighbours.put("main", ONE), store.neighbours.put("main", OTHER)
    extras = store.manifest("main", snapshot(store, item_knn=one, ease=other)).extras
    assert store.neighbours.named(extras) == {"item_knn": one, "ease": other}
    assert "neighbours" not in store.manifest("main", snapshot(store)).extras
    assert KeptNeighbours.named({}) == KeptNeighbours.named({"neighbours": {"ease": 3}}) == {}
    np.testing.assert_array_equal(store.neighbours.load("main", one)["keys"], ONE["keys"])


def test_they_stay_as_long_as_a_snapshot_names_them_and_come_back_with_a_rollback(store: Snapshots) -> None:
    one, other = store.neighbours.put("main", ONE), store.neighbours.put("main", OTHER)
    first = snapshot(store, item_knn=one)
    snapshot(store, item_knn=other, ease=one)
    store.keep("main", 1)
    assert files(store) == {one.sha256, other.sha256}
    first = snapshot(store, item_knn=one)
    snapshot(store, item_knn=other)
    store.keep("main", 2)
    back = store.rollback("main", first)
    assert store.neighbours.named(store.manifest("main", back).extras) == {"item_knn": one}
    store.keep("main", 1)
    assert files(store) == {one.sha256}
    snapshot(store)
    store.keep("main", 1)
    assert files(store) == set()


def test_a_copy_for_another_line_is_checked_on_the_way(store: Snapshots) -> None:
    one = store.neighbours.put("main-rebuilt", ONE)
    for _ in range(2):  # the second finds it there
        store.neighbours.copy("main-rebuilt", one, "main")
    assert files(store) == {one.sha256}
    store.neighbours.load("main", one)
    path = store.root / "main-rebuilt" / "neighbours" / f"{one.sha256}.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(StoreError, match="damaged"):
        store.neighbours.copy("main-rebuilt", one, "third")
    assert files(store, "third") == set()
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        store.neighbours.copy("main-rebuilt", one, "third")


def test_what_cannot_be_written_is_an_error_of_the_store(store: Snapshots) -> None:
    one = store.neighbours.put("main", ONE)
    (store.root / "other").write_text("no folder")
    for write in (lambda: store.neighbours.put("other", ONE), lambda: store.neighbours.copy("main", one, "other")):
        with pytest.raises(StoreError, match="neighbours of 'other' cannot be written") as caught:
            write()
        assert isinstance(caught.value.__cause__, OSError)


def test_a_name_from_a_manifest_stays_in_its_folder(store: Snapshots) -> None:
    with pytest.raises(StoreError, match="no name"):
        store.neighbours.load("main", FileSum("../../secret", 10))
