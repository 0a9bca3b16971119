"""Category -> items: the members of each category as they are now, and the popular ones of those that are asked for."""

from __future__ import annotations

import importlib
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from small_shop import Shop, config_of, ids, names_of

from mainstem.rank import categories as categories_
from mainstem.rank import sources as sources_
from mainstem.rank.categories import Categories, PopularInCategory
from mainstem.schema.config import CanvasConfig, Config, SourceConfig
from mainstem.schema.ids import key64, keys64
from mainstem.schema.records import Entity, EntityDelete

retrieve_ = importlib.import_module("mainstem.rank.retrieve")  # the folder offers a function of this name
SHELVES = ("tea", "cake", "wine", "soap")


@pytest.fixture
def shop() -> Shop:
    """Item i stands on shelf i mod 4; of each shelf the smaller numbers sell more, and all soap (3, 7 ...) less than
    anything else."""
    shop = Shop(config_of({"aisle": CanvasConfig(learns_from="category", limit=4)}))
    for i in range(40):
        shop.item(i, attributes={"category": SHELVES[i % 4]})
    for at in range(10):
        sold = [[i] * (1 if i % 4 == 3 else 11) for i in range(40) if i // 4 + at < 10]
        shop.happen(f"u{at}", *itertools.chain(*sold), day=5 + at / 10)
    return shop


def found(shop: Shop, limit: int = 10, **fields: object) -> list[str]:
    question = shop.question(**fields)
    with shop.view(question) as view:
        source = PopularInCategory(Categories(shop.catalog), window=1)
        result = source.prepare(question, view, limit, lambda keys: question.allowed(shop.catalog, keys[:0], keys))()
    assert (np.diff(result.scores) < 0).all(), "best first"
    return names_of(result.keys)


@pytest.mark.parametrize("looked_up", [4_000, 0])  # each member's popularity, or what is popular anywhere
def test_the_popular_items_of_the_category_that_is_asked_for(
    shop: Shop, looked_up: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(categories_, "LOOKED_UP", looked_up)
    assert found(shop, 3, category="cake") == ["1", "5", "9"]
    assert found(shop, 3, category="cake", user="u1") == ["1", "5", "9"]
    assert found(shop, category="beer") == []
    assert found(shop, 2, category="tea", new_only=True, exclude=["0"]) == ["0", "4"]  # the filter's work, not its own


def test_what_sold_nothing_lately_is_looked_for_in_the_longest_window(shop: Shop) -> None:
    old = Shop(shop.config)
    for i in range(8):
        old.item(i, attributes={"category": SHELVES[i % 4]})
    old.happen("u", 4, 4, 0, day=-10)  # 20 days before the request
    old.happen("u", 1, day=9)
    assert found(old, category="tea") == ["4", "0"]
    assert found(old, category="cake") == ["1"]
    assert found(old, category="wine") == []


def test_without_one_the_favourites_of_the_user_in_turn(shop: Shop) -> None:
    assert found(shop, user="stranger") == found(shop) == []
    shop.happen("reader", 38, 34, 33, day=8)  # wine, wine, then cake
    brought = found(shop, 6, user="reader")
    assert sorted(brought[:2]) == ["1", "2"]
    assert sorted(brought, key=int) == ["1", "2", "5", "6", "9", "10"]  # an equal share of each
    assert len(found(shop, 3, user="reader")) == 3


def test_a_category_page_is_of_the_category_and_popular_first_without_a_model(
    shop: Shop, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where everything in the category sells less than what the other sources look at."""
    monkeypatch.setattr(sources_, "WIDEST", 4)
    monkeypatch.setattr(retrieve_, "CATEGORY_MIX", {"popular": 4, "category": 10})
    plain = shop.pipeline(trained=False)
    for shelf, first in ((name, str(i)) for i, name in enumerate(SHELVES)):
        slate = shop.ask(plain, canvas="aisle", category=shelf)
        assert len(ids(slate)) == 4
        assert all(int(name) % 4 == int(first) for name in ids(slate))
        assert ids(slate)[0] == first
        assert slate.candidates["category"] == 10
    assert shop.ask(plain, category="soap").candidates["category"] == 10  # on any canvas
    monkeypatch.setattr(retrieve_, "CATEGORY_MIX", {"popular": 4})  # canary: the rest comes from the catalogue
    assert ids(shop.ask(plain, canvas="aisle", category="soap"))[0] != "3"


def test_a_canvas_asks_it_for_favourites_where_it_is_named(shop: Shop) -> None:
    shop.happen("reader", 38, day=8)
    named = Shop.ask(shop, user="reader")
    assert "category" not in named.candidates
    shop.config = config_of({"home": CanvasConfig(sources={"category": SourceConfig(limit=3)})})
    assert shop.ask(user="reader").candidates["category"] == 3
    assert shop.ask(user="reader", limit=3).items[0].sources == ["category"]


# ---- members -----------------------------------------------------------------------------------------


def members(categories: Categories, shelf: str) -> set[str]:
    got = categories.of(key64("item.category", shelf), 100)
    assert got is not None
    return set(names_of(got))


changes = st.lists(st.tuples(st.integers(0, 9), st.sampled_from([*SHELVES, "", None])), max_size=30)


@settings(max_examples=60, deadline=None)
@given(changes, st.integers(0, 30))
def test_members_are_those_of_the_catalogue_whatever_changed(
    changes: list[tuple[int, str | None]], known_before: int
) -> None:
    shop, oracle = Shop(), dict[str, str]()
    categories = Categories(shop.catalog)
    for at, (number, shelf) in enumerate(changes):
        name = str(number)
        if shelf is None:
            shop.add(EntityDelete(record_id=f"d{at}", time=at, entity=name))
            categories.entities_changed([], [key64("item", name)])
            oracle.pop(name, None)
        else:
            entity = Entity(record_id=f"c{at}", time=at, entity=name, attributes={"category": shelf})
            shop.add(entity)
            categories.entities_changed([entity], [])
            oracle[name] = shelf
        if at == known_before:
            categories = Categories(shop.catalog)
    for shelf in SHELVES:
        assert members(categories, shelf) == {name for name, one in oracle.items() if one == shelf}


def test_of_too_many_members_none_are_listed(shop: Shop) -> None:
    categories, tea = Categories(shop.catalog), key64("item.category", "tea")
    assert len(members(categories, "tea")) == 10
    assert categories.of(tea, 9) is None
    assert categories.among(keys64("item", ["0", "1", "unknown"]), tea).tolist() == [True, False, False]


def test_a_shop_without_categories_has_none() -> None:
    shop = Shop()
    assert Categories.open(Config(), shop.catalog) is None
    assert Categories.open(shop.config, shop.catalog) is not None
