"""One contract for every place where weights may rest: a folder, fsspec's memory, an FTP server, S3's protocol."""

from __future__ import annotations

import hashlib
import importlib
import os
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from mainstem.schema.errors import ConfigError, MissingExtra, StoreError
from mainstem.schema.position import START
from mainstem.weights.deltas import Delta, TableDelta
from mainstem.weights.files import Files, FileSum, FsspecFiles, LocalFiles, open_files
from mainstem.weights.line_reader import LineReader, Rebase
from mainstem.weights.snapshots import SnapshotMeta, Snapshots


@contextmanager
def server(*command: str, **environment: str) -> Iterator[int]:
    """A server of its own process on a free port of this machine."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    arguments = [sys.executable, "-W", "ignore", "-m", *command, "-p", str(port)]
    process = subprocess.Popen(
        arguments, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, env={**os.environ, **environment}
    )
    try:
        until = time.monotonic() + 30
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), 1).close()
                break
            except OSError:
                assert time.monotonic() < until, f"{command[0]} does not answer"
                assert process.poll() is None, f"{command[0]} has ended"
                time.sleep(0.05)
        yield port
    finally:
        process.kill()
        process.wait()


@pytest.fixture(scope="module")
def ftp(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of a real FTP server."""
    pytest.importorskip("pyftpdlib", reason="no FTP server to test with: pip install pyftpdlib")
    folder = str(tmp_path_factory.mktemp("ftp"))
    with server("pyftpdlib", "-i", "127.0.0.1", "-w", "-d", folder, "-u", "u", "-P", "p") as port:
        yield f"ftp://u:p@127.0.0.1:{port}/weights"


@pytest.fixture(scope="module")
def s3() -> Iterator[str]:
    """The URL of a bucket on moto, a server that speaks S3's protocol and stands for S3 here."""
    for package in ("s3fs", "moto", "flask"):
        pytest.importorskip(package, reason="nothing speaks S3 here: pip install s3fs 'moto[server]'")
    made_up = {"AWS_ACCESS_KEY_ID": "x", "AWS_SECRET_ACCESS_KEY": "x", "AWS_DEFAULT_REGION": "us-east-1"}
    with server("moto.server", "-H", "127.0.0.1", **made_up) as port, pytest.MonkeyPatch.context() as patch:
        for name, value in {**made_up, "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}"}.items():
            patch.setenv(name, value)
        importlib.import_module("s3fs").S3FileSystem(skip_instance_cache=True).mkdir("weights")
        yield "s3://weights"


@pytest.fixture(params=["local", "memory", "ftp", "s3"])
def files(request: pytest.FixtureRequest, tmp_path: Path) -> Files:
    unique = os.urandom(6).hex()
    if request.param == "local":
        return open_files(str(tmp_path / "weights"))
    if request.param == "memory":
        return open_files(f"memory://weights-{unique}/deep")
    return open_files(f"{request.getfixturevalue(request.param)}/{unique}")


def test_what_was_put_is_there_whole(files: Files) -> None:
    big = np.random.default_rng(0).bytes(200_000)
    parts = [b"ab", memoryview(big), bytearray(b"c")]
    whole = b"".join(parts)
    assert files.put("main/v-1/x.bin", parts) == FileSum(hashlib.sha256(whole).hexdigest(), len(whole))
    assert bytes(files.get("main/v-1/x.bin", len(whole))) == whole
    assert files.digest("main/v-1/x.bin") == FileSum.of(whole)
    assert isinstance(files.get("main/v-1/x.bin", len(whole)), bytearray)
    assert files.exists("main/v-1/x.bin")
    assert files.list("main/v-1") == ["x.bin"]
    assert files.list("main") == ["v-1"]
    assert not files.exists("main/v-1")  # a folder is no object


def test_parts_larger_than_one_request(files: Files, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mainstem.weights.files._CHUNK", 1_000)
    whole = np.random.default_rng(1).bytes(5_300)
    files.put("a/x", (whole[at : at + 700] for at in range(0, len(whole), 700)))
    assert bytes(files.get("a/x", 5_300)) == whole
    assert files.digest("a/x") == FileSum.of(whole)
    assert files.list("a") == ["x"]


def test_an_empty_object(files: Files) -> None:
    files.put("a/empty", [])
    assert files.get("a/empty", 0) == b""
    assert files.digest("a/empty") == FileSum.of(b"")


def test_a_name_is_put_once(files: Files) -> None:
    files.put("a/x", [b"1"])
    with pytest.raises(FileExistsError):
        files.put("a/x", [b"2"])
    assert files.get("a/x", 1) == b"1"
    assert files.list("a") == ["x"]


def test_what_is_absent(files: Files) -> None:
    files.put("a/x", [b"1"])
    for name in ("a/y", "b/y"):
        assert not files.exists(name)
        for read in (lambda name=name: files.get(name, 9), lambda name=name: files.digest(name)):
            with pytest.raises(FileNotFoundError):
                read()
    assert files.list("b") == []
    files.delete("a/y", "b", "b/y")
    assert files.list("a") == ["x"]


def test_delete_takes_objects_and_whole_folders(files: Files) -> None:
    for name in ("a/b/x", "a/b/y", "a/c/x", "d"):
        files.put(name, [b"1"])
    files.delete("a/b/x", "d")
    assert files.list("a/b") == ["y"]
    files.delete("a/b")
    assert files.list("a/b") == []
    assert files.list("a") == ["c"]
    assert files.get("a/c/x", 1) == b"1"


def test_more_than_was_expected_is_not_read(files: Files) -> None:
    files.put("a/x", [bytes(100)])
    with pytest.raises(StoreError, match="a/x is damaged: it has 100 bytes"):
        files.get("a/x", 99)
    assert len(files.get("a/x", 100)) == 100


def test_others_writes_are_seen_at_once(files: Files) -> None:
    assert files.list("a") == []
    assert not files.exists("a/x")
    if isinstance(files, LocalFiles):
        other: Files = LocalFiles(files.root)
    else:
        assert isinstance(files, FsspecFiles)
        other = FsspecFiles(files._connect)
        assert other._fs is not files._fs
    other.put("a/x", [b"1"])
    assert files.list("a") == ["x"]
    assert files.exists("a/x")
    other.delete("a/x")
    assert not files.exists("a/x")


def test_threads_share_one_connection(files: Files) -> None:
    """Writes and reads from several threads stay apart."""
    failures: list[BaseException] = []

    def work(number: int) -> None:
        try:
            for turn in range(5):
                content = bytes([number]) * (1_000 + turn)
                files.put(f"t{number}/{turn}", [content])
                assert files.get(f"t{number}/{turn}", 5_000) == content
        except BaseException as error:  # noqa: BLE001 - told by the main thread
            failures.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []


def test_a_whole_line_lives_there(files: Files) -> None:
    store, other = Snapshots(files), Snapshots(files)
    reader = LineReader(other, training=True)
    state = {"keys": np.array([3], np.uint64), "values": np.ones((1, 2), np.float32), "seen": np.zeros(1, np.uint32)}
    change = {"rows": TableDelta(state["keys"], state["values"], np.array([9], np.uint64))}
    base = store.save("main", {"w": np.ones(3)}, {"rows": state}, training={"m": np.ones(2)})
    steps = []
    for turn in range(4):
        place = store.place("main")
        assert place is not None
        delta = Delta(
            line="main",
            base=base,
            sequence=turn + 1,
            previous=place.sha256,
            dense_version=base,
            position=START,
            tables=change,
        )
        place = store.publish("main", delta)
        while (step := reader.poll()) is not None:
            steps.append(type(step).__name__)
            reader.accept(step)
        assert reader.place == place
    assert steps == ["Rebase", "Apply", "Apply", "Apply", "Apply"]
    kept = store.save(
        "main", {"w": np.ones(3)}, {"rows": state}, SnapshotMeta(base=base, sequence=4), {"m": np.ones(2)}
    )
    store.deltas.refuse("main", delta, "a canary went down")
    assert [refused.why for refused in other.deltas.refused("main")] == ["a canary went down"]
    assert store.keep("main", 1, refused=0) == [base]
    assert (other.versions("main"), other.deltas.sequences("main", base)) == ([kept], [])
    back = store.rollback("main", kept)
    step = reader.poll()
    assert isinstance(step, Rebase)
    assert step.snapshot.manifest.version == back
    assert step.snapshot.tables["rows"].keys() == state.keys()
    np.testing.assert_array_equal(step.snapshot.training["m"], np.ones(2))
    assert (reader.failure, reader.set_aside) == (None, {})


def test_a_failed_put_leaves_nothing(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)

    def breaks() -> Iterator[bytes]:
        yield b"1"
        raise RuntimeError("the table is gone")

    with pytest.raises(RuntimeError):
        files.put("a/x", breaks())
    assert list((tmp_path / "a").iterdir()) == []


def test_a_lock_lets_one_in(tmp_path: Path) -> None:
    files = LocalFiles(tmp_path)
    with files.lock("a/.writer", "taken"), pytest.raises(StoreError, match="taken"), files.lock("a/.writer", "taken"):
        pass
    order = []
    inside = threading.Event()

    def other() -> None:
        with files.lock("a/.writer", "taken"):
            inside.set()
            time.sleep(0.05)
            order.append("other")

    thread = threading.Thread(target=other)
    thread.start()
    assert inside.wait(5)
    with files.lock("a/.writer", "taken", wait=20.0):
        order.append("waited")
    thread.join()
    assert order == ["other", "waited"]


def test_a_broken_connection_is_an_oserror_and_made_anew(ftp: str) -> None:
    files = open_files(f"{ftp}/{os.urandom(4).hex()}")
    assert isinstance(files, FsspecFiles)
    files.put("a/x", [b"1"])
    assert files._fs is not None
    files._fs.ftp.sock.shutdown(socket.SHUT_RDWR)  # the connection breaks
    with pytest.raises(OSError, match="a/x"):
        files.get("a/x", 1)
    assert files.get("a/x", 1) == b"1"  # and the next call makes a new one


def test_urls(tmp_path: Path) -> None:
    def root(url: str) -> Path:
        files = open_files(url)
        assert isinstance(files, LocalFiles)
        return files.root

    assert root("file:///a/b%20c") == Path("/a/b c")
    assert root("a/b") == Path("a/b")
    assert root("file:a/b") == Path("a/b")
    assert isinstance(open_files("memory://x"), FsspecFiles)
    for bad in ("file://host/x", "", "file://", "memory://", "nonsense://x/y", "simplecache::memory://x"):
        with pytest.raises(ConfigError, match="storage"):
            open_files(bad)


def test_a_protocol_whose_package_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "s3fs", None)
    with pytest.raises(MissingExtra, match="s3"):
        open_files("s3://bucket/x")
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    with pytest.raises(MissingExtra, match=r"mainstem\[remote\]"):
        open_files("memory://x")
