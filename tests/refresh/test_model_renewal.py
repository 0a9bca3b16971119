"""A new dense part: networks and index made beside the ones in use, while rows and entities go on changing."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from keeper_world import Model, SmallModels, World, eventually, item
from test_model_keeper import PAUSES, check, tries

from mainstem.refresh import ModelKeeper, models
from mainstem.schema.errors import Incompatible
from mainstem.weights import Delta


class Gate:
    """Holds a renewal where its index is made and what came meanwhile is not in it yet."""

    def __init__(self, made: SmallModels) -> None:
        self.reached, self.open = threading.Event(), threading.Event()
        made.before_renewed = self

    def __call__(self) -> None:
        self.reached.set()
        assert self.open.wait(30)


def held(folder: Path, kind: type[ModelKeeper[Model]] = ModelKeeper) -> tuple[World, Gate]:
    """Entities a to f, and a renewal under way."""
    world = World(folder, kind)
    for name in "abcdef":
        world.put(name, "text")
    world.writer.full(1.0)
    world.keeper.refresh()
    gate = Gate(world.models)
    world.keeper.start(every=0.002)
    world.writer.delta({item("a"): 1.0}, weight=2.0)
    assert gate.reached.wait(30)
    return world, gate


@pytest.fixture
def renewing(tmp_path: Path) -> Iterator[tuple[World, Gate]]:
    world, gate = held(tmp_path)
    yield world, gate
    gate.open.set()
    world.keeper.stop()


def applied(world: World) -> None:
    """Wait for all deltas, not for a dense part."""
    eventually(lambda: world.keeper.reader.place == world.store.place("main"))


def settled(world: World) -> None:
    """Wait for all deltas and dense parts."""
    applied(world)
    eventually(lambda: world.keeper.current().dense == world.writer.dense)


def much_happens(world: World) -> None:
    """Rows and entities change, come and go."""
    world.writer.delta({item("b"): 2.0, item("c"): 3.0, item("new"): 7.0})
    applied(world)
    world.put("new", "comes")
    world.put("d", "changed")
    world.drop("c")
    world.writer.delta({item("a"): 4.0, 77: 1.0}, [item("b")])
    applied(world)
    world.drop("e")
    world.put("e", "is back")


def test_deltas_and_entities_go_on_under_the_model_in_use(renewing: tuple[World, Gate]) -> None:
    world, gate = renewing
    much_happens(world)
    model = world.keeper.current()
    assert (model.weight, world.keeper.sequence) == (1.0, 3)
    assert world.contents() == {key: (a, 1.0, c, d) for key, (a, _, c, d) in world.expected().items()}
    gate.open.set()
    settled(world)
    check(world)


class LosesRows(ModelKeeper[Model]):
    """Does not give the renewed model the rows that changed while it was made."""

    def _give(self, model: Model, missed: models._Missed) -> None:
        missed.rows.clear()
        super()._give(model, missed)


class LosesEntities(ModelKeeper[Model]):
    """Nor these the entities."""

    def _give(self, model: Model, missed: models._Missed) -> None:
        missed.touches.clear()
        super()._give(model, missed)


class RowsLast(ModelKeeper[Model]):
    """Embeds an entity that has left since."""

    def _give(self, model: Model, missed: models._Missed) -> None:
        for changed, left in missed.touches:
            self.models.touch(model, changed, left)
        super()._give(model, models._Missed(missed.rows, []))


@pytest.mark.parametrize("wrong", [LosesRows, LosesEntities, RowsLast])
def test_the_check_would_catch_a_keeper_that_loses_them(tmp_path: Path, wrong: type[ModelKeeper[Model]]) -> None:
    world, gate = held(tmp_path, wrong)
    try:
        much_happens(world)
        gate.open.set()
        settled(world)
        with pytest.raises(AssertionError):
            check(world)
    finally:
        gate.open.set()
        world.keeper.stop()


class Asker:
    """Looks at the model in use all the while, as requests do."""

    def __init__(self, world: World) -> None:
        self.wrong: list[str] = []
        self.seen: list[str] = []
        self.rows: list[int] = []
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask, args=(world,))

    def _ask(self, world: World) -> None:
        keys = np.array([item("f")], np.uint64)
        while not self._stop.is_set():
            model = world.keeper.current()
            weight = float(model.index.vectors(keys)[0, 1])
            if model.weight != weight or model.dense != model.index.version:
                self.wrong.append(f"networks of {model.dense} and {model.weight}, index of {weight}")
            if self.seen[-1:] != [model.dense]:
                self.seen.append(model.dense)
            self.rows.append(int(model.sparse.partition("+")[2]))

    def __enter__(self) -> Asker:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    @property
    def went_back(self) -> bool:
        return bool((np.diff(self.rows) < 0).any())


def renew_often(world: World, asker: Asker) -> None:
    world.put("f", "text")
    world.writer.full(1.0)
    world.keeper.refresh()
    world.keeper.start(every=0.001)
    try:
        with asker:
            for n in range(30):
                world.writer.delta({item(str(n % 7)): 1.0}, weight=2.0 + n)
                for k in range(n % 3):
                    world.writer.delta({item(str(k)): float(n)})
                if n % 2:
                    settled(world)  # every other one comes where the one before just ends, or is under way
            settled(world)
    finally:
        world.keeper.stop()


def test_networks_and_index_swap_together_and_rows_never_go_back(tmp_path: Path) -> None:
    world = World(tmp_path)
    asker = Asker(world)
    renew_often(world, asker)
    assert asker.wrong == []
    assert not asker.went_back
    assert len(asker.seen) > 5
    check(world)


class OneByOne(SmallModels):
    """Puts the new networks' vectors into the index in use."""

    def renew(self, model: Model, delta: Delta) -> Model:
        renewed = super().renew(model, delta)
        for keys, vectors in renewed.index.items():
            model.index.upsert(keys, vectors)
        threading.Event().wait(0.005)
        return renewed


class AsOfThen(SmallModels):
    """Calls the renewed model's rows what they were called when the renewal began."""

    def renew(self, model: Model, delta: Delta) -> Model:
        threading.Event().wait(0.02)
        return super().renew(model, delta)

    def take_over(self, renewed: Model, current: Model) -> Model:
        return renewed


@pytest.mark.parametrize("wrong", [OneByOne, AsOfThen])
def test_the_asker_would_catch_a_swap_in_pieces(tmp_path: Path, wrong: type[SmallModels]) -> None:
    world = World(tmp_path)
    world.models = wrong(world.catalog)
    world.keeper = ModelKeeper(world.reader(), world.models)
    asker = Asker(world)
    renew_often(world, asker)
    assert bool(asker.wrong) is (wrong is OneByOne)
    assert asker.went_back is (wrong is AsOfThen)


def test_of_dense_parts_that_come_meanwhile_the_newest_is_taken(renewing: tuple[World, Gate]) -> None:
    world, gate = renewing
    first = world.writer.dense
    for weight in (3.0, 4.0, 5.0):
        world.writer.delta({item("a"): weight}, weight=weight)
    applied(world)
    gate.open.set()
    settled(world)
    assert world.models.renewals == [first, world.writer.dense]
    check(world)


class Late(ModelKeeper[Model]):
    """Its renewal lingers after it has found that nothing waits."""

    lingering, go = threading.Event(), threading.Event()

    def _renew(self) -> None:
        super()._renew()
        self.lingering.set()
        assert self.go.wait(30)


def test_a_dense_part_that_comes_while_a_renewal_ends_is_not_left_lying(tmp_path: Path) -> None:
    world = World(tmp_path, Late)
    world.writer.full(1.0)
    world.keeper.refresh()
    world.keeper.start(every=0.002)
    try:
        world.writer.delta(weight=2.0)
        assert Late.lingering.wait(30)
        world.writer.delta(weight=3.0)
        settled(world)
    finally:
        Late.go.set()
        world.keeper.stop()
    check(world)


# ---- a new base meanwhile --------------------------------------------------------------------------------


class Watched(ModelKeeper[Model]):
    """Says when it waits for a renewal."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.waiting = threading.Event()

    def _wait_renewed(self) -> None:
        self.waiting.set()
        super()._wait_renewed()


def test_what_was_renewed_from_the_old_base_never_follows_on_a_new_one(tmp_path: Path) -> None:
    world, gate = held(tmp_path, Watched)
    try:
        world.writer.rollback(world.store.versions("main")[0])
        assert isinstance(world.keeper, Watched)
        assert world.keeper.waiting.wait(30)
        gate.open.set()
        applied(world)
        world.writer.delta({item("b"): 9.0})
        applied(world)
    finally:
        gate.open.set()
        world.keeper.stop()
    check(world)


class Impatient(ModelKeeper[Model]):
    """Does not wait for the renewal that is under way."""

    def _wait_renewed(self) -> None:
        return


def test_the_check_would_catch_a_keeper_that_does_not_wait(tmp_path: Path) -> None:
    world, gate = held(tmp_path, Impatient)
    renewal = world.keeper._renewing
    assert renewal is not None
    world.writer.rollback(world.store.versions("main")[0])
    applied(world)
    gate.open.set()
    renewal.join()
    world.keeper.stop()
    with pytest.raises(AssertionError):
        check(world)


# ---- what does not fit, or fails -------------------------------------------------------------------------


def base_with_an_unfit_dense_part(world: World, error: Exception) -> str:
    world.put("a", "text")
    world.writer.full(1.0)
    assert world.keeper.refresh()
    place = world.store.place("main")
    assert place is not None
    name = f"{place.base}+1"
    world.models.fails[name] = error
    world.writer.delta({item("a"): 1.0}, weight=2.0)
    return name


def test_a_dense_part_that_does_not_fit_is_refused_and_rows_go_on(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    name = base_with_an_unfit_dense_part(world, Incompatible("other shapes"))
    assert world.keeper.refresh()
    world.writer.delta({item("a"): 2.0})
    assert world.keeper.refresh()
    model = world.keeper.current()
    assert (model.weight, world.keeper.sequence, world.keeper.failure) == (1.0, 2, None)
    assert world.keeper.refused == {f"dense part {name}": "other shapes"}
    assert "other shapes" in caplog.text
    assert world.contents() == {item("a"): (4.0, 1.0, 2.0, 2.0)}
    assert world.models.renewals == [name]
    world.writer.delta({}, weight=3.0)
    assert world.keeper.refresh()
    assert world.keeper.refused == {}
    check(world)


@pytest.mark.parametrize("threaded", [False, True])
def test_a_renewal_that_fails_for_a_while_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threaded: bool
) -> None:
    world, error = World(tmp_path), MemoryError("m")
    if threaded:
        monkeypatch.setattr(models, "RETRY_FIRST", 0.002)
        base_with_an_unfit_dense_part(world, error)
        world.keeper.start(every=0.001)
        eventually(lambda: len(world.models.renewals) > 3)
        assert world.keeper.failure is error
        world.models.fails.clear()
        settled(world)
        eventually(lambda: world.keeper.failure is None)
        world.keeper.stop()
    else:
        clock = [0.0]
        monkeypatch.setattr(models.time, "monotonic", lambda: clock[0])
        base_with_an_unfit_dense_part(world, error)
        assert tries(world, clock, error, lambda: len(world.models.renewals)) == PAUSES
        world.models.fails.clear()
        clock[0] = 62.0
        world.keeper.refresh()
    assert world.keeper.failure is None
    check(world)


def test_a_new_base_that_fails_does_not_cost_the_dense_part_that_waits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = [0.0]
    monkeypatch.setattr(models.time, "monotonic", lambda: clock[0])
    world = World(tmp_path)
    base_with_an_unfit_dense_part(world, MemoryError("m"))
    world.keeper.refresh()
    expected = world.expected()
    new = world.writer.full(8.0)
    world.models.fails = {new: MemoryError("still")}
    clock[0] = 2.0
    world.keeper.refresh()
    assert world.contents() == expected
    assert str(world.keeper.failure) == "still"
