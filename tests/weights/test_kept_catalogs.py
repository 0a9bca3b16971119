"""Catalogues kept beside snapshots: written once, checked when read, gone with the last snapshot that names them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from mainstem.schema.errors import StoreError
from mainstem.weights import KeptCatalog, SnapshotMeta, Snapshots

ONE = {"keys": np.arange(3, dtype=np.uint64), "revisions": np.arange(9, dtype=np.uint8)}
OTHER = {"keys": np.arange(4, dtype=np.uint64), "revisions": np.arange(9, dtype=np.uint8)}


@pytest.fixture
def store(tmp_path: Path) -> Snapshots:
    return Snapshots(tmp_path)


def kept(store: Snapshots, contents: dict[str, np.ndarray]) -> KeptCatalog:
    found = store.catalogs.put("main", contents)
    return KeptCatalog(found.sha256, found.bytes, "p0:7", "rule", 1)


def files(store: Snapshots) -> list[str]:
    return store.files.list("main/catalog")


def snapshot(store: Snapshots, catalog: KeptCatalog | None) -> str:
    extras = {} if catalog is None else catalog.extras()
    return store.save("main", {"w": np.zeros(1, np.float32)}, {}, SnapshotMeta(extras=extras))


def test_what_is_read_is_what_was_written_and_equal_ones_are_written_once(store: Snapshots) -> None:
    one = kept(store, ONE)
    path = store.root / "main" / "catalog" / files(store)[0]
    written = path.stat()
    assert kept(store, ONE) == one
    assert path.stat().st_mtime_ns == written.st_mtime_ns
    found = store.catalogs.load("main", one)
    assert found.keys() == ONE.keys()
    for name, array in ONE.items():
        np.testing.assert_array_equal(found[name], array)
    assert kept(store, OTHER) != one
    assert len(files(store)) == 2


def test_no_byte_may_differ(store: Snapshots) -> None:
    one = kept(store, ONE)
    path = store.root / "main" / "catalog" / files(store)[0]
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1]) + whole[place + 1 :])
        with pytest.raises(StoreError, match="damaged"):
            store.catalogs.load("main", one)
    for other in (whole[:-1], whole + b"\0", b""):
        path.write_bytes(other)
        with pytest.raises(StoreError, match="damaged"):
            store.catalogs.load("main", one)
    path.write_bytes(whole)
    store.catalogs.load("main", one)  # canary
    path.unlink()
    with pytest.raises(StoreError, match="missing"):
        store.catalogs.load("main", one)


def test_a_name_from_a_manifest_stays_in_its_folder(store: Snapshots) -> None:
    with pytest.raises(StoreError, match="no name"):
        store.catalogs.load("main", KeptCatalog("../../secret", 10, "p", "rule", 1))


def test_a_snapshot_says_what_is_kept_beside_it(store: Snapshots) -> None:
    one = kept(store, ONE)
    assert KeptCatalog.of(store.manifest("main", snapshot(store, one))) == one
    assert KeptCatalog.of(store.manifest("main", snapshot(store, None))) is None
    strange = store.save("main", {}, {}, SnapshotMeta(extras={"catalog": {"sha256": 3}}))
    assert KeptCatalog.of(store.manifest("main", strange)) is None


def test_they_stay_as_long_as_a_snapshot_names_them(store: Snapshots) -> None:
    one, other = kept(store, ONE), kept(store, OTHER)
    first = snapshot(store, one)
    snapshot(store, one)
    snapshot(store, other)
    (store.root / "main" / "catalog" / ".new-12").write_bytes(b"left by a killed writer")
    store.keep("main", 2)
    assert len(files(store)) == 2
    second = store.rollback("main", store.versions("main")[0])  # its copy names what the copied one named
    store.keep("main", 1)
    assert store.versions("main") == [second]
    assert first != second
    assert files(store) == [f"{one.sha256}.safetensors"]
    snapshot(store, None)
    store.keep("main", 1)
    assert files(store) == []
