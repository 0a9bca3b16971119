import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainstem import weights
from mainstem.schema.errors import ConfigError, NotReady, StoreError
from mainstem.schema.position import Position
from mainstem.weights import MemoryTable, SnapshotMeta, Snapshots

TENSORS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.array(7, np.int64), "empty": np.zeros((0, 3))}
META = SnapshotMeta(
    fingerprint="f1", position=Position({0: 42}), metrics={"ndcg": 0.25}, extras={"features": ["a", "b"], "dim": 4}
)


def _table() -> MemoryTable:
    table = MemoryTable(4, seed=3)
    rows = table.find_or_create(np.array([9, 2**64 - 1, 5], np.uint64))
    table.update(rows, np.ones((3, 4), np.float32), 0.1)
    return table


def test_what_was_saved_is_loaded(tmp_path: Path) -> None:
    snapshots, table = weights.open(f"file://{tmp_path}"), _table()
    version = snapshots.save("main", TENSORS, table, META)
    assert snapshots.latest("main") == weights.Newest(version, {})
    loaded = snapshots.load("main", version)
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
        assert loaded.tensors[name].dtype == array.dtype
        assert loaded.tensors[name].shape == array.shape
        assert loaded.tensors[name].flags.writeable
    assert loaded.table is not None
    again = MemoryTable.from_state(loaded.table)
    for name, array in table.state().items():
        np.testing.assert_array_equal(again.state()[name], array)
    new = np.array([77], np.uint64)  # the initialiser, too, is the same
    np.testing.assert_array_equal(again.gather(again.find_or_create(new)), table.gather(table.find_or_create(new)))
    manifest = loaded.manifest
    assert (manifest.line, manifest.version, manifest.dense_version) == ("main", version, version)
    assert (manifest.fingerprint, manifest.metrics, manifest.extras) == ("f1", META.metrics, META.extras)
    assert loaded.position == Position({0: 42})
    assert abs(manifest.created / 1000 - time.time()) < 60
    assert [m.version for m in snapshots.manifests("main")] == [version]


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    one = snapshots.save("main", TENSORS, _table(), META)
    table = MemoryTable(4, seed=3)
    for key in (5, 9, 11, 2**64 - 1):  # another order, and one that comes and goes
        table.find_or_create(np.array([key], np.uint64))
    table.delete(np.array([11], np.uint64))
    table.update(table.find(np.array([5, 9, 2**64 - 1], np.uint64)), np.ones((3, 4), np.float32), 0.1)
    other = snapshots.save("main", TENSORS, table, META)
    assert one < other
    assert snapshots.manifest("main", one).files == snapshots.manifest("main", other).files


def test_a_line_without_a_table_and_with_an_older_dense_part(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    first = snapshots.save("teacher", TENSORS, None)
    second = snapshots.save("teacher", TENSORS, None, SnapshotMeta(dense_version=first))
    loaded = snapshots.load("teacher", second)
    assert loaded.table is None
    assert loaded.manifest.dense_version == first
    assert snapshots.latest("main") == weights.Newest(None, {})  # lines are apart
    with pytest.raises(NotReady):
        snapshots.load("main", first)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_never_loads(tmp_path: Path, data: st.DataObject) -> None:
    """Flip, cut, lengthen, remove or swap any file of a snapshot, anywhere. Left alone, it loads (the canary)."""
    snapshots = Snapshots(tmp_path / os.urandom(6).hex())
    good = snapshots.save("main", TENSORS, _table(), META)
    bad = snapshots.save("main", TENSORS, _table(), META)
    assert snapshots.load("main", bad).manifest.version == bad
    name = data.draw(st.sampled_from(["manifest.json", "dense.safetensors", "table.safetensors"]))
    path = snapshots.root / "main" / bad / name
    content = bytearray(path.read_bytes())
    how = data.draw(st.sampled_from(["flip", "cut", "lengthen", "remove", "swap"]))
    place = data.draw(st.integers(0, len(content) - 1))
    if how == "flip":
        content[place] ^= 1 << data.draw(st.integers(0, 7))
    elif how == "cut":
        del content[place:]
    elif how == "lengthen":
        content += b"x"
    elif how == "swap":
        content[:] = (path.parent / ("dense.safetensors" if name == "manifest.json" else "manifest.json")).read_bytes()
    if how == "remove":
        path.unlink()
    else:
        path.write_bytes(content)
    with pytest.raises(StoreError):
        snapshots.load("main", bad)
    newest = snapshots.latest("main")
    assert newest.version == good
    assert newest.skipped.keys() == {bad}
    assert newest.skipped[bad]


def test_a_manifest_that_lacks_its_last_byte_is_damaged(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    version = snapshots.save("main", TENSORS, None)
    path = tmp_path / "main" / version / "manifest.json"
    path.write_bytes(path.read_bytes()[:-1])  # still valid JSON
    with pytest.raises(StoreError, match="damaged"):
        snapshots.manifest("main", version)


def test_a_manifest_cannot_reach_outside_its_folder(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    version = snapshots.save("main", TENSORS, None)
    secret = tmp_path / "secret"
    secret.write_bytes(b"x")
    manifest = snapshots.manifest("main", version)
    forged = weights.snapshots._seal(
        weights.Manifest(
            **{
                **{field: getattr(manifest, field) for field in manifest.__struct_fields__},
                "files": {**manifest.files, "../../secret": weights.snapshots._hash_file(secret)},
            }
        )
    )
    (tmp_path / "main" / version / "manifest.json").write_bytes(forged)
    with pytest.raises(StoreError, match="secret"):
        snapshots.load("main", version)
    for line, name in (("../x", version), ("main", "../x"), ("main", "v-1")):
        with pytest.raises(ValueError, match="is no"):
            snapshots.load(line, name)


def test_a_manifest_of_another_version_is_refused(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    one, two = (snapshots.save("main", TENSORS, None) for _ in range(2))
    path = tmp_path / "main"
    (path / two / "manifest.json").write_bytes((path / one / "manifest.json").read_bytes())
    with pytest.raises(StoreError, match="its manifest is that of"):
        snapshots.load("main", two)


def test_keep_counts_good_ones_and_clears_what_killed_writers_left(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    versions = [snapshots.save("main", TENSORS, None) for _ in range(5)]
    assert versions == sorted(versions) == snapshots.versions("main")
    (tmp_path / "main" / versions[4] / "dense.safetensors").write_bytes(b"")
    (tmp_path / "main" / ".new-rest").mkdir()
    assert snapshots.keep("main", 2) == [versions[1], versions[0]]
    assert snapshots.versions("main") == versions[2:]
    assert sorted(entry.name for entry in (tmp_path / "main").iterdir()) == [".writer", *versions[2:]]
    assert snapshots.keep("main", 2) == []
    with pytest.raises(ValueError, match="at least 1"):
        snapshots.keep("main", 0)


def test_versions_sort_even_where_the_clock_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    snapshots = Snapshots(tmp_path)
    first = snapshots.save("main", TENSORS, None)
    monkeypatch.setattr(weights.snapshots, "fresh_id", lambda prefix: f"{prefix}-{'0' * 32}")
    second, third = (snapshots.save("main", TENSORS, None) for _ in range(2))
    assert first < second < third
    assert snapshots.latest("main").version == third


def test_a_second_writer_is_told(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    with snapshots._writing("main"):
        with pytest.raises(StoreError, match="being written"):
            snapshots.save("main", TENSORS, None)
        snapshots.save("other", TENSORS, None)
    snapshots.save("main", TENSORS, None)


def test_urls(tmp_path: Path) -> None:
    assert weights.open("file:///a/b%20c").root == Path("/a/b c")
    assert weights.open("a/b").root == Path("a/b")
    for bad in ("s3://bucket/x", "file://host/x", ""):
        with pytest.raises(ConfigError, match="storage"):
            weights.open(bad)


WRITER = """
    import sys, numpy as np
    from pathlib import Path
    from mainstem.weights import MemoryTable, Snapshots
    snapshots, table = Snapshots(Path(sys.argv[1])), MemoryTable(16)
    table.find_or_create(np.arange(1, 20_001, dtype=np.uint64))
    while True:
        version = snapshots.save("main", {"w": np.ones((200, 1000), np.float32)}, table)
        print(version, flush=True)
        if len(snapshots.versions("main")) > 5:
            snapshots.keep("main", 2)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_kill_9_leaves_every_snapshot_that_was_acknowledged(tmp_path: Path, kills: int) -> None:
    random = np.random.default_rng(0)
    snapshots = Snapshots(tmp_path)
    cut = 0
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        acknowledged = writer.stdout.readline().strip()
        time.sleep(random.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        acknowledged = [acknowledged, *writer.stdout.read().split()][-1]
        writer.wait()
        writer.stdout.close()
        cut += any(entry.name.startswith((".new-", ".gone-")) for entry in (tmp_path / "main").iterdir())
        newest = snapshots.latest("main")
        assert newest.version is not None
        assert newest.version >= acknowledged
        assert newest.skipped == {}
        for version in snapshots.versions("main"):
            assert len(snapshots.load("main", version).tensors["w"]) == 200
    assert cut  # canary: some kill fell into a write (nearly all of the writer's time is spent in one)
    snapshots.save("main", TENSORS, None)  # the next writer clears the rest
    assert not [entry for entry in (tmp_path / "main").iterdir() if entry.name.startswith((".new-", ".gone-"))]


def test_the_manifest_reads_as_plain_json(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    version = snapshots.save("main", TENSORS, None, SnapshotMeta(metrics={"loss": float("nan"), "n": np.float64(0.5)}))
    document = json.loads((tmp_path / "main" / version / "manifest.json").read_text())
    assert document["manifest"]["version"] == version
    assert snapshots.manifest("main", version).metrics == {"loss": None, "n": 0.5}
