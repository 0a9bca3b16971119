"""Events gathered into one commit are answered as if each had come alone."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Sequence

import httpx
import pytest
from doubles import MemoryEngine
from hypothesis import given
from hypothesis import strategies as st
from litestar.testing import TestClient

from mainstem.schema.config import Config
from mainstem.schema.errors import InvalidRecord, LogError
from mainstem.schema.protocols import Appended
from mainstem.schema.records import Event, LogRecord
from mainstem.serve import create_app
from mainstem.serve.answers import Answers
from mainstem.serve.engine import SharesCommits
from mainstem.serve.lanes import Gathering
from mainstem.serve.metrics import Metrics

REFUSED = "refused by the log"


class GroupingEngine(MemoryEngine):
    """Its log refuses one user, as a log may refuse what the edge let pass."""

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.groups: list[int] = []
        self.slow = threading.Event()
        self.slow.set()

    def append(self, records: Sequence[LogRecord]) -> Appended:
        for place, record in enumerate(records):
            if isinstance(record, Event) and record.user == "bad":
                raise InvalidRecord(f"events[{place}].user", REFUSED)
        return super().append(records)

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        self.slow.wait(10)
        self.groups.append(len(batches))
        outcomes: list[Appended | Exception] = []
        for batch in batches:
            try:
                outcomes.append(self.append(batch))
            except (InvalidRecord, LogError) as error:
                outcomes.append(error)
        return outcomes


def event(number: int, user: str = "u") -> dict[str, object]:
    return {"user": user, "kind": "view", "entity": "i", "event_id": f"e{number}", "time": 1_500_000_000_000}


bodies = st.lists(
    st.one_of(
        st.integers(0, 5).map(lambda n: json.dumps(event(n)).encode()),
        st.lists(st.integers(0, 5), max_size=4).map(lambda ns: json.dumps([event(n) for n in ns]).encode()),
        st.sampled_from([
            b"", b"{", b"[]", b'{"events": []}', b'{"user": 1}',
            b'[{"user": "u", "kind": "view"}, {"user": "", "kind": "view"}]',
            json.dumps(event(9, "bad")).encode(), json.dumps([event(8), event(9, "bad")]).encode(),
        ]),
    ),
    max_size=12,
)  # fmt: skip


def said(outcome: bytes | Exception) -> tuple[object, ...]:
    if isinstance(outcome, InvalidRecord):
        return type(outcome), outcome.field, outcome.reason
    return (outcome,)


def alone(answers: Answers, body: bytes) -> bytes | Exception:
    try:
        return answers.events(body)
    except InvalidRecord as error:
        return error


@given(bodies)
def test_a_group_is_answered_as_each_alone(sent: list[bytes]) -> None:
    together, apart = (Answers(GroupingEngine(Config()), Metrics()) for _ in range(2))
    outcomes = together.events_each(sent)
    # Only their positions may differ where an empty list is in the group: it reflects the group's end.
    expected = [alone(apart, body) for body in sent]
    for body, one, other in zip(sent, outcomes, expected, strict=True):
        if body not in (b"[]", b'{"events": []}'):
            assert said(one) == said(other)


def test_the_plain_double_is_not_taken_for_one_that_shares() -> None:
    assert not isinstance(MemoryEngine(Config()), SharesCommits)
    assert isinstance(GroupingEngine(Config()), SharesCommits)


def test_what_waits_during_a_commit_shares_the_next_and_a_bad_one_falls_alone() -> None:
    engine = GroupingEngine(Config())
    engine.slow.clear()

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(engine))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            posts = [
                asyncio.create_task(client.post("/v1/events", json=event(n, "bad" if n == 7 else "u")))
                for n in range(40)
            ]
            await asyncio.sleep(0.2)
            engine.slow.set()
            answers = await asyncio.gather(*posts)
        assert [answer.status_code for answer in answers] == [422 if n == 7 else 200 for n in range(40)]
        assert answers[7].json()["error"] == {"field": "user", "reason": REFUSED}
        assert {answer.json()["accepted"] for n, answer in enumerate(answers) if n != 7} == {1}

    asyncio.run(scenario())
    assert sum(engine.groups) == 40
    assert len(engine.groups) <= 5
    assert len(engine.records) == 39


@pytest.mark.parametrize(("error", "status"), [(LogError("the disk is full"), 503), (ZeroDivisionError("no"), 500)])
def test_a_failure_of_the_log_answers_all_and_the_next_post_works(error: Exception, status: int) -> None:
    engine = GroupingEngine(Config())
    with TestClient(create_app(engine), raise_server_exceptions=False) as client:
        engine.fails = error
        assert [client.post("/v1/events", json=event(n)).status_code for n in range(3)] == [status] * 3
        engine.fails = None
        assert client.post("/v1/events", json=event(1)).json()["accepted"] == 1


def test_more_than_may_wait_is_refused_at_once_and_a_client_that_leaves_harms_nobody() -> None:
    engine = GroupingEngine(Config())
    engine.slow.clear()

    async def scenario() -> None:
        transport = httpx.ASGITransport(create_app(engine, append_threads=1, waiting=3))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            posts = [asyncio.create_task(client.post("/v1/events", json=event(n))) for n in range(4)]
            await asyncio.sleep(0.1)
            assert (await client.post("/v1/events", json=event(5))).status_code == 503
            posts[0].cancel()
            engine.slow.set()
            answers = await asyncio.gather(*posts[1:])
            assert [answer.status_code for answer in answers] == [200] * 3
            assert (await client.post("/v1/events", json=event(0))).json()["duplicates"] == 1

    asyncio.run(scenario())


def test_closing_ends_the_threads() -> None:
    before = set(threading.enumerate())
    with TestClient(create_app(GroupingEngine(Config()))) as client:
        assert client.post("/v1/events", json=event(1)).status_code == 200
        assert any(thread.name.startswith("mainstem-events") for thread in set(threading.enumerate()) - before)
    assert not [thread for thread in set(threading.enumerate()) - before if thread.name.startswith("mainstem-")]


class ShortEngine(GroupingEngine):
    """Its log answers for fewer batches than it was given: nobody may wait for ever, or get another's answer."""

    def append_each(self, batches: Sequence[Sequence[LogRecord]]) -> list[Appended | Exception]:
        return super().append_each(batches)[:-1]


def test_a_log_that_leaves_out_an_answer_fails_all_of_the_group() -> None:
    with TestClient(create_app(ShortEngine(Config())), raise_server_exceptions=False) as client:
        assert [client.post("/v1/events", json=event(n)).status_code for n in range(2)] == [503, 503]


def test_a_call_that_leaves_out_an_answer_fails_all_of_the_group() -> None:
    async def scenario() -> None:
        lane = Gathering("events", lambda bodies: [b""] * (len(bodies) + 1), 1, 4)
        with pytest.raises(RuntimeError, match="1 events got 2 answers"):
            await asyncio.wait_for(lane.run(b"x"), 30)
        assert lane.inside == 0
        lane.close()

    asyncio.run(scenario())
