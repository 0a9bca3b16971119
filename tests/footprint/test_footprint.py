"""The formula of what all state takes, held against the stores themselves."""

from __future__ import annotations

from contextlib import closing
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mainstem import catalog as catalogs
from mainstem import features
from mainstem.features.popularity import Ring
from mainstem.footprint import COPIES, Shape, footprint
from mainstem.index import Neighbourhood
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import Config
from mainstem.schema.position import START
from mainstem.schema.time import DAY
from mainstem.train import new_towers
from mainstem.train.histories import Histories

CONFIG = Config.model_validate({"entities": {"item": {"attributes": {"category": "category"}}}})
HAVING = CONFIG.model_copy(update={"model": CONFIG.model.model_copy(update={"user_rows": True})})
"""Where users have rows."""
USERS, ITEMS, EVENTS = 20_000, 4_000, 6
SHAPE = Shape(users=USERS, items=ITEMS, events=EVENTS, distinct=5.98, session=2)


def batch(rng: np.random.Generator) -> EventBatch:
    """Six events for each user in three sessions, all over the catalogue."""
    n = USERS * EVENTS
    user = np.repeat(np.arange(USERS, dtype=np.uint64), EVENTS)
    session = np.arange(n, dtype=np.uint64) // np.uint64(2)
    keys = rng.integers(1, 2**63, USERS + ITEMS, np.uint64)
    session = rng.integers(1, 2**63, n // 2, np.uint64)[session]
    order = rng.permutation(n // 2)
    rows = (2 * order[:, None] + np.arange(2)).ravel()
    return EventBatch(
        time=1_700_000_000_000 + np.arange(n) * 1_000, user=keys[user][rows], session=session[rows],
        entity=keys[USERS:][rng.integers(0, ITEMS, n)], kind=np.zeros(n, np.int16), value=np.ones(n),
        place=np.zeros(n, np.uint64), offset=np.full(n, -1), canvas=np.zeros(n, np.uint64),
        query=np.zeros(n, np.uint64), setting=np.zeros(n, np.uint64), kinds=("purchase",),
    )  # fmt: skip


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, int]:
    """Bytes of pages by table, written in commits of few events."""
    folder, events = tmp_path_factory.mktemp("state"), batch(np.random.default_rng(0))
    with (
        closing(catalogs.open("memory://", entities=CONFIG.entities)) as catalog,
        closing(features.open(f"lmdb://{folder}", CONFIG, catalog)) as store,
    ):
        for start in range(0, len(events), 10_000):
            store.write(events.take(slice(start, start + 10_000)), START)
        return {**store.nbytes(), "file": (Path(folder) / "data.mdb").stat().st_size}


def test_pages_and_file_of_the_feature_state(pages: dict[str, int]) -> None:
    """Without copies the pages, with them the file. 60,000 sessions of two give 4,000 items 30 neighbours each."""
    few, many = replace(SHAPE, batch=0, neighbours=30), replace(SHAPE, batch=10_000, neighbours=30)
    users = pages["users"]
    assert footprint(CONFIG, few).parts["features.users"] == pytest.approx(users, rel=0.1)
    assert footprint(CONFIG, many).of("features") == pytest.approx(pages["file"], rel=0.15)
    assert footprint(CONFIG, few).of("features") * (1 + COPIES) > pages["file"]


def test_canary_another_shape_does_not_fit(pages: dict[str, int]) -> None:
    users = pages["users"]
    twice = replace(SHAPE, batch=0, events=2 * EVENTS, distinct=2 * SHAPE.distinct)
    assert footprint(CONFIG, twice).parts["features.users"] > 1.5 * users


def test_rows_are_those_of_the_table() -> None:
    with closing(catalogs.open("memory://", entities=CONFIG.entities)) as catalog:
        table = new_towers(CONFIG, catalog).table
    for family, count in enumerate((USERS, ITEMS, 50)):
        table.find_or_create(np.random.default_rng(family).integers(1, 2**63, count, np.uint64), family, 1_000)
    said = footprint(HAVING, replace(SHAPE, values=50)).parts
    assert said["serving.users"] + said["serving.rows"] == pytest.approx(table.explain().predicted, abs=2)
    assert said["serving.users"] == said["trainer.users"]


def test_mirrors_are_those_of_the_processes() -> None:
    said = footprint(CONFIG, SHAPE).parts
    width = Ring(CONFIG).dtype.itemsize
    assert ITEMS * (width + 16) < said["serving.mirrors"] < ITEMS * (width + 8 + 32)


def test_histories_of_users_of_whom_few_do_most() -> None:
    """Lognormal numbers of events, popular entities, sessions of three events over 90 days.
    Were all users alike, their last blocks would be so, too, and not half empty in the mean."""
    rng, users, items = np.random.default_rng(0), 10_000, 5_000
    counts = np.clip(np.round(rng.lognormal(np.log(10) - 0.5, 1.0, users)), 1, 2_000).astype(np.int64)
    user = np.repeat(np.arange(users), counts)
    opens = rng.random(len(user)) < 1 / 3
    opens[np.r_[0, np.cumsum(counts)[:-1]]] = True
    session = np.cumsum(opens)
    place = np.arange(len(user)) - np.maximum.accumulate(np.where(opens, np.arange(len(user)), 0))
    time = rng.integers(0, 90 * DAY, session[-1] + 1)[session] + 30_000 * place
    order = np.argsort(time, kind="stable")
    item = np.minimum(np.exp(rng.random(len(user)) * np.log(items + 1)).astype(np.int64), items)
    keys = rng.integers(1, 2**63, users + items + 1, np.uint64)
    n, none = len(user), np.zeros(len(user), np.uint64)
    events = EventBatch(
        time=time[order], user=keys[user][order], session=session[order].astype(np.uint64),
        entity=keys[users:][item][order], kind=np.zeros(n, np.int16), value=np.ones(n), place=none,
        offset=np.full(n, -1), canvas=none, query=none, setting=none, kinds=("purchase",),
    )  # fmt: skip
    histories = Histories()
    histories.fold(events, np.ones(n, np.uint32))
    shape = Shape(users, len(np.unique(item)), events=n / users, distinct=9, session=n / session[-1])
    assert footprint(CONFIG, shape).parts["trainer.histories"] == pytest.approx(histories.nbytes(), rel=0.1)
    assert footprint(CONFIG, replace(shape, events=3)).parts["trainer.histories"] < 0.9 * histories.nbytes()


def test_bounds_of_the_configuration_bound_it() -> None:
    bounded = CONFIG.model_copy(
        update={"features": CONFIG.features.model_copy(update={"history": 5, "items_per_user": 4})}
    )
    assert footprint(bounded, SHAPE).parts["features.users"] < footprint(CONFIG, SHAPE).parts["features.users"]
    assert (
        footprint(bounded, replace(SHAPE, events=500, distinct=300)).parts["features.users"]
        == footprint(bounded, replace(SHAPE, events=5, distinct=4)).parts["features.users"]
    )


def test_users_take_no_rows_where_they_have_none() -> None:
    less, parts = footprint(CONFIG, SHAPE).parts, footprint(HAVING, SHAPE).parts
    changed = {name for name in parts if less[name] != parts[name]}
    assert {"serving.users", "trainer.users"} <= changed
    assert less["serving.users"] == less["trainer.users"] == 0 < parts["serving.users"]
    assert less["trainer.histories"] == parts["trainer.histories"]


def test_a_world_without_anything_takes_nothing() -> None:
    assert footprint(CONFIG, Shape(users=0, items=0, events=0, distinct=0)).total == 0


def test_sums() -> None:
    found = footprint(CONFIG, SHAPE)
    assert found.total == sum(found.of(place) for place in ("features", "catalog", "serving", "trainer"))
    assert set(found.of_users()) == {"features.users", "serving.users", "trainer.users", "trainer.histories"}


def test_weights_between_items_take_what_is_kept_of_each_where_a_canvas_asks() -> None:
    asked = {"canvases": {"home": {"sources": {"item_knn": {}, "ease": {}}}}}
    config = Config.model_validate({**asked, "train": {"neighbourhoods": {"ease": {"most": 1_000, "neighbours": 30}}}})
    held = 0
    for items, neighbours in ((ITEMS, 100), (1_000, 30)):
        numbers = np.tile(np.arange(neighbours, dtype=np.uint32), items)
        kept = Neighbourhood(
            np.arange(1, items + 1, dtype=np.uint64), np.arange(items + 1) * neighbours, numbers,
            np.ones(len(numbers), np.float32),
        )  # fmt: skip
        held += sum(array.nbytes for array in kept.arrays().values())
    assert footprint(config, SHAPE).parts["serving.neighbours"] == pytest.approx(held, abs=16)
    assert footprint(CONFIG, SHAPE).parts["serving.neighbours"] == 0
