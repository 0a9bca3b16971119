"""The laws, on every feature, on both backends; and the canaries that they must catch."""

from __future__ import annotations

import tempfile
from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from laws import (
    HOUR,
    ITEMS,
    START,
    TIGHT,
    USERS,
    WORLD,
    Colours,
    all_same,
    check_cuts_change_nothing,
    check_nothing_leaks,
    check_online_is_offline,
    event,
    everyone,
    write,
)  # fmt: skip

import mainstem.features as features
from mainstem.features.memory import MemoryBackend
from mainstem.features.pending import EVENT, Fold
from mainstem.features.reading import Candidates, Reading
from mainstem.features.state import Overlay
from mainstem.schema.config import Config
from mainstem.schema.records import Event

KINDS = ("purchase", "purchase", "click", "impression", "hide", "alias")
quick = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)


@st.composite
def logs(draw: st.DrawFn, ordered: bool = True) -> list[Event]:
    """Up to 24 events of few users on few items; many share a time. Not ordered: some arrive late."""
    rows = draw(
        st.lists(
            st.tuples(
                st.integers(0, 40), st.sampled_from(USERS), st.sampled_from(ITEMS), st.sampled_from(KINDS),
                st.sampled_from([None, "s1", "s2"]), st.sampled_from([None, "a", "b"]),
            ),
            min_size=1, max_size=24,
        )
    )  # fmt: skip
    if ordered:
        rows.sort(key=lambda row: row[0])
    made = []
    for n, (hours, user, item, kind, session, store) in enumerate(rows):
        time = START + 5 * hours * HOUR
        if kind == "alias":
            guest = USERS[(USERS.index(user) + 1) % len(USERS)]
            made.append(event(n, time, user, guest, "alias", entity_type="user"))
        else:
            made.append(event(n, time, user, item, kind, session and f"{user}-{session}", store))
    return made


cuts = st.lists(st.integers(1, 23), max_size=6)


def memory(config: Config = WORLD) -> Callable[[], features.Store]:
    return lambda: features.open("memory://", config, Colours())


@pytest.mark.parametrize("config", [WORLD, TIGHT], ids=["roomy", "tight"])
@quick
@given(events=logs(), cuts=cuts)
def test_online_equals_offline(config: Config, events: list[Event], cuts: list[int]) -> None:
    check_online_is_offline(memory(config), events, cuts)


@pytest.mark.parametrize("config", [WORLD, TIGHT], ids=["roomy", "tight"])
@quick
@given(events=logs(ordered=False), cuts=cuts)
def test_cuts_change_nothing(config: Config, events: list[Event], cuts: list[int]) -> None:
    check_cuts_change_nothing(memory(config), events, cuts)


@quick
@given(events=logs(), hours=st.integers(0, 40), later=st.integers(0, 50))
def test_nothing_leaks(events: list[Event], hours: int, later: int) -> None:
    time = START + 5 * hours * HOUR
    before = [e for e in events if e.time < time]
    after = [e for e in events if e.time >= time]
    moved = [Event(**{f: getattr(e, f) for f in e.__struct_fields__} | {"time": time + later}) for e in after]
    check_nothing_leaks(memory(), before, moved, time)


@settings(quick, max_examples=10)
@given(events=logs(ordered=False), cuts=cuts)
def test_memory_equals_lmdb(events: list[Event], cuts: list[int]) -> None:
    """At every cut, and again from a fresh opening."""
    with tempfile.TemporaryDirectory() as folder:
        oracle, stored = memory()(), features.open(f"lmdb://{folder}", WORLD, Colours())
        newest = max(e.time for e in events)
        for store in (oracle, stored):
            write(store, events, cuts)
        for time in (newest, newest + 1):
            all_same(everyone(oracle, time), everyone(stored, time))
        stored.close()
        again = features.open(f"lmdb://{folder}", WORLD, Colours(), readonly=True)
        assert again.position() == oracle.position()
        all_same(everyone(oracle, newest + 1), everyone(again, newest + 1))
        again.close()


# ---- canaries ----------------------------------------------------------------------------------

FIXED = [
    event(0, START, "u0", "i0", session="s"),
    event(1, START + HOUR, "u0", "i1", session="s"),
    event(2, START + 2 * HOUR, "u1", "i1"),
    event(3, START + 2 * HOUR, "u0", "i2", session="s"),
    event(4, START + 3 * HOUR, "u1", "i0"),
]


class _Canary:
    name, names, definition = "canary", ("canary",), "v1"

    def write(self, fold: Fold, state: Overlay) -> None: ...

    def erase(self, user: int, state: Overlay) -> None: ...

    def merge(self, guest: int, user: int, state: Overlay) -> None: ...

    def expire(self, limit: int, snapshot: object, state: Overlay) -> int:
        return 0

    def values(self, reading: Reading, candidates: Candidates, out: np.ndarray) -> None:
        blob = reading.state.get("canary", [0])[0]
        out[:, 0] = len(blob) if blob else 0


class Leaks(_Canary):
    """Counts the pending events too, whatever the time of the request."""

    def values(self, reading: Reading, candidates: Candidates, out: np.ndarray) -> None:
        blob = reading.snapshot.get("meta", [1])[0] or b""
        out[:, 0] = len(blob) // EVENT.itemsize


class CountsBatches(_Canary):
    """Counts calls of `write`, so its value depends on how the log is cut."""

    def write(self, fold: Fold, state: Overlay) -> None:
        blob = state.get("canary", [0])[0] or b""
        state.put("canary", [0], [blob + b"x"])


def with_canary(canary: type[_Canary]) -> Callable[[], features.Store]:
    return lambda: features.Store(MemoryBackend(), WORLD, Colours(), extra=[canary()])


def test_the_leak_check_passes_without_canary() -> None:
    check_nothing_leaks(memory(), FIXED[:4], FIXED[4:], START + 3 * HOUR)


def test_a_leaking_feature_is_caught() -> None:
    # Two events wait before, three after: u1's at the time asked about must not show.
    with pytest.raises(AssertionError, match="canary differs"):
        check_nothing_leaks(with_canary(Leaks), FIXED[:4], FIXED[4:], START + 3 * HOUR)


def test_a_feature_that_depends_on_the_batches_is_caught() -> None:
    with pytest.raises(AssertionError, match="canary differs"):
        check_cuts_change_nothing(with_canary(CountsBatches), FIXED, [1, 2, 4])
    with pytest.raises(AssertionError, match="canary differs"):
        check_online_is_offline(with_canary(CountsBatches), FIXED, [1, 2, 4])


def test_folding_at_once_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the pending events, what happens at the time of a request leaks into it."""
    import mainstem.features.store as module

    monkeypatch.setattr(module, "sequence", lambda pending, newest, rows: (rows, rows[:0], newest))
    with pytest.raises(AssertionError, match="differs"):
        check_nothing_leaks(memory(), FIXED[:4], FIXED[4:], START + 3 * HOUR)


@pytest.mark.slow
@settings(quick, max_examples=100)
@given(events=logs(), late=logs(ordered=False), cuts=cuts)
def test_the_laws_at_length(events: list[Event], late: list[Event], cuts: list[int]) -> None:
    for config in (WORLD, TIGHT):
        check_online_is_offline(memory(config), events, cuts)
        check_cuts_change_nothing(memory(config), late, cuts)
