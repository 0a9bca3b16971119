"""Bytes that were written once are read for ever: tests/schema/golden holds each record as v1 wrote it.

NAME.msgpack is what the log stored, NAME.json what it means. Files are only ever added. To add those of
a new record or version, put a sample into SAMPLES and run this file as a script.
"""

# ruff: noqa: E501 (samples, packed)
from __future__ import annotations

from pathlib import Path
from typing import get_args

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.schema.records import (
    Context,
    Degraded,
    Entity,
    EntityDelete,
    EntityPatch,
    Erase,
    Erased,
    Event,
    LogRecord,
    Past,
    Pool,
    Served,
    Show,
    Slate,
    SlateItem,
    SlateRequest,
    decode_record,
    encode_record,
    record_id,
)

GOLDEN = Path(__file__).parent / "golden"
STAMPS = {"time": 1_512_380_000_000, "received_at": 1_512_380_000_250, "tenant": "shop"}

SAMPLES: dict[str, LogRecord] = {
    "event-v1": Event(
        event_id="e-1", user="u-ü", kind="purchase", entity="i-1", entity_type="film", value=2.5, session="s-1",
        request_id="r-1", place=3, canvas="home", query="blue shoe", extras={"store": "330", "amount": 0.5, "gift": True},
        **STAMPS,
    ),
    "event-least-v1": Event(event_id="e-2", time=-1, user="u", kind="exit"),
    "entity-v1": Entity(
        record_id="n-1", entity="i-1", entity_type="film", attributes={"a": "x", "b": 1.5, "c": True, "d": ["x", "y"], "e": None},
        text="Blue shoe", group="g-1", available_from=1, available_until=2, stock=0.0, **STAMPS,
    ),
    "patch-v1": EntityPatch(record_id="p-1", entity="i-1", attributes={"a": None, "b": 2.0}, stock=None, text="", **STAMPS),
    "patch-all-v1": EntityPatch(
        record_id="p-2", entity="i-1", entity_type="film", text="t", group=None, available_from=1, available_until=None,
        stock=3.0, **STAMPS,
    ),
    "delete-v1": EntityDelete(record_id="d-1", entity="i-1", entity_type="film", **STAMPS),
    "erase-user-v1": Erase(record_id="x-1", user="u-1", **STAMPS),
    "erase-entity-v1": Erase(record_id="x-2", entity="i-1", entity_type="film", **STAMPS),
    "erased-v1": Erased(digest=bytes(range(16)), **STAMPS),
    "served-line-v1": Served(
        record_id="v-2", time=5, user=None, request=SlateRequest(model_line="frozen"),
        slate=Slate(request_id="r-2", canvas="home", time=5, items=[], model_line="frozen"),
    ),
    "served-pool-v1": Served(
        record_id="v-3", time=5, user="u-1", request=SlateRequest(pool=True), feature_names=["f"],
        slate=Slate(request_id="r-3", canvas="home", time=5, items=[]),
        pool=Pool(keys=b"\x01" + bytes(7), inputs=b"x\x01c``\xd8`\x0f\x00\x01\x05\x00\xc0"),
    ),
    "served-past-v1": Served(
        record_id="v-4", time=5, user="u-1", request=SlateRequest(), feature_names=["f"],
        slate=Slate(request_id="r-4", canvas="home", time=5, items=[]),
        past=Past(
            kinds=["purchase", "click"], entities=b"\x01" + bytes(7) + b"\x02" + bytes(7), actions=b"\x00\x01",
            times=b"\x03" + bytes(7) + b"\x04" + bytes(7),
        ),
    ),
    "served-v1": Served(
        record_id="v-1", user="u-1", shown=False, feature_names=["f", "g"], features=b"\x00\x00\x80?\x00\x00\x00@",
        request=SlateRequest(
            context=Context(
                canvas="similar", user="u-1", time=5, session="s", query="q", sources=["i-9"], source_type="film",
                category="c", country="NL", language="nl", device="phone", extras={"x": 1.0},
            ),
            show=Show(entity_type="film", only=["i-1"], exclude=["i-2"], filter={"a": ["x", "y"], "b": 1.0}, new_only=True),
            limit=5, deadline_ms=50.0, after="p0:7", shown=False, explain=True, tenant="shop",
        ),
        slate=Slate(
            request_id="r-1", canvas="similar", time=5,
            items=[
                SlateItem(
                    entity="i-1", entity_type="film", score=0.5, scores={"purchase": 0.5}, sources=["popular"],
                    propensity=0.1, features={"f": 1.0},
                )
            ],
            model_line="student", dense_version="d", sparse_version="s", index_version="i", position="p0:8",
            timings_ms={"retrieve": 1.5}, candidates={"popular": 10},
            degraded=[Degraded(stage="retrieve", what="two_tower", why="deadline")], environment="fast", arms={"a": "b"},
        ),
        **STAMPS,
    ),
}  # fmt: skip

NAMES = sorted(path.stem for path in GOLDEN.glob("*.msgpack"))


def test_there_is_a_golden_file_of_every_sample_and_every_record() -> None:
    assert set(SAMPLES) <= set(NAMES)
    assert {type(record) for record in SAMPLES.values()} == set(get_args(LogRecord))


def test_the_samples_set_every_field_of_every_record() -> None:
    """A field that no sample sets would be read by luck: it would not be in the golden bytes."""
    fields_set: dict[type, set[str]] = {}

    def visit(value: object) -> None:
        if isinstance(value, list):
            for entry in value:
                visit(entry)
        if not isinstance(value, msgspec.Struct):
            return
        for field in msgspec.structs.fields(value):
            here = getattr(value, field.name)
            default = field.default if field.default is not msgspec.NODEFAULT else object()
            if (here != default and here not in ([], {})) or field.name == "v":
                fields_set.setdefault(type(value), set()).add(field.name)
            visit(here)

    for record in SAMPLES.values():
        visit(record)
    for kind, found in fields_set.items():
        assert found == {field.name for field in msgspec.structs.fields(kind)}, kind.__name__


@pytest.mark.parametrize("name", NAMES)
def test_todays_readers_read_it(name: str) -> None:
    record = decode_record((GOLDEN / f"{name}.msgpack").read_bytes())
    meaning = msgspec.json.decode((GOLDEN / f"{name}.json").read_bytes(), type=LogRecord)
    assert record == meaning
    if name in SAMPLES:
        assert record == SAMPLES[name]


@pytest.mark.parametrize("name", NAMES)
def test_writing_it_again_loses_nothing(name: str) -> None:
    record = decode_record((GOLDEN / f"{name}.msgpack").read_bytes())
    assert decode_record(encode_record(record)) == record


@pytest.mark.parametrize("name", NAMES)
def test_damaged_bytes_are_refused(name: str) -> None:
    """Canary: the comparison above would see a change."""
    data = (GOLDEN / f"{name}.msgpack").read_bytes()
    with pytest.raises(msgspec.MsgspecError):
        decode_record(data[:-1])
    tag = data.index(b"\xa1r") + 3
    with pytest.raises(msgspec.ValidationError):
        decode_record(data[:tag] + b"?" + data[tag + 1 :])


def test_fields_of_a_later_version_are_skipped() -> None:
    fields = msgspec.msgpack.decode(encode_record(SAMPLES["event-v1"]))
    later = msgspec.msgpack.encode({**fields, "added_later": [1, 2]})
    assert decode_record(later) == SAMPLES["event-v1"]


@pytest.mark.parametrize("name", sorted(SAMPLES))
def test_record_id_is_the_events_or_the_records_own(name: str) -> None:
    record = SAMPLES[name]
    if isinstance(record, Erased):  # its id is gone; what the log knows it by is left
        assert record_id(record) == record.digest.hex()
    else:
        assert record_id(record) == (record.event_id if isinstance(record, Event) else record.record_id)


@given(
    stock=st.none() | st.just(msgspec.UNSET) | st.floats(allow_nan=False),
    group=st.none() | st.just(msgspec.UNSET) | st.text(max_size=3),
)
def test_a_patch_keeps_none_apart_from_unset(stock: object, group: object) -> None:
    patch = EntityPatch(record_id="p", time=1, entity="i", stock=stock, group=group)  # type: ignore[arg-type]
    back = decode_record(encode_record(patch))
    assert isinstance(back, EntityPatch)
    assert (back.stock, back.group) == (stock, group)


def write() -> None:
    """Write the golden files that do not exist yet; those that do are never touched."""
    GOLDEN.mkdir(exist_ok=True)
    for name, record in SAMPLES.items():
        if not (GOLDEN / f"{name}.msgpack").exists():
            (GOLDEN / f"{name}.msgpack").write_bytes(encode_record(record))
            (GOLDEN / f"{name}.json").write_bytes(msgspec.json.format(msgspec.json.encode(record)) + b"\n")


if __name__ == "__main__":
    write()
