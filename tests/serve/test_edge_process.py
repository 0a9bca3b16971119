"""The process: health, readiness, metrics, documents, failures, overload, start and end."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import httpx
import pytest
from doubles import MemoryEngine
from litestar.testing import TestClient

from mainstem.schema.config import Config
from mainstem.schema.errors import LogError, MainstemError, StoreError
from mainstem.serve import Background, create_app
from mainstem.serve.routes import HANDLERS

BUY = {"user": "u1", "kind": "purchase", "entity": "i1"}


def test_alive_and_ready(client: TestClient, engine: MemoryEngine) -> None:
    assert client.get("/healthz").json() == {"status": "alive"}
    assert client.get("/readyz").status_code == 200
    engine.is_ready = False
    answer = client.get("/readyz")
    assert (answer.status_code, answer.json()) == (
        503,
        {"ready": False, "parts": {"model": "none yet", "position": "p"}},
    )
    assert client.get("/healthz").status_code == 200


def test_metrics_count_what_happened(client: TestClient) -> None:
    client.get("/v1/users/u1/slate")
    client.post("/v1/events", json=[BUY | {"event_id": "e"}, BUY | {"event_id": "e"}, BUY])
    client.post("/v1/events", json={})
    client.get("/nowhere/at/all")
    lines = client.get("/metrics").text.splitlines()
    for line in (
        'mainstem_requests_total{method="POST",route="/v1/events",status="200"} 1.0',
        'mainstem_requests_total{method="POST",route="/v1/events",status="422"} 1.0',
        'mainstem_requests_total{method="GET",route="/v1/users/{user_id}/slate",status="200"} 1.0',
        'mainstem_requests_total{method="GET",route="(none)",status="404"} 1.0',
        'mainstem_request_seconds_count{route="/v1/events"} 2.0',
        'mainstem_stage_seconds_count{stage="retrieve"} 1.0',
        'mainstem_degraded_total{stage="score"} 1.0',
        'mainstem_records_accepted_total{record="event"} 2.0',
        'mainstem_records_duplicate_total{record="event"} 1.0',
        'mainstem_follower_lag{follower="state"} 3.0',
    ):
        assert line in lines


def test_the_document_knows_every_address_and_the_page_loads_nothing(client: TestClient) -> None:
    document = client.get("/openapi.json").json()
    wanted = {
        (re.sub(r":str", "", path), method.lower())
        for handler in HANDLERS
        if handler.include_in_schema is not False  # type: ignore[union-attr]
        for path in handler.paths  # type: ignore[union-attr]
        for method in handler.http_methods  # type: ignore[union-attr]
    }
    assert {(path, method) for path, item in document["paths"].items() for method in item} == wanted
    page = client.get("/docs").text
    assert all(path in page for path, _ in wanted)
    references = set(re.findall(r'"#/components/schemas/(\w+)"', json.dumps(document)))
    assert references <= document["components"]["schemas"].keys()
    slate = document["paths"]["/v1/users/{user_id}/slate"]["get"]
    assert {"user_id", "canvas", "limit", "new_only", "time", "after"} <= {p["name"] for p in slate["parameters"]}
    for text in (page, client.get("/").text):
        assert not re.search(r"<script|<link|src=|https?://(?!127\.0\.0\.1)", text)


def test_every_link_of_the_first_page_leads_somewhere(client: TestClient) -> None:
    links = re.findall(r'href="([^"]+)"', client.get("/").text)
    assert len(links) >= 5
    assert {client.get(link).status_code for link in links} == {200}


@pytest.mark.parametrize("error", [StoreError("the log is held by another process"), LogError("the disk is full")])
def test_what_is_not_available_says_when_to_come_back(
    client: TestClient, engine: MemoryEngine, error: Exception
) -> None:
    engine.fails = error
    for answer in (client.post("/v1/events", json=BUY), client.post("/v1/slates"), client.get("/v1/entities/item/1")):
        assert (answer.status_code, answer.json()["error"]["reason"]) == (503, str(error))
        assert int(answer.headers["retry-after"]) >= 1


def test_the_unforeseen_is_logged_under_the_id_that_the_client_got(
    client: TestClient, engine: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    engine.fails = ZeroDivisionError("a secret of the house")
    with caplog.at_level(logging.ERROR, "mainstem.serve"):
        answer = client.post("/v1/slates")
    error = answer.json()["error"]
    assert answer.status_code == 500
    assert "secret" not in answer.text
    (record,) = [record for record in caplog.records if error["request_id"] in record.getMessage()]
    assert record.exc_info is not None
    assert record.exc_info[0] is ZeroDivisionError


def test_a_full_lane_refuses_at_once_and_a_slow_slate_blocks_nobody_else(
    make_engine: Callable[[], MemoryEngine],
) -> None:
    engine = make_engine()
    engine.gate = threading.Event()

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(engine, slate_threads=1, waiting=1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            slow = [asyncio.create_task(client.post("/v1/slates")) for _ in range(2)]
            await asyncio.sleep(0.05)
            assert (await client.post("/v1/slates")).status_code == 503
            assert (await client.post("/v1/events", json=BUY)).status_code == 200
            assert (await client.get("/healthz")).status_code == 200
            engine.gate.set()  # type: ignore[union-attr]
            assert [answer.status_code for answer in await asyncio.gather(*slow)] == [200, 200]
            assert (await client.post("/v1/slates")).status_code == 200

    asyncio.run(scenario())


def test_a_server_in_the_background_answers_and_ends(engine: MemoryEngine) -> None:
    with Background(engine, "127.0.0.1", 0) as server:
        assert httpx.post(server.url + "/v1/events", json=BUY).json()["accepted"] == 1
        assert httpx.get(server.url + "/v1/users/a%2Fb/slate").status_code == 200
        assert engine.requests[0].context.user == "a/b"
        with pytest.raises(MainstemError, match="cannot serve"):
            Background(engine, "127.0.0.1", int(server.url.rsplit(":", 1)[1])).start()
    with pytest.raises(httpx.ConnectError):
        httpx.get(server.url + "/healthz")


@pytest.mark.parametrize(
    "sent",
    [
        b"GET /v1/users/\xff/slate HTTP/1.1\r\nhost: x\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: many\r\n\r\n",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ncontent-length: 999999999999\r\n\r\n{",
        b"POST /v1/events HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n",
        b"NONSENSE\r\n\r\n",
    ],
    ids=["raw byte", "length is a word", "announced too large", "bad chunk", "not HTTP"],
)
def test_what_is_hardly_http_gets_a_4xx(engine: MemoryEngine, sent: bytes) -> None:
    with Background(engine, "127.0.0.1", 0) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port)), timeout=5) as connection:
            connection.sendall(sent)
            status = connection.recv(4096).split(b" ")[1]
        assert status.startswith(b"4")
        assert httpx.get(server.url + "/healthz").status_code == 200
    assert engine.calls == 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_the_process_after_what_has_begun(config: Config, number: int) -> None:
    """The child serves with a slow slate; it is told to end while that is being made, and still answers it."""
    child = subprocess.Popen(
        [sys.executable, "-c", _CHILD, config.model_dump_json()],
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"PYTHONPATH": str(Path(__file__).parent)},
    )
    assert child.stdout is not None
    with child:
        url = child.stdout.readline().strip()
        answers: list[int] = []
        asking = threading.Thread(target=lambda: answers.append(httpx.post(url + "/v1/slates", timeout=20).status_code))
        asking.start()
        assert child.stdout.readline().strip() == "asked, what was loaded frozen: True"
        child.send_signal(number)
        asking.join(20)
        rest = child.stdout.read()
    assert (answers, rest.strip(), child.returncode) == ([200], "closed, frozen: 0", 0)


_CHILD = """
import gc, sys, time
from doubles import MemoryEngine
from mainstem.schema.config import Config
from mainstem.serve import run

class Slow(MemoryEngine):
    def slate(self, request):
        print("asked, what was loaded frozen:", gc.get_freeze_count() > 10_000, flush=True)
        time.sleep(0.5)
        return super().slate(request)

run(Slow(Config.model_validate_json(sys.argv[1])), port=0, on_started=lambda url: print(url, flush=True))
print("closed, frozen:", gc.get_freeze_count(), flush=True)
"""
