"""Who answered once is not asked again, unless something that the answer depends on is another."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from cycle import CHANGES, cycle

from mainstem.evaluate.next_item import Outcome
from mainstem.next_item import Actions, Asked, compare
from mainstem.next_item.outcomes import Outcomes
from mainstem.schema.config import Config


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Actions:
    return cycle(tmp_path_factory.mktemp("cycle"))


def asker(world: Actions, folder: Path) -> Callable[..., tuple[list[str], dict[str, list[Outcome]]]]:
    def ask(**changes: object) -> tuple[list[str], dict[str, list[Outcome]]]:
        said: list[str] = []
        asked = replace(Asked(systems=("popularity", "mainstem"), changes=CHANGES, resume=folder), **changes)
        found = compare(world, asked, lambda *_: None, said.append)
        return [line for line in said if "answered before" in line], dict(found.outcomes)

    return ask


def test_what_is_kept_is_what_was_answered(tmp_path: Path) -> None:
    found = Outcome(np.array([3, 0]), np.array([[1, -1], [2, 0]]), 1.5, 2.5, None, {"epochs": 3})
    kept = Outcomes(tmp_path / "new")
    kept.keep("ours", 1, "this", found)
    again = kept.take("ours", 1, "this")
    assert again is not None
    for one, other in ((again.rank, found.rank), (again.shown, found.shown)):
        assert one.dtype == np.int64
        np.testing.assert_array_equal(one, other)
    assert (again.seconds, again.choosing, again.peak_gib, again.settled) == (1.5, 2.5, None, {"epochs": 3})
    assert [kept.take(*other) for other in (("ours", 1, "that"), ("ours", 2, "this"), ("its", 1, "this"))] == [None] * 3
    path = next((tmp_path / "new").glob("answer-*"))
    whole = path.read_bytes()
    for damaged in (b"", whole[: len(whole) // 2], b"no archive"):
        path.write_bytes(damaged)
        assert kept.take("ours", 1, "this") is None, "it is asked again"
    path.write_bytes(whole)
    assert kept.take("ours", 1, "this") is not None
    assert [path.suffix for path in (tmp_path / "new").iterdir()] == [".npz"], "nothing half written is left"
    nowhere = Outcomes(None)
    nowhere.keep("ours", 1, "this", found)
    assert nowhere.take("ours", 1, "this") is None


def test_nobody_is_asked_again(world: Actions, tmp_path: Path) -> None:
    ask = asker(world, tmp_path)
    before, first = ask()
    assert before == []
    said, second = ask()
    assert len(said) == 2
    for name, outcomes in first.items():
        np.testing.assert_array_equal(outcomes[0].rank, second[name][0].rank)
        assert outcomes[0].settled == second[name][0].settled
    said, _ = ask(split="validation")
    assert said == [], "another question"
    for number, other in enumerate(({"features": {"history": 5}}, {"model": {"temperature": 0.2}})):
        changed = Config.model_validate({**CHANGES.model_dump(exclude_unset=True), **other})
        said, _ = ask(changes=changed, systems=("mainstem",), resume=tmp_path / str(number))
        assert said == [], "another training"
        said, _ = ask(changes=changed, systems=("mainstem",), resume=tmp_path / str(number))
        assert len(said) == 1
    # peers know nothing of the minutes; and the training that is over is taken up, not made again
    said, third = ask(minutes=1e9)
    assert len(said) == 1
    assert third["mainstem"][0].seconds == first["mainstem"][0].seconds


def test_a_training_that_time_ended_goes_on_where_there_is_more(world: Actions, tmp_path: Path) -> None:
    ask = asker(world, tmp_path)
    _, short = ask(minutes=1e-9, systems=("mainstem",))
    said, long = ask(minutes=1e9, systems=("mainstem",))
    assert said == []
    assert short["mainstem"][0].settled["of"] == 1
    assert long["mainstem"][0].settled["of"] > 1


def test_code_that_changed_is_asked_again(world: Actions, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ask = asker(world, tmp_path)
    ask(systems=("popularity",))
    assert len(ask(systems=("popularity",))[0]) == 1
    monkeypatch.setattr(sys.modules["mainstem.next_item.compare"], "_code", lambda: "of tomorrow")
    assert ask(systems=("popularity",))[0] == []


def test_seeds_of_other_runs_join(world: Actions, tmp_path: Path) -> None:
    ask = asker(world, tmp_path)
    _, alone = ask(first=1, systems=("mainstem",))
    said, both = ask(seeds=2, systems=("mainstem",))
    assert len(said) == 1
    assert len(both["mainstem"]) == 2
    np.testing.assert_array_equal(both["mainstem"][1].rank, alone["mainstem"][0].rank)
    assert both["mainstem"][0].settled != both["mainstem"][1].settled, "canary: seeds differ"
