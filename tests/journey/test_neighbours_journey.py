"""Weights between items in the product: trained from the log, named by slates, read with the history of now."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from scipy.sparse import csr_matrix
from test_loop import CONFIG, NOW, THINGS, USERS, checkerboard, own_parity, purchase

from mainstem.index import Neighbourhood
from mainstem.loop import Loop
from mainstem.models.neighbourhood import ease, item_knn, strongest
from mainstem.schema.config import CanvasConfig, Config, SourceConfig, TrainConfig
from mainstem.schema.ids import keys64
from mainstem.schema.neighbourhood_config import EaseConfig, ItemKnnConfig, NeighbourhoodConfig
from mainstem.schema.records import Context, Event, Slate, SlateRequest
from mainstem.schema.time import HOUR

SOURCES = ("item_knn", "ease")


def config_of(*sources: str) -> Config:
    asking = CanvasConfig(limit=60, sources={name: SourceConfig(limit=20) for name in (*sources, "popular")})
    return Config(
        entities=CONFIG.entities, features=CONFIG.features, canvases={"home": asking, "similar": asking},
        model=CONFIG.model,
        train=TrainConfig(
            retrieval_batch=256, retrieval_epochs=1, ranking_slates=60, ranking_epochs=1, ranking_batch=4,
            neighbourhoods=NeighbourhoodConfig(
                item_knn=ItemKnnConfig(neighbours=30, shrink=2.0), ease=EaseConfig(neighbours=30, l2=5.0, most=100)
            ),
        ),
    )  # fmt: skip


ASKED = config_of(*SOURCES)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a log and a model that has learned from it, to be copied."""
    folder = tmp_path_factory.mktemp("neighbours")
    with Loop(ASKED, folder) as loop:
        loop.append(checkerboard())
        loop.train()
    return folder


@pytest.fixture
def folder(trained: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "shop"))


@pytest.fixture
def loop(folder: Path) -> Iterator[Loop]:
    with Loop(ASKED, folder) as loop:
        yield loop


def ask(loop: Loop, user: str | None = None, **context: object) -> Slate:
    asked = Context(user=user, time=NOW, **context)  # type: ignore[arg-type]
    return loop.slate(SlateRequest(context=asked, deadline_ms=10_000, after=str(loop.end())))


def brought(slate: Slate, source: str) -> set[str]:
    return {item.entity for item in slate.items if source in item.sources}


def reasons(slate: Slate) -> dict[str, str]:
    return {one.what: one.why for one in slate.degraded}


def files(folder: Path) -> dict[str, Path]:
    """The kept weights by source, of the newest snapshot."""
    with Loop(ASKED, folder) as loop:
        store = loop.parts.snapshots
        named = store.neighbours.named(store.manifest("main", store.versions("main")[-1]).extras)
        return {
            source: store.root / "main" / "neighbours" / f"{file.sha256}.safetensors" for source, file in named.items()
        }


def purchases() -> tuple[csr_matrix, list[str]]:
    """Who bought what, as the log has it, and the items of its columns."""
    events = [record for record in checkerboard() if isinstance(record, Event)]
    items = sorted({str(event.entity) for event in events}, key=lambda item: int(keys64("item", [item])[0]))
    matrix = np.zeros((USERS, len(items)), np.float32)
    for event in events:
        matrix[int(event.user[1:]), items.index(str(event.entity))] = 1.0
    return csr_matrix(matrix), items


def test_a_slate_names_them_and_they_bring_what_such_users_take(loop: Loop) -> None:
    for user in range(4):
        slate = ask(loop, f"u{user}")
        assert not slate.degraded
        for source in SOURCES:
            assert len(brought(slate, source)) == 20
            assert {int(item) % 2 for item in brought(slate, source)} == {user % 2}


def test_what_is_served_is_what_the_weights_say_offline(loop: Loop) -> None:
    taken, items = purchases()
    popular = np.sort(np.argsort(-np.asarray(taken.sum(axis=0)).ravel(), kind="stable")[:100])
    keys, settings = keys64("item", items), ASKED.train.neighbourhoods
    offline = {
        "item_knn": (keys, item_knn(taken, shrink=2.0, neighbours=30), taken),
        "ease": (keys[popular], strongest(ease(taken[:, popular], l2=5.0), 30), taken[:, popular]),
    }
    assert settings.ease.most < len(items) == THINGS  # canary: the bound cuts
    ask(loop, "u0")  # the state has caught up with the log
    answers = loop.parts.keeper.current().answers
    for source, (known, weights, rows) in offline.items():
        served = answers.neighbourhood(source)
        wanted = (rows @ weights).toarray()
        for user in range(USERS):
            with loop.parts.features.view(Context(user=f"u{user}", time=NOW)) as view:
                mine = np.unique(view.history().entity)
            assert len(mine) == rows[user].nnz or source == "ease"
            found = served.near(mine, np.ones(len(mine), np.float32), len(known))
            scores = dict(zip(found.keys.tolist(), found.scores.tolist(), strict=True))
            got = np.array([scores.get(int(key), 0.0) for key in known])
            np.testing.assert_allclose(got, np.maximum(wanted[user], 0), rtol=1e-4, atol=1e-6)


def test_a_new_event_changes_the_next_slate(loop: Loop) -> None:
    newcomer = USERS + 1
    assert not any(brought(ask(loop, f"u{newcomer}"), source) for source in SOURCES)
    loop.append([purchase(newcomer, 7, NOW - HOUR)])
    first = ask(loop, f"u{newcomer}")
    for source in SOURCES:
        assert brought(first, source)
        assert {int(item) % 2 for item in brought(first, source)} == {1}
    # one that `ease` knows: it is among the 100 that most users took
    loop.append([purchase(newcomer, 4, NOW - HOUR + 1)])
    second = ask(loop, f"u{newcomer}")
    for source in SOURCES:
        assert {int(item) % 2 for item in brought(second, source)} == {0, 1}


def test_related_items_start_from_the_source(loop: Loop) -> None:
    slate = ask(loop, canvas="similar", sources=["4"])
    for source in SOURCES:
        assert brought(slate, source)
        assert {int(item) % 2 for item in brought(slate, source)} == {0}
    assert own_parity(slate, 0) > 0.5


@pytest.mark.parametrize("how", ["flipped", "cut", "missing"])
def test_a_damaged_file_costs_its_source_alone_and_the_slate_says_so(folder: Path, how: str) -> None:
    path = files(folder)["ease"]
    whole = path.read_bytes()
    match how:
        case "flipped":
            path.write_bytes(whole[:100] + bytes([whole[100] ^ 4]) + whole[101:])
        case "cut":
            path.write_bytes(whole[:-1])
        case "missing":
            path.unlink()
    with Loop(ASKED, folder) as loop:
        slate = ask(loop, "u1")
        assert "run `mainstem train`" in reasons(slate)["ease"]
        assert slate.dense_version
        assert brought(slate, "item_knn")
        assert len(slate.items) > 20
        loop.train()
        assert not ask(loop, "u1").degraded
        assert brought(ask(loop, "u1"), "ease")


def test_a_canvas_that_asks_for_it_later_waits_for_the_next_training(folder: Path) -> None:
    with Loop(config_of(), folder) as loop:
        assert loop.parts.keeper.current().answers.neighbourhoods == {}  # what no canvas names is not loaded
        loop.train()
    assert files(folder) == {}
    with Loop(ASKED, folder) as loop:
        assert "trained without it" in reasons(ask(loop, "u1"))["item_knn"]


def test_a_rollback_brings_back_the_weights_of_then_and_retention_lets_go_of_the_last(folder: Path) -> None:
    first = files(folder)
    with Loop(ASKED, folder) as loop:
        store = loop.parts.snapshots
        version = store.versions("main")[-1]
        before = brought(ask(loop, "u2"), "item_knn")
        loop.append([purchase(user, 2 * (user % 6) + 1, NOW - HOUR + user, f"odd-{user}") for user in range(USERS)])
        loop.train()
        now = loop.parts.keeper.current().answers.neighbourhood("item_knn")
        store.rollback("main", version)
        assert loop.parts.keeper.refresh()
        then = loop.parts.keeper.current().answers.neighbourhood("item_knn")
        assert isinstance(then, Neighbourhood)
        assert len(then.weights) != len(now.weights) or not np.array_equal(then.weights, now.weights)
        assert before & brought(ask(loop, "u2"), "item_knn")
        assert len(list((store.root / "main" / "neighbours").iterdir())) == 4
        store.keep("main", 1)
        kept = set((store.root / "main" / "neighbours").iterdir())
    assert kept == set(first.values()) == set(files(folder).values())
