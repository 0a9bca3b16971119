"""Leave one out: what is asked, what is learned from, what is filtered; against a slow oracle."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mainstem.evaluate import next_item
from mainstem.evaluate.next_item import LeaveOneOut, hit, ndcg, ranks_of, run, segments

SMALL = LeaveOneOut(np.array([0, 1, 2, 3, 4, 0, 0, 1, 2]), np.array([0, 4, 6, 9]), 6)
"""user 0: 0 1 2 3; user 1: 4 0; user 2: 0 1 2. Item 5 occurs nowhere."""


class Told:
    """Scores as given by item; remembers what it was asked and fitted to."""

    name = "told"
    seconds = 1.0

    def __init__(self, scores: list[float]) -> None:
        self.told = np.array(scores, np.float32)
        self.fitted: list[list[int]] = []
        self.judged: list[float] = []

    def choose(self, data: LeaveOneOut, learned: np.ndarray, judge: Callable[[], float]) -> None:
        self.fitted.append(np.flatnonzero(learned).tolist())
        self.judged.append(judge())

    def refit(self, data: LeaveOneOut, learned: np.ndarray) -> None:
        self.fitted.append(np.flatnonzero(learned).tolist())

    def scores(self, data: LeaveOneOut, places: np.ndarray) -> np.ndarray:
        return np.broadcast_to(self.told, (len(places), data.items))

    def settled(self) -> Mapping[str, Any]:
        return {"asked": len(self.judged)}


# ---- who is asked for what ---------------------------------------------------------------------------


def test_the_last_action_is_the_test_and_the_one_before_it_validation() -> None:
    assert SMALL.held("test").tolist() == [3, 8]
    assert SMALL.held("validation").tolist() == [2, 7]
    assert np.flatnonzero(SMALL.learned()).tolist() == [0, 1, 4, 5, 6], "user 1 is too short to be asked: all learned"
    assert np.flatnonzero(SMALL.learned(refit=True)).tolist() == [0, 1, 2, 4, 5, 6, 7]


def test_a_recommender_sees_what_was_before_and_nothing_else() -> None:
    rows, items = SMALL.before(np.array([3, 8, 4, 6]))
    assert rows.tolist() == [0, 0, 0, 1, 1]
    assert items.tolist() == [0, 1, 2, 0, 1]


@pytest.mark.parametrize(
    ("item", "offsets", "items"),
    [
        ([0, 1], [0, 1], 2),
        ([0], [1, 1], 2),
        ([0, 1], [0, 2, 1, 2], 2),
        ([0, 2], [0, 2], 2),
        ([-1], [0, 1], 2),
        ([], [], 1),
    ],
)
def test_arrays_must_fit(item: list[int], offsets: list[int], items: int) -> None:
    with pytest.raises(ValueError, match=r"offsets|items"):
        LeaveOneOut(np.array(item, np.int64), np.array(offsets, np.int64), items)


def test_run_chooses_on_validation_and_asks_the_test() -> None:
    told = Told([6, 5, 4, 3, 2, 1])
    found = run(told, SMALL, "test", most=2)
    assert told.fitted == [[0, 1, 4, 5, 6]]
    assert told.judged == [pytest.approx((1 + 1) / 2)], "of what the user had not before, the target of each is first"
    assert found.rank.tolist() == [0, 0]
    assert found.shown.tolist() == [[3, 4], [2, 3]]
    assert (found.seconds, found.settled) == (1.0, {"asked": 1})


def test_run_refits_with_validation_for_the_test_alone() -> None:
    told = Told([6, 5, 4, 3, 2, 1])
    run(told, SMALL, "test", refit=True)
    assert told.fitted == [[0, 1, 4, 5, 6], [0, 1, 2, 4, 5, 6, 7]]
    with pytest.raises(ValueError, match="validation is learned from"):
        run(told, SMALL, "validation", refit=True)


def test_of_many_users_some_are_asked_for_a_choice_and_all_for_the_test(monkeypatch: pytest.MonkeyPatch) -> None:
    class Asked(Told):
        def __init__(self) -> None:
            super().__init__([6, 5, 4, 3, 2, 1])
            self.places: list[list[int]] = []

        def scores(self, data: LeaveOneOut, places: np.ndarray) -> np.ndarray:
            self.places.append(places.tolist())
            return super().scores(data, places)

    item = np.arange(40) % 6
    data, found = LeaveOneOut(item, np.arange(0, 41, 4), 6), []
    monkeypatch.setattr(next_item, "MOST_JUDGED", 4)
    for _ in range(2):
        asked = Asked()
        run(asked, data, "test")
        found.append(asked.places)
    assert found[0] == found[1], "the same users each time"
    judged, test = found[0]
    assert len(judged) == 4
    assert judged == sorted(set(judged))
    assert set(judged) < set(data.held("validation").tolist())
    assert test == data.held("test").tolist()
    monkeypatch.setattr(next_item, "MOST_JUDGED", 10)
    asked = Asked()
    run(asked, data, "test")
    assert asked.places[0] == data.held("validation").tolist(), "as many as there are: all"


def test_nobody_to_ask() -> None:
    with pytest.raises(ValueError, match="nobody"):
        run(Told([1, 1]), LeaveOneOut(np.array([0, 1]), np.array([0, 2]), 2), "test")


# ---- ranking ---------------------------------------------------------------------------------------


def test_ties_go_to_the_lower_place() -> None:
    told = Told([0, 0, 0, 0, 0, 0])
    assert ranks_of(told.scores, SMALL, np.array([3, 8]), seen="keep").tolist() == [3, 2]
    assert ranks_of(told.scores, SMALL, np.array([3, 8])).tolist() == [0, 0], "what stood before was had"


def test_the_target_is_never_filtered() -> None:
    again = LeaveOneOut(np.array([2, 0, 2]), np.array([0, 3]), 3)
    told = Told([1, 9, 0])
    assert ranks_of(told.scores, again, np.array([2])).tolist() == [1], "0 was had; 1 and the target are left"
    assert ranks_of(told.scores, again, np.array([2]), seen="keep").tolist() == [2]


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        ranks_of(Told([1, 1, 1, 1, 1, bad]).scores, SMALL, np.array([3]))


def test_scores_must_be_of_every_item() -> None:
    with pytest.raises(ValueError, match=r"\[1, 6\], not \[1, 5\]"):
        ranks_of(lambda data, places: np.zeros((len(places), 5), np.float32), SMALL, np.array([3]))


def slow_rank(history: list[int], target: int, scores: list[float], keep: bool) -> int:
    """By sorting the whole catalogue."""
    ranked = sorted(range(len(scores)), key=lambda item: (-scores[item], item))
    return [item for item in ranked if keep or item == target or item not in history].index(target)


@given(st.data())
def test_ranks_agree_with_sorting_the_catalogue(drawn: st.DataObject) -> None:
    items = drawn.draw(st.integers(1, 8))
    users = drawn.draw(st.lists(st.lists(st.integers(0, items - 1), min_size=1, max_size=6), min_size=1, max_size=6))
    scores = [
        [float(x) for x in drawn.draw(st.lists(st.integers(0, 3), min_size=items, max_size=items))] for _ in users
    ]
    keep = drawn.draw(st.booleans())
    data = LeaveOneOut(np.concatenate(users), np.cumsum([0, *map(len, users)]), items)
    places = data.held("test")
    asked = [number for number, user in enumerate(users) if len(user) >= 3]
    rows = iter(asked)

    def told(data: LeaveOneOut, places: np.ndarray) -> np.ndarray:
        return np.array([scores[next(rows)] for _ in places], np.float32).reshape(len(places), items)

    found = ranks_of(told, data, places, seen="keep" if keep else "filter").tolist()
    assert found == [slow_rank(users[n][:-1], users[n][-1], scores[n], keep) for n in asked]


def test_metrics_of_ranks() -> None:
    rank = np.array([0, 1, 9, 10])
    assert hit(rank, 10).tolist() == [1, 1, 1, 0]
    assert ndcg(rank, 10).tolist() == pytest.approx([1, 1 / np.log2(3), 1 / np.log2(11), 0])
    assert hit(rank, 1).tolist() == [1, 0, 0, 0]


# ---- segments --------------------------------------------------------------------------------------


def test_cold_and_seen_targets_are_told() -> None:
    users = [[0, 1, 5], [0, 2, 0], [0, 1, 2, 1, 3], [0, 3, 1, 2, 4, 0, 2, 1]]
    data = LeaveOneOut(np.concatenate(users), np.cumsum([0, *map(len, users)]), 6)
    places, learned = data.held("test"), data.learned()
    found = {name: mask.tolist() for name, mask in segments(data, places, learned).items()}
    assert found["all"] == [True] * 4
    assert found["cold targets"] == [True, False, False, False], "5 is nobody's but the first user's last"
    assert found["seen targets"] == [False, True, False, True]
    assert found["without cold and seen targets"] == [False, False, True, False]
    assert found["light users"] == [True, True, False, False]
    assert found["heavy users"] == [False, False, True, True]


def test_the_long_tail_is_what_is_not_popular() -> None:
    users = [[0, 0, 0, 1, 2, 0], [0, 3, 4, 1, 2, 3]]
    data = LeaveOneOut(np.concatenate(users), np.cumsum([0, *map(len, users)]), 5)
    found = segments(data, data.held("test"), data.learned())
    assert found["popular targets"].tolist() == [True, False], "the fifth that is taken most is item 0"
    assert found["long tail targets"].tolist() == [False, True]


def test_users_of_one_length_are_light() -> None:
    data = LeaveOneOut(np.tile([0, 1, 2], 3), np.arange(0, 10, 3), 3)
    found = segments(data, data.held("test"), data.learned())
    assert found["light users"].all()
    assert not found["heavy users"].any()
