"""Two clients that never rest, and what they saw."""

from __future__ import annotations

import http.client
import itertools
import json
import random
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from chaos_shop import BEGAN, DAYS, THINGS, USERS

from mainstem.schema.position import START, Position
from mainstem.schema.time import DAY, HOUR, now_ms

# Seconds after which a request or a start counts as hung.
HUNG = 120.0


@dataclass(frozen=True, slots=True)
class Seen:
    """The model that one slate came from: in which life of the server, at what wall-clock ms."""

    life: int
    at: int
    base: str
    sequence: int
    dense: str
    """The version of its networks."""


@dataclass(slots=True)
class Evidence:
    """What the clients saw."""

    acknowledged: list[str] = field(default_factory=list)
    seen: list[Seen] = field(default_factory=list)
    broken: list[tuple[float, float, str]] = field(default_factory=list)
    """Requests without an answer: sent, failed (monotonic seconds), why."""
    faults: list[str] = field(default_factory=list)
    down: list[list[float]] = field(default_factory=list)
    """Stretches in which the server was dead or not yet listening."""
    posts: int = 0
    after: str = str(START)


class Clients:
    """One posts events, sending each again until it is acknowledged; one asks for slates. Both without pause but for a
    moment between requests, which leaves the machine some time for the rest.

    most: events in one post; life: tells which life of the server it is.
    """

    def __init__(self, port: int, life: Callable[[], int], evidence: Evidence, seed: int, most: int = 5) -> None:
        self.port, self.life, self.evidence, self.most = port, life, evidence, most
        self._dice = random.Random(seed)
        self._odd = 0
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._post, self._ask)]

    def burst(self, events: int) -> None:
        """Let the next post hold so many events in which everybody buys what nobody of the kind ever bought."""
        self._odd = events

    def __enter__(self) -> Clients:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def _guarded(self, work: Callable[[Wire], None]) -> None:
        try:
            with closing(Wire(self.port, self.evidence)) as wire:
                work(wire)
        except Exception as error:  # noqa: BLE001 - a client that dies is a fault, not silence
            self.evidence.faults.append(f"client: {error!r}")

    def _post(self, wire: Wire) -> None:
        for number in itertools.count():
            if self._stop.is_set():
                return
            odd, self._odd = self._odd, 0
            events = [
                self._event(f"live-{number}-{place}", odd=bool(odd))
                for place in range(odd or self._dice.randrange(1, self.most + 1))
            ]
            while (answer := wire.call("POST", "/v1/events", events)) is None:  # until it is in: never given up
                time.sleep(0.02)
            self.evidence.acknowledged += [event["event_id"] for event in events]
            self.evidence.after, self.evidence.posts = answer["position"], self.evidence.posts + 1
            self._stop.wait(0.02)

    def _event(self, name: str, *, odd: bool) -> dict[str, Any]:
        user = self._dice.randrange(USERS + 30)  # some are new
        entity = 2 * self._dice.randrange(THINGS // 2 + 10) + (user + odd) % 2
        time_ms = BEGAN + (DAYS + 1) * DAY + len(self.evidence.acknowledged) * 100
        session = f"live-{user}-{time_ms // HOUR}"
        return {"event_id": name, "user": f"u{user}", "kind": "purchase", "entity": str(entity), "time": time_ms,
                "session": session}  # fmt: skip

    def _ask(self, wire: Wire) -> None:
        dice = random.Random(1)
        while not self._stop.is_set():
            life, after = self.life(), self.evidence.after
            context = {"user": f"u{dice.randrange(USERS)}"}
            slate = wire.call("POST", "/v1/slates", {"context": context, "after": after, "deadline_ms": 10_000})
            if slate is not None:
                self._note(slate, life, after)
            self._stop.wait(0.03)

    def _note(self, slate: dict[str, Any], life: int, after: str) -> None:
        late = any(part["stage"] == "freshness" for part in slate["degraded"])
        if not late and not Position.parse(after) <= Position.parse(slate["position"]):
            self.evidence.faults.append(f"asked after {after}, a slate reflects {slate['position']} and says nothing")
        if not slate["items"] or slate["sparse_version"] is None or slate["dense_version"] is None:
            self.evidence.faults.append(f"a slate without items or model: {slate}")
            return
        if not all(part["stage"] and part["what"] and part["why"] for part in slate["degraded"]):
            self.evidence.faults.append(f"a slate does not say why it is degraded: {slate['degraded']}")
        base, _, sequence = slate["sparse_version"].partition("+")
        self.evidence.seen.append(Seen(life, now_ms(), base, int(sequence), slate["dense_version"]))


class Wire:
    """A kept-alive connection. What is not answered is noted, what is answered with an error is a fault."""

    def __init__(self, port: int, evidence: Evidence) -> None:
        self.port, self.evidence = port, evidence
        self._connection = http.client.HTTPConnection("127.0.0.1", port, timeout=HUNG)

    def call(self, method: str, path: str, body: object = None) -> Any:
        """The decoded answer; None where there was none."""
        sent = time.monotonic()
        try:
            self._connection.request(method, path, None if body is None else json.dumps(body))
            response = self._connection.getresponse()
            answer = response.read()
        except (OSError, http.client.HTTPException) as error:
            self._connection.close()
            self.evidence.broken.append((sent, time.monotonic(), f"{method} {path}: {error!r}"))
            return None
        if response.status >= 300:
            self.evidence.faults.append(f"{method} {path} answered {response.status}: {answer[:300]!r}")
            return None
        return json.loads(answer)

    def close(self) -> None:
        self._connection.close()
