"""A whole catalogue as arrays and back: what is loaded is what was kept, and goes on as it would have."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog_laws import IDS, KINDS, TYPES, Oracle, check_against, records

from mainstem import catalog
from mainstem.catalog import MemoryCatalog, from_arrays, to_arrays
from mainstem.schema.errors import StoreError
from mainstem.schema.ids import key64
from mainstem.schema.position import START, Position
from mainstem.schema.records import Entity, EntityDelete, LogRecord

KEYS = np.array([key64(kind, name) for kind in KINDS for name in IDS], np.uint64)


def empty() -> MemoryCatalog:
    return catalog.open("memory://", entities=TYPES)


@settings(max_examples=100, deadline=None)
@given(st.lists(records, max_size=20), st.lists(records, max_size=6))
def test_what_is_loaded_is_what_was_kept_and_goes_on_as_it_would_have(
    before: list[LogRecord], after: list[LogRecord]
) -> None:
    oracle, kept, loaded = Oracle(), empty(), empty()
    for record in before:
        oracle.write(record)  # type: ignore[arg-type]
    kept.write(before, Position.at(7))
    loaded.load(from_arrays(to_arrays(kept.revisions())), kept.position())
    assert loaded.position() == Position.at(7)
    check_against(oracle, loaded)
    assert loaded.unheard(KEYS).tolist() == kept.unheard(KEYS).tolist()
    for record in after:
        oracle.write(record)  # type: ignore[arg-type]
    loaded.write(after, Position.at(9))
    check_against(oracle, loaded)
    arrays = to_arrays(loaded.revisions())
    kept.write(after, Position.at(9))
    for name, array in to_arrays(kept.revisions()).items():
        np.testing.assert_array_equal(array, arrays[name], err_msg=name)


def test_loading_replaces_what_was_there() -> None:
    kept, loaded = empty(), empty()
    kept.write([Entity(record_id="r", time=1, entity="a")], START)
    loaded.write([Entity(record_id="r", time=1, entity="b")], START)
    loaded.load(kept.revisions(), START)
    assert (loaded.rows(KEYS[:2]) >= 0).tolist() == [True, False]
    assert len(loaded) == 1


def test_a_catalogue_on_disk_gives_its_revisions_and_takes_none() -> None:
    written = [Entity(record_id="r", time=1, entity="a"), EntityDelete(record_id="d", time=2, entity="b")]
    plain = empty()
    plain.write(written, START)
    with TemporaryDirectory() as folder:
        durable = catalog.open(f"lmdb://{folder}", entities=TYPES)
        durable.write(written, START)
        assert durable.revisions() == plain.revisions()
        with pytest.raises(StoreError, match="on disk"):
            durable.load(plain.revisions(), START)
        durable.close()


def spoiled(name: str, array: np.ndarray | None) -> dict[str, np.ndarray]:
    kept = empty()
    kept.write([Entity(record_id="r", time=1, entity=one) for one in IDS], START)
    arrays = to_arrays(kept.revisions())
    assert len(from_arrays(arrays)) == len(IDS)  # canary
    return {n: a for n, a in (arrays | {name: array}).items() if a is not None}


@pytest.mark.parametrize(
    ("name", "array"),
    [
        ("keys", None),
        ("keys", np.zeros(2, np.uint64)),
        ("keys", np.zeros(3, np.int64)),
        ("keys", np.zeros((3, 1), np.uint64)),
        ("sizes", np.array([1, 2, 3], np.uint32)),
        ("revisions", np.zeros(0, np.uint8)),
        ("other", np.zeros(0, np.uint8)),
    ],
)
def test_arrays_that_do_not_fit_each_other_are_refused(name: str, array: np.ndarray | None) -> None:
    with pytest.raises(StoreError, match="kept catalogue"):
        from_arrays(spoiled(name, array))


def test_a_revision_that_cannot_be_read_leaves_nothing_behind() -> None:
    kept, loaded = empty(), empty()
    kept.write([Entity(record_id="r", time=1, entity=one) for one in IDS], START)
    revisions = kept.revisions()
    revisions[int(KEYS[1])] = b"\xc1"
    with pytest.raises(StoreError, match="cannot be read"):
        loaded.load(revisions, Position.at(3))
    assert (len(loaded), loaded.position(), loaded.revisions()) == (0, START, {})
    assert loaded.rows(KEYS).max() == -1
