"""Bare entities of events: any real record beats them, a delete stays one, and no batch boundary shows."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import catalog
from mainstem.catalog import EventEntities, MemoryCatalog
from mainstem.schema.config import Config, EntityTypeConfig
from mainstem.schema.ids import key64
from mainstem.schema.position import START
from mainstem.schema.records import Entity, EntityDelete, EntityPatch, Erase, Event, LogRecord

TYPES = {"item": EntityTypeConfig(attributes={"color": "category"}), "page": EntityTypeConfig(from_events=False)}
CONFIG = Config(entities=TYPES)
WANTED = EventEntities.of(CONFIG)

about = {"record_id": st.just("r"), "time": st.integers(0, 9), "entity": st.sampled_from("abc")}
colors = st.dictionaries(st.just("color"), st.sampled_from(["red", "blue"]))
real = st.one_of(
    st.builds(Entity, **about, attributes=colors, stock=st.sampled_from([None, 1.0])),
    st.builds(EntityPatch, **about, attributes=colors, text=st.just("t")),
    st.builds(EntityDelete, **about),
    st.builds(Erase, **about),
)
events = st.builds(
    Event, event_id=st.just("e"), time=st.integers(0, 9), user=st.just("u"), kind=st.just("purchase"),
    entity=st.sampled_from("abc"),
)  # fmt: skip


def event(entity: str | None, kind: str = "purchase", entity_type: str = "item") -> Event:
    return Event(event_id="e", time=5, user="u", kind=kind, entity=entity, entity_type=entity_type)


def written(records: Sequence[LogRecord], size: int = 1000) -> MemoryCatalog:
    made = catalog.open("memory://", entities=TYPES)
    for start in range(0, len(records), size):
        made.write(WANTED.records(records[start : start + size], made), START)
    return made


def contents(made: MemoryCatalog) -> dict[str, object]:
    found = {name: made.entity(key64("item", name)) for name in "abc"}
    return {name: (e.attributes, e.text, e.stock, e.time) for name, e in found.items() if e is not None}


@settings(max_examples=150, deadline=None)
@given(st.lists(real | events, max_size=14), st.integers(1, 5))
def test_where_a_log_is_cut_does_not_show(records: list[LogRecord], size: int) -> None:
    assert contents(written(records, size)) == contents(written(records))


@settings(max_examples=150, deadline=None)
@given(st.lists(real.filter(lambda r: not isinstance(r, EntityPatch)), max_size=10), st.lists(events), st.randoms())
def test_what_is_said_of_an_entity_beats_its_events_in_any_order(
    records: list[LogRecord], happened: list[Event], dice: object
) -> None:
    mixed = list(records)
    for one in happened:
        mixed.insert(dice.randint(0, len(mixed)), one)  # type: ignore[attr-defined]
    plain, found = contents(written(records)), contents(written(mixed))
    named = {record.entity for record in records}
    assert {name: content for name, content in found.items() if name in named} == plain
    assert found.keys() - named == {one.entity for one in happened} - named


@pytest.mark.parametrize("kind", [EntityDelete, Erase])
def test_a_late_event_brings_nothing_back(kind: type[EntityDelete | Erase]) -> None:
    made = written([event("a"), kind(record_id="d", time=3, entity="a"), event("a")], 1)
    assert made.entity(key64("item", "a")) is None
    assert WANTED.records([event("a")], made) == [], "and costs no write"


def test_an_erasure_takes_what_lies_before_it_whatever_its_time() -> None:
    later = Entity(record_id="e", time=9, entity="a")
    made = written([later, Erase(record_id="x", time=3, entity="a")], 1)
    assert made.entity(key64("item", "a")) is None
    made = written([later, EntityDelete(record_id="x", time=3, entity="a")], 1)  # canary: a deletion has its time
    assert made.entity(key64("item", "a")) is not None


def test_a_patch_may_describe_what_an_event_brought() -> None:
    made = written([event("a"), EntityPatch(record_id="p", time=1, entity="a", stock=0.0)])
    assert len(made) == 1
    assert not made.available(made.rows(np.array([key64("item", "a")], np.uint64)), 5).any()


def test_only_interest_in_configured_types_makes_entities() -> None:
    others = [event(None), event("a", "impression"), event("b", "unheard-of"), event("c", "hide")]
    types = [event("a", entity_type="page"), event("g", "alias", "user"), event("x", entity_type="nothing")]
    assert len(written([*others, *types])) == 0
    assert len(written([*others, *types, event("a"), event("a")])) == 1


def test_a_catalogue_on_disk_remembers_what_was_deleted(tmp_path: Path) -> None:
    url = f"lmdb://{tmp_path}"
    made = catalog.open(url, entities=TYPES)
    made.write(WANTED.records([event("a"), EntityDelete(record_id="d", time=3, entity="a"), event("b")], made), START)
    made.close()
    made = catalog.open(url, entities=TYPES)
    keys = np.array([key64("item", name) for name in "abc"], np.uint64)
    assert made.unheard(keys).tolist() == [False, False, True]
    assert (made.rows(keys) >= 0).tolist() == [False, True, False]
    made.close()
