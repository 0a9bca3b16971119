"""The log's memory of ids against a plain set."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.eventlog.dedup import IdRun, Ids
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import digest128


def digest(number: int) -> bytes:
    return digest128(str(number))


def pair(high: int, low: int) -> bytes:
    return high.to_bytes(8, "little") + low.to_bytes(8, "little")


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4))), st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)))
)
def test_run_contains_what_it_was_made_of(held: list[tuple[int, int]], asked: list[tuple[int, int]]) -> None:
    """Few different halves, so that equal high halves with other low halves are common."""
    run = IdRun.of(0, len(held), b"".join(pair(*both) for both in held))
    asked_pairs = np.array(asked, np.uint64).reshape(-1, 2)
    found = run.contains(asked_pairs[:, 0], asked_pairs[:, 1])
    assert found.tolist() == [both in held for both in asked]


@settings(max_examples=40, deadline=None)
@given(st.lists(st.integers(1, 9000), min_size=1, max_size=12), st.sampled_from([1000, 5000, 100_000]))
def test_ids_know_all_that_was_added(sizes: list[int], align: int) -> None:
    with tempfile.TemporaryDirectory() as folder:
        known = Ids(Path(folder), align)
        known.load(0)
        total = 0
        for size in sizes:
            batch = [digest(n) for n in range(total, total + size)]
            assert not known.known(batch).any()
            known.add(total, batch)
            total += size
        probe = [digest(n) for n in range(-50, total + 50, 7)]
        assert known.known(probe).tolist() == [0 <= n < total for n in range(-50, total + 50, 7)]
        runs = len(known._open)
        assert runs <= (total // align + 1) * 8, "merging keeps the runs few"


def sealed_files(folder: Path, count: int, rows: int) -> Ids:
    ids = Ids(folder, rows)
    ids.load(0)
    for first in range(0, count * rows, rows):
        digests = b"".join(digest(n) for n in range(first, first + rows))
        ids.seal(IdRun.of(first, first + rows, digests).save(folder))
    return ids


def test_files_merge_and_survive_a_crash_between_the_two_steps(tmp_path: Path) -> None:
    ids = sealed_files(tmp_path, 9, 100)
    parts = ids.mergeable()
    assert [run.first for run in parts] == list(range(0, 900, 100))
    merged = IdRun.merged(parts).save(tmp_path)
    (tmp_path / "ids-x.bin.tmp").write_bytes(b"half")
    # Here the process ends: the merged file and its parts are both there.
    again = Ids(tmp_path, 100)
    assert again.load(900) == 900
    assert [path.name for path in tmp_path.iterdir()] == [f"ids-{0:020d}-{900:020d}.bin"]
    assert again.known([digest(n) for n in range(899, 901)]).tolist() == [True, False]
    ids.replace(parts, merged)
    assert ids.known([digest(n) for n in range(900)]).all()
    assert ids.mergeable() == []


def test_files_past_the_sealed_offset_and_after_a_gap_do_not_count(tmp_path: Path) -> None:
    sealed_files(tmp_path, 4, 10)
    ids = Ids(tmp_path, 10)
    assert ids.load(30) == 30
    assert ids.known([digest(25), digest(35)]).tolist() == [True, False]
    next(path for path in tmp_path.iterdir() if f"-{20:020d}" in path.name and f"ids-{10:020d}" in path.name).unlink()
    assert Ids(tmp_path, 10).load(30) == 10


def test_damage_is_said(tmp_path: Path) -> None:
    sealed_files(tmp_path, 1, 10)
    path = next(tmp_path.iterdir())
    good = path.read_bytes()
    for bad in (good[:-1], good + b"\0", b"NOTIDS\0\0" + good[8:], b"", good[:8] + b"\xff" * 8 + good[16:]):
        path.write_bytes(bad)
        with pytest.raises(StoreError, match="damaged"):
            IdRun.load(path)
