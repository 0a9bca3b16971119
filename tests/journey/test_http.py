"""The real system behind the real server: what a client of the public API relies on."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import httpx
import pytest
from test_loop import CONFIG, NOW, checkerboard

from mainstem.loop import Loop
from mainstem.serve import Background


@pytest.fixture(scope="module")
def client(tmp_path_factory: pytest.TempPathFactory) -> Iterator[httpx.Client]:
    folder = tmp_path_factory.mktemp("http")
    with Loop(CONFIG, folder) as loop:
        loop.append(checkerboard())
        loop.train()
        loop.catch_up()
    with (
        Loop(CONFIG, folder, follow=True) as loop,
        Background(loop, port=0) as server,
        httpx.Client(base_url=server.url, timeout=30) as http,
    ):
        yield http


def slate(client: httpx.Client, **query: object) -> list[str]:
    answer = client.get(f"/v1/users/{query.pop('user', 'u1')}/slate", params={"time": NOW, **query})  # type: ignore[arg-type]
    assert answer.status_code == 200, answer.text
    return [item["entity"] for item in answer.json()["items"]]


def test_it_is_ready_and_says_with_which_model(client: httpx.Client) -> None:
    answer = client.get("/readyz")
    assert answer.status_code == 200
    assert "v-" in answer.text


def test_read_your_writes_within_a_second(client: httpx.Client) -> None:
    """Twenty times: buy the first of what is new, ask again with `after`; it must be gone, soon."""
    waits = []
    for turn in range(20):
        first = slate(client, user="u4", new_only=True, limit=1)[0]
        began = time.monotonic()
        event = {
            "event_id": f"ryw-{turn}",
            "user": "u4",
            "kind": "purchase",
            "entity": first,
            "time": NOW - 1000 + turn,
        }
        position = client.post("/v1/events", json=event).json()["position"]
        asked = {"context": {"user": "u4", "time": NOW}, "show": {"new_only": True}, "after": position, "limit": 50}
        answer = client.post("/v1/slates", json=asked).json()
        waits.append(time.monotonic() - began)
        assert first not in [item["entity"] for item in answer["items"]]
        assert not [entry for entry in answer["degraded"] if entry["stage"] == "freshness"]
    assert len(waits) == 20  # how long it takes is the benchmarks' business


def test_an_entity_is_shown_and_gone_within_a_second_of_its_acknowledgement(client: httpx.Client) -> None:
    put = {"entity": "900", "attributes": {"parity": "odd"}, "text": "odd"}
    assert client.put("/v1/entities", json=put).status_code == 200
    only = {"context": {"user": "u1", "time": NOW}, "show": {"only": ["900"]}}

    def shown() -> bool:
        return bool(client.post("/v1/slates", json=only).json()["items"])

    def until(wanted: bool) -> bool:
        deadline = time.monotonic() + 10
        while shown() is not wanted and time.monotonic() < deadline:
            time.sleep(0.02)
        return shown() is wanted

    assert until(True)
    assert client.patch("/v1/entities/item/900", json={"stock": 0}).status_code == 200
    assert until(False)
    assert client.patch("/v1/entities/item/900", json={"stock": 3}).status_code == 200
    assert until(True)
    assert client.delete("/v1/entities/item/900").status_code == 200
    assert until(False)


def test_nobody_gets_an_error(client: httpx.Client) -> None:
    assert len(slate(client, user="who-is-this")) == 10
    assert len(client.get("/v1/items/no-such-thing/similar").json()["items"]) == 10
    assert len(client.post("/v1/slates", json={}).json()["items"]) == 10


def test_bad_requests_name_the_field_and_write_nothing(client: httpx.Client) -> None:
    good = {"event_id": "never", "user": "u1", "kind": "purchase", "entity": "3"}
    answer = client.post("/v1/events", json=[good, {**good, "event_id": "x", "time": "yesterday"}])
    assert answer.status_code == 422
    assert answer.json()["error"]["field"] == "events[1].time"
    assert client.post("/v1/events", json=good).json()["accepted"] == 1, "the good one of a refused batch was not kept"
    unknown = client.post("/v1/slates", json={"context": {"canvas": "hom"}})
    assert unknown.status_code == 422
    assert "home" in unknown.text


def test_slates_keep_coming_while_events_pour_in(client: httpx.Client) -> None:
    faults: list[str] = []

    def pour() -> None:
        for turn in range(30):
            events = [
                {"event_id": f"pour-{turn}-{i}", "user": f"p{i % 7}", "kind": "purchase", "entity": str(i % 100)}
                for i in range(50)
            ]
            answer = client.post("/v1/events", json=events)
            if answer.status_code != 200:
                faults.append(answer.text)

    writers = [threading.Thread(target=pour) for _ in range(3)]
    for writer in writers:
        writer.start()
    while any(writer.is_alive() for writer in writers):
        assert len(slate(client)) == 10
    for writer in writers:
        writer.join()
    assert not faults
    answer = client.get("/metrics").text
    assert "mainstem" in answer
