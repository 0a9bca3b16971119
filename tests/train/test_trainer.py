"""The run: its time split, what it says when there is too little, and that a kill in the middle changes nothing."""

import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, T0, Source, catalog_of, purchases, trainer

from mainstem import weights
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config, EntityTypeConfig, HeadConfig, ModelConfig, TrainConfig
from mainstem.schema.errors import Incompatible, NotReady
from mainstem.schema.time import DAY, MINUTE
from mainstem.train import Trainer, new_towers, restore
from mainstem.train.towers import TABLE
from mainstem.train.trainer import time_split
from mainstem.weights import Snapshot


def snapshot_of(folder: Path, line: str = "main") -> Snapshot:
    snapshots = weights.open(str(folder))
    version = snapshots.latest(line).version
    assert version is not None
    return snapshots.load(line, version, training=True)


def assert_equal(a: Snapshot, b: Snapshot) -> None:
    assert a.tensors.keys() == b.tensors.keys()
    for name, array in a.tensors.items():
        np.testing.assert_array_equal(array, b.tensors[name], err_msg=name)
    for name, array in a.tables[TABLE].items():
        np.testing.assert_array_equal(array, b.tables[TABLE][name], err_msg=name)
    assert a.training.keys() == b.training.keys()
    for name, array in a.training.items():
        np.testing.assert_array_equal(array, b.training[name], err_msg=name)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of an uninterrupted run."""
    folder = tmp_path_factory.mktemp("whole")
    trainer(folder).run(Source(purchases()))
    return folder


# ---- the split -------------------------------------------------------------------------------------


def test_a_long_log_is_split_as_configured() -> None:
    config = TrainConfig(validation="14d", ranking_span="42d")
    assert time_split(np.arange(365, dtype=np.int64) * DAY + DAY - 1, config) == ((365 - 56) * DAY, (365 - 14) * DAY)


@pytest.mark.parametrize("length", [1, 7, 10, 1000, MINUTE, 30 * DAY, 100 * DAY, 139 * DAY])
def test_a_short_log_is_split_in_proportion(length: int) -> None:
    times = np.append(T0 + np.arange(500) * length // 500, T0 + length - 1)
    start, cut = time_split(times, TrainConfig())
    assert start <= cut <= T0 + length
    if length >= 10:
        assert start - T0 >= length // 2 - 1
        assert T0 + length - cut == length // 10
        assert cut - start == min(length // 10 * 4, 42 * DAY)


def test_a_few_events_of_today_after_an_import_of_old_ones_do_not_empty_the_split() -> None:
    old = np.linspace(T0, T0 + 100 * DAY, 1000).astype(np.int64)
    times = np.append(old, T0 + 1000 * DAY + np.arange(3))
    start, cut = time_split(times, TrainConfig(validation="14d", ranking_span="42d"))
    assert ((times >= cut).mean(), ((times >= start) & (times < cut)).mean()) == pytest.approx((0.1, 0.4), abs=0.03)


def test_examples_are_asked_for_after_what_the_towers_learned(tmp_path: Path) -> None:
    source = Source(purchases(days=20))
    report = trainer(tmp_path).run(source)
    ((start, cut),) = source.asked
    assert (start, cut) == time_split(source.events.time, CONFIG.train)
    assert report.metrics["retrieval_recall@100"] == 1.0  # there are fewer than 100 items
    assert set(report.seconds) == {"towers", "replay", "ranking", "towers to the end"}


def test_towers_have_not_seen_the_time_of_the_examples(tmp_path: Path) -> None:
    """Change what happens after `start`: the towers that answer the replay's retrieval must stay the same."""
    seen = []
    events = purchases(days=20)
    start, _ = time_split(events.time, CONFIG.train)
    swapped = np.where(events.time >= start, np.roll(events.entity, 1), events.entity)
    changed = EventBatch(
        events.time, events.user, swapped, events.kind, events.value, events.session, events.place, events.offset,
        events.canvas, events.query, events.setting, events.kinds,
    )  # fmt: skip

    class Watching(Source):
        def examples(self, towers, *rest):  # type: ignore[no-untyped-def]
            seen.append(towers.entity_vectors(ITEM_KEYS))
            return super().examples(towers, *rest)

    for n, batch in enumerate((events, changed)):
        trainer(tmp_path / str(n)).run(Watching(batch))
    np.testing.assert_array_equal(*seen)
    assert not np.array_equal(events.entity, changed.entity)
    ends = [snapshot_of(tmp_path / str(n)).tables[TABLE] for n in (0, 1)]
    assert not np.array_equal(ends[0]["values"], ends[1]["values"])  # canary: they did differ


# ---- too little ------------------------------------------------------------------------------------


def test_too_little_says_what_is_missing(tmp_path: Path) -> None:
    run = trainer(tmp_path).run
    with pytest.raises(NotReady, match="no events of interest"):
        run(Source(EventBatch.of([])))
    with pytest.raises(NotReady, match=r"only \d+ visits from .* at least 20 requests"):
        run(Source(purchases(days=1)))
    events = purchases()

    class NoValidation(Source):
        def examples(self, *args):  # type: ignore[no-untyped-def]
            train, valid = super().examples(*args)
            return train, valid.groups(np.zeros(0, np.int64))

    with pytest.raises(NotReady, match="validate on"):
        run(NoValidation(events))
    assert weights.open(str(tmp_path)).latest("main").version is None


# ---- snapshots -------------------------------------------------------------------------------------


def test_a_restored_snapshot_answers_as_the_networks_in_memory_did(tmp_path: Path) -> None:
    made = {}

    class Keeping(Trainer):
        def publish(self, retrieval, ranker, *rest):  # type: ignore[no-untyped-def]
            made.update(towers=retrieval.towers, ranker=ranker.eval())
            return super().publish(retrieval, ranker, *rest)

    catalog = catalog_of()
    report = Keeping(CONFIG, catalog, weights.open(str(tmp_path))).run(Source(purchases()))
    snapshot = snapshot_of(tmp_path)
    assert snapshot.manifest.version == report.version
    assert snapshot.manifest.metrics["ranking_loss"] == min(report.ranking.validation)
    towers, ranker, wide = restore(snapshot, CONFIG, catalog)
    assert wide is None  # nothing is crossed
    np.testing.assert_array_equal(towers.entity_vectors(ITEM_KEYS), made["towers"].entity_vectors(ITEM_KEYS))
    x = torch.randn(50, 2)
    assert torch.equal(ranker(x), made["ranker"](x))
    # canary: untrained networks answer otherwise
    assert not np.array_equal(towers.entity_vectors(ITEM_KEYS), new_towers(CONFIG, catalog).entity_vectors(ITEM_KEYS))
    # and what was learned is right: near items have the same parity
    near = np.argsort(-towers.entity_vectors(ITEM_KEYS) @ towers.entity_vectors(ITEM_KEYS).T, axis=1)[:, : ITEMS // 2]
    assert (near % 2 == np.arange(ITEMS)[:, None] % 2).mean() > 0.95


@pytest.mark.parametrize(
    "changes",
    [
        {"model": ModelConfig(dim=8, hidden=[16])},
        {"model": ModelConfig(dim=16, hidden=[8])},
        {"model": ModelConfig(dim=16, hidden=[16, 16])},
        {"heads": {"rating": HeadConfig(event="rating")}},
        {"heads": {"purchase": HeadConfig(event="purchase"), "rating": HeadConfig(event="rating", type="value")}},
        {"entities": {"item": EntityTypeConfig(attributes={"parity": "category", "brand": "category"})}},
        {"entities": {"item": EntityTypeConfig()}},
    ],
)
def test_a_changed_configuration_is_incompatible_and_says_what_to_do(whole: Path, changes: dict[str, object]) -> None:
    config = Config.model_validate(CONFIG.model_dump() | changes)
    with pytest.raises(Incompatible, match="mainstem train"):
        restore(snapshot_of(whole), config, catalog_of())


def test_a_configuration_without_items_trains_on_the_types_it_has() -> None:
    kinds = {"film": EntityTypeConfig(attributes={"genre": "category", "year": "number"}), "user": EntityTypeConfig()}
    config = Config.model_validate(
        {"entities": {k: v.model_dump() for k, v in kinds.items()}, "canvases": {"home": {"entity_type": "film"}}}
    )
    assert new_towers(config, catalog_of()).attributes == ("genre",)


# ---- killed and resumed ----------------------------------------------------------------------------


class Killed(Exception):
    pass


@pytest.mark.parametrize("finished", [0, 1, 2, 3])
def test_a_run_killed_after_some_epochs_ends_exactly_as_one_that_was_not(
    tmp_path: Path, whole: Path, finished: int
) -> None:
    events = purchases()
    stages: list[str] = []

    def kill(stage: str, done: int, total: int) -> None:
        # in the middle of the next epoch, or, after the last one, in the replay
        if stage == "towers" and done > finished * total // 3 + 1:
            raise Killed

    def examples_fail() -> None:
        raise Killed

    with pytest.raises(Killed):
        trainer(tmp_path).run(Source(events, examples_fail), kill)
    assert weights.open(str(tmp_path)).latest("main").version is None
    torch.manual_seed(99)  # another process has other generators

    def note(stage: str, done: int, total: int) -> None:
        if stage == "towers":
            stages.append(stage)
            assert done > finished * total // 3  # finished epochs are not done again

    trainer(tmp_path).run(Source(events), note)
    assert bool(stages) == (finished < 3)
    assert_equal(snapshot_of(tmp_path), snapshot_of(whole))


def test_canary_a_run_on_other_events_or_settings_does_not_resume(tmp_path: Path, whole: Path) -> None:
    def steps(run: Trainer, source: Source) -> int:
        count = []
        run.run(source, lambda stage, done, total: count.append(1) if stage == "towers" else None)
        return len(count)

    events = purchases()
    first = steps(trainer(tmp_path), Source(events))
    assert first > 0
    assert steps(trainer(tmp_path), Source(events)) == 0
    assert steps(trainer(tmp_path), Source(events.take(slice(0, len(events) - 10)))) > 0
    other = CONFIG.model_copy(update={"train": CONFIG.train.model_copy(update={"seed": 5})})
    assert steps(trainer(tmp_path, other), Source(events)) > 0
    with pytest.raises(AssertionError):
        assert_equal(snapshot_of(tmp_path), snapshot_of(whole))


@pytest.mark.slow
def test_a_process_killed_in_the_middle_of_an_epoch_ends_as_if_it_had_not_been(tmp_path: Path, whole: Path) -> None:
    script = [sys.executable, str(Path(__file__).with_name("training_process.py")), str(tmp_path)]
    died = subprocess.run([*script, "die"], check=False, capture_output=True, timeout=300)
    assert died.returncode == -signal.SIGKILL, died.stderr.decode()
    assert weights.open(str(tmp_path)).latest("main").version is None
    assert weights.open(str(tmp_path)).latest("main-training").version is not None
    done = subprocess.run([*script, "live"], check=True, capture_output=True, timeout=300)
    assert done.stdout.decode().strip() == snapshot_of(tmp_path).manifest.version
    assert_equal(snapshot_of(tmp_path), snapshot_of(whole))
