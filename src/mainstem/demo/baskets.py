"""A data set's events as a past to learn from and a live stream of baskets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby

from mainstem.datasets import Dataset
from mainstem.evaluate import Basket
from mainstem.schema.ids import key64
from mainstem.schema.records import Entity, Event
from mainstem.schema.time import DAY, MINUTE

__all__ = ["Baskets", "Split"]

LIVE = 28 * DAY
# Where the last four weeks hold less than this part of the events, the last part of this size is live.
LEAST_LIVE = 0.02
SHARE = 0.1
# Sets of fewer events are quick as they are.
LARGE = 300_000
# Events of a user without a session belong to one basket while less than this passes between them.
GAP = 30 * MINUTE


@dataclass(frozen=True, slots=True)
class Split:
    """cut: events from here on (ms) are live. past, live: how many events."""

    cut: int
    past: int
    live: int


class Baskets:
    """`quick` keeps a tenth of a large set's users, by a hash of their id, and the whole catalogue."""

    def __init__(self, dataset: Dataset, quick: bool = False) -> None:
        self.records = dataset.load()
        self.quick = quick and dataset.counts.events > LARGE

    def entities(self) -> Iterator[Entity]:
        return self.records.entities()

    def events(self) -> Iterator[Event]:
        """In time order."""
        if not self.quick:
            return self.records.events()
        return (event for event in self.records.events() if key64("quick", event.user) % 10 == 0)

    def split(self) -> Split:
        """The last four weeks are live, or the last tenth of the events where those hold hardly any."""
        times = [event.time for event in self.events()]
        cut = times[-1] - LIVE
        live = sum(time >= cut for time in times)
        if live < LEAST_LIVE * len(times):
            cut = times[int(len(times) * (1 - SHARE))]
            live = sum(time >= cut for time in times)
        return Split(cut, len(times) - live, live)

    def past(self, cut: int) -> Iterator[Basket]:
        """What came before, for the baselines: runs of one user's events."""
        before = (event for event in self.events() if event.time < cut)
        for (user, session, time), run in groupby(before, key=lambda event: (event.user, event.session, event.time)):
            yield Basket(user, time, [event.entity for event in run if event.entity is not None], session)

    def live(self, cut: int) -> list[Basket]:
        """Baskets from `cut` on, by the time of their first event. A basket's events share a session, or, without
        sessions, follow one another within half an hour."""
        open_: dict[tuple[str, str | None], list[Event]] = {}
        closed: list[list[Event]] = []
        for event in self.events():
            if event.time < cut:
                continue
            name = (event.user, event.session)
            run = open_.get(name)
            if run and event.session is None and event.time - run[-1].time > GAP:
                closed.append(run)
                run = None
            if run is None:
                open_[name] = run = []
            run.append(event)
        runs = sorted([*closed, *open_.values()], key=lambda run: run[0].time)
        return [
            Basket(run[0].user, run[0].time, [e.entity for e in run if e.entity is not None], run[0].session, run)
            for run in runs
        ]
