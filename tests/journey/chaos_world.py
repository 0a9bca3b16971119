"""A small shop whose server and trainer are processes to be killed, and two clients that never rest."""

from __future__ import annotations

import http.client
import itertools
import json
import multiprocessing
import multiprocessing.process
import os
import random
import shutil
import socket
import threading
import time
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from mainstem import weights
from mainstem.cli import main
from mainstem.loop import Loop
from mainstem.schema.config import Config
from mainstem.schema.config_file import load
from mainstem.schema.position import START, Position
from mainstem.schema.records import Entity, Event, LogRecord
from mainstem.schema.time import DAY, HOUR, now_ms
from mainstem.weights import Snapshots

BEGAN = 1_700_000_000_000
DAYS, USERS, THINGS = 20, 300, 300
PARITY = ("even", "odd")
SETTINGS: dict[str, Any] = {
    "data": "data",
    "entities": {"item": {"attributes": {"parity": "category"}}},
    "canvases": {"home": {"limit": 10}},
    "model": {"dim": 16, "hidden": [16]},
    "log": {"seal_rows": 1_000, "keep_rows": 1_000},  # so that sealing is killed too
    "train": {
        "retrieval_batch": 256, "retrieval_epochs": 1, "ranking_slates": 100, "ranking_epochs": 1, "ranking_batch": 4,
        "online": {"batch": 64, "publish_every": "100ms", "snapshot_every": "1s", "dense_every": "500ms", "keep": 10},
    },
}  # fmt: skip
# Seconds after which a request or a start counts as hung.
HUNG = 60.0


# ---- the shop ------------------------------------------------------------------------------------


def past() -> list[LogRecord]:
    """Even users buy even things, odd users odd ones."""
    dice = random.Random(7)
    things = [
        Entity(record_id=f"thing-{n}", time=BEGAN, entity=str(n), attributes={"parity": PARITY[n % 2]})
        for n in range(THINGS)
    ]
    bought = [
        Event(
            event_id=f"past-{day}-{user}-{place}", time=BEGAN + day * DAY + user * 60_000 + place, user=f"u{user}",
            kind="purchase", entity=str(2 * dice.randrange(THINGS // 2) + user % 2), session=f"{day}-{user}",
        )
        for day in range(DAYS) for user in range(USERS) if dice.random() < 0.2 for place in range(3)
    ]  # fmt: skip
    return [*things, *sorted(bought, key=lambda event: event.time)]


class Shop:
    """Configured, filled and trained in `folder`; `archive` keeps the base and every delta that is published."""

    def __init__(self, folder: Path) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.config_file = folder, folder / "mainstem.yaml"
        self.config_file.write_text(yaml.safe_dump(SETTINGS))
        self.config: Config = load(self.config_file)
        self.weights = folder / "data" / "weights"
        with Loop(self.config, folder) as loop:
            loop.append(past())
            self.base = loop.train().version
            loop.catch_up()
        kept = folder / "archive"
        shutil.copytree(self.weights / "main" / self.base, kept / "main" / self.base)
        self.archive: Snapshots = weights.open(str(kept))
        self._deltas = self.weights / "main" / "deltas" / self.base
        self._kept = kept / "main" / "deltas" / self.base
        self._kept.mkdir(parents=True)
        self._names: set[str] = set()

    def look(self) -> int:
        """Keep what was published since, by hard links; the newest number."""
        names = set(os.listdir(self._deltas)) if self._deltas.exists() else set()
        for name in sorted(names - self._names):
            if name.endswith(".delta"):
                os.link(self._deltas / name, self._kept / name)
                self._names.add(name)
        return max((int(name.partition(".")[0]) for name in self._names), default=0)


# ---- processes -----------------------------------------------------------------------------------

# A process that has loaded the libraries, from which each life is forked: a life begins within moments, and what is
# killed is `mainstem` at work, not Python loading torch.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["mainstem.cli", "mainstem.learning", "mainstem.loop", "mainstem.serve"])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that what is learned can be compared bit by bit
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def mainstem(words: list[str], folder: Path, output: Path) -> None:
    """`mainstem WORDS` in this process, from `folder`."""
    with output.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(folder)
    main(words)


@dataclass(frozen=True, slots=True)
class Plan:
    """When to kill: `delay` seconds after the start or, with `working`, after it was seen at work. both: the other
    process in the same moment too."""

    working: bool
    delay: float
    both: bool = False


@dataclass(slots=True)
class Victim:
    """`mainstem COMMAND` as a process. Each start is a life; `works(life's start)` tells whether it is at work."""

    name: str
    command: list[str]
    folder: Path
    plans: list[Plan]
    works: Callable[[Victim], bool]
    process: multiprocessing.process.BaseProcess | None = None
    life: int = 0
    kills: int = 0
    killed_starting: int = 0
    working: bool = False
    since: float = 0.0
    mark: int = 0
    """What its maker wants to remember of the start."""

    def start(self) -> None:
        self.life, self.working, self.since = self.life + 1, False, time.monotonic()
        self.process = _forks.Process(target=mainstem, args=(self.command, self.folder, self.output))
        self.process.start()

    @property
    def output(self) -> Path:
        return self.folder / f"{self.name}.txt"

    def kill(self) -> None:
        assert self.process
        self.kills += 1
        self.killed_starting += not self.working
        self.process.kill()
        self._ended()

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        assert self.process
        self.process.terminate()
        return self._ended()

    def _ended(self) -> int:
        assert self.process
        self.process.join(HUNG)
        status = self.process.exitcode
        assert status is not None, f"{self.name} does not end: see {self.output}"
        self.process.close()
        self.process = None
        return status

    def is_due(self) -> bool:
        """Look at it: is the moment of its plan there? Raises AssertionError where it ended by itself or hangs."""
        assert self.process
        status, told = self.process.exitcode, f"see {self.output}"
        assert status is None, f"{self.name} ended by itself with status {status}: {told}"
        now = time.monotonic()
        if not self.working and self.works(self):
            self.working, self.since = True, now
        plan = self.plans[0] if self.plans else None
        if plan is None or (plan.working and not self.working):
            assert self.working or now - self.since < HUNG, f"{self.name} is not at work after {HUNG} s: {told}"
            return False
        return now - self.since >= plan.delay


# ---- clients -------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Seen:
    """The model that one slate came from: in which life of the server, at what wall-clock ms."""

    life: int
    at: int
    base: str
    sequence: int


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
    moment between requests, which leaves the machine some time for the rest."""

    def __init__(self, port: int, server: Victim, evidence: Evidence, seed: int) -> None:
        self.port, self.server, self.evidence = port, server, evidence
        self._dice = random.Random(seed)
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._guarded, args=(work,)) for work in (self._post, self._ask)]

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
            events = [self._event(f"live-{number}-{place}") for place in range(self._dice.randrange(1, 6))]
            while (answer := wire.call("POST", "/v1/events", events)) is None:  # until it is in: never given up
                time.sleep(0.02)
            self.evidence.acknowledged += [event["event_id"] for event in events]
            self.evidence.after, self.evidence.posts = answer["position"], self.evidence.posts + 1
            if number % 150 == 149:
                wire.call("DELETE", f"/v1/users/u{self._dice.randrange(USERS)}")
            self._stop.wait(0.02)

    def _event(self, name: str) -> dict[str, Any]:
        user = self._dice.randrange(USERS + 30)  # some are new
        entity = 2 * self._dice.randrange(THINGS // 2 + 10) + user % 2
        time_ms = BEGAN + (DAYS + 1) * DAY + len(self.evidence.acknowledged) * 100
        session = f"live-{user}-{time_ms // HOUR}"
        return {"event_id": name, "user": f"u{user}", "kind": "purchase", "entity": str(entity), "time": time_ms,
                "session": session}  # fmt: skip

    def _ask(self, wire: Wire) -> None:
        dice = random.Random(1)
        while not self._stop.is_set():
            life, after = self.server.life, self.evidence.after
            context = {"user": f"u{dice.randrange(USERS)}"}
            slate = wire.call("POST", "/v1/slates", {"context": context, "after": after, "deadline_ms": 10_000})
            if slate is not None:
                self._note(slate, life, after)
            self._stop.wait(0.03)

    def _note(self, slate: dict[str, Any], life: int, after: str) -> None:
        late = any(part["stage"] == "freshness" for part in slate["degraded"])
        if not late and not Position.parse(after) <= Position.parse(slate["position"]):
            self.evidence.faults.append(f"asked after {after}, a slate reflects {slate['position']} and says nothing")
        if not slate["items"] or slate["sparse_version"] is None:
            self.evidence.faults.append(f"a slate without items or model: {slate}")
            return
        base, _, sequence = slate["sparse_version"].partition("+")
        self.evidence.seen.append(Seen(life, now_ms(), base, int(sequence)))


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


# ---- chaos ---------------------------------------------------------------------------------------


class Chaos:
    """Server and trainer of a shop, killed by plan and started again at once, while clients go on.

    rage() kills until the plans are done; settle(seconds) waits until all that is in the log is learned and served.
    """

    def __init__(self, shop: Shop, server: list[Plan], trainer: list[Plan], seed: int = 0) -> None:
        self.shop, self.evidence, self.port = shop, Evidence(), _free_port()
        serve = ["serve", "--port", str(self.port), "--log-level", "warning"]
        self.server = Victim("server", serve, shop.folder, server, self._answers)
        self.trainer = Victim("trainer", ["train", "--online"], shop.folder, trainer, self._has_published)
        self.clients = Clients(self.port, self.server, self.evidence, seed)
        self.kills_of_both = 0

    @property
    def kills(self) -> int:
        return self.server.kills + self.trainer.kills

    def rage(self) -> None:
        self.evidence.down.append([time.monotonic(), float("inf")])
        for victim in (self.server, self.trainer):
            self._start(victim)
        with self.clients:
            while not (self.server.working and self.trainer.working) or self.server.plans or self.trainer.plans:
                self.shop.look()
                for victim, other in ((self.server, self.trainer), (self.trainer, self.server)):
                    if victim.is_due():
                        plan = victim.plans.pop(0)
                        dying = [victim, other] if plan.both else [victim]
                        self.kills_of_both += plan.both
                        self._kill(dying)
                time.sleep(0.02)

    def _kill(self, dying: list[Victim]) -> None:
        if self.server in dying and self.evidence.down[-1][1] != float("inf"):
            self.evidence.down.append([time.monotonic(), float("inf")])
        for victim in dying:
            victim.kill()
        for victim in dying:
            self._start(victim)

    def _start(self, victim: Victim) -> None:
        victim.mark = self.shop.look()
        victim.start()

    def settle(self, seconds: float, end: Callable[[], Position]) -> float:
        """Seconds until the newest delta has seen the log to its end and the server serves it."""
        began = time.monotonic()
        while True:
            spent, newest = time.monotonic() - began, self.shop.look()
            position = self.shop.archive.deltas.load("main", self.shop.base, newest).position
            if position == end() and self._asked("/readyz")["parts"]["delta"] == newest:
                return spent
            assert spent < seconds, f"after {spent:.0f} s delta {newest} stands at {position} of {end()}"
            time.sleep(0.1)

    def stop(self) -> list[int]:
        """End both in order; their exit statuses."""
        statuses = [self.trainer.stop(), self.server.stop()]
        self.shop.look()
        return statuses

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for victim in (self.server, self.trainer):
            if victim.process:
                victim.process.kill()
                victim.process.join()

    def _answers(self, server: Victim) -> bool:
        try:
            ready = self._asked("/readyz")
        except OSError:
            return False
        self.evidence.down[-1][1] = min(self.evidence.down[-1][1], time.monotonic())
        return bool(ready.get("ready"))

    def _asked(self, path: str) -> dict[str, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=HUNG)
        try:
            connection.request("GET", path)
            found: dict[str, Any] = json.loads(connection.getresponse().read())
        finally:
            connection.close()
        return found

    def _has_published(self, trainer: Victim) -> bool:
        return self.shop.look() > trainer.mark


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
