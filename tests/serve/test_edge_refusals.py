"""Bad input: a status below 500, a body that names the field, and nothing written."""

from __future__ import annotations

import json
from typing import Any

import pytest
from doubles import MemoryEngine
from litestar.testing import TestClient

BUY = {"user": "u1", "kind": "purchase", "entity": "i1"}


def _raw(**fields: Any) -> bytes:
    return json.dumps(BUY | fields).encode()


EVENTS = {
    "empty body": (b"", 400, "body"),
    "cut off": (b'{"user": "u', 400, "body"),
    "trailing": (b'{"user": "u", "kind": "view"} x', 400, "body"),
    "nan": (b'{"user": "u", "kind": "view", "value": NaN}', 400, "body"),
    "infinity": (b'{"user": "u", "kind": "view", "extras": {"a": Infinity}}', 400, "body"),
    "too large a number": (b'{"user": "u", "kind": "view", "value": 1e999}', 422, "value"),
    "not utf-8": (b'{"user": "\xff\xfe", "kind": "view"}', 400, "body"),
    "utf-16": ('{"user": "u", "kind": "view"}'.encode("utf-16"), 400, "body"),
    "lone surrogate": (b'{"user": "\\ud800 ", "kind": "view"}', 400, "body"),
    "deep in an unknown field": (b'{"x":' + b"[" * 50_000 + b"]" * 50_000 + b"}", 400, "body"),
    "deep": (b"[" * 100_000, 422, "events[0]"),
    "scalar": (b"3", 422, "body"),
    "null": (b"null", 422, "body"),
    "missing user": (b'{"kind": "view"}', 422, "user"),
    "missing kind in a list": (b'[{"user": "u", "kind": "view"}, {"user": "u"}]', 422, "events[1].kind"),
    "unknown field": (_raw(usr=1), 422, "usr"),
    "unknown beside events": (b'{"events": [], "tenant": "x"}', 422, "tenant"),
    "events is no list": (b'{"events": 3}', 422, "events"),
    "user is a list": (_raw(user=[1]), 422, "user"),
    "user is true": (_raw(user=True), 422, "user"),
    "user is a fraction": (_raw(user=1.5), 422, "user"),
    "user is empty": (_raw(user=""), 422, "user"),
    "user is blank": (_raw(user="  "), 422, "user"),
    "user has a line break": (_raw(user="a\nb"), 422, "user"),
    "user has the separator of keys": (_raw(user="a\x1fb"), 422, "user"),
    "user has NUL": (_raw(user="a\0"), 422, "user"),
    "user is too long": (_raw(user="x" * 513), 422, "user"),
    "user is a huge number": (b'{"user": ' + b"9" * 600 + b', "kind": "view"}', 422, "user"),
    "entity is empty": (_raw(entity=""), 422, "entity"),
    "event_id is empty": (_raw(event_id=""), 422, "event_id"),
    "kind is not a name": (_raw(kind="Buy It"), 422, "kind"),
    "value is text": (_raw(value="2"), 422, "value"),
    "value is null": (_raw(value=None), 422, "value"),
    "place is negative": (_raw(place=-1), 422, "place"),
    "time is a word": (_raw(time="yesterday"), 422, "time"),
    "time is a fraction": (_raw(time=1.5), 422, "time"),
    "time is beyond the calendar": (_raw(time=10**17), 422, "time"),
    "time leaves the calendar by its zone": (_raw(time="9999-12-31T23:59:59-10:00"), 422, "time"),
    "time before the calendar": (_raw(time="0001-01-01T00:00:00+10:00"), 422, "time"),
    "time in the future": (_raw(time="2999-01-01"), 422, "time"),
    "extras are nested": (_raw(extras={"a": {"b": 1}}), 422, "extras"),
    "extras name has a control character": (_raw(extras={"a\n": 1}), 422, "extras"),
    "query holds NUL": (_raw(query="a\0b"), 422, "query"),
    "too many": (json.dumps([BUY] * 51).encode(), 413, "events"),
    "too large": (b'{"user": "' + b"x" * 300_000 + b'"}', 413, "body"),
    "last of a batch": (json.dumps([BUY] * 5 + [BUY | {"user": ""}]).encode(), 422, "events[5].user"),
    "hide without an entity": (b'{"user": "u", "kind": "hide"}', 422, "entity"),
    "interest in nothing": (b'[{"user": "u", "kind": "view"}]', 422, "events[0].entity"),
    "a label of nothing": (b'{"user": "u", "kind": "purchase"}', 422, "entity"),
    "owning nothing": (b'{"events": [{"user": "u", "kind": "rating", "entity": null}]}', 422, "events[0].entity"),
    "alias of a user to itself": (b'{"user": 7, "kind": "alias", "entity": "7"}', 422, "entity"),
    "time is in seconds": (_raw(time=1_500_000_000), 422, "time"),
    "time in seconds in a list": (json.dumps([BUY, BUY | {"time": 1_500_000_000}]).encode(), 422, "events[1].time"),
    "time before 1990": (_raw(time="1989-12-31T23:59:59Z"), 422, "time"),
}


@pytest.mark.parametrize("case", EVENTS)
def test_events(client: TestClient, engine: MemoryEngine, case: str) -> None:
    raw, status, field = EVENTS[case]
    for content_type in ("application/json", "text/plain", "multipart/form-data"):
        answer = client.post("/v1/events", content=raw, headers={"content-type": content_type})
        error = answer.json()["error"]
        assert (answer.status_code, error["field"]) == (status, field), error
        assert error["reason"]
    assert engine.calls == 0


def test_canary_the_good_body_of_the_table_is_accepted_whatever_it_is_called(client: TestClient) -> None:
    for content_type in ("application/json", "text/plain", "multipart/form-data", ""):
        assert client.post("/v1/events", content=_raw(), headers={"content-type": content_type}).status_code == 200


SLATES = {
    "unknown canvas": ({"context": {"canvas": "homr"}}, "context.canvas"),
    "unknown field": ({"contxt": {}}, "contxt"),
    "unknown field of the context": ({"context": {"usr": 1}}, "context.usr"),
    "unknown field of show": ({"show": {"newonly": True}}, "show.newonly"),
    "limit zero": ({"limit": 0}, "limit"),
    "limit negative": ({"limit": -5}, "limit"),
    "limit too large": ({"limit": 1001}, "limit"),
    "limit is text": ({"limit": "5"}, "limit"),
    "deadline zero": ({"deadline_ms": 0}, "deadline_ms"),
    "deadline too long": ({"deadline_ms": 60_001}, "deadline_ms"),
    "after is nonsense": ({"after": "yesterday"}, "after"),
    "after has not been reached": ({"after": "p0:99"}, "after"),
    "time": ({"context": {"time": "noon"}}, "context.time"),
    "time in seconds": ({"context": {"time": 1_500_000_000}}, "context.time"),
    "empty user": ({"context": {"user": ""}}, "context.user"),
    "empty source": ({"context": {"sources": [1, ""]}}, "context.sources[1]"),
    "null source": ({"context": {"sources": [None]}}, "context.sources[0]"),
    "excluded control character": ({"show": {"exclude": ["a\x7f"]}}, "show.exclude[0]"),
    "too many to choose from": ({"show": {"only": list(range(10_001))}}, "show.only"),
    "unknown entity type": ({"show": {"entity_type": "itm"}}, "show.entity_type"),
    "filter by an attribute that is not configured": ({"show": {"filter": {"categry": "tea"}}}, "show.filter.categry"),
    "filter by text": ({"show": {"filter": {"blurb": "tea"}}}, "show.filter.blurb"),
    "filter by an object": ({"show": {"filter": {"category": {"not": 1}}}}, "show.filter"),
    "tenant is not the client's to say": ({"tenant": "other"}, "tenant"),
}


@pytest.mark.parametrize("case", SLATES)
def test_slates(client: TestClient, engine: MemoryEngine, case: str) -> None:
    body, field = SLATES[case]
    answer = client.post("/v1/slates", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    assert not engine.requests


def test_an_unknown_name_is_answered_with_the_nearest_and_the_list(client: TestClient) -> None:
    error = client.post("/v1/slates", json={"context": {"canvas": "homr"}}).json()["error"]
    assert error["hint"] == "did you mean 'home'?"
    assert "home, similar, genres" in error["reason"]
    assert client.post("/v1/slates", json={"context": {"usr": 1}}).json()["error"]["hint"] == "did you mean 'user'?"
    assert "hint" not in client.post("/v1/slates", json={"context": {"canvas": "zzz"}}).json()["error"]


URLS = {
    "unknown canvas": ("/v1/users/1/slate?canvas=x", 422, "canvas"),
    "unknown parameter": ("/v1/users/1/slate?limt=3", 422, "limt"),
    "negative limit": ("/v1/users/1/slate?limit=-3", 422, "limit"),
    "limit is a word": ("/v1/users/1/slate?limit=many", 422, "limit"),
    "twice": ("/v1/users/1/slate?limit=3&limit=4", 422, "limit"),
    "neither true nor false": ("/v1/users/1/slate?new_only=perhaps", 422, "new_only"),
    "time": ("/v1/users/1/slate?time=noon", 422, "time"),
    "huge time": ("/v1/users/1/slate?time=" + "9" * 40, 422, "time"),
    "after": ("/v1/users/1/slate?after=p1:x", 422, "after"),
    "query string is not utf-8": ("/v1/users/1/slate?canvas=%ff", 400, "query"),
    "query string has a broken escape": ("/v1/users/1/slate?canvas=%zz", 400, "query"),
    "many parameters": ("/v1/users/1/slate?" + "&".join(f"a{n}=1" for n in range(200)), 400, "query"),
    "id is not utf-8": ("/v1/users/%ff/slate", 400, "id"),
    "id has a broken escape": ("/v1/users/%2/slate", 400, "id"),
    "id is blank": ("/v1/users/%20/slate", 422, "id"),
    "id has a control character": ("/v1/items/%00/similar", 422, "id"),
    "empty user of similar": ("/v1/items/1/similar?user=", 422, "user"),
    "entity type": ("/v1/entities/Item!/1", 422, "type"),
    "no such entity": ("/v1/entities/item/none", 404, "id"),
    "no such address": ("/v2/slates", 404, "path"),
    "empty id": ("/v1/users//slate", 405, "method"),
}


@pytest.mark.parametrize("case", URLS)
def test_addresses(client: TestClient, engine: MemoryEngine, case: str) -> None:
    url, status, field = URLS[case]
    answer = client.get(url)
    assert (answer.status_code, answer.json()["error"]["field"]) == (status, field), answer.text
    assert not engine.requests


ENTITIES = {
    "missing id": ({"text": "x"}, "entity"),
    "empty id": ([{"entity": 1}, {"entity": ""}], "entities[1].entity"),
    "entity type": ({"entity": 1, "entity_type": "Item"}, "entity_type"),
    "entity type that is not configured": (
        {"entities": [{"entity": 1, "entity_type": "itm"}]},
        "entities[0].entity_type",
    ),
    "time in seconds": ({"entity": 1, "time": 1_500_000_000}, "time"),
    "number is text": ({"entity": 1, "attributes": {"price": "3"}}, "attributes.price"),
    "number is true": ({"entity": 1, "attributes": {"price": True}}, "attributes.price"),
    "tags are text": ({"entity": 1, "attributes": {"tags": "a"}}, "attributes.tags"),
    "category is a list": ({"entity": 1, "attributes": {"category": ["a"]}}, "attributes.category"),
    "text is a number": ({"entity": 1, "attributes": {"blurb": 1}}, "attributes.blurb"),
    "attribute is an object": ({"entity": 1, "attributes": {"x": {}}}, "attributes"),
    "attribute name is empty": ({"entity": 1, "attributes": {"": 1}}, "attributes"),
    "ends before it begins": ({"entity": 1, "available_from": 2, "available_until": 2}, "available_until"),
    "stock is text": ({"entity": 1, "stock": "many"}, "stock"),
    "text holds NUL": ({"entities": [{"entity": 1, "text": "\0"}]}, "entities[0].text"),
}


@pytest.mark.parametrize("case", ENTITIES)
def test_entities(client: TestClient, engine: MemoryEngine, case: str) -> None:
    body, field = ENTITIES[case]
    answer = client.put("/v1/entities", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    assert engine.calls == 0


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({}, "body"),
        ({"stok": 1}, "stok"),
        ({"stock": "1"}, "stock"),
        ({"available_from": 5, "available_until": 5}, "available_until"),
        ({"attributes": {"price": "x"}}, "attributes.price"),
        ({"text": None}, "text"),
    ],
)
def test_patches(client: TestClient, engine: MemoryEngine, body: object, field: str) -> None:
    answer = client.patch("/v1/entities/item/1", json=body)
    assert (answer.status_code, answer.json()["error"]["field"]) == (422, field), answer.text
    assert engine.calls == 0


def test_hints_say_what_to_do_about_it(client: TestClient) -> None:
    def error(address: str, body: object) -> dict[str, str]:
        method = client.put if address == "entities" else client.post
        return method(f"/v1/{address}", json=body).json()["error"]

    assert "milliseconds, not seconds" in error("events", BUY | {"time": 1_500_000_000})["hint"]
    assert "hint" not in error("events", BUY | {"time": "1970-01-18"})
    assert "events.view.interest 0" in error("events", {"user": "u", "kind": "view"})["hint"]
    assert "head 'purchase'" in error("events", {"user": "u", "kind": "purchase"})["reason"]
    wrong = error("entities", {"entity": 1, "entity_type": "itm"})
    assert (wrong["hint"], wrong["reason"]) == (
        "did you mean 'item'?",
        "'itm' is not a configured entity type; there are: item, genre",
    )


def test_a_method_that_is_not_there_names_those_that_are(client: TestClient) -> None:
    answer = client.put("/v1/events", json=BUY)
    assert (answer.status_code, answer.json()["error"]["field"]) == (405, "method")
    assert "POST" in answer.headers["allow"]


def test_a_page_of_another_site_cannot_write(client: TestClient, engine: MemoryEngine) -> None:
    for site, status in (("cross-site", 403), ("same-origin", 200)):
        assert client.post("/v1/events", json=BUY, headers={"sec-fetch-site": site}).status_code == status
    assert engine.calls == 1
