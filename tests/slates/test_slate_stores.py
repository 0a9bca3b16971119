"""The contract of kept slates, on every store; the one in memory is the oracle of the others."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mainstem import slates
from mainstem.schema.errors import ConfigError, StoreError
from mainstem.schema.records import Slate, SlateItem
from mainstem.schema.time import DAY, now_ms
from mainstem.slates.place import place_of
from mainstem.slates.place import user_half as half

Open = Callable[..., slates.SlateStore]


def slate(name: str, time: int = 0) -> Slate:
    return Slate(request_id=name, canvas="home", time=time, items=[SlateItem(entity="a", score=0.5)])


@pytest.fixture(params=["memory", "lmdb"])
def opened(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Open]:
    """Opens stores of one kind, each empty, and closes them at the end."""
    stores: list[slates.SlateStore] = []

    def make(**bounds: int) -> slates.SlateStore:
        url = "memory://" if request.param == "memory" else f"lmdb://{tmp_path / str(len(stores))}"
        stores.append(slates.open(url, **bounds))
        return stores[-1]

    yield make
    for store in stores:
        store.close()
        store.close()


def test_what_is_kept_comes_back_whole(opened: Open) -> None:
    store = opened()
    kept = slate("r1", 5)
    store.keep("main", "home", "ann", kept, 5)
    assert store.get("main", "home", "ann", max_age=DAY, time=10) == kept
    assert len(store) == 1
    assert store.get("main", "home", "ann", max_age=DAY, time=10) == kept


def test_tenant_canvas_and_user_each_part_slates(opened: Open) -> None:
    store = opened()
    places = [("main", "home", "ann"), ("other", "home", "ann"), ("main", "feed", "ann"), ("main", "home", None)]
    for tenant, canvas, user in places:
        store.keep(tenant, canvas, user, slate(f"{tenant}/{canvas}/{user}"), 1)
    for tenant, canvas, user in places:
        found = store.get(tenant, canvas, user, max_age=DAY, time=1)
        assert found is not None
        assert found.request_id == f"{tenant}/{canvas}/{user}"
    assert store.get("main", "home", "bob", max_age=DAY, time=1) is None
    assert len(store) == len(places)


def test_a_visitor_is_not_a_user_of_any_name() -> None:
    names = ["", "None", "visitor", "user\x1f", "\x1f"]
    assert len({place_of("main", "home", name) for name in [*names, None]}) == len(names) + 1
    assert half("a", "b") != half("a\x1fb", None)


def test_age_is_measured_at_the_time_of_the_request(opened: Open) -> None:
    store = opened()
    store.keep("main", "home", "ann", slate("r"), 1_000)
    assert store.get("main", "home", "ann", max_age=500, time=1_500) is not None
    assert store.get("main", "home", "ann", max_age=500, time=1_501) is None
    assert store.get("main", "home", "ann", max_age=500, time=999) is None, "the past sees no future slate"
    assert store.get("main", "home", "ann", max_age=500) is None, "without a time it is the wall clock's"
    store.keep("main", "home", "ann", slate("now"), now_ms())
    assert store.get("main", "home", "ann", max_age=DAY) is not None


def test_the_newer_slate_stays_and_the_later_of_two_at_once(opened: Open) -> None:
    store = opened()
    for name, time in (("a", 10), ("old", 9), ("b", 10)):
        store.keep("main", "home", "ann", slate(name), time)
    found = store.get("main", "home", "ann", max_age=DAY, time=10)
    assert found is not None
    assert found.request_id == "b"
    assert len(store) == 1


def test_count_is_bounded_and_the_oldest_leave(opened: Open) -> None:
    store = opened(capacity=3)
    for time in (5, 1, 4, 2, 3):
        store.keep("main", "home", f"u{time}", slate(str(time)), time)
    assert len(store) == 3
    left = [t for t in range(1, 6) if store.get("main", "home", f"u{t}", max_age=DAY, time=9) is not None]
    assert left == [3, 4, 5]


def test_a_renewed_slate_counts_by_its_new_time(opened: Open) -> None:
    store = opened(capacity=2)
    store.keep("main", "home", "ann", slate("1"), 1)
    store.keep("main", "home", "bob", slate("2"), 2)
    store.keep("main", "home", "ann", slate("3"), 3)
    store.keep("main", "home", "eve", slate("4"), 4)
    assert len(store) == 2
    assert store.get("main", "home", "bob", max_age=DAY, time=4) is None
    assert store.get("main", "home", "ann", max_age=DAY, time=4) is not None


def test_expire_drops_by_event_time(opened: Open) -> None:
    store = opened(keep_for=10)
    for time in (1, 5, 11):
        store.keep("main", "home", f"u{time}", slate(str(time)), time)
    assert store.expire(11) == 0
    assert store.expire(15) == 1
    assert store.expire(15) == 0
    assert len(store) == 2
    assert store.expire(100) == 2
    assert len(store) == 0


def test_forget_takes_every_canvas_of_one_user_of_one_tenant(opened: Open) -> None:
    store = opened(capacity=10)
    for canvas in ("home", "feed", "search"):
        for user in ("ann", "bob", None):
            store.keep("main", canvas, user, slate("x"), 1)
    store.keep("other", "home", "ann", slate("x"), 1)
    assert store.forget("ann") == 3
    assert store.forget("ann") == 0
    assert len(store) == 7
    assert store.get("main", "feed", "ann", max_age=DAY, time=1) is None
    assert store.get("main", "feed", "bob", max_age=DAY, time=1) is not None
    assert store.get("main", "home", None, max_age=DAY, time=1) is not None
    assert store.forget("ann", tenant="other") == 1
    store.keep("main", "home", "ann", slate("y"), 2)
    assert store.expire(100 * DAY) == 7


Step = tuple[str, str, int]
steps = st.lists(
    st.tuples(
        st.sampled_from(["keep", "keep", "keep", "forget", "expire"]), st.sampled_from("abcdef"), st.integers(0, 30)
    ),
    max_size=40,
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(script=steps)
def test_the_stores_agree_on_any_history(script: list[Step], tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("slates")
    pair = [slates.open(url, capacity=4, keep_for=12) for url in ("memory://", f"lmdb://{folder}")]
    for number, (what, name, time) in enumerate(script):
        if what == "keep":
            for store in pair:
                store.keep("main", "home", name, slate(str(number)), time)
        else:
            done = [store.forget(name) if what == "forget" else store.expire(time) for store in pair]
            assert done[0] == done[1]
        sizes = {len(store) for store in pair}
        assert len(sizes) == 1
        assert sizes.pop() <= 4
    for name in "abcdef":
        found = [store.get("main", "home", name, max_age=DAY, time=30) for store in pair]
        assert found[0] == found[1]
    for store in pair:
        store.close()


def test_lmdb_survives_reopening(tmp_path: Path) -> None:
    store = slates.open(f"lmdb://{tmp_path / 'kept'}")
    store.keep("main", "home", "ann", slate("r"), 3)
    store.close()
    again = slates.open(f"lmdb://{tmp_path / 'kept'}", capacity=1)
    assert again.get("main", "home", "ann", max_age=DAY, time=3) == slate("r")
    again.keep("main", "home", "bob", slate("s"), 4)
    assert len(again) == 1, "the order of age survives too"
    assert again.get("main", "home", "ann", max_age=DAY, time=4) is None
    again.close()


def test_lmdb_writes_in_batches_and_counts_what_waits(tmp_path: Path) -> None:
    from mainstem.slates.lmdb import BATCH

    store = slates.open(f"lmdb://{tmp_path}", capacity=2 * BATCH)
    for number in range(BATCH + 5):
        store.keep("main", "home", f"u{number}", slate(str(number)), number)
        assert store.get("main", "home", f"u{number}", max_age=0, time=number) is not None
    assert len(store) == BATCH + 5
    store.close()


@pytest.mark.parametrize(
    "url", ["", "memory", "memory://x", "lmdb://", "lmdb://host/x", "redis://localhost", "lmdb:///x?y=1"]
)
def test_other_urls_are_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="lmdb:///FOLDER"):
        slates.open(url)


def test_bounds_below_one_are_refused() -> None:
    with pytest.raises(ConfigError, match="capacity"):
        slates.open(capacity=0)


def test_a_folder_that_cannot_be_made_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreError, match="kept slates"):
        slates.open(f"lmdb://{tmp_path / 'file'}")
