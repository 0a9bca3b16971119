"""A whole catalogue as arrays and back: what is loaded is what was kept, and goes on as it would have."""

from __future__ import annotations

from tempfile import TemporaryDirectory

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_catalog_laws import IDS, KINDS, TYPES, Oracle, check_against, records

from mainstem import catalog
from mainstem.catalog import MemoryCatalog, columns_fingerprint, from_arrays, to_arrays
from mainstem.schema.config import EntityTypeConfig
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
    loaded.load(from_arrays(to_arrays(kept.state()), kept.position()))
    assert loaded.position() == Position.at(7)
    check_against(oracle, loaded)
    assert loaded.unheard(KEYS).tolist() == kept.unheard(KEYS).tolist()
    for record in after:
        oracle.write(record)  # type: ignore[arg-type]
    loaded.write(after, Position.at(9))
    check_against(oracle, loaded)
    kept.write(after, Position.at(9))
    assert loaded.state().revisions == kept.state().revisions


def test_loading_replaces_what_was_there() -> None:
    kept, loaded = empty(), empty()
    kept.write([Entity(record_id="r", time=1, entity="a")], START)
    loaded.write([Entity(record_id="r", time=1, entity="b")], START)
    loaded.load(kept.state())
    assert (loaded.rows(KEYS[:2]) >= 0).tolist() == [True, False]
    assert len(loaded) == 1


def test_a_catalogue_on_disk_gives_its_revisions_and_takes_none() -> None:
    written = [Entity(record_id="r", time=1, entity="a"), EntityDelete(record_id="d", time=2, entity="b")]
    plain = empty()
    plain.write(written, START)
    with TemporaryDirectory() as folder:
        durable = catalog.open(f"lmdb://{folder}", entities=TYPES)
        durable.write(written, START)
        kept = durable.state()
        assert kept.revisions == plain.state().revisions
        empty().load(kept)
        with pytest.raises(StoreError, match="on disk"):
            durable.load(kept)
        durable.close()


def arrays() -> dict[str, np.ndarray]:
    kept = empty()
    kept.write([Entity(record_id="r", time=1, entity=one, attributes={"tags": ["x"]}) for one in IDS], START)
    return to_arrays(kept.state())


SPOILED = {
    "names": [None, np.zeros(3, np.uint8)],
    "revision.keys": [None, np.zeros(2, np.uint64), np.zeros(3, np.int64), np.zeros((3, 1), np.uint64)],
    "revision.sizes": [np.array([1, 2, 3], np.uint32)],
    "revision.bytes": [np.zeros(0, np.uint8)],
    "column.rows": [None, np.zeros(2, np.uint64)],
    "column.stock": [None, np.zeros(2), np.zeros(3, np.int64)],
    "column.category.color": [None],
    "column.tags.tags.lengths": [None, np.ones(2, np.int64)],
    "column.other": [np.zeros(3)],
}


@pytest.mark.parametrize(("name", "array"), [(name, array) for name, bad in SPOILED.items() for array in bad])
def test_arrays_that_do_not_fit_are_refused_and_leave_nothing_behind(name: str, array: np.ndarray | None) -> None:
    loaded = empty()
    spoiled = {n: a for n, a in (arrays() | {name: array}).items() if a is not None}
    with pytest.raises(StoreError, match="kept catalogue"):
        loaded.load(from_arrays(spoiled, Position.at(3)))
    assert (len(loaded), loaded.position(), loaded.state().revisions) == (0, START, {})
    assert loaded.rows(KEYS).max() == -1
    loaded.load(from_arrays(arrays(), Position.at(3)))  # canary
    assert len(loaded) == len(IDS)


def test_columns_of_other_attributes_have_another_fingerprint() -> None:
    other = {**TYPES, "item": EntityTypeConfig(attributes={"color": "text"})}
    assert columns_fingerprint(TYPES) == columns_fingerprint(dict(reversed(TYPES.items())))
    assert columns_fingerprint(TYPES) != columns_fingerprint(other)
