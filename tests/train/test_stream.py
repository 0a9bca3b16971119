"""The trainer beside the server: what it publishes, what a kill changes, what the guard keeps back."""

from __future__ import annotations

import threading
from pathlib import Path

import numpy as np
import pytest
import torch
from stream_world import (
    TABLE,
    assert_equal,
    contents,
    drain,
    entities,
    item_keys,
    served,
    user_key,
    world_of,
)

from mainstem import weights
from mainstem.schema.errors import NotReady
from mainstem.schema.records import Erase, Event
from mainstem.train.stream import GATHER
from mainstem.weights.checkpoints import flatten, unflatten


def test_what_is_served_is_what_was_learned(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    before = served(world)[0]
    online = world.trainer()
    drain(online)
    online.publish()
    rows, dense, reader = served(world)
    assert reader.place == online.place
    assert online.position == world.log.end()
    table = online.learner.towers.table
    assert len(table) == len(rows)
    keys = np.array(sorted(rows), np.uint64)
    np.testing.assert_array_equal(table.read(keys), np.array([rows[key] for key in keys.tolist()]))
    for name, tensor in online.learner.towers.module.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), dense[f"towers.{name}"])
    assert any(not np.array_equal(rows[key], before[key]) for key in before)  # canary: something was learned
    for name, tensor in online.learner.ranking.ranker.state_dict().items():
        np.testing.assert_array_equal(tensor.numpy(), dense[f"ranker.{name}"])
    assert online.status.slates > 20
    started = world.trainer(world_of(base, tmp_path, "fresh").store).learner.ranking.ranker
    assert not torch.equal(started.wide.weight, online.learner.ranking.ranker.wide.weight)  # canary: it was learned
    assert not torch.equal(started.shift, online.learner.ranking.ranker.shift)


def test_records_that_come_thinly_are_gathered(base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Full batches follow each other at once; then each wait is within its bound, and what came in it is one step."""
    world = world_of(base, tmp_path, publish_every="20ms")
    online, sizes, waits = world.trainer(), list[int](), list[float]()
    step, last = online.step, world.rest[-1].time
    new = [Event(event_id=f"n{i}", time=last + i, user="u1", kind="purchase", entity="3") for i in range(3)]

    def counted() -> int:
        sizes.append(step())
        if len(sizes) > 100:  # a trainer that does not wait would go on for ever
            stop.set()
        return sizes[-1]

    class Stop(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            assert timeout is not None
            waits.append(timeout)
            for event in new if len(waits) == 1 else []:
                world.log.append([event])
            if len(waits) == 2:
                self.set()
            return self.is_set()

    monkeypatch.setattr(online, "step", counted)
    behind = world.log.end().offset() - online.position.offset()
    stop = Stop()
    online.run(stop)
    assert [size for size in sizes if size] == [32] * (behind // 32) + [behind % 32, 3]
    assert all(0 <= seconds <= GATHER for seconds in waits)
    assert online.position == world.log.end()
    assert served(world)[2].place == online.place, "all of it was published"


def test_new_items_are_learned(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    new = [
        Event(event_id=f"n{i}", time=world.rest[-1].time + i, user=f"u{i % 2}", kind="purchase", entity=str(60 + i % 2))
        for i in range(200)
    ]
    world.log.append([*entities(62, first=60), *new])
    online = world.trainer()
    drain(online)
    vectors = online.learner.towers.entity_vectors(item_keys(62))
    even, odd = vectors[:60:2].mean(axis=0), vectors[1:60:2].mean(axis=0)
    assert vectors[60] @ even > vectors[60] @ odd
    assert vectors[61] @ odd > vectors[61] @ even
    assert online.learner.towers.table.find(item_keys(62)[60:]).min() >= 0


@pytest.mark.parametrize("killed_after", [1, 4, 10])
def test_a_killed_trainer_ends_where_an_unkilled_one_does(base: Path, tmp_path: Path, killed_after: int) -> None:
    whole = world_of(base, tmp_path, "whole")
    unkilled = whole.trainer()
    drain(unkilled, publish_every=3)
    unkilled.publish()

    world = world_of(base, tmp_path, "killed")
    drain(world.trainer(), publish_every=3, most=killed_after)  # dropped without a word
    again = world.trainer()
    assert again.place.sequence == killed_after // 3
    done = killed_after // 3 * 3
    steps = 0
    while again.step():
        steps += 1
        if (done + steps) % 3 == 0:
            again.publish()
    again.publish()
    assert again.position == unkilled.position
    assert_equal(contents(again), contents(unkilled))
    rows, _, reader = served(world)
    assert reader.place is not None
    assert reader.place.sequence == again.place.sequence
    for key, row in served(whole)[0].items():
        np.testing.assert_array_equal(row, rows[key])
    again.learner.rng.random()  # canary: a difference is seen
    again.learner.population.add(item_keys()[:1])
    with pytest.raises(AssertionError):
        assert_equal(contents(again), contents(unkilled))


def test_a_snapshot_in_between_changes_nothing(base: Path, tmp_path: Path) -> None:
    whole = world_of(base, tmp_path, "whole")
    unkilled = whole.trainer()
    drain(unkilled, publish_every=2)
    unkilled.publish()

    world = world_of(base, tmp_path, "snapped")
    first = world.trainer()
    drain(first, publish_every=2, most=4)
    first.snapshot(wait=True)
    drain(first, publish_every=2, most=3)
    again = world.trainer()
    newest = world.store.latest("main").version
    assert newest is not None
    assert world.store.manifest("main", newest).sequence == 2
    assert again.place.sequence == 3
    while again.step():
        if again.position.offset() and len(again._window.cuts) == 2:
            again.publish()
    again.publish()
    assert_equal(contents(again), contents(unkilled))


def test_an_erased_user_leaves_the_tables_of_trainer_and_server(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    user = np.array([user_key(3)], np.uint64)
    world.log.append([Erase(record_id="x", time=world.rest[-1].time, user="u3")])
    online = world.trainer()
    drain(online)
    online.publish()
    assert online.learner.towers.table.find(user).tolist() == [-1]
    assert int(user[0]) not in served(world)[0]
    assert int(user[0]) not in online.learner.histories.state()["user"].tolist()
    assert user_key(4) in served(world)[0]  # canary


def test_a_trainer_that_learns_again_without_the_erased_gives_serving_a_new_base(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    new = [
        Event(event_id=f"n{i}", time=world.rest[-1].time + i, user="newcomer", kind="purchase", entity="60")
        for i in range(4)
    ]
    world.log.append([*entities(61, first=60), *new])
    first = world.trainer()
    drain(first)
    first.publish()
    rows = served(world)[0]
    assert int(item_keys(61)[60]) in rows  # canary: only the newcomer's events made this row
    assert world.trainer().place == first.place  # and without an erasure a restart makes no base
    world.log.append([Erase(record_id="x", time=world.rest[-1].time + 9, user="newcomer")])
    again = world.trainer()
    assert again.place.base != first.place.base
    drain(again)
    again.publish()
    rows, _, reader = served(world)
    assert reader.place == again.place
    table = again.learner.towers.table
    assert sorted(rows) == sorted(int(key) for keys, _ in table.items() for key in keys)
    assert int(item_keys(61)[60]) not in rows


def test_after_a_rollback_the_trainer_goes_on_from_there(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    first = world.store.latest("main").version
    assert first is not None
    online = world.trainer()
    drain(online, publish_every=2, most=6)
    made = world.store.rollback("main", first, online.position)
    online.step()
    assert not online.publish()  # another base is newest
    assert online.place.base == made
    drain(online)
    assert online.publish()
    assert served(world)[2].place == online.place


def test_a_rollback_does_not_bring_the_erased_back(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    first = world.store.latest("main").version
    assert first is not None
    key = user_key(3)
    assert key in world.store.load("main", first).tables[TABLE]["keys"]  # canary: it was there
    online = world.trainer()
    drain(online)
    world.log.append([Erase(record_id="x", time=world.rest[-1].time, user="u3")])
    drain(online)
    online.publish()
    world.store.rollback("main", first, online.position)
    world.log.append([Event(event_id="z", time=world.rest[-1].time, user="u4", kind="purchase", entity="1")])
    again = world.trainer()
    drain(again)
    assert again.publish()
    assert key not in served(world)[0]
    assert user_key(4) in served(world)[0]


def test_a_rollback_to_a_rollback_does_not_bring_the_erased_back(base: Path, tmp_path: Path) -> None:
    """The second one stands where the first one was made, and its rows are older than that."""
    world = world_of(base, tmp_path)
    first = world.store.latest("main").version
    assert first is not None
    online = world.trainer()
    world.log.append([Erase(record_id="x", time=world.rest[-1].time, user="u3")])
    drain(online)
    online.publish()
    second = world.store.rollback("main", first, online.position)
    world.store.rollback("main", second, online.position)
    world.log.append([Event(event_id="z", time=world.rest[-1].time, user="u4", kind="purchase", entity="1")])
    again = world.trainer()
    drain(again)
    assert again.publish()
    assert user_key(3) not in served(world)[0]
    assert user_key(4) in served(world)[0]


def test_far_behind_the_oldest_are_only_noted_and_counted(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path, max_lag=100)
    online = world.trainer()
    drain(online)
    online.publish()
    status = online.status
    assert 0 < status.only_noted < status.records
    assert status.records - status.only_noted >= 100
    assert online.position == world.log.end()
    again = world.trainer()
    assert_equal(contents(again), contents(online))


def test_without_a_model_or_with_another_configuration_it_says_so(base: Path, tmp_path: Path) -> None:
    world = world_of(base, tmp_path)
    with pytest.raises(NotReady, match="no trained model"):
        world.trainer(weights.open(str(tmp_path / "empty")))
    version = world.store.latest("main").version
    assert version is not None
    snapshot = world.store.load("main", version, training=True)
    other = weights.SnapshotMeta(fingerprint="other", extras=snapshot.manifest.extras)
    world.store.save("main", snapshot.tensors, snapshot.tables, other, snapshot.training)
    with pytest.raises(NotReady, match="trained with other features"):
        world.trainer()


@pytest.mark.parametrize(
    "lacking",
    [("learner", "labels"), ("learner", "ranking"), ("learner", "ranking", "curvature"), ("guard", "ranking")],
)
def test_a_snapshot_of_an_older_release_says_what_to_do(base: Path, tmp_path: Path, lacking: tuple[str, ...]) -> None:
    world = world_of(base, tmp_path)
    version = world.store.latest("main").version
    assert version is not None
    snapshot = world.store.load("main", version, training=True)
    state = unflatten(snapshot.training, snapshot.manifest.extras["state"])
    part = state
    for name in lacking[:-1]:
        part = part[name]
    del part[lacking[-1]]
    arrays, tree = flatten(state)
    extras = {**snapshot.manifest.extras, "state": tree}
    meta = weights.SnapshotMeta(fingerprint="checkerboard", position=snapshot.position, extras=extras)
    old = world.store.save("main", snapshot.tensors, snapshot.tables, meta, arrays)
    with pytest.raises(NotReady, match=rf"{old} lacks '{lacking[-1]}'.*run `mainstem train`"):
        world.trainer()
