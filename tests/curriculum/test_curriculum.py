"""What training reads of a log that grows meanwhile."""

from __future__ import annotations

from contextlib import closing

from mainstem import eventlog
from mainstem.curriculum import Curriculum
from mainstem.schema.config import Config
from mainstem.schema.position import Position
from mainstem.schema.protocols import Log
from mainstem.schema.records import Event


class Growing:
    """A log to which somebody appends as soon as its end was looked at."""

    def __init__(self, log: Log) -> None:
        self._log = log

    def __getattr__(self, name: str) -> object:
        return getattr(self._log, name)

    def end(self) -> Position:
        end = self._log.end()
        self._log.append([purchase("late")])
        return end


def purchase(name: str) -> Event:
    return Event(event_id=name, time=1_500_000_000_000, user="u", kind="purchase", entity="a")


def test_it_reads_no_further_than_the_position_that_it_says() -> None:
    """From there on the online trainer learns: what both had learned would count twice."""
    log = eventlog.open("memory://", history="file:///nowhere")
    log.append([purchase(str(number)) for number in range(5)])
    with closing(Curriculum(Config(), Growing(log), lambda stage, done, total: None)) as source:  # type: ignore[arg-type]
        assert source.position == Position.at(5)
        assert len(source.events) == 5
        assert source.catalog.position() == source.position
    assert log.end() == Position.at(6)  # canary
