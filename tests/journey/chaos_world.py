"""Server and trainer as processes to be killed by plan, while clients go on."""

from __future__ import annotations

import http.client
import json
import multiprocessing
import multiprocessing.process
import os
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from chaos_clients import HUNG, Clients, Evidence
from chaos_shop import Shop

from mainstem.cli import main
from mainstem.loop import Loop
from mainstem.schema.position import Position

# Seconds after which what must come about by itself counts as never coming.
PATIENCE = 400.0

# ---- processes -----------------------------------------------------------------------------------

# A process that has loaded the libraries, from which each life is forked: a life begins within moments, and what is
# killed is `mainstem` at work, not Python loading torch.
_forks = multiprocessing.get_context("forkserver")
_forks.set_forkserver_preload(["mainstem.cli", "mainstem.learning", "mainstem.loop", "mainstem.serve"])
os.environ.setdefault("OMP_NUM_THREADS", "1")  # so that what is learned can be compared bit by bit
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")


def mainstem(words: list[str], folder: Path, output: Path) -> None:
    """`mainstem WORDS` in this process, from `folder`. What a server serves when it ends in order goes beside its
    output: `save_served`."""
    with output.open("ab") as out:
        os.dup2(out.fileno(), 1)
        os.dup2(out.fileno(), 2)
    os.chdir(folder)
    if words[0] == "serve":
        close = Loop.close

        def told(loop: Loop) -> None:
            save_served(loop, output.with_suffix(".npz"))
            close(loop)

        Loop.close = told  # type: ignore[method-assign]
    main(words)


def save_served(loop: Loop, path: Path) -> None:
    """The rows of the model in use: keys uint64 [n], values float32 [n, dim]; and how it is called."""
    model = loop.parts.keeper.current()
    parts = [(keys, values) for keys, values in model.towers.table.items()]
    np.savez(
        path, keys=np.concatenate([keys for keys, _ in parts]), values=np.concatenate([values for _, values in parts]),
        version=str(model.answers.sparse_version),
    )  # fmt: skip


class Command:
    """`mainstem WORDS` as a process. Its output goes to NAME.txt."""

    def __init__(self, name: str, words: list[str], folder: Path) -> None:
        self.name, self.words, self.folder = name, words, folder
        self.process: multiprocessing.process.BaseProcess | None = None

    @property
    def output(self) -> Path:
        return self.folder / f"{self.name}.txt"

    def start(self) -> None:
        self.process = _forks.Process(target=mainstem, args=(self.words, self.folder, self.output))
        self.process.start()

    @property
    def running(self) -> multiprocessing.process.BaseProcess:
        assert self.process, f"{self.name} does not run"
        return self.process

    def kill(self) -> int:
        self.running.kill()
        return self.wait()

    def stop(self) -> int:
        """Ask it to end; its exit status."""
        self.running.terminate()
        return self.wait()

    def wait(self, seconds: float = HUNG) -> int:
        """Its exit status."""
        process = self.running
        process.join(seconds)
        status = process.exitcode
        assert status is not None, f"{self.name} does not end: see {self.output}"
        process.close()
        self.process = None
        return status

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        if self.process:
            self.process.kill()
            self.process.join()
            self.process = None


@dataclass(frozen=True, slots=True)
class Plan:
    """When to kill: `delay` seconds after the start or, with `working`, after it was seen at work or, with `when`
    besides, after that gave True for the first time. both: the other process in the same moment too."""

    working: bool
    delay: float
    both: bool = False
    when: Callable[[], bool] | None = None


class Fresh:
    """True from when `names()` gives one that was not there at the first call."""

    def __init__(self, names: Callable[[], Sequence[object]]) -> None:
        self.names = names
        self._before: Sequence[object] | None = None

    def __call__(self) -> bool:
        now = self.names()
        self._before = now if self._before is None else self._before
        return any(name not in self._before for name in now)


class Victim(Command):
    """A command that is started again whenever it was killed: each start is a life. `works(it)`: is it at work?"""

    def __init__(
        self, name: str, words: list[str], folder: Path, plans: list[Plan], works: Callable[[Victim], bool]
    ) -> None:
        super().__init__(name, words, folder)
        self.plans, self.works = plans, works
        self.life = self.kills = self.killed_starting = 0
        self.working = self._reached = False
        self.since = 0.0
        self.mark: tuple[str, int] = ("", 0)
        """What its maker wants to remember of the start."""

    def start(self) -> None:
        self.life, self.working, self._reached, self.since = self.life + 1, False, False, time.monotonic()
        super().start()

    def kill(self) -> int:
        self.kills += 1
        self.killed_starting += not self.working
        return super().kill()

    def is_due(self) -> bool:
        """Look at it: is the moment of its plan there? Raises AssertionError where it ended by itself or hangs."""
        status, told = self.running.exitcode, f"see {self.output}"
        assert status is None, f"{self.name} ended by itself with status {status}: {told}"
        now = time.monotonic()
        if not self.working and self.works(self):
            self.working, self.since = True, now
        plan = self.plans[0] if self.plans else None
        if plan is None or (plan.working and not self.working):
            assert self.working or now - self.since < HUNG, f"{self.name} is not at work after {HUNG} s: {told}"
            return False
        if plan.when is not None and not self._reached:
            assert now - self.since < PATIENCE, f"{self.name} is not where its plan waits for it: {told}"
            if not plan.when():
                return False
            self._reached, self.since = True, now
        return now - self.since >= plan.delay


# ---- chaos ---------------------------------------------------------------------------------------


class Hand(Protocol):
    """Something else that goes on meanwhile."""

    def turn(self, chaos: Chaos) -> bool:
        """Do what is due; whether all is done."""
        ...

    def close(self) -> None:
        """Leave no process behind."""
        ...


class Chaos:
    """Server and trainer of a shop, killed by plan and started again at once, while clients go on.

    rage() kills until the plans and the hands are done; settle(seconds) waits until all that is in the log is learned
    and served. most: events in one post.
    """

    def __init__(
        self, shop: Shop, server: list[Plan], trainer: list[Plan], hands: Sequence[Hand] = (), *, seed: int = 0,
        most: int = 5,
    ) -> None:  # fmt: skip
        self.shop, self.evidence, self.port, self.hands = shop, Evidence(), _free_port(), hands
        serve = ["serve", "--port", str(self.port), "--log-level", "warning"]
        self.server = Victim("server", serve, shop.folder, server, self._answers)
        self.trainer = Victim("trainer", ["train", "--online"], shop.folder, trainer, self._has_published)
        self.clients = Clients(self.port, lambda: self.server.life, self.evidence, seed, most)
        self.kills_of_both = 0

    @property
    def kills(self) -> int:
        return self.server.kills + self.trainer.kills

    def rage(self) -> None:
        self.evidence.down.append([time.monotonic(), float("inf")])
        for victim in (self.server, self.trainer):
            self._start(victim)
        with self.clients:
            while not self._over():
                self.shop.look()
                for victim, other in ((self.server, self.trainer), (self.trainer, self.server)):
                    if victim.is_due():
                        plan = victim.plans.pop(0)
                        self.kills_of_both += plan.both
                        self._kill([victim, other] if plan.both else [victim])
                time.sleep(0.02)

    def _over(self) -> bool:
        done = [hand.turn(self) for hand in self.hands]
        killed = not self.server.plans and not self.trainer.plans
        return all(done) and killed and self.server.working and self.trainer.working

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
        """Seconds until the newest update has seen the log to its end and the server serves it."""
        began = time.monotonic()
        while True:
            spent, newest = time.monotonic() - began, self.shop.look()
            if self._position(*newest) == end() and self._serves(*newest):
                return spent
            assert spent < seconds, f"after {spent:.0f} s {newest} stands at {self._position(*newest)} of {end()}"
            time.sleep(0.1)

    def _position(self, base: str, sequence: int) -> Position:
        if sequence in self.shop.archive.deltas.sequences("main", base):
            return self.shop.archive.deltas.load("main", base, sequence).position
        return Position.parse(self.shop.archive.manifest("main", base).position)

    def _serves(self, base: str, sequence: int) -> bool:
        """Of the model the server names the snapshot, which may be a later one of the base."""
        parts = self._asked("/readyz")["parts"]
        return parts["delta"] == sequence and self.shop.archive.manifest("main", parts["model"]).base == base

    def stop(self, seconds: float) -> list[int]:
        """End both in order, the server when it serves the trainer's last update; their exit statuses."""
        trainer, end = self.trainer.stop(), time.monotonic() + seconds
        while not self._serves(*self.shop.look()):
            assert time.monotonic() < end, f"the server does not come to {self.shop.newest}: see {self.server.output}"
            time.sleep(0.05)
        return [trainer, self.server.stop()]

    def close(self) -> None:
        """Leave no process behind, whatever happened."""
        for one in (self.server, self.trainer, *self.hands):
            one.close()

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
