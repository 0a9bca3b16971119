"""Random bodies and addresses at every endpoint: never a 5xx, and nothing is written unless it was accepted."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any
from urllib.parse import quote_from_bytes

import pytest
from doubles import CONFIG, MemoryEngine
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from litestar.testing import TestClient

from mainstem.schema.records import encode_record
from mainstem.serve import create_app, wire

_STRUCTS = (wire.EventsIn, wire.EntitiesIn, wire.EventIn, wire.EntityIn, wire.EntityPatchIn)
_ASKING = (wire.SlateIn, wire.ContextIn, wire.ShowIn, wire.SlateQuery, wire.SimilarQuery)
_NAMES = sorted({name for struct in (*_STRUCTS, *_ASKING) for name in struct.__struct_fields__})
_LEAVES = (
    st.none()
    | st.booleans()
    | st.integers(-(10**30), 10**30)
    | st.floats()
    | st.text(max_size=8)
    | st.sampled_from(
        ["view", "item", "home", "similar", "category", "price", "p0:1", "p-1:2", "2020-01-01", 1, "", "\0"]
    )
)
_KEYS = st.sampled_from(_NAMES) | st.text(max_size=5)
_JSON = st.recursive(
    _LEAVES, lambda inner: st.lists(inner, max_size=4) | st.dictionaries(_KEYS, inner, max_size=5), max_leaves=12
)


def _object(struct: Any) -> st.SearchStrategy[Any]:
    """Mostly right: some fields of the struct, each with a plausible or any value."""
    return st.dictionaries(st.sampled_from(struct.__struct_fields__), _LEAVES | _JSON, max_size=6)


_EVENT = st.fixed_dictionaries({"user": st.integers() | st.text(max_size=4), "kind": st.just("view")}).flatmap(
    lambda base: _object(wire.EventIn).map(lambda more: more | base)
)
_ENTITY = st.fixed_dictionaries({"entity": st.integers() | st.text(max_size=4)}).flatmap(
    lambda base: _object(wire.EntityIn).map(lambda more: more | base)
)
_SLATE = st.fixed_dictionaries(
    {}, optional={"context": _object(wire.ContextIn), "show": _object(wire.ShowIn), "limit": _LEAVES, "after": _LEAVES}
)


def _forms(one: st.SearchStrategy[Any], name: str) -> st.SearchStrategy[Any]:
    return one | st.lists(one, max_size=3) | st.lists(one, max_size=3).map(lambda many: {name: many})


_BODIES = {
    ("POST", "/v1/events"): _forms(_EVENT, "events"),
    ("PUT", "/v1/entities"): _forms(_ENTITY, "entities"),
    ("PATCH", "/v1/entities/item/1"): _object(wire.EntityPatchIn),
    ("POST", "/v1/slates"): _SLATE,
}
_SEGMENT = st.binary(max_size=6).map(quote_from_bytes) | st.text("abz%/.?# \\", max_size=5).map(
    lambda t: t.replace("#", "")
)
_ADDRESSES = [
    ("GET", "/v1/users/{}/slate?{}={}"),
    ("GET", "/v1/items/{}/similar?{}={}"),
    ("GET", "/v1/entities/item/{}?{}={}"),
    ("GET", "/v1/entities/{}/1?{}={}"),
    ("DELETE", "/v1/entities/item/{}?{}={}"),
    ("DELETE", "/v1/users/{}?{}={}"),
]


@pytest.fixture(scope="module")
def fuzzed() -> Any:
    engine = MemoryEngine(CONFIG)
    with TestClient(create_app(engine), raise_server_exceptions=False) as client:
        yield engine, client


_SETTINGS = settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck), phases=[Phase.generate])


def _check(engine: MemoryEngine, ask: Callable[[], Any]) -> None:
    before = len(engine.records)
    answer = ask()
    assert answer.status_code < 500, answer.text
    if answer.status_code >= 400:
        assert len(engine.records) == before
        error = answer.json()["error"]
        assert error["field"]
        assert error["reason"]
    for record in engine.records[before:]:
        encode_record(record)


@pytest.mark.parametrize("endpoint", _BODIES, ids=lambda endpoint: f"{endpoint[0]} {endpoint[1]}")
@_SETTINGS
@given(data=st.data())
def test_bodies(fuzzed: Any, endpoint: tuple[str, str], data: st.DataObject) -> None:
    engine, client = fuzzed
    body = data.draw(_BODIES[endpoint] | _JSON)
    raw = json.dumps(body).encode()
    if data.draw(st.integers(0, 4)) == 0:
        cut = data.draw(st.integers(0, len(raw)))
        raw = raw[:cut] + data.draw(st.binary(max_size=3)) + raw[cut + data.draw(st.integers(0, 3)) :]
    _check(engine, lambda: client.request(endpoint[0], endpoint[1], content=raw))


@pytest.mark.parametrize("endpoint", _ADDRESSES, ids=lambda endpoint: f"{endpoint[0]} {endpoint[1]}")
@_SETTINGS
@given(
    segment=_SEGMENT, name=st.sampled_from(_NAMES) | _SEGMENT, value=_SEGMENT | st.sampled_from(["1", "true", "home"])
)
def test_addresses(fuzzed: Any, endpoint: tuple[str, str], segment: str, name: str, value: str) -> None:
    engine, client = fuzzed
    path, _, query = endpoint[1].partition("?")
    url = path.format(segment) + "?" + query.format(name, value)
    _check(engine, lambda: client.request(endpoint[0], url))


def test_canary_the_check_rejects_a_5xx_and_a_partial_write(fuzzed: Any) -> None:
    engine, client = fuzzed

    def partial() -> Any:
        engine.records.append(None)
        return client.post("/v1/events", json={"user": ""})

    with pytest.raises(AssertionError):
        _check(engine, partial)
    engine.fails = ZeroDivisionError()
    with pytest.raises(AssertionError):
        _check(engine, lambda: client.post("/v1/slates"))


def test_canary_the_mostly_right_bodies_are_sometimes_accepted(fuzzed: Any) -> None:
    engine, client = fuzzed
    engine.fails = None
    counts = {200: 0}

    @settings(max_examples=60, deadline=None, phases=[Phase.generate])
    @given(body=_forms(_EVENT, "events"))
    def some(body: Any) -> None:
        status = client.post("/v1/events", content=json.dumps(body)).status_code
        counts[status] = counts.get(status, 0) + 1

    some()
    assert counts[200] > 0
    assert len(counts) > 1
