"""Sliding windows: in a cycle of epochs every event is a target once, and no chunk is longer than a window."""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.models.history import How, chunks

LENGTHS = st.lists(st.integers(0, 40), max_size=12).map(lambda lengths: np.array(lengths, np.int64))
WINDOWS = st.integers(1, 12)
SEEDS = st.integers(0, 2**32)
HOWS = st.sampled_from(["last", "sliding", "mixed"])


@settings(max_examples=80, deadline=None)
@given(LENGTHS, WINDOWS, SEEDS, st.integers(0, 50))
def test_in_a_cycle_of_sliding_every_event_is_a_target_once(
    lengths: np.ndarray, window: int, seed: int, first: int
) -> None:
    targets: dict[int, Counter[int]] = {user: Counter() for user in range(len(lengths))}
    for epoch in range(first, first + 40):
        for user, start, stop in zip(*chunks(lengths, window, "sliding", epoch, seed), strict=True):
            cycle = -(-(int(lengths[user]) - 1) // window)
            if epoch < first + cycle:
                targets[int(user)].update(range(int(start) + 1, int(stop)))
    for user, length in enumerate(lengths.tolist()):
        assert targets[user] == Counter(range(1, length))


@settings(max_examples=80, deadline=None)
@given(LENGTHS, WINDOWS, HOWS, st.integers(0, 50), SEEDS)
def test_each_epoch_reads_one_window_of_each_user(
    lengths: np.ndarray, window: int, how: How, epoch: int, seed: int
) -> None:
    user, start, stop = got = chunks(lengths, window, how, epoch, seed)
    assert user.tolist() == np.flatnonzero(lengths >= 2).tolist()
    assert (start >= 0).all()
    assert (stop <= lengths[user]).all()
    assert (stop - start >= 2).all()
    assert (stop - start <= window + 1).all()
    assert ((stop - start == window + 1) | (start == 0)).all()  # only the oldest is short
    again = chunks(lengths.copy(), window, how, epoch, seed)
    assert all(np.array_equal(a, b) for a, b in zip(got, again, strict=True))
    newest = chunks(lengths, window, "last", epoch, seed)
    assert (newest.stop == lengths[user]).all()
    if how == "mixed":
        want = chunks(lengths, window, "sliding", epoch // 2, seed) if epoch % 2 else newest
        assert all(np.array_equal(a, b) for a, b in zip(got, want, strict=True))


def test_the_chunks_of_the_docstring() -> None:
    got = {(int(c.start[0]), int(c.stop[0])) for e in range(2) if (c := chunks(np.array([7]), 3, "sliding", e, 0))}
    assert got == {(3, 7), (0, 4)}


def test_turns_differ_between_users_and_seeds_and_stand_when_others_grow() -> None:
    lengths = np.full(100, 101)
    turns = chunks(lengths, 10, "sliding", 0, 1).stop
    assert len(set(turns.tolist())) == 10
    assert not np.array_equal(turns, chunks(lengths, 10, "sliding", 0, 2).stop)
    grown = lengths.copy()
    grown[0], grown[5] = 1, 500
    user, _, stop = chunks(np.append(grown, 7), 10, "sliding", 0, 1)
    same = (user != 5) & (user < 100)
    assert np.array_equal(stop[same], turns[user[same]])


@pytest.mark.parametrize(("window", "epoch"), [(0, 0), (1, -1)])
def test_what_makes_no_chunk_is_refused(window: int, epoch: int) -> None:
    with pytest.raises(ValueError, match="at least"):
        chunks(np.array([3]), window, "last", epoch, 0)
