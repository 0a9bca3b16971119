"""Who took what, as the weights between items see it: against a naive form, and only where somebody asks."""

from __future__ import annotations

import sys
from collections import defaultdict

import numpy as np
import pytest
from checkerboard import CONFIG, ITEM_KEYS, ITEMS, catalog_of, purchases
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.index import Neighbourhood
from mainstem.models.neighbourhood import MOST_ITEMS
from mainstem.schema.batch import EventBatch
from mainstem.schema.config import CanvasConfig, Config, EventConfig, FeatureConfig, SourceConfig, TrainConfig
from mainstem.schema.ids import key64
from mainstem.schema.neighbourhood_config import EaseConfig, ItemKnnConfig, NeighbourhoodConfig
from mainstem.schema.records import Event
from mainstem.train.item_weights import item_weights
from mainstem.train.neighbourhoods import neighbourhoods

INTEREST = {"purchase": 1.0, "view": 0.25, "impression": 0.0}


def config_of(*sources: str, items: int = 2048, **ease: object) -> Config:
    return Config(
        events={kind: EventConfig(interest=interest) for kind, interest in INTEREST.items()},
        features=FeatureConfig(items_per_user=items),
        canvases={"home": CanvasConfig(sources={name: SourceConfig() for name in sources})},
        train=TrainConfig(
            neighbourhoods=NeighbourhoodConfig(
                item_knn=ItemKnnConfig(shrink=1.0), ease=EaseConfig.model_validate({"l2": 2.0} | ease)
            )
        ),
    )


def dense(found: Neighbourhood) -> np.ndarray:
    """float32 [ITEMS, ITEMS], rows and columns by number."""
    at = {int(key): number for number, key in enumerate(ITEM_KEYS)}
    numbers = np.array([at[int(key)] for key in found.keys], np.int64)
    weights = np.zeros((ITEMS, ITEMS), np.float32)
    rows = np.repeat(numbers, np.diff(found.offsets))
    weights[rows, numbers[found.places]] = found.weights
    return weights


def events_of(happened: list[tuple[int, int, str, int]]) -> EventBatch:
    return EventBatch.of(
        [
            Event(event_id=str(at), time=time, user=f"u{user}", kind=kind, entity=str(item))
            for at, (user, item, kind, time) in enumerate(happened)
        ],
        range(len(happened)),
    )


# Items 60 and 61 are not in the catalogue. No two events of a user at one time: which is later would be open.
HAPPENED = st.lists(
    st.tuples(st.integers(0, 3), st.sampled_from([0, 1, 2, 3, 4, 60, 61]), st.sampled_from([*INTEREST, "hide"])),
    max_size=25,
).flatmap(
    lambda some: st.permutations(range(len(some))).map(
        lambda times: [(*one, 1000 + time) for one, time in zip(some, times, strict=True)]
    )
)


@given(HAPPENED, st.integers(1, 4))
@settings(deadline=None, max_examples=60)
def test_a_user_is_the_largest_interest_of_the_latest_entities(
    happened: list[tuple[int, int, str, int]], items: int
) -> None:
    taken: dict[int, dict[int, tuple[int, float]]] = defaultdict(dict)
    for user, item, kind, time in happened:
        interest = INTEREST.get(kind, 0.0)
        if interest and item < ITEMS:
            latest, most = taken[user].get(item, (0, 0.0))
            taken[user][item] = max(latest, time), max(most, interest)
    matrix = np.zeros((4, ITEMS))
    for user, of_user in taken.items():
        for item, (_, interest) in sorted(of_user.items(), key=lambda pair: -pair[1][0])[:items]:
            matrix[user, item] = interest
    norms = np.linalg.norm(matrix, axis=0)
    cosine = matrix.T @ matrix / (np.outer(norms, norms) + 1.0)
    np.fill_diagonal(cosine, 0)
    inverse = np.linalg.inv(matrix.T @ matrix + 2.0 * np.eye(ITEMS))
    autoencoder = -inverse / np.diag(inverse)
    np.fill_diagonal(autoencoder, 0)
    config = config_of(items=items)
    found = item_weights(("item_knn", "ease"), config, events_of(happened), catalog_of())
    np.testing.assert_allclose(dense(found["item_knn"]), cosine, atol=1e-6)
    np.testing.assert_allclose(dense(found["ease"]), autoencoder, atol=1e-5)


def test_ease_knows_the_items_of_most_users() -> None:
    happened = [(user, item, "purchase", 10 * user + item) for user in range(5) for item in range(5 - user)]
    happened += [(0, 4, "purchase", 100 + again) for again in range(9)]  # often, by one user
    found = item_weights(("ease",), config_of(most=3), events_of(happened), catalog_of())["ease"]
    assert set(found.keys.tolist()) == set(ITEM_KEYS[:3].tolist())
    few = item_weights(("ease",), config_of(most=3, neighbours=1), events_of(happened), catalog_of())["ease"]
    whole = dense(found)
    assert np.diff(few.offsets).tolist() == [1, 1, 1]
    np.testing.assert_array_equal(np.abs(dense(few)).max(axis=1), np.abs(whole).max(axis=1))


def test_nothing_is_computed_where_no_canvas_names_a_source(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mainstem.train.item_weights", None)
    idle = CanvasConfig(sources={"item_knn": SourceConfig(limit=0), "popular": SourceConfig()})
    config = CONFIG.model_copy(update={"canvases": {"home": idle, "similar": CanvasConfig()}})
    assert neighbourhoods(config, purchases(2), catalog_of()) == {}
    with pytest.raises(ImportError):  # canary
        neighbourhoods(config_of("ease"), purchases(2), catalog_of())


def test_only_what_a_canvas_names_is_computed_and_it_knows_the_checkerboard() -> None:
    for name in ("item_knn", "ease"):
        found = neighbourhoods(config_of(name), purchases(), catalog_of())
        assert list(found) == [name]
        near = found[name].near(ITEM_KEYS[:6:2], np.ones(3, np.float32), ITEMS)
        numbers = [ITEM_KEYS.tolist().index(key) for key in near.keys.tolist()]
        assert len(numbers) > 20
        assert {number % 2 for number in numbers} == {0}


def test_an_empty_log_gives_weights_of_nothing() -> None:
    found = neighbourhoods(config_of("item_knn", "ease"), events_of([]), catalog_of())
    assert [len(one) for one in found.values()] == [0, 0]
    assert len(found["ease"].near(np.array([key64("item", "1")], np.uint64), np.ones(1, np.float32), 5)) == 0


def test_the_configuration_asks_for_no_more_items_than_ease_can_bear() -> None:
    EaseConfig(most=MOST_ITEMS)
    with pytest.raises(ValueError, match="less than or equal"):
        EaseConfig(most=MOST_ITEMS + 1)
