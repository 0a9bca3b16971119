"""A line on disk: deltas published one after another, who may write, what is kept, going back."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from mainstem import weights
from mainstem.schema.errors import NotReady, StoreError
from mainstem.schema.position import Position
from mainstem.weights.deltas import Delta, TableDelta
from mainstem.weights.manifests import Place
from mainstem.weights.snapshots import SnapshotMeta, Snapshots, Superseded

STATE = {"keys": np.array([3, 7], np.uint64), "values": np.ones((2, 4), np.float32), "seen": np.zeros(2, np.uint32)}


@pytest.fixture(params=["local", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Snapshots:
    return weights.open(f"file://{tmp_path}" if request.param == "local" else f"memory://line-{os.urandom(6).hex()}")


def full(store: Snapshots, **given: Any) -> str:
    return store.save(
        "main", {"w": np.ones(2, np.float32)}, {"rows": STATE}, SnapshotMeta(position=Position.at(5)), **given
    )


def after(place: Place, value: float = 1.0) -> Delta:
    change = TableDelta(np.array([3], np.uint64), np.full((1, 4), value, np.float32), np.zeros(0, np.uint64))
    return Delta(
        line="main",
        base=place.base,
        sequence=place.sequence + 1,
        previous=place.sha256,
        dense_version="d",
        position=Position.at(10 + place.sequence),
        tables={"rows": change},
    )


def here(store: Snapshots) -> Place:
    place = store.place("main")
    assert place is not None
    return place


def grow(store: Snapshots, count: int) -> Place:
    for _ in range(count):
        store.publish("main", after(here(store)))
    return here(store)


def test_deltas_follow_one_another(store: Snapshots) -> None:
    assert store.place("main") is None
    base = full(store)
    assert here(store) == store.load("main", base).place == Place(base, 0, here(store).sha256)
    places = [store.publish("main", after(here(store), n)) for n in range(12)]
    assert [place.sequence for place in places] == list(range(1, 13)) == store.deltas.sequences("main", base)
    assert here(store) == places[-1]
    deltas = [store.deltas.load("main", base, n) for n in range(1, 13)]
    assert [delta.previous for delta in deltas] == [
        store.load("main", base).place.sha256,
        *(d.sha256 for d in deltas[:-1]),
    ]
    assert [float(delta.tables["rows"].values[0, 0]) for delta in deltas] == list(range(12))
    assert deltas[3].place == places[3]
    assert deltas[3].position == Position.at(13)
    with pytest.raises(NotReady, match="has no deltas"):
        store.deltas.load("main", base, 13)


def test_what_does_not_follow_on_is_refused(store: Snapshots) -> None:
    full(store)
    place = grow(store, 2)
    good = after(place)
    for bad in (
        replace(good, sequence=2),  # is there
        replace(good, sequence=4),  # a hole
        replace(good, previous="0" * 64),  # another history
        replace(good, line="other"),
        replace(good, tables={"rows": replace(good.tables["rows"], keys=np.array([0], np.uint64))}),
        replace(good, tables={"rows": replace(good.tables["rows"], values=np.full((1, 4), np.nan, np.float32))}),
    ):
        with pytest.raises(StoreError) as error:
            store.publish("main", bad)
        assert not isinstance(error.value, Superseded)
    assert here(store) == place
    assert store.publish("main", good).sequence == 3  # canary: it was that alone


def test_a_snapshot_within_a_lineage(store: Snapshots) -> None:
    base = full(store)
    place = grow(store, 3)
    grow(store, 2)  # learning went on while it was written
    version = store.save("main", {}, {"rows": STATE}, SnapshotMeta(base=base, sequence=3))
    loaded = store.load("main", version)
    assert (loaded.manifest.base, loaded.manifest.sequence, loaded.place) == (base, 3, place)
    assert here(store).sequence == 5
    again = store.save("main", {}, {"rows": STATE}, SnapshotMeta(base=base, sequence=3))
    assert store.load("main", again).place == place
    at_start = store.save("main", {}, {"rows": STATE}, SnapshotMeta(base=base))
    assert store.load("main", at_start).place == store.load("main", base).place
    with pytest.raises(StoreError, match="has no delta 6"):
        store.save("main", {}, {}, SnapshotMeta(base=base, sequence=6))
    assert store.versions("main") == [base, version, again, at_start]


def test_who_was_superseded_is_told(store: Snapshots) -> None:
    with pytest.raises(Superseded, match="none"):
        store.publish("main", after(Place("v-" + "1" * 32, 0, "0" * 64)))
    base = full(store, expect="")
    with pytest.raises(Superseded):
        full(store, expect="")
    place = grow(store, 1)
    rebuilt = full(store, expect=base)
    for write in (
        lambda: store.publish("main", after(place)),
        lambda: store.save("main", {}, {}, SnapshotMeta(base=base, sequence=1)),
        lambda: full(store, expect=base),
    ):
        with pytest.raises(Superseded, match=f"newest base {rebuilt}.*{base}"):
            write()
    assert store.versions("main") == [base, rebuilt]
    assert store.files.list(f"main/{rebuilt}") == store.files.list(f"main/{base}")
    with pytest.raises(ValueError, match="cannot expect"):
        store.save("main", {}, {}, SnapshotMeta(base=rebuilt), expect=base)
    assert grow(store, 1) == Place(rebuilt, 1, here(store).sha256)
    assert full(store) > rebuilt  # without `expect` nothing is compared


def test_superseded_while_it_was_being_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base is compared again where the manifest is written, and what was written before it goes."""
    store = Snapshots(tmp_path)
    base = full(store)
    require, looks = store._require, 0

    def rebuilt_meanwhile(line: str, expect: str | None) -> None:
        nonlocal looks
        looks += 1
        if looks == 2:  # as if one on another machine had published
            manifest = store.manifest("main", base)
            newer = "v-" + "f" * 32
            for name in manifest.files:
                store.files.put(f"main/{newer}/{name}", [store.files.get(f"main/{base}/{name}", 1 << 20)])
            (tmp_path / "main" / newer / "manifest.json").write_bytes(
                weights.manifests.seal(_with(manifest, version=newer, base=newer))
            )
        require(line, expect)

    monkeypatch.setattr(store, "_require", rebuilt_meanwhile)
    with pytest.raises(Superseded):
        full(store, expect=base)
    assert store.versions("main") == [base, "v-" + "f" * 32]
    assert len(list((tmp_path / "main").glob("v-*"))) == 2


def _with(manifest: weights.Manifest, **changes: Any) -> weights.Manifest:
    return weights.Manifest(**{name: getattr(manifest, name) for name in manifest.__struct_fields__} | changes)


def test_publishing_goes_on_while_a_snapshot_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Snapshots(tmp_path)
    base = full(store)
    grow(store, 1)
    writing, go_on = threading.Event(), threading.Event()
    put: Callable[..., Any] = store.files.put

    def slow(name: str, parts: Any) -> Any:
        if name.endswith("dense.safetensors"):
            writing.set()
            assert go_on.wait(20)
        return put(name, parts)

    monkeypatch.setattr(store.files, "put", slow)
    saved: list[str] = []
    meta = SnapshotMeta(base=base, sequence=1)
    thread = threading.Thread(target=lambda: saved.append(store.save("main", {}, {"rows": STATE}, meta)))
    thread.start()
    assert writing.wait(20)
    assert Snapshots(tmp_path).publish("main", after(here(store))).sequence == 2
    with pytest.raises(StoreError, match="being written"):
        full(Snapshots(tmp_path))
    assert store.versions("main") == [base]  # not there before its manifest
    go_on.set()
    thread.join()
    assert store.versions("main") == [base, *saved]
    assert store.load("main", saved[0]).place.sequence == 1


def test_one_trainer(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    with store.trainer_lock("main"):
        with pytest.raises(StoreError, match="being trained"), Snapshots(tmp_path).trainer_lock("main"):
            pass
        with store.trainer_lock("other"):
            grow_from = full(store)  # it does not stand in the way of writes, anyone's
    with store.trainer_lock("main"):
        assert store.versions("main") == [grow_from]


def test_keep_drops_the_deltas_that_no_snapshot_needs(store: Snapshots) -> None:
    first = full(store)
    grow(store, 2)
    second = full(store)
    grow(store, 3)
    third = store.save("main", {}, {}, SnapshotMeta(base=second, sequence=3))
    grow(store, 4)
    fourth = store.save("main", {}, {}, SnapshotMeta(base=second, sequence=6))
    assert store.keep("main", 3) == [first]
    assert store.deltas.bases("main") == [second]
    assert store.deltas.sequences("main", second) == [1, 2, 3, 4, 5, 6, 7]
    assert store.keep("main", 2) == [second]
    assert store.deltas.sequences("main", second) == [4, 5, 6, 7]
    assert store.keep("main", 1) == [third]
    assert store.deltas.sequences("main", second) == [7]
    assert here(store).sequence == 7
    last = full(store)
    assert store.keep("main", 1) == [fourth]
    assert store.deltas.bases("main") == []
    assert store.versions("main") == [last]
    assert grow(store, 1).sequence == 1


def test_a_lineage_goes_on_from_a_snapshot_when_all_its_deltas_are_gone(store: Snapshots) -> None:
    base = full(store)
    place = grow(store, 3)
    version = store.save("main", {}, {}, SnapshotMeta(base=base, sequence=3))
    assert store.keep("main", 1) == [base]
    assert store.deltas.sequences("main", base) == []
    assert here(store) == place
    assert store.save("main", {}, {}, SnapshotMeta(base=base, sequence=3)) > version
    assert store.publish("main", after(place)).sequence == 4


def test_damaged_versions_count_for_nothing_and_lose_nothing(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    good = full(store)
    grow(store, 2)
    damaged = full(store)
    grow(store, 2)
    (tmp_path / "main" / damaged / "manifest.json").write_bytes(b"")
    assert store.keep("main", 1) == []
    assert store.versions("main") == [good, damaged]
    assert store.deltas.sequences("main", good) == [1, 2]
    assert store.deltas.sequences("main", damaged) == [1, 2]
    assert here(store).base == good


def test_a_store_that_is_away_is_not_taken_for_empty(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Snapshots(tmp_path)
    first = full(store)
    place = grow(store, 1)
    newest = full(store)

    def away(name: str, most: int) -> bytearray:
        raise OSError(5, "Input/output error", name)

    monkeypatch.setattr(store.files, "get", away)
    for use in (
        lambda: store.publish("main", after(place)),
        lambda: store.place("main"),
        lambda: store.manifests("main"),
        lambda: store.keep("main", 1),
        lambda: store.load("main", newest),
    ):
        with pytest.raises(StoreError, match="cannot be read") as error:
            use()
        assert isinstance(error.value.__cause__, OSError)
    monkeypatch.undo()
    assert store.versions("main") == [first, newest]


def test_a_full_disk_leaves_no_half(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store = Snapshots(tmp_path)
    base = full(store)
    put = store.files.put

    def full_disk(name: str, parts: Any) -> Any:
        if name.endswith(("table-rows.safetensors", ".delta")):
            raise OSError(28, "No space left on device", name)
        return put(name, parts)

    monkeypatch.setattr(store.files, "put", full_disk)
    for write in (lambda: full(store), lambda: grow(store, 1), lambda: store.rollback("main", base)):
        with pytest.raises(StoreError, match="No space left"):
            write()
    assert [entry.name for entry in (tmp_path / "main").glob("v-*")] == [base]


def test_refused_deltas_are_kept_for_inspection(store: Snapshots) -> None:
    full(store)
    place = grow(store, 1)
    bad = after(place, np.nan)
    names = [store.deltas.refuse("main", bad, f"a value is not finite, {n}") for n in range(3)]
    found = store.deltas.refused("main")
    assert [refused.name for refused in found] == sorted(names, reverse=True)
    assert {refused.why for refused in found} == {f"a value is not finite, {n}" for n in range(3)}
    assert {(r.delta_base, r.delta_sequence) for r in found} == {(place.base, 2)}
    assert np.isnan(store.deltas.load_refused("main", names[0]).tables["rows"].values).all()
    assert here(store) == place  # and the line goes on without it
    assert grow(store, 1).sequence == 2
    assert store.keep("main", 1, refused=1) == []
    assert [refused.name for refused in store.deltas.refused("main")] == [max(names)]
    store.keep("main", 1, refused=0)
    assert store.deltas.refused("main") == []
    with pytest.raises(NotReady):
        store.deltas.load_refused("main", names[0])


def test_a_damaged_refused_delta_says_so(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    full(store)
    name = store.deltas.refuse("main", after(here(store)), "too large a step")
    path = tmp_path / "main" / "refused" / f"{name}.delta"
    path.write_bytes(path.read_bytes()[:-1])
    assert "damaged" in store.deltas.refused("main")[0].why
    with pytest.raises(StoreError, match=name):
        store.deltas.load_refused("main", name)


def test_rollback_is_a_step_forward(store: Snapshots) -> None:
    said = {"dense_version": "d1", "metrics": {"loss": 1.0}, "extras": {"a": 1}}
    meta = SnapshotMeta(fingerprint="f", position=Position.at(5), **said)
    base = store.save("main", {"w": np.arange(3.0)}, {"rows": STATE}, meta, {"m": np.ones(2)})
    grow(store, 2)
    bad = store.save("main", {}, {}, SnapshotMeta(base=base, sequence=2))
    version = store.rollback("main", base)
    one, two = (store.load("main", name, training=True) for name in (base, version))
    assert version > bad
    assert one.manifest.files == two.manifest.files
    np.testing.assert_array_equal(one.training["m"], two.training["m"])
    np.testing.assert_array_equal(one.tables["rows"]["seen"], two.tables["rows"]["seen"])
    assert (two.manifest.base, two.manifest.sequence, two.manifest.dense_version) == (version, 0, "d1")
    assert two.manifest.extras == {"a": 1, "rolled_back": {"to": base, "from": bad}}
    assert (two.position, two.manifest.fingerprint, two.manifest.metrics) == (Position.at(5), "f", {"loss": 1.0})
    assert store.load("main", store.rollback("main", bad, Position.at(99))).position == Position.at(99)
    assert grow(store, 1).sequence == 1
    with pytest.raises(NotReady):
        store.rollback("main", "v-" + "1" * 32)


def test_what_is_damaged_is_not_gone_back_to(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    base = full(store)
    (tmp_path / "main" / base / "dense.safetensors").write_bytes(b"")
    with pytest.raises(StoreError, match="is damaged"):
        store.rollback("main", base)
    assert store.versions("main") == [base]
    assert len(list((tmp_path / "main").glob("v-*"))) == 1


def test_a_damaged_last_delta_ends_the_lineage(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    base = full(store)
    place = grow(store, 2)
    path = tmp_path / "main" / "deltas" / base / "0000000002.delta"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"0000000002\.delta is damaged"):
        store.place("main")
    with pytest.raises(StoreError, match="is damaged"):
        store.publish("main", after(place))
    rebuilt = full(store, expect=base)
    assert grow(store, 1).base == rebuilt


def test_what_killed_publishers_left_is_cleared(tmp_path: Path) -> None:
    store = Snapshots(tmp_path)
    base = full(store)
    grow(store, 1)
    store.deltas.refuse("main", after(here(store)), "too large a step")
    left = [tmp_path / "main" / folder / ".new-0123" for folder in (f"deltas/{base}", "refused")]
    for rest in left:
        rest.write_bytes(b"half")
    assert store.deltas.sequences("main", base) == [1]
    assert len(store.deltas.refused("main")) == 1
    store.keep("main", 1)
    assert not any(rest.exists() for rest in left)
    assert (store.deltas.sequences("main", base), len(store.deltas.refused("main"))) == ([1], 1)
