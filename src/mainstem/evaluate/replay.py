"""Replay of the past as live traffic: ask, score, post, learn, basket by basket (prequential evaluation).

For each basket, in event order:

    1. ask the system, and every baseline, for a slate of k for this user at this time, and for a second one
       restricted to what is new to the user
    2. score the first on all of the basket's distinct products, the second on the new ones, if it has any
    3. checkpoint: the scores are now on record
    4. post the basket's events to the system; baselines learn it

Step 3 stands before step 4, so a process killed anywhere is resumed without scoring a basket that the
system has already learned: the events of the last scored basket are posted again, which their
deterministic ids make harmless. (Dawid, JRSS A 1984, for "prequential"; Gama et al., ML 2013.)
"""

from __future__ import annotations

import json
import os
import time as _time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import msgspec

from mainstem.evaluate.baselines import Baseline
from mainstem.evaluate.metrics import score_slate
from mainstem.evaluate.results import Restriction, Results
from mainstem.schema.errors import ConfigError
from mainstem.schema.records import Event

__all__ = ["Basket", "Replay", "ReplayClient", "load_state", "save_state"]


@dataclass(frozen=True, slots=True)
class Basket:
    """What one user did at one moment: `items` are scored, `events` are posted (with ids that never change)."""

    user: str
    time: int
    items: Sequence[str]
    session: str | None = None
    events: Sequence[Event] = field(default=())


class ReplayClient(Protocol):
    """The system under evaluation, seen through its public API. All three calls may raise: the replay then stops."""

    def slate(self, user: str, time: int, new_only: bool) -> list[str]:
        """Item ids, best first, for `user` at event time `time`; with `new_only`, none the user ever had."""
        ...

    def post(self, events: Sequence[Event]) -> None:
        """Accept events; returns when they are acknowledged. Events whose id is known change nothing."""
        ...

    def lags_ms(self) -> list[float]:
        """Freshness lags measured since the last call: event accepted -> slates reflect it."""
        ...


Rival = Callable[[str, int, bool], list[str]]
"""(user, event time, new only) -> item ids: another system to be asked beside the first, on some of the baskets."""

# The two sides of `Replay.compared`.
SIDES = ("learning online", "frozen at the start")


class Replay:
    """The engine. Pure: it knows no HTTP, no files, no display; `clock` gives seconds, monotonic.

    rival: asked on every `rival_every`-th basket too; `compared` holds the system's own scores on those baskets beside
    the rival's.
    """

    def __init__(
        self, client: ReplayClient, baselines: Sequence[Baseline], *, k: int = 10, name: str = "mainstem",
        rival: Rival | None = None, rival_every: int = 1, clock: Callable[[], float] = _time.perf_counter,
    ) -> None:  # fmt: skip
        self._client = client
        self._baselines = list(baselines)
        self._clock = clock
        self._had: dict[str, set[str]] = {}
        self.results = Results([name, *(baseline.name for baseline in baselines)], k)
        self._rival, self._rival_every = rival, rival_every
        self.compared = Results(list(SIDES), k)
        if len(set(self.results.systems)) != len(self.results.systems):
            raise ConfigError(f"systems need distinct names, not {', '.join(self.results.systems)}")

    def teach(self, baskets: Iterable[Basket]) -> int:
        """Baselines learn what came before the replay; nothing is asked, scored or posted. How many baskets."""
        count = 0
        for basket in baskets:
            self._learn(basket, list(dict.fromkeys(basket.items)))
            count += 1
        return count

    def run(
        self, baskets: Iterable[Basket], checkpoint: Callable[[dict[str, Any]], None] | None = None
    ) -> Iterator[Results]:
        """Replay `baskets` (always the whole stream, from its first); yields the running results after each.

        After `load` of a state that has n baskets, the first n are only learned, and the n-th is posted again.
        The object that is yielded is the same one each time and goes on changing.
        """
        done = self.results.baskets
        for number, basket in enumerate(baskets):
            if number < done:
                if number == done - 1 and basket.events:
                    self._client.post(basket.events)
                self._learn(basket, list(dict.fromkeys(basket.items)))
                continue
            yield self.step(basket, checkpoint)

    def step(self, basket: Basket, checkpoint: Callable[[dict[str, Any]], None] | None = None) -> Results:
        """Ask, score, checkpoint, post and learn one basket."""
        items = list(dict.fromkeys(basket.items))
        began = self._clock()
        self._score(basket, items)
        self.results.baskets += 1
        self.results.events += len(basket.events)
        self.results.time = basket.time
        if checkpoint is not None:
            checkpoint(self.state())
        self._post(basket)
        self._learn(basket, items)
        self.results.seconds += self._clock() - began
        return self.results

    def state(self) -> dict[str, Any]:
        """Everything a later process needs beside the stream itself; JSON-serialisable."""
        return {**self.results.state(), "compared": self.compared.state()}

    def load(self, state: Mapping[str, Any]) -> None:
        """Go on from `state`. Raises ConfigError when it belongs to other systems or another k."""
        held = Results.of(state)
        if (held.systems, held.k) != (self.results.systems, self.results.k):
            raise ConfigError(
                f"the saved replay compares {', '.join(held.systems)} at {held.k}, "
                f"this one {', '.join(self.results.systems)} at {self.results.k}: start it anew"
            )
        self.results = held
        if "compared" in state:
            self.compared = Results.of(state["compared"])

    def _score(self, basket: Basket, items: list[str]) -> None:
        had: set[str] = self._had.get(basket.user, set())
        fresh = [item for item in items if item not in had]
        if items:
            self._ask(basket, "all", items)
            self._ask(basket, "new", fresh)

    def _ask(self, basket: Basket, restriction: Restriction, wanted: list[str]) -> None:
        results, new_only = self.results, restriction == "new"
        began = self._clock()
        slate = self._client.slate(basket.user, basket.time, new_only)
        results.slate_ms.add((self._clock() - began) * 1e3)
        results.slates += 1
        if not wanted:  # a client cannot know that nothing in the basket is new; there is nothing to score
            return
        own = score_slate(slate, wanted, results.k)
        results.add(basket.time, results.systems[0], restriction, *own)
        if self._rival is not None and results.baskets % self._rival_every == 0:
            other = score_slate(self._rival(basket.user, basket.time, new_only), wanted, results.k)
            for side, scores in zip(SIDES, (own, other), strict=True):
                self.compared.add(basket.time, side, restriction, *scores)
        for baseline in self._baselines:
            slate = baseline.rank(basket.user, basket.time, results.k, new_only)
            results.add(basket.time, baseline.name, restriction, *score_slate(slate, wanted, results.k))

    def _post(self, basket: Basket) -> None:
        if basket.events:
            began = self._clock()
            self._client.post(basket.events)
            self.results.post_ms.add((self._clock() - began) * 1e3)
        for lag in self._client.lags_ms():
            self.results.freshness_ms.add(lag)

    def _learn(self, basket: Basket, items: list[str]) -> None:
        for baseline in self._baselines:
            baseline.learn(basket.user, items, basket.time)
        self._had.setdefault(basket.user, set()).update(items)


def save_state(path: Path, state: Mapping[str, Any]) -> None:
    """Replace the file whole: a kill leaves the old one or the new one. Survives a killed process, not a power cut."""
    beside = path.with_name(path.name + ".new")
    beside.write_bytes(msgspec.json.encode(state))
    os.replace(beside, path)


def load_state(path: Path) -> dict[str, Any] | None:
    """What `save_state` wrote, None where there is no file. Raises ConfigError when it cannot be read."""
    if not path.exists():
        return None
    try:
        state = json.loads(path.read_text())
    except ValueError as error:
        raise ConfigError(f"{path} is not a saved replay ({error}); delete it to start anew") from error
    if not isinstance(state, dict):
        raise ConfigError(f"{path} is not a saved replay; delete it to start anew")
    return state
