"""The profile of a training step: every part is found, the parts are of the step, and a name that went is an error."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mainstem.next_item.actions import of_records
from mainstem.next_item.preset import configured
from mainstem.schema.config import Config
from mainstem.schema.records import Entity, Event

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"


@pytest.fixture
def module(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    return importlib.import_module("sequence_step")


@pytest.fixture
def trainer(module: ModuleType) -> tuple[object, np.ndarray]:
    config = Config.model_validate({"model": {"dim": 8}, "train": {"retrieval_batch": 16}})
    events = [
        Event(event_id=f"{user} {step}", time=step, user=f"u{user}", entity=f"i{(user + step) % 9}", kind="purchase")
        for step in range(8) for user in range(30)
    ]  # fmt: skip
    entities = [Entity(record_id=f"i{i}", time=0, entity=f"i{i}", text=f"thing {i}") for i in range(9)]
    actions = of_records("made", Config(), entities, events)
    made = module.trained(actions, configured(actions.config, config))
    return made, np.flatnonzero(actions.data.learned())


def test_every_part_takes_time_and_all_of_them_no_more_than_the_step(module, trainer):
    spent, whole, positives = module.profiled(*trainer, 3)
    assert spent.keys() == module.PARTS.keys()
    assert all(ms > 0 for ms in spent.values())
    assert sum(spent.values()) <= whole
    assert 1 < positives <= 2 * 16


def test_a_part_that_no_function_makes_is_an_error(module, trainer, monkeypatch):
    monkeypatch.setitem(module.PARTS, "gone", ("towers.py", "no_such_function"))
    with pytest.raises(SystemExit, match="gone"):
        module.profiled(*trainer, 1)
