"""What goes on beside the kills: rollbacks by hand, bursts of odd events, a rebuild that is hit."""

from __future__ import annotations

import os
import random
import signal
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from chaos_clients import HUNG
from chaos_shop import REBUILT, Shop, names
from chaos_world import PATIENCE, Chaos, Command, Fresh


@dataclass(frozen=True, slots=True)
class Rollback:
    """`delay` seconds after the last one; `killed_after` so many more seconds, or never."""

    delay: float
    relearn: bool
    killed_after: float | None = None


class Rollbacks:
    """`mainstem weights rollback` to any kept version, one after the other. One that fails, as somebody writes the line
    in that moment or the version is let go of, is given again."""

    def __init__(self, shop: Shop, plans: list[Rollback], dice: random.Random) -> None:
        self.shop, self.plans, self.dice = shop, plans, dice
        self.done = self.killed = self.failed = 0
        self._command: Command | None = None
        self._since = time.monotonic()

    def turn(self, chaos: Chaos) -> bool:
        if not self.plans:
            return True
        now, plan = time.monotonic(), self.plans[0]
        if self._command is None:
            if now - self._since >= plan.delay and chaos.trainer.working:
                version = self.dice.choice(names(self.shop.weights / "main", "v-*"))
                words = ["weights", "rollback", version, *(["--relearn"] if plan.relearn else [])]
                self._command, self._since = Command("rollback", words, self.shop.folder), now
                self._command.start()
            return False
        assert now - self._since < HUNG, f"a rollback hangs: see {self._command.output}"
        if self._command.running.exitcode is not None:
            status = self._command.wait()
        elif plan.killed_after is not None and now - self._since >= plan.killed_after:
            status = self._command.kill()
        else:
            return False
        self._command, self._since = None, now
        self.done, self.killed, self.failed = (
            self.done + (status == 0), self.killed + (status == -signal.SIGKILL), self.failed + (status == 1),
        )  # fmt: skip
        assert status in (0, 1, -signal.SIGKILL), f"a rollback ended with {status}"
        assert self.failed < 50
        if status != 1:
            self.plans.pop(0)
        return False

    def close(self) -> None:
        if self._command is not None:
            self._command.close()


@dataclass(slots=True)
class Bursts:
    """Odd events, `events` at a time and `delay` seconds apart, until `wanted` updates were refused. Before the first,
    `ordinary` events: the guard's reference is made of those."""

    shop: Shop
    wanted: int
    ordinary: int
    events: int
    delay: float
    patience: float = PATIENCE
    posted: int = 0
    _began: float = field(default_factory=time.monotonic)
    _last: float = field(default_factory=time.monotonic)

    def turn(self, chaos: Chaos) -> bool:
        refused = len(refusals(self.shop))
        assert time.monotonic() - self._began < self.patience, f"{self.posted} bursts, {refused} refusals"
        known = len(chaos.evidence.acknowledged) >= self.ordinary and chaos.trainer.working
        if known and refused < self.wanted and time.monotonic() - self._last >= self.delay:
            chaos.clients.burst(self.events)
            self.posted, self._last = self.posted + 1, time.monotonic()
        return refused >= self.wanted

    def close(self) -> None:
        """Nothing of it stays."""


class RebuildKills:
    """Kills rebuilds that the trainer started: each so many seconds after it was seen. Then waits until `wanted`
    rebuilt models were switched to."""

    def __init__(self, shop: Shop, delays: list[float], wanted: int) -> None:
        self.shop, self.delays, self.wanted = shop, delays, wanted
        self.kills = 0
        self._seen: dict[int, float] = {}
        self._began = time.monotonic()

    def turn(self, chaos: Chaos) -> bool:
        now, switched = time.monotonic(), len(self.shop.rebuilt)
        assert now - self._began < 2 * PATIENCE, f"{self.kills} rebuilds killed, {switched} switched to"
        trainer = chaos.trainer.running.pid
        for child in children(trainer) if trainer and self.delays else []:
            if now - self._seen.setdefault(child, now) >= self.delays[0]:
                os.kill(child, signal.SIGKILL)
                self.delays.pop(0)
                self.kills += 1
                break
        return not self.delays and switched >= self.wanted

    def close(self) -> None:
        """The rebuild ends with its trainer."""


# ---- what can be seen from outside ---------------------------------------------------------------


def children(pid: int) -> list[int]:
    """Processes that the process has started and that are not over."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            state, parent = stat.read_text().rpartition(")")[2].split()[:2]
        except OSError:  # over meanwhile
            continue
        if int(parent) == pid and state != "Z":
            found.append(int(stat.parent.name))
    return found


def refusals(shop: Shop) -> list[str]:
    return names(shop.archive.root / "main" / "refused", "*.delta")


def stages(shop: Shop, trainer: Callable[[], int | None]) -> dict[str, Callable[[], bool]]:
    """Of a rebuild, in order: what tells that it has come so far."""
    main, line = shop.weights / "main", shop.weights / f"main{REBUILT}"

    def whole(folder: Path) -> list[str]:
        return [name for name in names(folder, "v-*") if (folder / name / "manifest.json").exists()]

    return {
        "started": lambda: bool(children(trainer() or -1)),
        "towers learned": Fresh(lambda: names(shop.weights / f"main{REBUILT}-training", "v-*")),
        "being written": Fresh(lambda: names(line, "v-*")),
        "published": Fresh(lambda: whole(line)),
        "being switched to": Fresh(lambda: [name for name in names(main, "v-*") if name not in whole(main)]),
        "in use": Fresh(lambda: shop.rebuilt.copy()),
    }
