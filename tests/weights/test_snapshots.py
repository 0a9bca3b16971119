import hashlib
import json
import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from mainstem import weights
from mainstem.schema.errors import ConfigError, Incompatible, NotReady, StoreError
from mainstem.schema.position import Position
from mainstem.weights import SlabTable, SnapshotMeta, Snapshots
from mainstem.weights.files import FileSum
from mainstem.weights.manifests import seal
from mainstem.weights.table import SERVED

TENSORS = {"w": np.arange(12, dtype=np.float32).reshape(3, 4), "step": np.array(7, np.int64), "empty": np.zeros((0, 3))}
META = SnapshotMeta(
    fingerprint="f1", position=Position({0: 42}), metrics={"ndcg": 0.25}, extras={"features": ["a", "b"], "dim": 4}
)


def _table() -> SlabTable:
    table = SlabTable(4, seed=3)
    rows = table.find_or_create(np.array([9, 2**64 - 1, 5], np.uint64))
    table.update(rows, np.ones((3, 4), np.float32), 0.1)
    return table


def _state() -> dict[str, NDArray[Any]]:
    keys = np.array([5, 9, 2**64 - 1], np.uint64)
    return {"keys": keys, "values": np.full((3, 4), 0.5, np.float32), "seen": np.zeros(3, np.uint32)}


@pytest.fixture(params=["local", "memory"])
def snapshots(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    return weights.open(f"file://{tmp_path}" if request.param == "local" else f"memory://s-{os.urandom(6).hex()}")


def test_what_was_saved_is_loaded(snapshots: Snapshots) -> None:
    table, adam = _table(), {"adam.0": np.ones((2, 3)), "table.odd": np.zeros(1, np.int64)}
    version = snapshots.save("main", TENSORS, {"rows": table}, META, adam)
    assert snapshots.latest("main") == weights.Newest(version, {})
    loaded = snapshots.load("main", version, training=True)
    assert loaded.tensors.keys() == TENSORS.keys()
    for name, array in TENSORS.items():
        np.testing.assert_array_equal(loaded.tensors[name], array)
        assert loaded.tensors[name].dtype == array.dtype
        assert loaded.tensors[name].shape == array.shape
        assert loaded.tensors[name].flags.writeable
    assert loaded.tables["rows"].keys() == table.state().keys()
    for name, array in table.state().items():
        np.testing.assert_array_equal(loaded.tables["rows"][name], array)
        assert loaded.tables["rows"][name].dtype == array.dtype
    assert loaded.training.keys() == adam.keys()
    np.testing.assert_array_equal(loaded.training["adam.0"], adam["adam.0"])
    again = SlabTable(4)
    again.load(loaded.tables["rows"])
    new = np.array([77], np.uint64)  # the initialiser, too, is the same
    np.testing.assert_array_equal(again.gather(again.find_or_create(new)), table.gather(table.find_or_create(new)))
    manifest = loaded.manifest
    assert (manifest.line, manifest.version, manifest.dense_version) == ("main", version, version)
    assert (manifest.base, manifest.sequence, manifest.chain, manifest.format) == (version, 0, "", 2)
    assert (manifest.fingerprint, manifest.metrics, manifest.extras) == ("f1", META.metrics, META.extras)
    assert {name: (shape.dim, shape.rows) for name, shape in manifest.tables.items()} == {"rows": (4, 3)}
    assert loaded.position == Position({0: 42})
    assert abs(manifest.created / 1000 - time.time()) < 60
    assert [m.version for m in snapshots.manifests("main")] == [version]


def test_serving_does_not_read_what_only_a_trainer_needs(snapshots: Snapshots) -> None:
    version = snapshots.save("main", TENSORS, {"a": _state(), "b": _state()}, META, {"adam": np.ones(3)})
    snapshots.files.delete(f"main/{version}/training.safetensors")
    loaded = snapshots.load("main", version)
    assert {name: tuple(sorted(state)) for name, state in loaded.tables.items()} == {"a": SERVED, "b": SERVED}
    assert loaded.training == {}
    with pytest.raises(StoreError, match=r"training.safetensors is missing"):
        snapshots.load("main", version, training=True)


def test_state_that_was_copied_before_is_saved_as_the_table_is(tmp_path: Path) -> None:
    snapshots, table = Snapshots(tmp_path), _table()
    state = table.state()
    one = snapshots.save("main", TENSORS, {"rows": table}, META)
    table.update(table.find(np.array([9], np.uint64)), np.ones((1, 4), np.float32), 0.1)
    two = snapshots.save("main", TENSORS, {"rows": state}, META)
    three = snapshots.save("main", TENSORS, {"rows": table}, META)
    files = [snapshots.manifest("main", version).files for version in (one, two, three)]
    assert files[0] == files[1]
    assert files[0] != files[2]  # canary


def test_what_cannot_be_stored_is_told_before_anything_is_written(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for arguments in (
        {"tensors": {"w": np.array(["text"])}},
        {"tensors": {}, "meta": SnapshotMeta(extras={"a": object()})},
        {"tensors": {}, "tables": {"../x": _state()}},
        {"tensors": {}, "training": {"x": np.array([None])}},
    ):
        with pytest.raises((TypeError, ValueError)):
            snapshots.save("main", **arguments)  # type: ignore[arg-type]
    assert snapshots.versions("main") == []
    assert not [entry for entry in (tmp_path / "main").iterdir() if entry.name.startswith("v-")]


def test_equal_contents_are_equal_bytes(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    one = snapshots.save("main", TENSORS, {"rows": _table()}, META)
    table = SlabTable(4, seed=3)
    for key in (5, 9, 11, 2**64 - 1):  # another order, and one that comes and goes
        table.find_or_create(np.array([key], np.uint64))
    table.delete(np.array([11], np.uint64))
    table.update(table.find(np.array([5, 9, 2**64 - 1], np.uint64)), np.ones((3, 4), np.float32), 0.1)
    other = snapshots.save("main", TENSORS, {"rows": table}, META)
    assert one < other
    assert snapshots.manifest("main", one).files == snapshots.manifest("main", other).files


def test_a_line_without_a_table_and_with_an_older_dense_part(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    first = snapshots.save("teacher", TENSORS, None)
    second = snapshots.save("teacher", TENSORS, None, SnapshotMeta(dense_version=first))
    loaded = snapshots.load("teacher", second)
    assert loaded.tables == {}
    assert loaded.manifest.dense_version == first
    assert snapshots.latest("main") == weights.Newest(None, {})  # lines are apart
    with pytest.raises(NotReady):
        snapshots.load("main", first)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_damaged_file_never_loads(tmp_path: Path, data: st.DataObject) -> None:
    """Flip, cut, lengthen, remove or swap any file of a snapshot, anywhere. Left alone, it loads (the canary)."""
    snapshots = Snapshots(tmp_path / os.urandom(6).hex())
    good = snapshots.save("main", TENSORS, {"rows": _state()}, META)
    bad = snapshots.save("main", TENSORS, {"rows": _state()}, META)
    assert snapshots.load("main", bad, training=True).manifest.version == bad
    names = ["manifest.json", "dense.safetensors", "table-rows.safetensors", "training.safetensors"]
    name = data.draw(st.sampled_from(names))
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
    newest = snapshots.latest("main")
    assert newest.version == good
    if (how, name) == ("remove", "manifest.json"):  # without its manifest there is no version
        assert newest.skipped == {}
        with pytest.raises(NotReady):
            snapshots.load("main", bad, training=True)
        return
    assert newest.skipped.keys() == {bad}
    assert bad in newest.skipped[bad]
    with pytest.raises(StoreError, match=f"{bad}/{name}"):
        snapshots.load("main", bad, training=True)


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
    files = {**manifest.files, "../../secret": FileSum.of(b"x")}
    forged = seal(msgspec.structs.replace(manifest, files=files))
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
    (tmp_path / "main" / versions[0] / ".new-rest").write_bytes(b"1")
    (tmp_path / "main" / ("v-" + "1" * 32)).mkdir()  # killed before its manifest
    assert snapshots.keep("main", 2) == [versions[1], versions[0]]
    assert snapshots.versions("main") == versions[2:]
    assert sorted(entry.name for entry in (tmp_path / "main").iterdir()) == [".head", ".writer", *versions[2:]]
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
    with snapshots.files.lock("main/.writer", ""):
        with pytest.raises(StoreError, match="being written"):
            snapshots.save("main", TENSORS, None)
        snapshots.save("other", TENSORS, None)
    snapshots.save("main", TENSORS, None)


def test_urls(tmp_path: Path) -> None:
    assert weights.open("file:///a/b%20c").root == Path("/a/b c")
    assert weights.open("a/b").root == Path("a/b")
    for bad in ("file://host/x", "nonsense://x/y", ""):
        with pytest.raises(ConfigError, match="storage"):
            weights.open(bad)
    with pytest.raises(StoreError, match="no local folder"):
        _ = weights.open("memory://x").root


WRITER = """
    import sys, numpy as np
    from pathlib import Path
    from mainstem.schema.position import START
    from mainstem.weights.deltas import Delta, TableDelta
    from mainstem.weights.snapshots import Snapshots
    snapshots = Snapshots(Path(sys.argv[1]))
    keys, values = np.arange(1, 20_001, dtype=np.uint64), np.ones((20_000, 16), np.float32)
    table = {"keys": keys, "values": values, "state": values}
    change = {"rows": TableDelta(keys, values, np.zeros(0, np.uint64))}
    while True:
        version = snapshots.save("main", {"w": np.ones((200, 1000), np.float32)}, {"rows": table})
        print(version, flush=True)
        for _ in range(3):
            here = snapshots.place("main")
            delta = Delta(line="main", base=version, sequence=here.sequence + 1, previous=here.sha256,
                          dense_version=version, position=START, tables=change)
            here = snapshots.publish("main", delta)
            print(version, here.sequence, flush=True)
        if len(snapshots.versions("main")) > 5:
            snapshots.keep("main", 2)
"""


@pytest.mark.parametrize("kills", [2, pytest.param(15, marks=pytest.mark.slow)])
def test_kill_9_leaves_every_write_that_was_acknowledged(tmp_path: Path, kills: int) -> None:
    random = np.random.default_rng(0)
    snapshots = Snapshots(tmp_path)
    cut = 0
    for _ in range(kills):
        writer = subprocess.Popen(
            [sys.executable, "-c", textwrap.dedent(WRITER), str(tmp_path)], stdout=subprocess.PIPE, text=True
        )
        assert writer.stdout is not None
        first = writer.stdout.readline()
        time.sleep(random.uniform(0.0, 0.1))
        writer.send_signal(signal.SIGKILL)
        acknowledged = [first, *writer.stdout.read().splitlines(keepends=True)]
        writer.wait()
        writer.stdout.close()
        last = [line.split() for line in acknowledged if line.endswith("\n")][-1]
        cut += bool(unfinished(tmp_path / "main"))
        newest = snapshots.latest("main")
        assert newest.version is not None
        assert newest.version >= last[0]
        assert newest.skipped == {}
        place = snapshots.place("main")
        assert place is not None
        assert (place.base, place.sequence) >= (last[0], int(last[1]) if len(last) > 1 else 0)
        for version in snapshots.versions("main"):
            assert len(snapshots.load("main", version, training=True).tensors["w"]) == 200
            for sequence in snapshots.deltas.sequences("main", version):
                assert len(snapshots.deltas.load("main", version, sequence).tables["rows"].keys) == 20_000
    assert cut or kills < 10  # canary: some kill fell into a write (nearly all of the writer's time is spent in one)
    version = snapshots.save("main", TENSORS)  # the next writer clears the rest
    snapshots.keep("main", 1)
    assert unfinished(tmp_path / "main") == []
    assert snapshots.versions("main") == [version]


def unfinished(line: Path) -> list[Path]:
    folders = [entry for entry in line.glob("v-*") if not (entry / "manifest.json").exists()]
    return folders + list(line.rglob(".new-*"))


def test_a_snapshot_of_an_earlier_release_says_so(tmp_path: Path) -> None:
    """Format 1, byte by byte as it was written."""
    snapshots = Snapshots(tmp_path)
    version = "v-" + "0" * 31 + "1"
    body = json.dumps(
        {"line": "main", "version": version, "dense_version": version, "fingerprint": "", "position": "p", "created": 1,
         "metrics": {}, "extras": {}, "files": {}, "format": 1},
        indent=2,
    ).encode()  # fmt: skip
    sealed = b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"manifest": ' + body + b"}\n"
    (tmp_path / "main" / version).mkdir(parents=True)
    (tmp_path / "main" / version / "manifest.json").write_bytes(sealed)
    with pytest.raises(Incompatible, match=r"format 1.*mainstem train"):
        snapshots.load("main", version)
    assert "format 1" in snapshots.latest("main").skipped[version]
    assert snapshots.save("main", TENSORS) > version  # and the line goes on beside it


def test_the_manifest_reads_as_plain_json(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    version = snapshots.save("main", TENSORS, None, SnapshotMeta(metrics={"loss": float("nan"), "n": np.float64(0.5)}))
    document = json.loads((tmp_path / "main" / version / "manifest.json").read_text())
    assert document["manifest"]["version"] == version
    assert snapshots.manifest("main", version).metrics == {"loss": None, "n": 0.5}
