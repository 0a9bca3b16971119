"""Peers find what they can know, choose on validation, and take what is missing calmly."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from mainstem.evaluate.next_item import LeaveOneOut, Outcome, ndcg, run
from mainstem.evaluate.peers import PEERS, Tuned, ease, ials
from mainstem.evaluate.peers.matrix import histories, interactions
from mainstem.schema.errors import MissingExtra, NotReady

WORLDS, EACH = 4, 12


def worlds() -> LeaveOneOut:
    """Users of four kinds, each of which takes items of its own kind alone, in no order."""
    rng = np.random.default_rng(0)
    users = [kind * EACH + rng.permutation(EACH)[:8] for kind in range(WORLDS) for _ in range(30)]
    return LeaveOneOut(np.concatenate(users), np.arange(0, 8 * len(users) + 1, 8), WORLDS * EACH)


def asked(name: str, seed: int = 0) -> Outcome:
    return run(PEERS[name].new(name, seed), worlds(), "test")


@pytest.mark.parametrize("name", ["item-knn", "ease"])
def test_a_peer_finds_the_kind_of_a_user(name: str) -> None:
    assert (asked(name).rank < EACH - 7).all(), "of its kind a user has not had five, one of them the target"
    assert (asked("popularity").rank >= EACH - 7).mean() > 0.5, "canary: who knows no users does not"


def test_factors_find_the_kind_of_a_user() -> None:
    pytest.importorskip("implicit", reason="implicit is of the extra `peers`")
    # as many factors as kinds: more could tell users apart
    peer = Tuned("ials", ials.fit, ({"factors": WORLDS, "regularization": 0.1, "alpha": 10.0},), 0)
    assert (run(peer, worlds(), "test").rank < EACH - 7).mean() > 0.9


def test_popularity_counts_what_is_learned_from() -> None:
    data = LeaveOneOut(np.array([2, 2, 2, 0, 1, 0, 1]), np.array([0, 3, 7]), 3)
    peer = PEERS["popularity"].new("popularity")
    found = run(peer, data, "test")
    # learned from are 2 of the first user, 0 and 1 of the second: all once, so places decide
    assert peer.scores(data, np.array([2])).tolist() == [[1, 1, 1]]
    assert found.rank.tolist() == [2, 0], "0 was had by the second user"


def test_matrices_hold_each_item_once() -> None:
    data = LeaveOneOut(np.array([1, 1, 2, 0, 0]), np.array([0, 3, 5]), 3)
    assert interactions(data, np.ones(5, np.bool_)).toarray().tolist() == [[0, 1, 1], [1, 0, 0]]
    assert histories(data, np.array([2, 3])).toarray().tolist() == [[0, 1, 0], [0, 0, 0]]


def test_the_best_on_validation_stays() -> None:
    data = worlds()
    fitted: list[Mapping[str, Any]] = []

    def fit(data: LeaveOneOut, learned: np.ndarray, /, *, sign: float) -> Any:
        fitted.append({"sign": sign, "learned": int(learned.sum())})
        weights = sign * interactions(data, learned).T @ interactions(data, learned)
        return lambda data, places: (histories(data, places) @ weights).toarray()

    peer = Tuned("signed", fit, ({"sign": -1.0}, {"sign": 1.0}, {"sign": -2.0}))
    outcome = run(peer, data, "test", refit=True)
    assert outcome.settled["sign"] == 1.0
    assert [each["sign"] for each in outcome.settled["validation"]] == [-1.0, 1.0, -2.0]
    assert fitted[-1] == {"sign": 1.0, "learned": int(data.learned(refit=True).sum())}
    assert ndcg(outcome.rank, 10).mean() > 0.3
    with pytest.raises(RuntimeError, match="was not fitted"):
        Tuned("new", fit, ({"sign": 1.0},)).scores(data, data.held("test"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "implicit.cpu.als", None)
    data = worlds()
    with pytest.raises(MissingExtra, match=r"mainstem\[peers\]"):
        ials.fit(data, data.learned(), factors=8, regularization=0.1, alpha=1.0)


def test_a_catalogue_can_be_too_large_for_every_pair() -> None:
    data = LeaveOneOut(np.array([0, 1, 2]), np.array([0, 3]), 10**6)
    with pytest.raises(NotReady, match="1,000,000 items"):
        ease.fit(data, data.learned(), l2=1.0)
