"""Hand-made deltas and manifests whose seals are true and whose contents lie: refused, by name, in little memory.

Damage that breaks a seal (every cut, every flipped byte) is in test_deltas.py and test_snapshots.py.
"""

from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from mainstem.schema.errors import Incompatible, NotReady, StoreError
from mainstem.weights.deltas import decode
from mainstem.weights.files import FileSum
from mainstem.weights.line_reader import LineReader, Rebase
from mainstem.weights.manifests import seal
from mainstem.weights.snapshots import Snapshots

VERSION = "v-" + "0" * 31 + "1"
MEBI = 1 << 20


# ---- deltas --------------------------------------------------------------------------------------


def header(**changes: Any) -> dict[str, Any]:
    """That of a delta of one table `rows` with dim 2: keys 3 and 7, deleted 5."""
    fields = {
        "line": "main", "base": VERSION, "sequence": 1, "previous": "0" * 64, "dense_version": VERSION,
        "position": "p0:1", "created": 1, "metrics": {}, "extras": {}, "tables": [table()], "dense": None,
    }  # fmt: skip
    return fields | changes


def table(**changes: Any) -> dict[str, Any]:
    return {"name": "rows", "dim": 2, "rows": 2, "deleted": 1} | changes


def body(keys: tuple[int, int] = (3, 7), deleted: int = 5, values: tuple[float, ...] = (1, 2, 3, 4)) -> bytes:
    return struct.pack("<QQQ4f", *keys, deleted, *values)


def sealed(data: bytes) -> bytes:
    return data + hashlib.sha256(data).digest()


def delta(
    text: dict[str, Any] | bytes | None = None, arrays: bytes | None = None, *, pad: bytes = b" ", **fixed: Any
) -> bytes:
    raw = text if isinstance(text, bytes) else json.dumps(header() if text is None else text).encode()
    raw += pad * (-len(raw) % 8)
    arrays = body() if arrays is None else arrays
    fields = {"magic": b"\x89MSDELTA", "form": 1, "tables": 1, "header": len(raw), "body": len(arrays)} | fixed
    return sealed(struct.pack("<8sIIQQ", *fields.values()) + raw + arrays)


def narrow(header: dict[str, Any], name: str) -> dict[str, Any]:
    return {key: value for key, value in header.items() if key != name}


def safetensors(entries: object, arrays: bytes = b"") -> bytes:
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + arrays


NAN_TENSOR = safetensors({"w": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}, struct.pack("<f", np.nan))
WIDE = {"extras": {"x": 0}}

DELTAS = {
    "no bytes": b"",
    "a seal over nothing": sealed(b""),
    "a header alone": sealed(struct.pack("<8sIIQQ", b"\x89MSDELTA", 1, 0, 0, 0)),
    "another magic": delta(magic=b"\x89PNG\r\n\x1a\n"),
    "format 0": delta(form=0),
    "2^32 - 1 tables": delta(tables=2**32 - 1),
    "one table too few": delta(tables=0),
    "a header of 2^64 - 8 bytes": delta(header=2**64 - 8),
    "a body of 2^63 bytes": delta(body=2**63),
    "lengths that wrap around together": delta(header=2**64 - 8, body=len(body()) + 8),
    "a header that takes a part of the body": delta(header=8),
    "a body that takes a part of the seal": delta(body=len(body()) + 32),
    "a header padded with zeros": delta(json.dumps(header()).encode() + b" " * 3, pad=b"\0"),
    "no JSON": delta(b"\xff" * 64),
    "a list": delta(b"[]"),
    "a field less": delta(narrow(header(), "previous")),
    "a field more": delta(header(owner="me")),
    "JSON as deep as it goes": delta(b'{"extras":{"x":' + b"[" * 100_000),
    "JSON as deep as it goes, closed": delta(
        json.dumps(header(**WIDE)).encode().replace(b'"x": 0', b'"x": ' + b"[" * 50_000 + b"]" * 50_000)
    ),
    "a number of 100 000 digits": delta(
        json.dumps(header(**WIDE)).encode().replace(b'"x": 0', b'"x": ' + b"9" * 100_000)
    ),
    "a sequence of 5 000 digits": delta(
        json.dumps(header()).encode().replace(b'"sequence": 1', b'"sequence": ' + b"1" * 5_000)
    ),
    "no number": delta(json.dumps(header()).encode().replace(b'"created": 1', b'"created": NaN')),
    "a line that climbs": delta(header(line="../../x")),
    "a base that climbs": delta(header(base="v-../../etc/passwd")),
    "a base and a newline": delta(header(base=VERSION + "\n")),
    "sequence 0": delta(header(sequence=0)),
    "sequence -1": delta(header(sequence=-1)),
    "sequence 2^70": delta(header(sequence=2**70)),
    "a sequence that is text": delta(header(sequence="1")),
    "a hash that is short": delta(header(previous="00")),
    "a position that is none": delta(header(position="here")),
    "a position that is negative": delta(header(position="p0:-1")),
    "2^62 rows": delta(header(tables=[table(rows=2**62)])),
    "2^70 rows": delta(header(tables=[table(rows=2**70)])),
    "-1 rows": delta(header(tables=[table(rows=-1)])),
    "a row more": delta(header(tables=[table(rows=3)])),
    "a row less": delta(header(tables=[table(rows=1)])),
    "2^62 deleted": delta(header(tables=[table(deleted=2**62)])),
    "dim 0": delta(header(tables=[table(dim=0)]), struct.pack("<QQQ", 3, 7, 5)),
    "dim 2^62": delta(header(tables=[table(dim=2**62)])),
    "another dim": delta(header(tables=[table(dim=4)])),
    "dtype named": delta(header(tables=[table(dtype="F16")])),
    "tables out of order": delta(
        header(tables=[table(name="b", rows=0, deleted=0), table(name="a", rows=0, deleted=0)]), b"", tables=2
    ),
    "the same table twice": delta(header(tables=[table(rows=0, deleted=0)] * 2), b"", tables=2),
    "100 000 tables": delta(
        header(tables=[table(name=f"t{n:06}", rows=0, deleted=0) for n in range(100_000)]), b"", tables=100_000
    ),
    "padding that holds something": delta(
        header(tables=[table(dim=1, rows=1, deleted=0)]), struct.pack("<Qf4s", 3, 1.0, b"evil")
    ),
    "key 0": delta(arrays=body(keys=(0, 7))),
    "deleted key 0": delta(arrays=body(deleted=0)),
    "a key twice": delta(arrays=body(keys=(7, 7))),
    "keys that descend": delta(arrays=body(keys=(7, 3))),
    "a key written and deleted": delta(arrays=body(deleted=7)),
    "NaN": delta(arrays=body(values=(1, 2, np.nan, 4))),
    "infinity": delta(arrays=body(values=(1, -np.inf, 3, 4))),
    "bytes of nobody": delta(arrays=body() + bytes(8)),
    "a dense part that is not there": delta(header(dense=8)),
    "a dense part of 2^63 bytes": delta(header(dense=2**63)),
    "a dense part of no bytes": delta(header(dense=0)),
    "a dense part that is none": delta(header(dense=8), body() + b"whatever"),
    "a dense part with a huge shape": delta(
        header(dense=len(big := safetensors({"w": {"dtype": "F32", "shape": [2**40], "data_offsets": [0, 2**42]}}))),
        body() + big,
    ),
    "a dense part with NaN": delta(header(dense=len(NAN_TENSOR)), body() + NAN_TENSOR),
}  # fmt: skip


def test_the_good_one_is_good() -> None:
    """The canary: without its lie each of them would be taken."""
    found = decode(delta(), "d")
    assert found.tables["rows"].keys.tolist() == [3, 7]
    assert found.tables["rows"].values.tolist() == [[1, 2], [3, 4]]
    good = NAN_TENSOR[:-4] + struct.pack("<f", 2.0)
    assert decode(delta(header(dense=len(good)), body() + good), "d").dense == {"w": np.float32([2.0])}


@pytest.mark.parametrize("name", DELTAS)
def test_deltas_that_lie(name: str, tmp_path: Path) -> None:
    data = DELTAS[name]
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=r"d\.delta is damaged"):
            decode(data, "d.delta")
        assert tracemalloc.get_traced_memory()[1] < 2 * MEBI + 30 * len(data)
    finally:
        tracemalloc.stop()
    snapshots = Snapshots(tmp_path)
    folder = tmp_path / "main" / "deltas" / VERSION
    folder.mkdir(parents=True)
    (folder / "0000000001.delta").write_bytes(data)
    with pytest.raises(StoreError, match=rf"deltas/{VERSION}/0000000001\.delta"):
        snapshots.deltas.load("main", VERSION, 1)


def test_a_later_format_is_not_called_damaged() -> None:
    with pytest.raises(Incompatible, match="d is of format 2"):
        decode(delta(form=2), "d")


def test_a_delta_in_anothers_place(tmp_path: Path) -> None:
    snapshots = Snapshots(tmp_path)
    for line, base, number in (("main", VERSION, 2), ("other", VERSION, 1), ("main", VERSION[:-1] + "2", 1)):
        folder = tmp_path / line / "deltas" / base
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{number:010d}.delta").write_bytes(delta())
        with pytest.raises(StoreError, match=f"holds delta 1 of main/{VERSION}"):
            snapshots.deltas.load(line, base, number)


# ---- snapshots -----------------------------------------------------------------------------------


def fresh(root: Path) -> tuple[Snapshots, str]:
    snapshots = Snapshots(root)
    state = {"keys": np.array([3, 7], np.uint64), "values": np.ones((2, 4), np.float32), "seen": np.zeros(2, np.uint32)}
    return snapshots, snapshots.save("main", {"w": np.ones(3, np.float32)}, {"rows": state}, training={"m": np.ones(2)})


MANIFESTS: dict[str, dict[str, Any]] = {
    "of another line": {"line": "other"},
    "of another version": {"version": VERSION, "base": VERSION},
    "a base of the future": {"base": "v-" + "f" * 32, "chain": "0" * 64},
    "a sequence without a lineage": {"sequence": 3},
    "a negative sequence": {"sequence": -1},
    "a chain of a full one": {"chain": "0" * 64},
    "a lineage without a chain": {"base": VERSION},
    "a chain that is none": {"base": VERSION, "chain": "x"},
    "a base that climbs": {"base": "../../x", "chain": "0" * 64},
    "no position": {"position": "here"},
    "a table more": {"tables": {"rows": {"dim": 4, "rows": 2}, "more": {"dim": 4, "rows": 2}}},
    "no table": {"tables": {}},
    "another dim": {"tables": {"rows": {"dim": 2, "rows": 2}}},
    "rows that are not there": {"tables": {"rows": {"dim": 4, "rows": 2**62}}},
    "format 3": {"format": 3},
    "format 1": {"format": 1},
}


def forge(root: Path, version: str, body: bytes) -> None:
    text = b'{"sha256": "' + hashlib.sha256(body).hexdigest().encode() + b'",\n"manifest": ' + body + b"}\n"
    (root / "main" / version / "manifest.json").write_bytes(text)


def refused(snapshots: Snapshots, version: str) -> None:
    """Not loaded, named, and a reader stays without it."""
    tracemalloc.start()
    try:
        with pytest.raises(StoreError, match=version):
            snapshots.load("main", version, training=True)
        assert tracemalloc.get_traced_memory()[1] < 8 * MEBI
    finally:
        tracemalloc.stop()
    reader = LineReader(snapshots, training=True)
    assert reader.poll() is None
    assert reader.set_aside.keys() == {version}


@pytest.mark.parametrize("name", MANIFESTS)
def test_manifests_that_lie(name: str, tmp_path: Path) -> None:
    snapshots, version = fresh(tmp_path)
    document = json.loads((tmp_path / "main" / version / "manifest.json").read_bytes())["manifest"]
    forge(tmp_path, version, msgspec.json.format(msgspec.json.encode(document | MANIFESTS[name]), indent=2))
    refused(snapshots, version)


def test_manifests_that_are_none(tmp_path: Path) -> None:
    snapshots, version = fresh(tmp_path)
    for body in (
        b"",
        b"[]",
        b"{}",
        b"1",
        b"[" * 100_000,
        b'{"extras":' + b"[" * 90_000 + b"]" * 90_000 + b"}",
        b"\xff",
    ):
        forge(tmp_path, version, body)
        refused(snapshots, version)
    path = tmp_path / "main" / version / "manifest.json"
    for text in (b"", b"{", b"null", b"[" * 1_000_000, bytes(1_000_000)):
        path.write_bytes(text)
        refused(snapshots, version)
    with path.open("wb") as file:
        file.truncate(1 << 40)  # a file that is mostly a hole
    refused(snapshots, version)


def test_a_forged_manifest_that_tells_the_truth_is_taken(tmp_path: Path) -> None:
    """The canary of the forgery."""
    snapshots, version = fresh(tmp_path)
    document = json.loads((tmp_path / "main" / version / "manifest.json").read_bytes())["manifest"]
    forge(tmp_path, version, msgspec.json.format(msgspec.json.encode(document | {"created": 1}), indent=2))
    assert snapshots.load("main", version).manifest.created == 1
    assert isinstance(LineReader(snapshots).poll(), Rebase)


ONE = {"dtype": "U64", "shape": [2], "data_offsets": [0, 16]}
CONTENTS = {
    "dense.safetensors": [
        b"",
        b"x",
        (2**63).to_bytes(8, "little"),
        safetensors([]),
        safetensors({"w": {"dtype": "F32"}}),
    ],
    "table-rows.safetensors": [
        safetensors({}),
        safetensors({"keys": ONE}, bytes(16)),
        safetensors({"keys": ONE, "values": {"dtype": "F64", "shape": [2, 4], "data_offsets": [16, 80]}}, bytes(80)),
        safetensors({"keys": ONE, "values": {"dtype": "F32", "shape": [4, 2], "data_offsets": [16, 48]}}, bytes(48)),
        safetensors({"values": {"dtype": "F32", "shape": [2**31, 2**31], "data_offsets": [0, 2**64]}}, bytes(48)),
    ],
    "training.safetensors": [
        safetensors({"loose": ONE}, bytes(16)),
        safetensors({"table.other.seen": ONE}, bytes(16)),
        safetensors({"table.rows.keys": ONE}, bytes(16)),
    ],
}


@pytest.mark.parametrize("name", CONTENTS)
def test_files_that_lie_under_a_manifest_that_agrees(name: str, tmp_path: Path) -> None:
    snapshots, version = fresh(tmp_path)
    path = tmp_path / "main" / version / name
    good = snapshots.manifest("main", version)
    for content in CONTENTS[name]:
        path.write_bytes(content)
        files = good.files | {name: FileSum.of(content)}
        (path.parent / "manifest.json").write_bytes(seal(msgspec.structs.replace(good, files=files)))
        with pytest.raises(StoreError, match=f"{version}/{name} is damaged"):
            snapshots.load("main", version, training=True)
        refused(snapshots, version)


def test_a_file_that_grew_is_not_read(tmp_path: Path) -> None:
    snapshots, version = fresh(tmp_path)
    with (tmp_path / "main" / version / "dense.safetensors").open("r+b") as file:
        file.truncate(1 << 40)
    refused(snapshots, version)


def test_names_that_climb_open_nothing(tmp_path: Path) -> None:
    snapshots, version = fresh(tmp_path / "root")
    (tmp_path / "secret").write_bytes(b"x")
    for line, name in (("../x", version), ("", version), ("main", "../secret"), ("main", version + "\n")):
        with pytest.raises(ValueError, match="is no"):
            snapshots.load(line, name)
        with pytest.raises(ValueError, match="is no"):
            snapshots.deltas.load(line, name, 1)
        with pytest.raises(ValueError, match="is no"):
            snapshots.deltas.sequences(line, name)
    with pytest.raises(ValueError, match="is no name"):
        snapshots.deltas.load_refused("main", "../secret")
    with pytest.raises(NotReady):
        snapshots.load("main", VERSION)
