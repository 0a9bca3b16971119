"""Changes of stretches one after the other are those of all of them at once."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from mainstem.weights import Changes

KEYS = st.lists(st.integers(1, 8), unique=True)


def changes(touched: list[int], deleted: list[int]) -> Changes:
    gone = sorted(set(deleted) - set(touched))
    return Changes(np.array(sorted(touched), np.uint64), np.array(gone, np.uint64))


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(KEYS, KEYS), max_size=5))
def test_what_happened_to_a_key_last_counts(stretches: list[tuple[list[int], list[int]]]) -> None:
    parts = [changes(touched, deleted) for touched, deleted in stretches]
    there: dict[int, bool] = {}
    for part in parts:
        there |= dict.fromkeys(part.deleted.tolist(), False) | dict.fromkeys(part.touched.tolist(), True)
    merged = Changes.merged(parts)
    assert merged.touched.tolist() == sorted(key for key, written in there.items() if written)
    assert merged.deleted.tolist() == sorted(key for key, written in there.items() if not written)
    assert merged.touched.dtype == merged.deleted.dtype == np.uint64


def test_no_stretch_changed_nothing() -> None:
    assert not len(Changes.merged([]).touched)
    last = Changes.merged([changes([1, 2], [3]), changes([3], [1])])  # canary: not a mere union
    assert (last.touched.tolist(), last.deleted.tolist()) == ([2, 3], [1])
