"""Writes are refused while the state is too far behind the log: visibly, before anything is written, not for ever."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from doubles import MemoryEngine
from litestar.testing import TestClient
from test_edge_gathering import GroupingEngine

from mainstem.loop import Loop
from mainstem.schema.config import Config, ServeConfig
from mainstem.schema.position import START
from mainstem.schema.records import Event
from mainstem.serve import create_app
from mainstem.serve.faults import TooFarBehind
from mainstem.serve.lanes import Backlog

MOST = 100
CONFIG = Config(serve=ServeConfig(max_lag=MOST))
EVENT = {"user": "u", "kind": "view", "entity": "i"}
WRITES = {
    "event": ("POST", "/v1/events", EVENT),
    "events": ("POST", "/v1/events", {"events": [EVENT, EVENT]}),
    "not even readable": ("POST", "/v1/events", [[[]]]),
    "entities": ("PUT", "/v1/entities", [{"entity": "i"}]),
    "patch": ("PATCH", "/v1/entities/item/i", {"stock": 1}),
    "delete": ("DELETE", "/v1/entities/item/i", None),
}


@pytest.fixture(params=[MemoryEngine, GroupingEngine])
def lagging(request: pytest.FixtureRequest) -> MemoryEngine:
    engine: MemoryEngine = request.param(CONFIG)
    return engine


@pytest.fixture
def edge(lagging: MemoryEngine) -> Iterator[TestClient]:
    with TestClient(create_app(lagging), raise_server_exceptions=False) as client:
        yield client


def counted(client: TestClient) -> float:
    lines = client.get("/metrics").text.splitlines()
    return next(float(line.split()[1]) for line in lines if line.startswith("mainstem_writes_refused_total"))


@pytest.mark.parametrize("write", WRITES)
def test_a_write_is_refused_before_anything_is_written(edge: TestClient, lagging: MemoryEngine, write: str) -> None:
    lagging.behind = 12_345.0
    method, url, body = WRITES[write]
    answer = edge.request(method, url, json=body)
    assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
    error = answer.json()["error"]
    assert error["field"] == ""
    assert "12345 records behind" in error["reason"]
    assert f"more than {MOST}" in error["reason"]
    assert lagging.calls == 0
    assert not lagging.records
    assert counted(edge) == 1


@pytest.mark.parametrize(("behind", "status"), [(0, 200), (MOST, 200), (MOST + 1, 503)])
def test_the_bound_itself_is_allowed(edge: TestClient, lagging: MemoryEngine, behind: float, status: int) -> None:
    lagging.behind = behind
    assert edge.post("/v1/events", json=EVENT).status_code == status
    assert counted(edge) == (status == 503)


def test_what_is_not_such_a_write_goes_on(edge: TestClient, lagging: MemoryEngine) -> None:
    lagging.behind = MOST + 1
    assert edge.delete("/v1/users/u").status_code == 202
    assert lagging.erased() == ["u"]
    assert edge.post("/v1/slates", json={}).status_code == 200
    assert edge.get("/v1/entities/item/none").status_code == 404
    assert edge.get("/readyz").status_code == 200
    assert counted(edge) == 0


def test_acceptance_resumes_and_both_turns_are_logged_once(
    edge: TestClient, lagging: MemoryEngine, caplog: pytest.LogCaptureFixture
) -> None:
    lagging.behind = MOST + 1
    assert [edge.post("/v1/events", json=EVENT).status_code for _ in range(5)] == [503] * 5
    lagging.behind = 0
    deadline = time.monotonic() + 30
    while edge.post("/v1/events", json=EVENT).status_code != 200:
        assert time.monotonic() < deadline
    assert [record.message.split(":")[0] for record in caplog.records if record.name == "mainstem.serve"] == [
        "writes are refused from now on", "writes are accepted again",
    ]  # fmt: skip


def test_the_lag_is_asked_rarely_whoever_asks() -> None:
    asked: list[float] = []

    def lag() -> dict[str, float]:
        asked.append(time.monotonic())
        return {"state": 5.0, "other": 10_000.0}

    rare = Backlog(lag, 5, every=3600.0)
    threads = [threading.Thread(target=lambda: [rare.check() for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(asked) == 1
    often = Backlog(lambda: {"state": 6.0}, 5, every=0.0)
    for _ in range(3):
        with pytest.raises(TooFarBehind) as caught:
            often.check()
        assert caught.value.behind == 6
    Backlog(dict, 0).check()


def test_while_one_asks_the_others_go_on_with_the_last_answer() -> None:
    gate, entered = threading.Event(), threading.Event()
    answers = [0.0, 100.0]

    def lag() -> dict[str, float]:
        if len(answers) == 1:
            entered.set()
            gate.wait(30)
        return {"state": answers.pop(0)}

    backlog = Backlog(lag, 5, every=0.0)
    backlog.check()
    refused: list[int] = []

    def ask() -> None:
        try:
            backlog.check()
        except TooFarBehind as error:
            refused.append(error.behind)

    slow = threading.Thread(target=ask)
    slow.start()
    assert entered.wait(30)
    backlog.check()
    gate.set()
    slow.join()
    assert refused == [100]


def post(client: TestClient, number: int) -> int:
    answer = client.post("/v1/events", json={**EVENT, "user": f"u{number % 7}", "event_id": f"e{number}"})
    return answer.status_code


def test_the_real_loop_stops_when_its_follower_stops_and_goes_on_with_it(tmp_path: Path) -> None:
    with (
        Loop(Config(serve=ServeConfig(max_lag=40, served_sample=0.0)), tmp_path, follow=True) as loop,
        TestClient(create_app(loop)) as client,
    ):
        loop.parts.follower.stop()
        accepted: list[int] = []
        deadline = time.monotonic() + 60
        while (status := post(client, len(accepted))) == 200:
            accepted.append(len(accepted))
            assert time.monotonic() < deadline
        assert status == 503
        assert len(accepted) > 40
        refused_at = loop.end()
        assert refused_at.offset() == len(accepted) == loop.lag()["state"]
        assert post(client, 10**6) == 503
        assert loop.end() == refused_at, "nothing was written"
        assert client.get("/metrics").text.count("mainstem_writes_refused_total 2.0") == 1

        loop.parts.follower.start()
        while post(client, len(accepted)) == 503:
            assert time.monotonic() < deadline
        accepted.append(len(accepted))
        assert loop.parts.follower.wait_for(loop.end(), 30.0)
        kept = [record.event_id for record in loop.parts.log.read(START).records if isinstance(record, Event)]
        assert kept == [f"e{number}" for number in accepted], "all that was accepted, once, in order"
        assert loop.lag() == {"state": 0.0}
