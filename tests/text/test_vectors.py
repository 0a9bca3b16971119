"""Vectors in a file: what was put is found, by every process, whatever happened to those that wrote it."""

from __future__ import annotations

import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from vectors_writer_process import DIM, vector

from mainstem.schema.ids import Keys
from mainstem.text.vectors import HEADER, VectorFile

WRITER = Path(__file__).with_name("vectors_writer_process.py")


def keys(*values: int) -> Keys:
    return np.array(values, np.uint64)


def vectors(*values: float) -> np.ndarray:
    return np.array([[value, -value, 0.5] for value in values], np.float32)


def found(file: VectorFile, *wanted: int) -> list[float | None]:
    """The first number of each key's vector, None where there is none."""
    places = file.find(keys(*wanted))
    first = file.take(places)[:, 0].tolist()
    return [None if place < 0 else value for place, value in zip(places.tolist(), first, strict=True)]


def open_(folder: Path, version: str = "v1", dim: int = 3) -> VectorFile:
    return VectorFile(folder / "some" / "v.vectors", dim, version)


def size(folder: Path) -> int:
    return (folder / "some" / "v.vectors").stat().st_size


def test_what_was_put_is_found_and_found_again(tmp_path: Path) -> None:
    file = open_(tmp_path)
    assert found(file, 7) == [None]
    places = file.put(keys(7, 9), vectors(1, 2))
    np.testing.assert_array_equal(file.take(places), vectors(1, 2))
    assert found(file, 9, 8, 7, 0) == [2, None, 1, None]
    assert not file.take(np.array([-1])).any()
    again = open_(tmp_path)
    assert (found(again, 9, 8, 7), len(again)) == ([2, None, 1], 2)
    again.put(keys(7), vectors(5))
    assert found(again, 7, 9) == [5, 2]
    assert found(open_(tmp_path), 7, 9) == [5, 2]  # of two the later, also after a start


def test_numbers_are_kept_to_half_precision(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    some = rng.normal(size=(50, 3)).astype(np.float32)
    file = open_(tmp_path)
    np.testing.assert_array_equal(file.take(file.put(keys(*range(1, 51)), some)), some.astype(np.float16))


def test_two_that_hold_the_file_see_each_others_vectors(tmp_path: Path) -> None:
    one, other = open_(tmp_path), open_(tmp_path)
    one.put(keys(1), vectors(1))
    assert found(other, 1) == [None]  # canary: it has not looked
    other.refresh()
    assert found(other, 1) == [1]
    one.put(keys(2), vectors(2))
    other.put(keys(3), vectors(3))  # behind what it has not seen
    one.refresh()
    assert found(one, 1, 2, 3) == found(other, 1, 2, 3) == [1, 2, 3]


def test_a_nameless_file_is_nobody_elses() -> None:
    one, other = VectorFile(None, 3, "v1"), VectorFile(None, 3, "v1")
    one.put(keys(1), vectors(1))
    other.refresh()
    assert (found(one, 1), found(other, 1)) == ([1], [None])


@settings(max_examples=30, deadline=None)
@given(st.lists(st.lists(st.integers(1, 40), unique=True, max_size=8), max_size=8), st.integers(0, 25))
def test_it_is_a_dictionary_whatever_a_killed_writer_left(
    tmp_path_factory: pytest.TempPathFactory, writes: list[list[int]], torn: int
) -> None:
    folder, oracle = tmp_path_factory.mktemp("v"), dict[int, float]()
    for number, some in enumerate(writes):
        file = open_(folder)
        file.put(keys(*some), vectors(*[number * 50 + key for key in some]).reshape(-1, 3))
        oracle |= {key: number * 50 + key for key in some}
        with (folder / "some" / "v.vectors").open("ab") as end:
            end.write(b"\1" * min(torn, 12 + 2 * 3 - 1))  # the beginning of a record
    assert found(open_(folder), *range(1, 41)) == [oracle.get(key) for key in range(1, 41)]


def test_a_damaged_record_is_passed_over_and_may_be_put_again(tmp_path: Path) -> None:
    open_(tmp_path).put(keys(1, 2, 3), vectors(1, 2, 3))
    path, record = tmp_path / "some" / "v.vectors", 12 + 2 * 3
    whole = bytearray(path.read_bytes())
    whole[HEADER + record + 13] ^= 1  # in the second one's vector
    path.write_bytes(whole)
    file = open_(tmp_path)
    assert found(file, 1, 2, 3) == [1, None, 3]
    file.put(keys(2), vectors(2))
    assert found(open_(tmp_path), 1, 2, 3) == [1, 2, 3]


def test_records_of_zeros_are_none(tmp_path: Path) -> None:
    """What a crash of the machine leaves of a file that grew."""
    file = open_(tmp_path)
    file.put(keys(1), vectors(1))
    with (tmp_path / "some" / "v.vectors").open("ab") as end:
        end.write(bytes(40))
    assert (found(open_(tmp_path), 1, 0), len(open_(tmp_path))) == ([1, None], 1)


@pytest.mark.parametrize("spoil", ["version", "dim", "header"])
def test_the_vectors_of_another_encoder_are_left_to_those_who_hold_them(
    tmp_path: Path, spoil: str, caplog: pytest.LogCaptureFixture
) -> None:
    old = open_(tmp_path)
    old.put(keys(1), vectors(1))
    assert not caplog.records
    if spoil == "header":
        path = tmp_path / "some" / "v.vectors"
        path.write_bytes(b"?" + path.read_bytes()[1:])
    new = open_(tmp_path, "v2" if spoil == "version" else "v1", 4 if spoil == "dim" else 3)
    assert len(new) == 0
    assert "made anew" in caplog.text
    assert found(old, 1) == [1]
    assert size(tmp_path) == HEADER


def test_threads_that_write_at_once_lose_nothing(tmp_path: Path) -> None:
    file, other = open_(tmp_path), open_(tmp_path)

    def write(where: VectorFile, first: int) -> None:
        for key in range(first, 200, 4):
            where.put(keys(key), vectors(key))

    threads = [
        threading.Thread(target=write, args=(where, 1 + i)) for i, where in enumerate([file, other, file, other])
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found(open_(tmp_path), *range(1, 200)) == list(range(1, 200))


def test_killed_writers_leave_a_file_that_others_go_on_with(tmp_path: Path) -> None:
    path, written = tmp_path / "v.vectors", 0
    for _ in range(3):
        with subprocess.Popen([sys.executable, str(WRITER), str(path)], stdout=subprocess.PIPE, text=True) as writer:
            assert writer.stdout is not None
            for _ in range(5):
                written = int(writer.stdout.readline())
            writer.send_signal(signal.SIGKILL)
        held = VectorFile(path, DIM, "v1")
        some = np.arange(1, len(held) + 1, dtype=np.uint64)
        assert len(held) >= written
        places = held.find(some)
        assert (places >= 0).all()
        np.testing.assert_array_equal(held.take(places), [vector(key) for key in some.tolist()])
