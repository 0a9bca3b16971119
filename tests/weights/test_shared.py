"""Readers in other threads and processes, beside one writer: no torn row, no other key's row, no hanging."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mainstem.schema.errors import NotReady, StoreError
from mainstem.weights import changing
from mainstem.weights.reader import Reader
from mainstem.weights.shared import SharedReader
from mainstem.weights.slabs import SlabTable

DIM = 24
LAST = 1 << 12
"""A key's rows hold numbers that leave this remainder: key + LAST * round."""


def numbers(keys: np.ndarray, number: int) -> np.ndarray:
    """Rows of which all coordinates equal one number, that says whose row it is."""
    return np.repeat((keys.astype(np.float32) + np.float32(LAST * number))[:, None], DIM, axis=1)


def faults(keys: np.ndarray, rows: np.ndarray) -> int:
    """Rows that are torn, or neither zeros nor this key's."""
    torn = (rows != rows[:, :1]).any(axis=1)
    return int((torn | ((rows[:, 0] != 0) & (rows[:, 0] % LAST != keys))).sum())


def write_for_a_while(table: SlabTable, seconds: float, calls: int = 0) -> int:
    """Write, delete, make anew, grow, load; how many rounds."""
    rng, number = np.random.default_rng(1), 0
    end = time.monotonic() + seconds
    while time.monotonic() < end or number < calls:
        number += 1
        # at first few keys, then more and more: slots grow under the readers
        keys = rng.permutation(np.arange(1, min(LAST, 64 + 16 * number), dtype=np.uint64))[:600]
        table.write(keys, numbers(keys, number % 1000 + 1))
        table.delete(keys[:100])
        if number % 7 == 0:
            table.write(KEYS, numbers(KEYS, number % 1000 + 1))
            table.delete(KEYS)
        if number % 50 == 0:
            table.load(table.state())
    return number


def read_for_a_while(read, stop, keys: np.ndarray) -> tuple[int, int, int]:  # type: ignore[no-untyped-def]
    """(calls, rows that are not zeros, faults)"""
    calls = seen = bad = 0
    rng = np.random.default_rng(os.getpid() + threading.get_ident() % 1000)
    while not stop() or calls < 20:
        asked = rng.choice(keys, int(rng.integers(1, 3000)))
        rows = read(asked)
        calls, seen, bad = calls + 1, seen + int((rows[:, 0] != 0).sum()), bad + faults(asked, rows)
    return calls, seen, bad


KEYS = np.arange(1, LAST, dtype=np.uint64)


def test_threads_read_whole_rows_of_their_keys_beside_a_writer() -> None:
    table = SlabTable(DIM, concurrent=True, most_rows=8192)
    table.write(KEYS[:10].copy(), numbers(KEYS[:10], 1))
    done = threading.Event()
    results: list[tuple[int, int, int]] = []
    threads = [
        threading.Thread(target=lambda: results.append(read_for_a_while(table.read, done.is_set, KEYS)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    write_for_a_while(table, 1, calls=60)
    done.set()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert all(seen > 1000 and bad == 0 for _, seen, bad in results), results


def _reader_process(folder: Path, ready, stop, results) -> None:  # type: ignore[no-untyped-def]
    reader = SharedReader(folder, patience=20)

    def gathered(keys: np.ndarray) -> np.ndarray:
        # by row number: whole, though perhaps another key's by now; so only wholeness is looked at
        rows = reader.gather(reader.find(keys))
        assert not (rows != rows[:, :1]).any()
        return reader.read(keys)

    gathered(KEYS)  # compiled by now
    ready.wait(120)
    results.put(read_for_a_while(gathered, stop.is_set, KEYS))


def test_processes_read_whole_rows_of_their_keys_beside_a_writer(tmp_path: Path) -> None:
    table = SlabTable(DIM, folder=tmp_path, most_rows=8192)
    with pytest.raises(NotReady, match="no table"):
        SharedReader(tmp_path)
    table.write(KEYS[:10].copy(), numbers(KEYS[:10], 1))
    context = multiprocessing.get_context("spawn")
    ready, stop, results = context.Barrier(3), context.Event(), context.Queue()
    readers = [context.Process(target=_reader_process, args=(tmp_path, ready, stop, results)) for _ in range(2)]
    for reader in readers:
        reader.start()
    ready.wait(120)  # their start is no part of the while
    write_for_a_while(table, 3, calls=60)
    stop.set()
    found = [results.get(timeout=60) for _ in readers]
    for reader in readers:
        reader.join()
    assert all(seen > 1000 and bad == 0 for _, seen, bad in found), found
    # only the newest table's files are left
    names = sorted(path.name.split("-")[0] for path in tmp_path.iterdir())
    assert names == [".writer", "keys", "slots", "table", "values"]


def test_the_check_sees_what_readers_without_versions_would_return() -> None:
    """The canary: the same reads beside the same writer, not looking at versions."""
    table = SlabTable(DIM, concurrent=True, most_rows=8192)
    table.write(KEYS, numbers(KEYS, 1))
    careless = Reader(DIM, lambda: table._body.view._replace(checked=False))
    done = threading.Event()

    def write() -> None:
        number = 0
        while not done.is_set():
            number = number % 1000 + 1
            table.write(KEYS, numbers(KEYS, number))
            if number % 4 == 0:
                table.delete(KEYS)  # rows are freed in one order and used again in the other

    writer = threading.Thread(target=write)
    writer.start()
    try:
        end = time.monotonic() + 60
        bad = 0
        while not bad and time.monotonic() < end:
            bad = faults(KEYS, careless.read(KEYS))
    finally:
        done.set()
        writer.join()
    assert bad
    assert faults(KEYS[:2], numbers(KEYS[1:3], 5)) == 2  # another key's row


def test_a_row_that_stays_half_written_is_an_error_for_its_readers_alone(tmp_path: Path) -> None:
    table = SlabTable(DIM, folder=tmp_path, most_rows=1000, patience=0.05)
    keys = KEYS[:500].copy()
    rows = table.find_or_create(keys)
    reader = SharedReader(tmp_path, patience=0.05)
    slab, bits = table._body.slab, table._body.bits
    home = changing.mix(keys[7]) >> np.uint64(64 - bits)
    slab.halves[home, 15] += np.uint32(256)  # as a writer leaves it that is killed within
    stuck = np.array([changing.mix(key) >> np.uint64(64 - bits) for key in keys]) == home
    for side in (table, reader):
        with pytest.raises(StoreError, match="middle of a row"):
            side.read(keys)
        with pytest.raises(StoreError, match="middle of a row"):
            side.gather(rows[7:8].copy())
        with pytest.raises(StoreError, match="middle of a row"):
            side.find(keys[7:8].copy())
        np.testing.assert_array_equal(side.read(keys[~stuck]), slab.values[rows[~stuck]])


def test_a_killed_writer_leaves_readers_with_what_was_there_until_the_next_announces_its_own(tmp_path: Path) -> None:
    script = textwrap.dedent(
        """
        import sys, numpy as np
        from pathlib import Path
        from mainstem.weights.slabs import SlabTable
        table = SlabTable(2, folder=Path(sys.argv[1]), most_rows=1000)
        keys = np.arange(1, 101, dtype=np.uint64)
        table.write(keys, np.ones((100, 2), np.float32))
        print("ready", flush=True)
        input()
        """
    )
    writer = subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    assert writer.stdin is not None
    assert writer.stdout.readline() == "ready\n"
    keys = np.arange(1, 101, dtype=np.uint64)
    reader = SharedReader(tmp_path)
    with pytest.raises(StoreError, match="another process"):
        SlabTable(2, folder=tmp_path, most_rows=1000)
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdin.close()
    writer.stdout.close()
    assert (reader.read(keys) == 1).all()
    table = SlabTable(2, folder=tmp_path, most_rows=2000)
    assert (reader.read(keys) == 1).all()  # nothing announced yet
    state = {"keys": keys, "values": np.full((100, 2), 7, np.float32)}
    table.load(state)
    assert (reader.read(keys) == 7).all()
    assert (SharedReader(tmp_path).read(keys) == 7).all()
    many = np.arange(1, 2001, dtype=np.uint64)
    table.find_or_create(many)  # slots grow
    np.testing.assert_array_equal(reader.read(many), table.read(many))
    np.testing.assert_array_equal(reader.gather(reader.find(many)), table.read(many))
    assert len(list(tmp_path.glob("slots-*"))) == 1


def test_damaged_files_are_refused(tmp_path: Path) -> None:
    table = SlabTable(2, folder=tmp_path / "a", most_rows=1000)
    table.find_or_create(KEYS[:10].copy())
    header = (tmp_path / "a" / "table").read_bytes()
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "table").write_bytes(header)
    with pytest.raises(StoreError, match="do not come to fit"):
        SharedReader(tmp_path / "b", patience=0.05)
    (tmp_path / "b" / "table").write_bytes(b"x" * len(header))
    with pytest.raises(StoreError, match="no table of this format"):
        SharedReader(tmp_path / "b")
    (tmp_path / "b" / "table").write_bytes(b"")
    with pytest.raises(StoreError, match="mapped"):
        SharedReader(tmp_path / "b")
    with pytest.raises(NotReady):
        SharedReader(tmp_path / "c")


def test_a_reader_of_another_dim_is_told_to_open_anew(tmp_path: Path) -> None:
    table = SlabTable(2, folder=tmp_path, most_rows=1000)
    table.find_or_create(KEYS[:10].copy())
    reader = SharedReader(tmp_path)
    table.close()
    other = SlabTable(3, folder=tmp_path, most_rows=1000)
    other.find_or_create(KEYS[:10].copy())
    with pytest.raises(StoreError, match="dim 3 now"):
        reader.read(KEYS[:10].copy())


def test_a_full_disk_is_an_error_not_a_signal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*given: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    table = SlabTable(2, folder=tmp_path, most_rows=10_000_000)
    table.find_or_create(KEYS)
    before = table.state()
    monkeypatch.setattr(os, "posix_fallocate", full)
    with pytest.raises(StoreError, match="no space"):
        table.find_or_create(np.arange(1, 9_000_000, dtype=np.uint64))
    # what there was room for is there; nothing is lost
    np.testing.assert_array_equal(table.read(before["keys"]), before["values"])
