"""Questions: the long form, the short forms, and what the edge fills in."""

from __future__ import annotations

from doubles import MemoryEngine
from litestar.testing import TestClient

from mainstem.schema.records import Context, Show, SlateRequest
from mainstem.schema.time import MINUTE, now_ms, parse_time
from mainstem.serve import wire


def buy(client: TestClient, *items: str) -> str:
    body = [{"user": "u", "kind": "purchase", "entity": item} for item in items]
    return client.post("/v1/events", json=body).json()["position"]


def test_a_slate_says_everything_by_name(client: TestClient) -> None:
    position = buy(client, "a", "b", "b")
    answer = client.post("/v1/slates", json={"context": {"user": 1}, "limit": 1})
    slate = answer.json()
    assert answer.status_code == 200
    assert set(wire.SlateOut.__struct_fields__) == set(slate)
    assert slate["items"] == [
        {"entity": "b", "entity_type": "item", "score": 2.0, "scores": {}, "sources": ["popular"]}
    ]
    assert (slate["canvas"], slate["position"], slate["degraded"]) == ("home", position, [])


def test_a_stranger_on_an_empty_system_gets_a_slate_that_says_what_it_lacks(client: TestClient) -> None:
    for answer in (client.post("/v1/slates"), client.post("/v1/slates", json={}), client.get("/v1/users/new/slate")):
        assert answer.status_code == 200
        assert answer.json()["degraded"] == [{"stage": "score", "what": "model", "why": "there is none yet"}]


def test_every_field_of_a_question_arrives(client: TestClient, engine: MemoryEngine) -> None:
    position = buy(client, "a")
    context = {
        "canvas": "home", "user": 1, "time": 1_500_000_000_000, "session": "s", "query": "tea", "sources": [1, "b"],
        "source_type": "item", "category": "tea", "country": "de", "language": "en", "device": "phone",
        "extras": {"store": "s1"},
    }  # fmt: skip
    show = {
        "only": [1, 2],
        "exclude": ["x"],
        "filter": {"category": ["tea", "food"], "price": 3, "group": "g"},
        "new_only": True,
    }
    rest = {"limit": 7, "deadline_ms": 50, "after": position, "shown": False, "explain": True}
    assert client.post("/v1/slates", json={"context": context, "show": show, **rest}).status_code == 200
    (asked,) = engine.requests
    assert asked == SlateRequest(
        context=Context(**(context | {"user": "1", "sources": ["1", "b"]})),
        show=Show(entity_type="item", **(show | {"only": ["1", "2"]})),
        **rest,
    )


def test_the_edge_fills_in_time_and_the_canvas_own_type(client: TestClient, engine: MemoryEngine) -> None:
    before = now_ms()
    client.post("/v1/slates", json={"context": {"canvas": "genres"}})
    (asked,) = engine.requests
    assert before <= (asked.context.time or 0) <= now_ms()
    assert asked.show.entity_type == "genre"


def test_the_short_form_asks_the_same_question(client: TestClient, engine: MemoryEngine) -> None:
    position = buy(client, "a")
    at = "2017-12-04T09:30:00+01:00"
    short = client.get(f"/v1/users/u%2F1/slate?canvas=home&limit=3&new_only=true&time={at}&after={position}")
    context = {"user": "u/1", "time": at}
    long = client.post(
        "/v1/slates", json={"context": context, "show": {"new_only": True}, "limit": 3, "after": position}
    )
    assert (short.status_code, long.status_code) == (200, 200)
    assert engine.requests[0] == engine.requests[1]
    assert engine.requests[0].context.time == parse_time(at)
    client.get("/v1/users/1/slate?time=1500000000000")
    assert engine.requests[-1].context.time == 1_500_000_000_000


def test_similar_asks_the_canvas_similar_from_that_item(client: TestClient, engine: MemoryEngine) -> None:
    assert client.get("/v1/items/7/similar?limit=2&user=u").status_code == 200
    context = engine.requests[0].context
    assert (context.canvas, context.sources, context.user, engine.requests[0].limit) == ("similar", ["7"], "u", 2)


def test_a_moment_may_be_asked_for_that_is_past_or_within_the_skew_but_no_later(
    client: TestClient, engine: MemoryEngine
) -> None:
    now = now_ms()
    for time in ("1990-01-01", "2017-12-04T09:30:00Z", now, now + 9 * MINUTE):
        assert client.post("/v1/slates", json={"context": {"time": time}}).status_code == 200
    asked = len(engine.requests)
    for time in (now + 12 * MINUTE, 4_000_000_000_000):
        answer = client.post("/v1/slates", json={"context": {"time": time}})
        assert (answer.status_code, answer.json()["error"]["field"]) == (422, "context.time")
        for short in ("/v1/users/1/slate", "/v1/items/1/similar"):
            answer = client.get(f"{short}?time={time}")
            assert (answer.status_code, answer.json()["error"]["field"]) == (422, "time")
    assert len(engine.requests) == asked


def test_an_unknown_parameter_is_answered_with_the_nearest_or_with_all(client: TestClient) -> None:
    for url, field, hint in (
        ("/v1/users/1/slate?limt=3", "limt", "did you mean 'limit'?"),
        ("/v1/users/1/slate?canvas=home&newonly=true", "newonly", "did you mean 'new_only'?"),
        ("/v1/items/1/similar?usr=3", "usr", "did you mean 'user'?"),
        ("/v1/items/1/similar?zzz=3", "zzz", "known: limit, user, new_only, time, after, deadline_ms, explain"),
    ):
        answer = client.get(url)
        error = {"field": field, "reason": "is not known here", "hint": hint}
        assert (answer.status_code, answer.json()["error"]) == (422, error)
