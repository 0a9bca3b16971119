"""The real model in use: what deltas make of it is what a snapshot of the same trainer would have given."""

from __future__ import annotations

import dataclasses
import shutil
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import torch
from checkerboard import ITEM_KEYS, ITEMS, catalog_of
from stream_world import World, drain, entities, online_config, user_key

from mainstem import features, live, weights
from mainstem.live import LiveModel, LiveModels
from mainstem.models import numpy_scorer
from mainstem.rank.score import RankInputs
from mainstem.refresh import ModelKeeper
from mainstem.schema.batch import EventBatch
from mainstem.schema.errors import Incompatible
from mainstem.schema.ids import Keys
from mainstem.schema.position import START, Position
from mainstem.schema.protocols import Catalog, FeatureStore
from mainstem.schema.records import Context, Erase, Event
from mainstem.train import OnlineTrainer
from mainstem.train.towers import TABLE
from mainstem.weights import Delta, LineReader, Snapshot, SnapshotMeta, Snapshots, TableDelta


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a trained base of serving's fingerprint, to be copied."""
    folder = tmp_path_factory.mktemp("base") / "weights"
    world = World(folder, online_config())
    trained = load(world.store)
    with closing(features.open("memory://", world.config, catalog_of())) as state:
        made_for = live.fingerprint(world.config, state)
    meta = SnapshotMeta(fingerprint=made_for, position=trained.position, extras=trained.manifest.extras)
    world.store.save("main", trained.tensors, trained.tables, meta, trained.training)
    world.store.keep("main", 1)
    return folder


def load(store: Snapshots, version: str | None = None) -> Snapshot:
    version = version or store.versions("main")[-1]
    return store.load("main", version, training=True)


class Serving:
    """A server's side of the line: catalogue, state, keeper. The trainer's side is `world`."""

    def __init__(self, base: Path, folder: Path, **online: Any) -> None:
        shutil.copytree(base, folder)
        self.world = World(folder, online_config(**online))
        self.catalog: Catalog = catalog_of()
        self.state: FeatureStore = features.open("memory://", self.world.config, self.catalog)
        events = self.world.events
        self.state.write(EventBatch.of(events, range(len(events))), Position.at(len(events)))
        self.models = LiveModels(self.world.config, self.catalog, self.state)
        self.keeper = ModelKeeper(LineReader(weights.open(str(folder))), self.models)

    def trainer(self) -> OnlineTrainer:
        made_for = live.fingerprint(self.world.config, self.state)
        return OnlineTrainer(self.world.config, self.world.log, self.world.store, self.world.new_learner, made_for)

    def user_vectors(self, model: LiveModel) -> np.ndarray:
        found = []
        for user in range(30):
            context = Context(user=f"u{user}", time=self.world.events[-1].time + 1)
            with self.state.view(context) as view:
                found.append(model.answers.request_vector(context, view, "main"))
        return np.stack(found)

    def assert_same(self, one: LiveModel, other: LiveModel) -> None:
        """Rows, versions, entities, users: all that requests are answered with."""
        for a, b in zip(rows_of(one), rows_of(other), strict=True):
            np.testing.assert_array_equal(a, b)
        assert one.answers.sparse_version == other.answers.sparse_version
        keys = self.catalog.keys()
        keys = keys[keys != 0]
        assert len(one.answers.index) == len(other.answers.index) == len(keys)
        # equal up to the order of sums, which may go with the size of a batch
        np.testing.assert_allclose(vectors(one, keys), vectors(other, keys), atol=2e-6)
        np.testing.assert_allclose(self.user_vectors(one), self.user_vectors(other), atol=2e-6)


def rows_of(model: LiveModel) -> tuple[Keys, np.ndarray]:
    state = model.towers.table.state()
    return state["keys"], state["values"]


def vectors(model: LiveModel, keys: Keys) -> np.ndarray:
    return model.answers.index.vectors(keys)


@pytest.fixture
def serving(base: Path, tmp_path: Path) -> Iterator[Serving]:
    made = Serving(base, tmp_path / "weights")
    assert made.keeper.refresh()
    yield made
    made.state.close()


def delta_of(
    model: LiveModel,
    rows: dict[int, float] | None = None,
    deleted: tuple[int, ...] = (),
    dense: dict[str, Any] | None = None,
    sequence: int = 1,
) -> Delta:
    """The next delta, rows of one number each."""
    rows, dim = rows or {}, model.towers.table.dim
    values = np.array([[value] * dim for value in rows.values()], np.float32).reshape(-1, dim)
    change = TableDelta(np.array(list(rows), np.uint64), values, np.array(deleted, np.uint64))
    return Delta(
        line="main", base="v-" + "0" * 32, sequence=sequence, previous="0" * 64, position=START, tables={TABLE: change},
        dense_version=f"dense {sequence}" if dense else model.answers.version, dense=dense,
    )  # fmt: skip


def networks(model: LiveModel, shift: float = 0.0) -> dict[str, Any]:
    parts = {"towers": model.towers.module, "ranker": model.ranker}
    return {
        f"{part}.{name}": tensor.numpy() + np.float32(shift)
        for part, network in parts.items()
        for name, tensor in network.state_dict().items()
    }


# ---- deltas and snapshots lead to the same -----------------------------------------------------------


def go_on(serving: Serving, online: OnlineTrainer) -> None:
    """Learn to the end of the log; the keeper looks now and then, also over a snapshot and a rollback."""
    keeper, first = serving.keeper, serving.world.store.versions("main")[0]
    drain(online, publish_every=2, most=4)
    keeper.refresh()
    drain(online, publish_every=1, most=3)
    online.snapshot(wait=True)
    keeper.refresh()
    serving.world.store.rollback("main", first, online.position)
    online.step()
    assert not online.publish()  # it starts again from the rolled back
    drain(online, publish_every=3, most=5)
    keeper.refresh()
    drain(online, publish_every=2)
    online.step()
    online.publish()
    online.snapshot(wait=True)


def test_the_model_in_use_is_as_one_built_at_once(serving: Serving) -> None:
    online = serving.trainer()
    start = serving.models.build(load(serving.world.store))
    go_on(serving, online)
    assert serving.keeper.refresh()
    built = serving.models.build(load(serving.world.store))
    assert serving.keeper.applied > 5
    assert serving.keeper.reader.place == online.place
    serving.assert_same(serving.keeper.current(), built)
    assert serving.keeper.current().answers.version == online.dense_version
    with pytest.raises(AssertionError):  # canary: something was learned
        serving.assert_same(dataclasses.replace(start, answers=built.answers), built)
    with pytest.raises(AssertionError):
        serving.assert_same(dataclasses.replace(built, answers=start.answers), built)


def test_between_dense_parts_it_is_the_old_networks_over_the_new_rows(base: Path, tmp_path: Path) -> None:
    serving = Serving(base, tmp_path / "weights", dense_every="30d")
    serving.keeper.refresh()
    first = load(serving.world.store)
    before = serving.keeper.current()
    old, old_keys = vectors(before, ITEM_KEYS), before.towers.table.read(ITEM_KEYS)
    online = serving.trainer()
    drain(online, most=6)
    online.publish()
    online.snapshot(wait=True)
    serving.keeper.refresh()
    now = serving.keeper.current()
    assert now.answers.version == first.manifest.dense_version
    assert serving.keeper.applied > 0
    built = serving.models.build(msgspec.structs.replace(load(serving.world.store), tensors=first.tensors))
    changed = (now.towers.table.read(ITEM_KEYS) != old_keys).any(axis=1)
    assert changed.any()
    np.testing.assert_allclose(vectors(now, ITEM_KEYS)[changed], vectors(built, ITEM_KEYS)[changed], atol=2e-6)
    np.testing.assert_array_equal(vectors(now, ITEM_KEYS)[~changed], old[~changed])
    np.testing.assert_allclose(serving.user_vectors(now), serving.user_vectors(built), atol=2e-6)


def test_an_attribute_row_shows_with_the_next_dense_part(serving: Serving) -> None:
    """Law 8: only entities whose own rows changed are embedded anew at once."""
    models, model = serving.models, serving.keeper.current()
    old = vectors(model, ITEM_KEYS)
    parity = int(serving.catalog.codes("parity", serving.catalog.rows(ITEM_KEYS))[0])
    own = int(ITEM_KEYS[7])
    delta = delta_of(model, {parity: 3.0, own: -2.0, user_key(3): 1.0})
    model, touched = models.apply(model, delta)
    models.embed(model, touched)
    assert touched.tolist() == [own]
    moved = (vectors(model, ITEM_KEYS) != old).any(axis=1)
    assert np.flatnonzero(moved).tolist() == [7]
    fresh = model.answers.embed(ITEM_KEYS)
    assert not np.allclose(fresh[0], old[0], atol=1e-3)  # it does matter
    renewed = models.renew(model, delta_of(model, dense=networks(model), sequence=2))
    np.testing.assert_allclose(vectors(renewed, ITEM_KEYS), fresh, atol=2e-6)
    np.testing.assert_allclose(vectors(model, ITEM_KEYS)[0], old[0])  # the one in use stays as it is
    assert renewed.answers.index.version == renewed.answers.version == "dense 2"


def test_a_deleted_row_of_an_entity_leaves_what_its_attributes_say(serving: Serving) -> None:
    models, model = serving.models, serving.keeper.current()
    gone, unknown = int(ITEM_KEYS[4]), 12345
    model, touched = models.apply(model, delta_of(model, {unknown: 1.0}, (gone, user_key(2))))
    models.embed(model, touched)
    assert touched.tolist() == [gone]
    assert model.towers.table.find(np.array([gone, user_key(2)], np.uint64)).tolist() == [-1, -1]
    parity = serving.catalog.codes("parity", serving.catalog.rows(ITEM_KEYS))[4:5]
    row = torch.from_numpy(model.towers.table.read(parity))
    alone = model.towers.module.entity(row)  # these entities have no text
    np.testing.assert_allclose(vectors(model, ITEM_KEYS[4:5]), alone.detach().numpy(), atol=2e-6)


def test_an_erased_user_leaves_the_model_in_use(serving: Serving) -> None:
    key = np.array([user_key(3)], np.uint64)
    table = serving.keeper.current().towers.table
    assert table.find(key)[0] >= 0
    serving.world.log.append([Erase(record_id="x", time=serving.world.rest[-1].time, user="u3")])
    online = serving.trainer()
    drain(online)
    online.publish()
    serving.keeper.refresh()
    assert serving.keeper.current().towers.table is table  # by deltas alone
    assert table.find(key)[0] == -1
    assert table.find(np.array([user_key(4)], np.uint64))[0] >= 0


def test_new_items_learn_under_the_model_in_use(serving: Serving) -> None:
    """Of items without any attribute, bought by one half of the users each."""
    new = [
        Event(event_id=f"n{i}", time=serving.world.rest[-1].time + i, user=f"u{i % 2}", kind="purchase",
              entity=str(ITEMS + i % 2))
        for i in range(200)
    ]  # fmt: skip
    made = [msgspec.structs.replace(record, attributes={}) for record in entities(ITEMS + 2, first=ITEMS)]
    serving.world.log.append([*made, *new])
    changed = serving.catalog.write(made, Position.at(1))  # type: ignore[attr-defined]
    serving.keeper.entities_changed(changed, [])
    keys = np.array([key for key in serving.catalog.keys().tolist() if key and key not in ITEM_KEYS], np.uint64)
    online = serving.trainer()
    before = leaning(serving.keeper.current(), keys)
    drain(online)
    online.publish()
    serving.keeper.refresh()
    after = leaning(serving.keeper.current(), keys)
    assert before[0] == before[1]
    assert after[0] > before[0] + 0.1
    assert after[1] < before[1] - 0.1


def leaning(model: LiveModel, keys: Keys) -> np.ndarray:
    """How much nearer each is to the even items than to the odd ones."""
    items = vectors(model, ITEM_KEYS)
    return vectors(model, keys) @ (items[::2].mean(axis=0) - items[1::2].mean(axis=0))


# ---- what does not fit ---------------------------------------------------------------------------------


def test_a_snapshot_of_other_features_is_refused_and_the_one_in_use_stays(serving: Serving) -> None:
    snapshot = load(serving.world.store)
    other = SnapshotMeta(fingerprint="other", extras=snapshot.manifest.extras)
    version = serving.world.store.save("main", snapshot.tensors, snapshot.tables, other, snapshot.training)
    before = serving.keeper.current()
    assert not serving.keeper.refresh()
    assert "mainstem train" in serving.keeper.refused[version]
    assert serving.keeper.current() is before


def wider(model: LiveModel) -> Delta:
    wide = TableDelta(ITEM_KEYS[:1], np.ones((1, model.towers.table.dim + 1), np.float32), ITEM_KEYS[1:2])
    return dataclasses.replace(delta_of(model), tables={TABLE: wide})


def another_table(model: LiveModel) -> Delta:
    delta = delta_of(model, {int(ITEM_KEYS[0]): 1.0}, (int(ITEM_KEYS[1]),))
    return dataclasses.replace(delta, tables={TABLE: delta.tables[TABLE], "other": delta.tables[TABLE]})


@pytest.mark.parametrize("unfit", [wider, another_table])
def test_a_delta_that_does_not_fit_changes_nothing(serving: Serving, unfit: Callable[[LiveModel], Delta]) -> None:
    model = serving.keeper.current()
    keys, values = rows_of(model)
    with pytest.raises(Incompatible, match="mainstem train"):
        serving.models.apply(model, unfit(model))
    for now, before in zip(rows_of(model), (keys, values), strict=True):
        np.testing.assert_array_equal(now, before)


def lacking(dense: dict[str, Any]) -> dict[str, Any]:
    return dict(list(dense.items())[1:])


def without_ranking(dense: dict[str, Any]) -> dict[str, Any]:
    return {name: array for name, array in dense.items() if not name.startswith("ranker.")}


def reshaped(dense: dict[str, Any]) -> dict[str, Any]:
    return {name: array.reshape(-1, 1) for name, array in dense.items()}


@pytest.mark.parametrize("spoil", [lacking, without_ranking, reshaped])
def test_a_dense_part_that_does_not_fit_is_said_to(
    serving: Serving, spoil: Callable[[dict[str, Any]], dict[str, Any]]
) -> None:
    model = serving.keeper.current()
    before = vectors(model, ITEM_KEYS)
    with pytest.raises(Incompatible, match="does not fit"):
        serving.models.renew(model, delta_of(model, dense=spoil(networks(model))))
    np.testing.assert_array_equal(model.answers.embed(ITEM_KEYS), before)


# ---- while others read -----------------------------------------------------------------------------------


def watched(look: Callable[[], bool], work: Callable[[], None]) -> int:
    """How often `look`, asked all the while by two threads that `work` is done in a third, said no."""
    stop, wrong = threading.Event(), [0, 0]

    def watch(place: int) -> None:
        while not stop.is_set():
            wrong[place] += not look()

    threads = [threading.Thread(target=watch, args=(place,)) for place in (0, 1)]
    for thread in threads:
        thread.start()
    try:
        work()
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    return sum(wrong)


class InHalves(LiveModels):
    """Writes one half of each row before the other."""

    def apply(self, model: LiveModel, delta: Delta) -> tuple[LiveModel, Keys]:
        found = delta.tables[TABLE]
        half = model.towers.table.read(found.keys)
        half[:, : half.shape[1] // 2] = found.values[:, : half.shape[1] // 2]
        model.towers.table.write(found.keys, half)
        threading.Event().wait(0.001)
        return super().apply(model, delta)


@pytest.mark.parametrize("kind", [LiveModels, InHalves])
def test_rows_are_never_torn_for_readers(serving: Serving, kind: type[LiveModels]) -> None:
    """Rows of one number each, written, deleted and made again; more of them come all the time."""
    models = kind(serving.world.config, serving.catalog, serving.state)
    keys = np.arange(1, 201, dtype=np.uint64)
    model, _ = models.apply(
        serving.keeper.current(), delta_of(serving.keeper.current(), dict.fromkeys(range(1, 201), 1.0))
    )
    table = model.towers.table

    def whole() -> bool:
        found = table.read(keys)
        return bool((found == found[:, :1]).all())

    def work() -> None:
        for n in range(2, 150):
            deleted = tuple(range(1, 201, 7)) if n % 2 else ()
            rows = {key: float(n) for key in range(1, 201) if key not in deleted}
            models.apply(model, delta_of(model, rows | {1_000 * n + k: 1.0 for k in range(50)}, deleted))

    assert bool(watched(whole, work)) is (kind is InHalves)


class InPlace(LiveModels):
    """Loads the new networks into the ones in use, then embeds anew."""

    def renew(self, model: LiveModel, delta: Delta) -> LiveModel:
        renewed = super().renew(model, delta)
        model.towers.module.load_state_dict(renewed.towers.module.state_dict())
        return renewed


@pytest.mark.parametrize("kind", [LiveModels, InPlace])
def test_networks_and_index_swap_together(serving: Serving, kind: type[LiveModels]) -> None:
    serving.keeper.models = kind(serving.world.config, serving.catalog, serving.state)
    store, keeper, some = serving.world.store, serving.keeper, ITEM_KEYS[:2]
    shapes = networks(keeper.current())

    def fits() -> bool:
        answers = keeper.current().answers
        same = np.allclose(answers.embed(some), answers.index.vectors(some), atol=1e-5)
        return same and answers.version == answers.index.version

    def work() -> None:
        for n in range(25):
            place = store.place("main")
            assert place is not None
            delta = delta_of(keeper.current(), {int(ITEM_KEYS[9]): float(n)}, dense=shifted(shapes, 0.2 * (n % 5)))
            store.publish("main", following(delta, place))
            keeper.refresh()

    assert bool(watched(fits, work)) is (kind is InPlace)
    assert keeper.failure is None
    assert keeper.applied == 25


def shifted(dense: dict[str, Any], shift: float) -> dict[str, Any]:
    return {
        name: array + np.float32(shift) * np.arange(array.size).reshape(array.shape) % 3
        for name, array in dense.items()
    }


def following(delta: Delta, place: Any) -> Delta:
    sequence = place.sequence + 1
    return dataclasses.replace(
        delta, base=place.base, sequence=sequence, previous=place.sha256, dense_version=f"{place.base}+{sequence}"
    )


def test_a_renewed_model_is_called_as_the_one_it_follows_on(serving: Serving) -> None:
    models, model = serving.models, serving.keeper.current()
    delta = delta_of(model, dense=networks(model, 0.1))
    renewed = models.renew(model, delta)
    later, _ = models.apply(model, delta_of(model, {int(ITEM_KEYS[0]): 5.0}, sequence=9))
    taken = models.take_over(renewed, later)
    assert taken.answers.sparse_version == later.answers.sparse_version != renewed.answers.sparse_version
    assert taken.answers.version == taken.answers.index.version == delta.dense_version
    assert taken.towers.table is later.towers.table
    x = np.array([[-0.3, 1.0]], np.float32)
    seen = [numpy_scorer(each.ranker).logits(x) for each in (model, later, taken)]
    np.testing.assert_array_equal(seen[0], seen[1])
    assert not np.allclose(seen[0], seen[2])  # the ranking network went along
    np.testing.assert_array_equal(taken.answers.scores(RankInputs(x, ITEM_KEYS[:1])), numpy_scorer(taken.ranker)(x))


def test_a_renewal_draws_no_random_numbers(serving: Serving) -> None:
    """A trainer in the same process must learn the same, whether or not somebody serves beside it."""
    model = serving.keeper.current()
    before = torch.get_rng_state()
    serving.models.renew(model, delta_of(model, dense=networks(model)))
    assert torch.equal(torch.get_rng_state(), before)
