"""Laws of the catalogue on both implementations, against a plain dict that folds whole histories."""

from __future__ import annotations

from collections.abc import Iterator
from tempfile import TemporaryDirectory

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem import catalog
from mainstem.catalog.revisions import PATCHED, same_content
from mainstem.schema.config import EntityTypeConfig
from mainstem.schema.ids import key64
from mainstem.schema.position import Position
from mainstem.schema.records import Entity, EntityDelete, EntityPatch, Erase, Event, LogRecord

TYPES = {
    "item": EntityTypeConfig(
        attributes={"color": "category", "price": "number", "tags": "tags", "blurb": "text"}, text=["color", "blurb"]
    ),
    "person": EntityTypeConfig(attributes={"color": "category", "price": "category"}),
}
IDS, KINDS = ["a", "b", "c"], ["item", "person"]

attribute_values = st.one_of(
    st.sampled_from(["red", "blue", "7", ""]),
    st.sampled_from([7.0, 0.5, -1.0]),
    st.booleans(),
    st.lists(st.sampled_from(["x", "y", "z"]), max_size=3),
    st.none(),
)
attributes = st.dictionaries(st.sampled_from(["color", "price", "tags", "other"]), attribute_values, max_size=4)
moments = st.one_of(st.none(), st.integers(0, 12))
about = {
    "record_id": st.just("r"),
    "time": st.integers(0, 10),
    "entity": st.sampled_from(IDS),
    "entity_type": st.sampled_from(KINDS),
}
settable = {
    "text": st.sampled_from(["", "one", "two"]),
    "group": st.sampled_from([None, "g1", "g2"]),
    "available_from": moments,
    "available_until": moments,
    "stock": st.sampled_from([None, 0.0, 3.0]),
}
entities = st.builds(Entity, **about, attributes=attributes, **settable)
patches = st.builds(
    EntityPatch, **about, attributes=attributes, **{k: v | st.just(msgspec.UNSET) for k, v in settable.items()}
)
deletes = st.builds(EntityDelete, **about)
erasures = st.builds(Erase, **about)
records = st.one_of(entities, entities, patches, patches, deletes, erasures)


class Oracle:
    """All records of an entity since its latest erasure are kept and folded afresh, sorted by (time, arrival)."""

    def __init__(self) -> None:
        self.histories: dict[tuple[str, str], list[LogRecord]] = {}

    def write(self, record: Entity | EntityPatch | EntityDelete | Erase) -> None:
        key = (record.entity_type, str(record.entity))
        history = self.histories.setdefault(key, [])
        if isinstance(record, EntityPatch) and self.state(*key) is None:
            return
        if isinstance(record, Erase):
            history.clear()
        history.append(record)
        if self.state(*key) is None:
            history[:] = [r for r in history if not isinstance(r, EntityPatch)]

    def state(self, entity_type: str, entity: str) -> Entity | None:
        now: Entity | None = None
        for record in sorted(self.histories.get((entity_type, entity), []), key=lambda r: r.time):
            if isinstance(record, Entity):
                now = record
            elif isinstance(record, EntityPatch):
                if now is None:
                    continue
                merged = now.attributes | record.attributes
                merged = {k: v for k, v in merged.items() if v is not None or k not in record.attributes}
                fields = {f: getattr(record, f) for f in PATCHED if getattr(record, f) is not msgspec.UNSET}
                now = msgspec.structs.replace(now, attributes=merged, **fields)
            else:
                now = None
        return now


@pytest.fixture(params=["memory", "lmdb"])
def url(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.param == "memory":
        yield "memory://"
    else:
        with TemporaryDirectory() as folder:
            yield f"lmdb://{folder}"


def check_against(oracle: Oracle, found: catalog.MemoryCatalog) -> None:
    pairs = [(kind, name) for kind in KINDS for name in IDS]
    keys = np.array([key64(kind, name) for kind, name in pairs], np.uint64)
    rows = found.rows(keys)
    wanted = [oracle.state(*pair) for pair in pairs]
    assert [row >= 0 for row in rows] == [w is not None for w in wanted]
    assert len(found) == sum(w is not None for w in wanted)
    assert {int(k) for k in found.keys().tolist() if k} == {int(k) for k, w in zip(keys, wanted, strict=True) if w}
    for i, (entity, key) in enumerate(zip(wanted, keys, strict=True)):
        assert same_content(found.entity(int(key)), entity)
        if entity is None:
            continue
        color = entity.attributes.get("color")
        text = (
            {True: "true", False: "false", 7.0: "7", 0.5: "0.5", -1.0: "-1"}.get(color)
            if not isinstance(color, str | list | None)
            else color
        )
        code = key64(f"{entity.entity_type}.color", text) if isinstance(text, str) and text else 0
        assert found.codes("color", rows)[i] == code
        price = entity.attributes.get("price")
        number = float(price) if entity.entity_type == "item" and isinstance(price, float | bool) else np.nan
        np.testing.assert_equal(found.numbers("price", rows)[i], number)
        group = key64(f"{entity.entity_type}.group", entity.group) if entity.group else 0
        assert found.codes("group", rows)[i] == group
    check_masks(found, rows, wanted)


def check_masks(found: catalog.MemoryCatalog, rows: np.ndarray, wanted: list[Entity | None]) -> None:
    for time in (0, 5, 11):
        for kind in KINDS:
            truth = [
                e is not None
                and e.entity_type == kind
                and (e.available_from is None or e.available_from <= time)
                and (e.available_until is None or time < e.available_until)
                and (e.stock is None or e.stock > 0)
                for e in wanted
            ]
            assert found.available(rows, time, kind).tolist() == truth
    for tag in ("x", ["y", "z"]):
        any_of = {tag} if isinstance(tag, str) else set(tag)
        truth = []
        for e in wanted:
            tags = e.attributes.get("tags") if e and e.entity_type == "item" else None
            tags = [tags] if isinstance(tags, str) else tags if isinstance(tags, list) else []
            truth.append(bool(any_of & set(tags)))
        assert found.matches(rows, {"tags": tag}).tolist() == truth


@settings(max_examples=120, deadline=None)
@given(batches=st.lists(st.lists(records, max_size=8), max_size=6))
def test_memory_agrees_with_the_plain_dict(batches: list[list[LogRecord]]) -> None:
    oracle, found = Oracle(), catalog.open("memory://", entities=TYPES)
    for i, batch in enumerate(batches):
        before = {pair: oracle.state(*pair) for pair in ((k, n) for k in KINDS for n in IDS)}
        for record in batch:
            oracle.write(record)
        changed = found.write(batch, Position.at(i + 1))
        truth = {
            pair: now
            for pair, old in before.items()
            if (now := oracle.state(*pair)) is not None and not same_content(old, now)
        }
        assert len(changed) == len(truth)
        assert all(same_content(e, truth[e.entity_type, e.entity]) for e in changed)
        check_against(oracle, found)
        assert found.position() == Position.at(i + 1)


@settings(max_examples=25, deadline=None)
@given(batches=st.lists(st.lists(records, max_size=8), max_size=4), cut=st.integers(0, 4))
def test_lmdb_agrees_also_after_opening_again(batches: list[list[LogRecord]], cut: int) -> None:
    with TemporaryDirectory() as folder:
        oracle, found = Oracle(), catalog.open(f"lmdb://{folder}", entities=TYPES)
        for i, batch in enumerate(batches):
            if i == cut:
                found.close()
                found = catalog.open(f"lmdb://{folder}", entities=TYPES)
            for record in batch:
                oracle.write(record)
            found.write(batch, Position.at(i + 1))
        check_against(oracle, found)
        found.close()
        found = catalog.open(f"lmdb://{folder}", entities=TYPES)
        check_against(oracle, found)
        assert found.position() == Position.at(len(batches))
        found.close()


@settings(max_examples=100, deadline=None)
@given(batch=st.lists(st.one_of(entities, deletes), max_size=10), data=st.data())
def test_the_order_of_arrival_of_whole_writes_does_not_matter(batch: list[LogRecord], data: st.DataObject) -> None:
    """Of erasures it does: they take what lies before them in the log."""
    batch = [msgspec.structs.replace(record, time=i) for i, record in enumerate(batch)]
    one, other = (catalog.open("memory://", entities=TYPES) for _ in range(2))
    one.write(batch, Position.at(1))
    for record in data.draw(st.permutations(batch)):
        other.write([record], Position.at(1))
    for kind in KINDS:
        for name in IDS:
            assert same_content(one.entity(key64(kind, name)), other.entity(key64(kind, name)))


@settings(max_examples=60, deadline=None)
@given(batch=st.lists(records, max_size=10))
def test_a_replay_changes_nothing(batch: list[LogRecord]) -> None:
    """At least once: the last batch may come again after a crash. Equal times are decided by arrival."""
    batch = [msgspec.structs.replace(record, time=i) for i, record in enumerate(batch)]
    found = catalog.open("memory://", entities=TYPES)
    found.write(batch, Position.at(1))
    once = {key: found.entity(key) for key in (key64(k, n) for k in KINDS for n in IDS)}
    assert found.write(batch, Position.at(1)) == []
    assert all(same_content(found.entity(key), entity) for key, entity in once.items())


def test_the_oracle_rejects_a_catalogue_that_ignores_time() -> None:
    """Canary: last arrival wins instead of last in time."""
    oracle, wrong = Oracle(), catalog.open("memory://", entities=TYPES)
    new = Entity(record_id="1", time=9, entity="a", text="new")
    late = Entity(record_id="2", time=3, entity="a", text="late")
    for record in (new, late):
        oracle.write(record)
    wrong.write([late], Position.at(1))
    with pytest.raises(AssertionError):
        check_against(oracle, wrong)


def test_events_and_erased_users_are_skipped(url: str) -> None:
    found = catalog.open(url, entities=TYPES)
    batch: list[LogRecord] = [
        Event(event_id="e", time=1, user="u", kind="view", entity="a"),
        Erase(record_id="x", time=1, user="a"),
    ]
    assert found.write(batch, Position.at(2)) == []
    assert (len(found), found.position()) == (0, Position.at(2))
    found.close()
