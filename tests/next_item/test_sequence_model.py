"""The one model learns what comes next, stops when validation says so, and goes on after a kill as if none was."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from cycle import CHANGES, ITEMS, cycle

from mainstem.evaluate.next_item import run
from mainstem.evaluate.peers import PEERS
from mainstem.next_item import Actions, SequenceModel, configured
from mainstem.next_item.checkpoints import Checkpoints
from mainstem.next_item.runs import Run, Watch
from mainstem.schema.config import Config
from mainstem.schema.errors import Incompatible


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Actions:
    return cycle(tmp_path_factory.mktemp("cycle"))


def config_of(world: Actions, seed: int = 0, **train: object) -> Config:
    config = configured(world.config, CHANGES, seed)
    return config.model_copy(update={"train": config.train.model_copy(update=train)})


class Killed(Exception):
    pass


class Killer(Watch):
    """Ends the process, so to say: after so many epochs, and so many steps of the next."""

    def __init__(self, epochs: int, steps: int = 0) -> None:
        self.epochs, self.steps, self.over = epochs, steps, 0

    def step(self, actions: int) -> None:
        if self.over == self.epochs:
            self.steps -= 1
            if self.steps < 0:
                raise Killed

    def epoch(self, run: Run) -> None:
        self.over = len(run.epochs)


def test_a_circle_is_learned_and_popularity_cannot(world: Actions) -> None:
    model = SequenceModel(world, config_of(world))
    found = run(model, world.data, "test", most=1)
    assert (found.rank == 0).mean() > 0.95
    popular = run(PEERS["popularity"].new("popularity"), world.data, "test")
    assert (popular.rank == 0).mean() < 0.35, "canary: who does not read the order cannot know"
    assert found.settled["epochs"] <= found.settled["of"]


def test_training_stops_after_patience_and_keeps_the_best(world: Actions) -> None:
    told = iter([0.1, 0.3, 0.2, 0.3, 0.25, 0.9])
    model = SequenceModel(world, config_of(world, patience=3, retrieval_epochs=20))
    vectors = []

    def judge() -> float:
        vectors.append(model.scores(world.data, world.data.held("test")))
        return next(told)

    model.choose(world.data, world.data.learned(), judge)
    assert len(model.chosen.epochs) == 5, "two to the best, and three that were not better"
    assert model.chosen.best == 2, "the first of equal ones"
    assert np.array_equal(model.scores(world.data, world.data.held("test")), vectors[1])
    assert not np.array_equal(vectors[1], vectors[4]), "canary: later epochs changed it"
    model.refit(world.data, world.data.learned(refit=True))
    assert not np.array_equal(model.scores(world.data, world.data.held("test")), vectors[1])


def test_training_ends_when_the_time_is_up(world: Actions) -> None:
    class Counter(Watch):
        def __init__(self) -> None:
            self.steps = 0

        def step(self, actions: int) -> None:
            self.steps += 1

    config = config_of(world, retrieval_epochs=4, retrieval_batch=256)
    counters = [Counter(), Counter()]
    short, long = (
        SequenceModel(world, config, watch=counter, minutes=minutes)
        for counter, minutes in zip(counters, (1e-9, 1e9), strict=True)
    )
    found = [run(model, world.data, "test", refit=True) for model in (short, long)]
    assert (len(short.chosen.epochs), len(long.chosen.epochs)) == (1, 4)
    assert counters[0].steps == 2, "the first epoch of each fit ended where it was"
    assert counters[1].steps > 8, "canary: an epoch has several steps"
    assert found[0].settled["epochs"] == 1, "what was learned until then counts"


def test_histories_are_as_long_as_configured(world: Actions) -> None:
    assert SequenceModel(world, config_of(world)).actions.positives.length == 200


def test_a_refit_learns_validation_for_as_many_epochs(world: Actions) -> None:
    class Counter(Watch):
        def __init__(self) -> None:
            self.fits: list[tuple[str, int, int]] = []

        def begin(self, stage: str, run: Run, most: int, patience: int, actions: int) -> None:
            self.fits.append((stage, most, actions))

    counter = Counter()
    model = SequenceModel(world, config_of(world, patience=1, retrieval_epochs=3), watch=counter)
    found = run(model, world.data, "test", refit=True)
    learned = [int(world.data.learned(refit).sum()) for refit in (False, True)]
    assert counter.fits == [("choose", 3, learned[0]), ("refit", found.settled["epochs"], learned[1])]


def test_users_have_no_rows_of_their_own(world: Actions) -> None:
    model = SequenceModel(world, config_of(world, retrieval_epochs=2))
    run(model, world.data, "test")
    assert model.trainer.towers.table.counts()["user"] == 0
    assert model.trainer.towers.table.counts()["entity"] == ITEMS


# ---- a run that is killed ------------------------------------------------------------------------------


@pytest.mark.parametrize("killer", [Killer(2), Killer(2, steps=2), Killer(0), Killer(5)])
@pytest.mark.parametrize("refit", [False, True])
def test_killed_and_resumed_is_as_never_killed(world: Actions, tmp_path: Path, killer: Killer, refit: bool) -> None:
    config = config_of(world, retrieval_epochs=5, patience=5)
    places = world.data.held("test")

    def model(folder: Path | None, watch: Watch | None = None) -> SequenceModel:
        kept = None if folder is None else Checkpoints(folder, 0, "this run")
        return SequenceModel(world, config, kept, watch)

    whole = model(None)
    expected = run(whole, world.data, "test", refit=refit)
    try:
        run(model(tmp_path, Killer(killer.epochs, killer.steps)), world.data, "test", refit=refit)
    except Killed:
        killed = True
    else:
        killed = False
    assert killed or killer.epochs >= 5, "canary: it was killed"
    resumed = model(tmp_path)
    found = run(resumed, world.data, "test", refit=refit)
    assert np.array_equal(resumed.scores(world.data, places), whole.scores(world.data, places))
    assert np.array_equal(found.rank, expected.rank)
    told = [[(each.number, each.loss, each.validation) for each in of.chosen.epochs] for of in (resumed, whole)]
    assert told[0] == told[1]


def test_a_finished_run_is_not_trained_again(world: Actions, tmp_path: Path) -> None:
    config = config_of(world, retrieval_epochs=2)
    run(SequenceModel(world, config, Checkpoints(tmp_path, 0, "this run")), world.data, "test", refit=True)
    never = Killer(2)  # any step would end it
    run(SequenceModel(world, config, Checkpoints(tmp_path, 0, "this run"), never), world.data, "test", refit=True)
    with pytest.raises(Killed):
        run(SequenceModel(world, config, Checkpoints(tmp_path, 1, "this run"), Killer(0)), world.data, "test")


def test_another_run_is_refused(world: Actions, tmp_path: Path) -> None:
    config = config_of(world, retrieval_epochs=1)
    run(SequenceModel(world, config, Checkpoints(tmp_path, 0, "this run")), world.data, "test")
    with pytest.raises(Incompatible, match="holds a run on other data"):
        run(SequenceModel(world, config, Checkpoints(tmp_path, 0, "another run")), world.data, "test")
