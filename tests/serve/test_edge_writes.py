"""What is accepted, and the records it becomes."""

from __future__ import annotations

import pytest
from doubles import MemoryEngine
from litestar.testing import TestClient

from mainstem.schema.errors import TooFarAhead
from mainstem.schema.position import Position
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Entity, EntityDelete, EntityPatch, Erase, Event
from mainstem.schema.time import MINUTE, now_ms, parse_time

BUY = {"user": "u1", "kind": "purchase", "entity": "i1"}


@pytest.mark.parametrize("body", [BUY, [BUY], {"events": [BUY]}], ids=["one", "list", "named"])
def test_every_form_of_an_event_becomes_the_same_record(client: TestClient, engine: MemoryEngine, body: object) -> None:
    before = now_ms()
    answer = client.post("/v1/events", json=body)
    assert (answer.status_code, answer.json()) == (200, {"position": "p0:1", "accepted": 1, "duplicates": 0})
    (event,) = engine.records
    assert isinstance(event, Event)
    assert (event.user, event.kind, event.entity, event.entity_type, event.value) == (
        "u1",
        "purchase",
        "i1",
        "item",
        1.0,
    )
    assert before <= event.time == event.received_at <= now_ms()
    assert event.event_id.startswith("event-")
    assert event.tenant == "main"


def test_every_field_of_an_event_arrives(client: TestClient, engine: MemoryEngine) -> None:
    given = {
        "event_id": 17, "user": 5, "kind": "watch", "entity": 99, "entity_type": "genre", "value": 12.5,
        "time": "2017-12-04T09:30:00Z", "session": 3, "request_id": "slate-1", "place": 4, "canvas": "home",
        "query": "green tea", "extras": {"store": "s1", "n": 2.0, "app": True},
    }  # fmt: skip
    assert client.post("/v1/events", json=given).status_code == 200
    (event,) = engine.records
    expected = given | {
        "event_id": "17",
        "user": "5",
        "entity": "99",
        "session": "3",
        "time": parse_time(given["time"]),
    }
    assert {name: getattr(event, name) for name in given} == expected


def test_a_time_may_be_milliseconds_and_skew_is_refused(client: TestClient, engine: MemoryEngine) -> None:
    now = now_ms()
    assert client.post("/v1/events", json=BUY | {"time": now + 9 * MINUTE}).status_code == 200
    answer = client.post("/v1/events", json=[BUY, BUY | {"time": now + 12 * MINUTE}])
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "events[1].time"
    assert len(engine.records) == 1


def test_the_same_event_id_twice_is_one_event(client: TestClient, engine: MemoryEngine) -> None:
    assert client.post("/v1/events", json=BUY | {"event_id": "e"}).json()["accepted"] == 1
    again = client.post("/v1/events", json=[BUY | {"event_id": "e"}, BUY | {"event_id": "f"}]).json()
    assert (again["accepted"], again["duplicates"], len(engine.records)) == (1, 1, 2)


def test_an_empty_batch_is_nothing(client: TestClient, engine: MemoryEngine) -> None:
    assert client.post("/v1/events", json=[]).json() == {"position": "p", "accepted": 0, "duplicates": 0}
    assert engine.calls == 0


def test_alias_speaks_of_users_and_needs_one(client: TestClient, engine: MemoryEngine) -> None:
    assert client.post("/v1/events", json={"user": "u1", "kind": "alias", "entity": "guest"}).status_code == 200
    assert engine.records[0].entity_type == "user"  # type: ignore[union-attr]
    missing = client.post("/v1/events", json={"user": "u1", "kind": "alias"})
    assert (missing.status_code, missing.json()["error"]["field"]) == (422, "entity")


def test_a_kind_that_counts_for_nothing_is_noted(client: TestClient) -> None:
    (note,) = client.post("/v1/events", json=BUY | {"kind": "purchse"}).json()["notes"]
    assert "purchse" in note
    assert "notes" not in client.post("/v1/events", json=BUY).json()


def test_the_logs_own_refusal_names_the_field_as_the_client_wrote_it(client: TestClient, engine: MemoryEngine) -> None:
    engine.fails = TooFarAhead("events[0].time", "lies ahead")
    assert client.post("/v1/events", json=BUY).json()["error"]["field"] == "time"
    assert client.post("/v1/events", json=[BUY]).json()["error"]["field"] == "events[0].time"


TEA = {"entity": 7, "attributes": {"category": "tea", "price": 3, "tags": ["green"], "loose": True}, "text": "Sencha"}


@pytest.mark.parametrize("body", [TEA, [TEA], {"entities": [TEA]}], ids=["one", "list", "named"])
def test_entities_are_put_read_changed_and_deleted(client: TestClient, engine: MemoryEngine, body: object) -> None:
    assert client.put("/v1/entities", json=body).json()["accepted"] == 1
    read = client.get("/v1/entities/item/7").json()
    assert (read["attributes"], read["text"], read["stock"]) == (TEA["attributes"], "Sencha", None)
    changed = client.patch("/v1/entities/item/7", json={"stock": 0, "group": None, "attributes": {"loose": None}})
    assert changed.status_code == 200
    patch = engine.records[-1]
    assert isinstance(patch, EntityPatch)
    assert (patch.stock, patch.group, patch.attributes) == (0.0, None, {"loose": None})
    assert type(patch.text).__name__ == "UnsetType"
    assert client.delete("/v1/entities/item/7").status_code == 200
    assert isinstance(engine.records[-1], EntityDelete)
    gone = client.get("/v1/entities/item/7")
    assert (gone.status_code, gone.json()["error"]["field"]) == (404, "id")


def test_ids_in_paths_may_hold_anything_that_can_be_encoded(client: TestClient, engine: MemoryEngine) -> None:
    client.put("/v1/entities", json={"entity": "a/b c%2F é", "available_from": "2020-01-01", "available_until": None})
    read = client.get("/v1/entities/item/a%2Fb%20c%252F%20%C3%A9")
    assert read.status_code == 200
    assert read.json()["available_from"] == parse_time("2020-01-01")
    assert isinstance(engine.records[0], Entity)


def test_erasing_a_user_is_a_record(client: TestClient, engine: MemoryEngine) -> None:
    answer = client.delete("/v1/users/u%2F1")
    assert (answer.status_code, answer.json()["position"]) == (202, "p0:1")
    (erase,) = engine.records
    assert isinstance(erase, Erase)
    assert (erase.user, erase.entity) == ("u/1", None)


def test_what_is_erased_is_counted_apart(
    client: TestClient, engine: MemoryEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert "erased" not in client.post("/v1/events", json=BUY).json()
    monkeypatch.setattr(engine, "append", lambda records: Appended(Position.at(1), 0, 1, len(records) - 1))
    answer = client.post("/v1/events", json=[BUY, BUY, BUY])
    assert (answer.status_code, answer.json()) == (
        200, {"position": "p0:1", "accepted": 0, "duplicates": 1, "erased": 2}
    )  # fmt: skip
    assert 'mainstem_records_erased_total{record="event"} 2.0' in client.get("/metrics").text


def test_events_that_say_nothing_of_an_entity_may_do_without(client: TestClient, engine: MemoryEngine) -> None:
    bodies = [{"user": "u", "kind": kind} for kind in ("impression", "login")]  # no interest; not configured
    assert client.post("/v1/events", json=bodies).json()["accepted"] == 2
    assert client.post("/v1/events", json=BUY | {"time": "1990-01-01T00:00:00Z"}).status_code == 200
    assert client.post("/v1/events", json=BUY | {"kind": "view", "entity": "u1"}).status_code == 200


def test_changing_what_the_catalogue_does_not_know_is_accepted_and_noted(
    client: TestClient, engine: MemoryEngine
) -> None:
    def changes() -> list[dict[str, object]]:
        path = "/v1/entities/item/nowhere"
        answers = [client.patch(path, json={"stock": 1}), client.delete(path)]
        assert [answer.status_code for answer in answers] == [200, 200]
        return [answer.json() for answer in answers]

    engine.behind = 0.0
    for answer in changes():
        assert answer["accepted"] == 1
        assert answer["notes"] == ["the catalogue knows no item 'nowhere': this changes nothing"]
    engine.behind = 3.0
    for answer in changes():
        assert "is 3 records behind the log" in answer["notes"][0]  # type: ignore[index]
    assert len(engine.records) == 4
    client.put("/v1/entities", json={"entity": "nowhere"})
    for answer in changes():
        assert "notes" not in answer
