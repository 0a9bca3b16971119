"""Sessions against a plain oracle."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.join import visits
from mainstem.join.sessions import GAP
from mainstem.schema.batch import EventBatch
from mainstem.schema.records import Event


def event(i: int, user: str, time: int, session: str | None) -> Event:
    return Event(event_id=f"e{i}", time=time, user=user, kind="purchase", entity=f"i{i}", session=session)


def oracle(events: list[Event], gap: int = GAP) -> list[tuple[int, str, list[int]]]:
    """(time, user, rows) of each session: one dict, one walk."""
    found: list[list[int]] = []
    last: dict[tuple[str, str | None], list[int]] = {}
    for i in sorted(range(len(events)), key=lambda i: (events[i].time, i)):
        name = events[i].user, events[i].session
        rows = last.get(name)
        if rows is None or (events[i].session is None and events[i].time - events[rows[-1]].time > gap):
            rows = last[name] = []
            found.append(rows)
        rows.append(i)
    return sorted((events[rows[0]].time, events[rows[0]].user, rows) for rows in found)


def got(events: list[Event]) -> list[tuple[int, str, list[int]]]:
    return sorted((v.time, events[v.rows[0]].user, v.rows.tolist()) for v in visits(EventBatch.of(events)))


times = st.sampled_from([0, 1, GAP - 1, GAP, GAP + 1, 2 * GAP, 2 * GAP + 1, 5 * GAP])
logs = st.lists(st.tuples(st.sampled_from("ab"), times, st.sampled_from([None, "s", "t"])), max_size=12)


@settings(max_examples=150, deadline=None)
@given(logs)
def test_sessions_are_the_oracles(rows: list[tuple[str, int, str | None]]) -> None:
    events = [event(i, *row) for i, row in enumerate(rows)]
    assert got(events) == oracle(events)


def test_the_gap_is_thirty_minutes_and_a_canary_with_another_is_caught() -> None:
    events = [event(i, "a", t, None) for i, t in enumerate([0, 30 * 60_000, 60 * 60_000 + 1])]
    assert [rows for _, _, rows in got(events)] == [[0, 1], [2]]
    assert got(events) != oracle(events, gap=GAP - 1)


def test_overlapping_sessions_stay_whole_and_visits_come_by_time() -> None:
    events = [event(i, "a", t, s) for i, (t, s) in enumerate([(9, "tab 1"), (10, "tab 2"), (11, "tab 1"), (5, None)])]
    found = visits(EventBatch.of(events))
    assert [(v.time, v.rows.tolist()) for v in found] == [(5, [3]), (9, [0, 2]), (10, [1])]
    assert visits(EventBatch.of([])) == []


def test_ties_go_by_log_order() -> None:
    events = [event(i, user, 7, None) for i, user in enumerate("cab")]
    assert [v.rows.tolist() for v in visits(EventBatch.of(events))] == [[0], [1], [2]]
    assert np.dtype(visits(EventBatch.of(events))[0].rows.dtype) == np.int64
