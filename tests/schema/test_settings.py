"""Country, language and device of an event: its own, else of the slate that it answers, however the log is cut."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.schema import settings
from mainstem.schema.batch import EventBatch
from mainstem.schema.ids import keys64
from mainstem.schema.records import Context, Event, LogRecord, Served, Slate, SlateRequest
from mainstem.schema.settings import Setting, SlateSettings, setting_keys


def event(request: str | None = None, **extras: str | float | bool) -> Event:
    return Event(event_id="e", time=0, user="u", kind="view", request_id=request, extras=extras)


def served(request: str, **context: str) -> Served:
    slate = Slate(request_id=request, canvas="home", time=0, items=[])
    return Served(record_id=request, time=0, user="u", request=SlateRequest(context=Context(**context)), slate=slate)


def test_what_an_event_says_goes_before_what_its_slate_knew() -> None:
    found = SlateSettings().follow(
        [
            served("a", country="fr", device="phone"),
            served("b"),
            event(),
            event("a"),
            event("a", country="de", language="en", store="north"),
            event("b"),
            event("unknown"),
            event(country="", language=1.0, device=True),
        ]
    )
    assert found == [
        Setting(),
        Setting("fr", None, "phone"),
        Setting("de", "en", "phone"),
        Setting(),
        Setting(),
        Setting(),
    ]


def test_a_slate_that_comes_behind_the_event_is_too_late() -> None:
    slates = SlateSettings()
    assert slates.follow([event("a"), served("a", country="fr"), event("a")]) == [Setting(), Setting("fr")]


def test_the_oldest_slates_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(settings, "REMEMBERED", 3)
    slates = SlateSettings()
    slates.follow([served(name, country=name) for name in "abcd"])
    slates.follow([served("nothing known")] * 5)
    assert slates.follow([event(name) for name in "abcd"]) == [Setting(), Setting("b"), Setting("c"), Setting("d")]


records = st.lists(
    st.one_of(
        st.builds(served, st.sampled_from("abc"), country=st.sampled_from(["fr", "de", ""])),
        st.builds(event, st.sampled_from(["a", "b", "c", None]), device=st.sampled_from(["phone", ""])),
    ),
    max_size=30,
)


@given(records, st.lists(st.integers(0, 30), max_size=4))
def test_it_says_the_same_however_the_log_is_cut_and_after_every_restart(log: list[LogRecord], cuts: list[int]) -> None:
    whole, parts = SlateSettings().follow(log), list[Setting]()
    bounds = sorted({0, len(log), *(cut for cut in cuts if cut < len(log))})
    slates = SlateSettings()
    for start, stop in itertools.pairwise(bounds):
        parts += slates.follow(log[start:stop])
        kept, slates = slates.state(), SlateSettings()
        slates.load(kept)
    assert parts == whole


def test_events_in_columns_carry_their_settings_along() -> None:
    known = [Setting("fr"), Setting(), Setting("fr", "en", "phone"), Setting("fr")]
    batch = EventBatch.of([event()] * 4, settings=known)
    assert batch.setting[0] == batch.setting[3] != batch.setting[2]
    assert batch.setting[1] == 0
    both = EventBatch.concat([batch.take(np.array([2, 1])), batch.take(np.array([0])), EventBatch.of([event()])])
    fr, en, phone = keys64("country", ["fr"])[0], keys64("language", ["en"])[0], keys64("device", ["phone"])[0]
    expected = [[fr, en, phone], [0, 0, 0], [fr, 0, 0], [0, 0, 0]]
    assert setting_keys(both.setting, both.settings).tolist() == expected
    assert setting_keys(both.setting[:0], both.settings).shape == (0, 3)
    assert not EventBatch.of([event(country="fr")]).setting.any()  # only training asks for them


def test_a_value_of_one_field_is_not_that_of_another() -> None:
    assert Setting("de").key() != Setting(None, "de").key()
    assert len({*Setting("de").keys(), *Setting(None, "de").keys()}) == 3
    assert Setting.of(Context(country="de", device="")) == Setting("de")
