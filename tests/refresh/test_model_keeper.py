"""The model in use: the newest good state of the line, with every row and every entity that changed meanwhile."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keeper_world import Model, SmallModels, World, eventually, item

from mainstem.refresh import ModelKeeper, models
from mainstem.schema.errors import Incompatible, MainstemError, NotReady, StoreError
from mainstem.schema.ids import Keys
from mainstem.schema.records import Entity
from mainstem.weights import Delta, Snapshot


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "weights")


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The keeper's clock: [now]."""
    now = [0.0]
    monkeypatch.setattr(models.time, "monotonic", lambda: now[0])
    return now


def started(world: World) -> str:
    """With a base in use."""
    version = world.writer.full()
    assert world.keeper.refresh()
    return version


def test_without_a_snapshot_there_is_no_model(world: World) -> None:
    assert not world.keeper.refresh()
    assert (world.keeper.version, world.keeper.sequence) == (None, 0)
    with pytest.raises(NotReady, match="mainstem train"):
        world.keeper.current()
    world.put("1", "abc")  # and a change hurts nobody


def test_the_newest_comes_into_use_once(world: World) -> None:
    first = world.writer.full(1.0)
    assert world.keeper.refresh()
    assert not world.keeper.refresh()
    second = world.writer.full(2.0)
    assert world.keeper.refresh()
    assert world.models.builds == [first, second]
    assert (world.keeper.version, world.keeper.current().weight) == (second, 2.0)
    assert world.keeper.learned_at == world.store.manifest("main", second).created


# ---- whatever happens, the model in use is as one built at once ------------------------------------

STEPS = ("put", "drop", "rows", "dense", "snapshot", "full", "rollback", "damaged", "refresh")


def play(world: World, steps: Sequence[tuple[str, int]]) -> None:
    """Do the steps, each with a number to vary it, then let the keeper come to the end."""
    damaged: set[str] = set()
    for place, (step, n) in enumerate(steps):
        name, writer = str(n % 5), world.writer
        match step:
            case "put":
                world.put(name, "x" * (n % 7))
            case "drop":
                world.drop(name)
            case "rows" | "dense":
                user = place + 1  # a row that is no entity's
                weight = float(n) if step == "dense" else None
                writer.delta({item(name): n / 4, user: 1.0}, [item(str(n // 5 % 5))] if n % 3 == 0 else [], weight)
            case "snapshot":
                writer.snapshot()
            case "full":
                writer.full(float(n))
            case "rollback":
                kept = [m.version for m in world.store.manifests("main") if m.version not in damaged]
                writer.rollback(kept[n % len(kept)])
            case "damaged":  # one that stands at the newest delta, or else a state would be lost
                version = writer.snapshot()
                world.damage(version)
                damaged.add(version)
            case _:
                world.keeper.refresh()
        world.now += 1.0
    world.now += 1_000.0
    world.keeper.refresh()


def check(world: World) -> None:
    place = world.store.place("main")
    model = world.keeper.current()
    assert world.keeper.failure is None
    assert world.keeper.reader.place == place
    assert place is not None
    assert (model.sparse, model.dense) == (f"{place.base}+{place.sequence}", world.writer.dense)
    assert model.index.version == model.dense
    assert world.contents() == world.expected()
    keys = np.array(sorted(world.writer.rows), np.uint64)
    assert model.table.read(keys)[:, 0].tolist() == [world.writer.rows[key] for key in keys.tolist()]
    assert len(model.table) == len(keys)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(st.sampled_from(STEPS), st.integers(0, 60)), max_size=20))
def test_after_any_sequence_it_is_as_one_built_at_once(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int]]
) -> None:
    world = World(tmp_path_factory.mktemp("line"))
    world.writer.full()
    play(world, steps)
    check(world)


class Silent(SmallModels):
    """Says of no entity that its row changed."""

    def apply(self, model: Model, delta: Delta) -> tuple[Model, Keys]:
        return super().apply(model, delta)[0], np.zeros(0, np.uint64)


class Resurrecting(SmallModels):
    """Does not delete rows."""

    def apply(self, model: Model, delta: Delta) -> tuple[Model, Keys]:
        kept = model.table.read(delta.tables["rows"].deleted)
        model, entities = super().apply(model, delta)
        model.table.write(delta.tables["rows"].deleted, kept)
        return model, entities


class Deaf(SmallModels):
    """Passes over dense parts."""

    def renew(self, model: Model, delta: Delta) -> Model:
        return model


@pytest.mark.parametrize("wrong", [Silent, Resurrecting, Deaf])
def test_the_law_would_catch_models_that_are_moved_wrongly(world: World, wrong: type[SmallModels]) -> None:
    world.models = wrong(world.catalog)
    world.keeper = ModelKeeper(world.reader(), world.models)
    world.writer.full()
    play(world, [("put", 3), ("refresh", 0), ("rows", 3), ("dense", 4), ("refresh", 0), ("rows", 15)])
    with pytest.raises(AssertionError):
        check(world)


def test_only_touched_entities_are_embedded_between_dense_parts(world: World) -> None:
    for name in "abcdef":
        world.put(name)
    started(world)
    world.writer.delta({item("a"): 1.0, item("b"): 2.0, 77: 3.0})
    world.writer.delta({}, [item("b")])
    world.models.embedded.clear()
    assert world.keeper.refresh()
    assert world.models.embedded == [{item("a"), item("b")}, {item("b")}]
    assert (world.models.renewals, world.keeper.applied, world.keeper.sequence) == ([], 2, 2)
    world.writer.delta({item("c"): 1.0}, weight=5.0)
    assert world.keeper.refresh()
    assert world.models.renewals == [world.writer.dense]
    check(world)


def test_one_refresh_takes_all_there_is(world: World) -> None:
    started(world)
    for n in range(models.TURN + 6):
        world.writer.delta({1: float(n)})
    assert world.keeper.refresh()
    assert world.keeper.sequence == models.TURN + 6
    assert not world.keeper.refresh()


# ---- what is damaged, does not fit, or fails -----------------------------------------------------------


def test_a_damaged_version_is_refused_once_and_the_last_good_one_stays(world: World) -> None:
    good = started(world)
    bad = world.writer.full(2.0)
    world.damage(bad)
    for _ in range(3):
        assert not world.keeper.refresh()
    assert world.keeper.version == good
    assert "damaged" in world.keeper.refused[bad]
    assert world.models.builds == [good]
    best = world.writer.full(3.0)
    assert world.keeper.refresh()
    assert (world.keeper.version, world.keeper.refused) == (best, {})


def test_at_a_start_the_newest_good_one_is_found_behind_bad_ones(world: World) -> None:
    good, bad, other = world.writer.full(1.0), world.writer.full(2.0), world.writer.full(3.0)
    world.damage(bad)
    world.models.fails[other] = Incompatible("made for other features")
    assert world.keeper.refresh()
    assert world.keeper.version == good
    assert set(world.keeper.refused) == {bad, other}
    assert not world.keeper.refresh()
    assert world.models.builds == [other, good]


@pytest.mark.parametrize("error", [Incompatible("other features"), StoreError("damaged")])
def test_what_is_wrong_with_a_version_itself_is_refused_and_told(
    world: World, error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    good = started(world)
    bad = world.writer.full()
    world.models.fails[bad] = error
    assert not world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (good, None)
    assert str(error) in world.keeper.refused[bad]
    assert bad in caplog.text
    world.put("1", "still touched")
    assert world.contents() == world.expected()


def test_a_delta_that_does_not_fit_is_refused_and_a_later_snapshot_goes_past_it(world: World) -> None:
    started(world)
    world.writer.delta({1: 1.0})
    world.writer.delta({1: 2.0})
    world.models.fails["delta 2"] = Incompatible("rows of another width")
    assert world.keeper.refresh()
    assert world.keeper.sequence == 1
    assert list(world.keeper.refused.values()) == ["rows of another width"]
    world.writer.snapshot()
    assert world.keeper.refresh()
    assert world.keeper.refused == {}
    check(world)


def unreadable() -> StoreError:
    error = StoreError("dense.safetensors cannot be read")
    error.__cause__ = OSError("input/output error")
    return error


def tries(world: World, clock: list[float], error: Exception, count: Callable[[], int]) -> list[int]:
    """At which seconds of forty something is tried that fails with `error` all the time."""
    tried: list[int] = []
    before = count()
    for second in range(40):
        clock[0] = float(second)
        world.keeper.refresh()
        assert (world.keeper.failure, world.keeper.refused) == (error, {})
        if count() > before + len(tried):
            tried.append(second)
    return tried


PAUSES = [0, 2, 6, 14, 30]


@pytest.mark.parametrize(
    "error", [RuntimeError("no thread"), KeyError("k"), MemoryError("m"), OSError("away"), NotReady("y"), unreadable()]
)
def test_what_may_pass_is_told_and_tried_again_ever_less_often(
    world: World, error: Exception, clock: list[float]
) -> None:
    good = started(world)
    late = world.writer.full()
    world.models.fails[late] = error
    assert tries(world, clock, error, lambda: world.models.builds.count(late)) == PAUSES
    assert world.keeper.version == good
    world.put("1", "still touched")
    assert world.contents() == world.expected()
    world.models.fails.clear()
    clock[0] = 62.0
    assert world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (late, None)


def test_a_delta_that_fails_for_a_while_is_applied_in_the_end(world: World, clock: list[float]) -> None:
    started(world)
    world.writer.delta({1: 1.0})
    world.writer.delta({1: 2.0})
    world.models.fails["delta 1"] = MemoryError("m")
    for second in (0.0, 1.0):
        clock[0] = second
        assert not world.keeper.refresh()
    world.models.fails.clear()
    assert not world.keeper.refresh()  # not yet
    clock[0] = 2.0
    assert world.keeper.refresh()
    check(world)


def test_a_newer_version_overtakes_one_that_waits(world: World) -> None:
    stuck = world.writer.full()
    world.models.fails[stuck] = MemoryError("m")
    assert not world.keeper.refresh()
    assert isinstance(world.keeper.failure, MemoryError)
    best = world.writer.full()
    assert world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (best, None)


def test_what_waited_and_is_gone_is_no_failure_any_more(world: World, clock: list[float]) -> None:
    good = started(world)
    stuck = world.writer.full()
    world.models.fails[stuck] = MemoryError("m")
    world.keeper.refresh()
    (world.folder / "main" / stuck / "manifest.json").unlink()
    clock[0] = 5.0
    assert not world.keeper.refresh()
    assert (world.keeper.version, world.keeper.failure) == (good, None)


def test_refused_versions_that_are_gone_are_forgotten(world: World) -> None:
    bad = world.writer.full()
    world.models.fails[bad] = StoreError("x")
    world.keeper.refresh()
    assert bad in world.keeper.refused
    world.writer.full()
    world.keeper.refresh()
    world.store.keep("main", 1)
    world.keeper.refresh()
    assert world.keeper.refused == {}


def test_one_that_waited_and_turns_out_damaged_is_refused(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "RETRY_FIRST", 0.0)
    version = world.writer.full()
    for error in (OSError("away"), StoreError("damaged")):
        world.models.fails[version] = error
        assert not world.keeper.refresh()
    assert (world.keeper.refused, world.keeper.failure) == ({version: "damaged"}, None)


def test_a_version_that_cannot_take_what_it_missed_is_not_taken(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    good = started(world)
    bad = world.writer.full()
    touch = world.models.touch
    world.models.before_built = lambda: world.put("1", "meanwhile")

    def touching(model: Model, changed: Sequence[Entity], left: Sequence[int]) -> None:
        if model.sparse == f"{bad}+0":
            raise ValueError("no such row")
        touch(model, changed, left)

    monkeypatch.setattr(world.models, "touch", touching)
    assert not world.keeper.refresh()
    assert world.keeper.version == good
    assert "no such row" in str(world.keeper.failure)
    world.put("2", "on")
    assert world.contents() == world.expected()


# ---- several at once -----------------------------------------------------------------------------------


def race(world: World) -> None:
    """Versions come while entities come, change and go."""
    stop, writing = threading.Event(), threading.Lock()
    build = world.models.build

    def slowly(snapshot: Snapshot) -> Model:
        model = build(snapshot)
        time.sleep(0.02)  # what comes now is in nobody's catalogue scan
        with writing:
            world.put(f"late-{snapshot.manifest.version}", "nor is this")
        return model

    world.models.build = slowly  # type: ignore[method-assign]

    def changes() -> None:
        rng = np.random.default_rng(0)
        while not stop.is_set():
            name = str(rng.integers(20))
            with writing:  # one follower
                if rng.random() < 0.3:
                    world.drop(name)
                else:
                    world.put(name, "x" * int(rng.integers(1, 50)))

    thread = threading.Thread(target=changes)
    thread.start()
    try:
        for _ in range(8):
            world.writer.full()
            assert world.keeper.refresh()
    finally:
        stop.set()
        thread.join()


def test_no_change_is_missed_while_versions_are_built(world: World) -> None:
    race(world)
    assert len(world.models.builds) == 8
    assert world.contents() == world.expected()


class Forgets(ModelKeeper[Model]):
    """Touches the model in use, and not the one that is being built."""

    def entities_changed(self, changed: Sequence[Entity], left: Sequence[int]) -> None:
        if self._current is not None:
            self.models.touch(self._current, changed, left)


def test_the_race_would_catch_a_keeper_that_forgets(tmp_path: Path) -> None:
    world = World(tmp_path / "weights", Forgets)
    race(world)
    assert world.contents() != world.expected()


def test_two_refreshes_at_once_build_once(world: World) -> None:
    world.writer.full()
    world.models.before_built = lambda: time.sleep(0.05)
    threads = [threading.Thread(target=world.keeper.refresh) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(world.models.builds) == 1


@pytest.mark.parametrize(
    ("error", "told"), [(OSError(116, "stale file handle"), MainstemError), (RuntimeError("stale"), RuntimeError)]
)
def test_the_thread_outlives_what_goes_wrong(
    world: World, monkeypatch: pytest.MonkeyPatch, error: Exception, told: type[Exception]
) -> None:
    real = world.store.versions

    def away(line: str) -> list[str]:
        raise error

    monkeypatch.setattr(world.store, "versions", away)
    world.keeper.start(every=0.002)
    try:
        eventually(lambda: world.keeper.failure is not None)
        assert isinstance(world.keeper.failure, told)
        assert "stale" in str(world.keeper.failure)
        monkeypatch.setattr(world.store, "versions", real)
        eventually(lambda: world.keeper.failure is None)
        version = world.writer.full()
        eventually(lambda: world.keeper.version == version and world.keeper.failure is None)
    finally:
        world.keeper.stop()
